"""The network: backbone, pooling, whitening, number formats, exported files."""
