"""Adapting a model to a place: descriptors with less of what changes within a place, by night and viewpoint.

adapt.py      how much of what varies goes, judged on images that nothing was learnt from
held_out.py   images that are asked for and not learnt from, and how many of them are found
short.py      short descriptors of few images
variation.py  directions in which descriptors of one place differ
"""
