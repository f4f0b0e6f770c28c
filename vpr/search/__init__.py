"""Nearest database descriptors, exact and approximate, by each data set's protocol."""
