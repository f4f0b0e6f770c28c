"""Condition means, and sessions of a camera: what images that were taken alike tell of each other.

centring.py    queries minus the mean of their condition, the map minus its own; and a search among the latter
means_file.py  the means of conditions that were learnt for a map, in a file beside its index
session.py     the last frames of one camera, by which the next is searched
"""
