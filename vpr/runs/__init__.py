"""What a run leaves on the disk: checkpoints, models, centroids, descriptors.

centroids.py         The vocabulary: k-means centres of local descriptors, in a file that says what made them
descriptors_file.py  descriptors of a split in an HDF5 file (--saveDescriptors)
hloc.py              files that hloc and COLMAP read
local_projection.py  On what the projection of a model's local descriptors is learnt
model.py             a model with what is known of where it comes from; one of an exported file
pytorch_model.py     models that PyTorch runs: of a run's checkpoint, or off the shelf, each with its whitening
run.py               Runs: the folder a training leaves behind, its flags and its checkpoints
stored.py            whether a path is a run or an exported file, and the model in either
"""
