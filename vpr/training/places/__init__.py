"""Places to train on: groups of images that show the same.

place_set.py  what a training on batches of places takes: images by place
"""
