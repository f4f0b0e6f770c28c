"""Poolings: maps of local descriptors to one descriptor. NetVLAD itself is netvlad.py."""
