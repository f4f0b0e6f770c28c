"""The network: backbone, pooling, whitening, number formats, exported files.

backbones/           images to maps of local descriptors
matlab/              Models of the MATLAB release of NetVLAD: what is in their files, and what it becomes here
poolings/            maps of local descriptors to one descriptor
card.py              What an exported model says of itself, stored inside the ONNX file
describer.py         What the rest asks of a model, whether PyTorch or ONNX Runtime runs it
flops.py             arithmetic and memory of a network on one image, from shapes
local_projection.py  local descriptors projected to the dimensions that tell them apart
nnpack.py            convolutions in float32 by NNPACK or by PyTorch, whichever is faster
normalization.py     What a backbone expects of its input
onnx_model.py        Exported models: one .onnx file from images as bytes to descriptors, run by ONNX Runtime
pca.py               principal components: the directions in which data differ most
place_model.py       the model: images [B, 3, H, W] -> backbone -> pooling -> whitening -> descriptors
spec.py              what a model is: backbone, weights, pooling
weights.py           Pretrained weights: names, files, downloads and hashes
weights_file.py      the tensors of a file of weights, whoever wrote it
weights_names.py     Which of the tensors of a file are the values of a backbone, whatever stands before their names
whitening.py         PCA whitening (section 5.1)
"""
