"""Smaller models: pruning, reconstruction, ONNX export and quantisation.

onnx_export.py     models as ONNX files: float32, float16 and calibrated int8
onnx_graph.py      their graphs rewritten: padding inside convolutions, nodes that nothing reads
pruning.py         drop the filters of a trained backbone that matter least
reconstruction.py  after pruning: the filters left are refitted to what they gave before
"""
