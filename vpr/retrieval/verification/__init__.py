"""Geometric verification: do the keypoints of a query and of a hit agree with one camera's movement?

chance.py     What a query has in common with database images that were drawn at random: what more tells something
head.py       one small regression over all scores of a hit, each standardised over the hits of its query
kept.py       keypoints of a database's images, in a file beside its index; matches of a list of pairs, for hloc
keypoints.py  keypoints of an image by the network XFeat, in 8 bits
layers.py     XFeat's layers by an inference engine
pairs.py      matches of two images' keypoints, and those that agree with one fundamental matrix
"""
