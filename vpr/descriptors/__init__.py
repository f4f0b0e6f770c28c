"""The network over a set of photos: descriptors, the trunk cache, the vocabulary."""
