"""Smaller models: pruning, reconstruction, ONNX export and quantisation.

onnx_export.py     Models as ONNX files: float32, float16 and calibrated int8
pruning.py         drop the filters of a trained backbone that matter least
reconstruction.py  After pruning: what is left learns to give what it gave before. That takes images, but no positions
"""
