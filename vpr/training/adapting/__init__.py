"""Adapting a model to a place: descriptors without what changes within a place, by night, weather and viewpoint.

adapt.py      how many directions of variation go, judged on images that nothing was learnt from
held_out.py   images that are asked for and not learnt from, and how many of them are found
variation.py  directions in which descriptors of one place differ
"""
