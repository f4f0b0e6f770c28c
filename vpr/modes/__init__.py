"""One file for each --mode: read the options, call the stages, print and write.

adapt.py         a model fitted to one's own place: less of what changes within places is in its descriptors
cluster.py       k-means of local descriptors from training images, the vocabulary NetVLAD starts from
compare.py       several models on one split, side by side: recall against size, arithmetic and time
export.py        a run or the off-the-shelf model as one self-contained ONNX file, in float32, float16 or int8
import_model.py  a run from a model of the MATLAB release of NetVLAD; `vpr.models.matlab` says what is in its files
index.py         a database described once, for --mode=locate, hloc and COLMAP, which follows its folder
locate.py        where were these images taken? The nearest of a database, their places, and how sure that is
prune.py         a smaller run from a trained one; `vpr.compression.pruning` says how
serve.py         a model and a database, loaded once, that answer over HTTP where images were taken
spec.py          a folder's positions as dbStruct .mat specs, or the positions of images of specs as a table
test.py          describe, search, and count Recall@N of a trained or an off-the-shelf model
train.py         weakly supervised training, new or resumed; `vpr.training.trainer` says how it goes
whiten.py        learn PCA whitening of a model's descriptors on training database images
"""
