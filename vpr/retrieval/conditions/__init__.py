"""Condition means: descriptors of a session, such as one at night, without what all of them share.

centring.py    queries minus the mean of their condition, the map minus its own; and a search among the latter
means_file.py  the means of conditions that were learnt for a map, in a file beside its index
"""
