"""The network: backbone, pooling, whitening, number formats, exported files.

backbones/           images to maps of local descriptors
matlab/              models of the MATLAB release of NetVLAD: what is in their files, and what it becomes here
poolings/            maps of local descriptors to one descriptor
card.py              what an exported model says of itself, stored inside the ONNX file
describer.py         what the rest asks of a model, whether PyTorch or ONNX Runtime runs it
engines.py           inference engines: who computes a backbone where no gradients are wanted (--backend)
flops.py             arithmetic and memory of a network on one image, from shapes
hub_model.py         descriptor models of others, by torch.hub (--model=hub:...)
local_projection.py  what projects local descriptors to the dimensions that tell them apart
nnpack.py            convolutions in float32 by NNPACK or by PyTorch, whichever is faster
normalization.py     what a backbone expects of its input
onnx_model.py        exported models: one .onnx file from images as bytes to descriptors, run by ONNX Runtime
pca.py               principal components: the directions in which data differ most, to which it projects
place_model.py       the model: images [B, 3, H, W] -> backbone -> pooling -> whitening -> descriptors
spec.py              what a model is: backbone, weights, pooling
weights.py           pretrained weights: their names and hashes, and which tensors of a file are a backbone's values
weights_file.py      the tensors of a file of weights, whoever wrote it
whitening.py         PCA whitening (section 5.1)
"""
