"""The network over a set of images: descriptors, the trunk cache, the vocabulary.

batches.py          the network over many images: batches that fit into memory, shared by processes
describe.py         images -> one descriptor each, and their local descriptors where these are wanted
frozen_features.py  what the frozen layers made of each image, as a source of images whose first layers are done
local_file.py       local descriptors in a file of which only the images asked for are read
local_maps.py       local descriptors of many images, in 8 bits, for re-ranking
trunk_cache.py      what the frozen layers make of each image, computed once and kept: --trunkCache
vocabulary.py       the vocabulary: local descriptors sampled from training images, and their k-means
"""
