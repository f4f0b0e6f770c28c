"""Visual place recognition: the packages in the order of the pipeline.

data          which images, where taken; files to batches
models        the network: backbones, poolings, weights, whitening
descriptors   the network over a set of images
search        the nearest of a database
evaluation    Recall@N; report shows it
training, compression
artifacts     what one command leaves for the next
modes         one file for each --mode; cli reads the command line; api serves other code
"""
