"""Backbones: photos to maps of local descriptors."""
