"""Smaller models: pruning, reconstruction, ONNX export and quantisation."""
