"""The network over a set of images: descriptors, the trunk cache, the vocabulary."""
