"""Weakly supervised training: mining, losses, steps, state, validation.

choices.py       Objectives, optimisers and schedules of the learning rate, by name (--loss, --optim, --schedule)
distilling.py    the objective of a teacher's cosines
log.py           What a training leaves to look at: metrics.csv, TensorBoard, console lines
losses.py        the ranking loss of a batch of tuples
mining.py        Hard negative mining (the paper's appendix on training): which images make a query's tuple
objective.py     What a training learns from: which images are a batch, and the loss of their descriptors
adapting/        a model with less of what changes within places, which needs no steps
place_batches.py  the objective of batches of places
places/          places to train on, and which of them look alike
recipes.py       flags by which others trained (--recipe)
rules.py         The rules of a training: how long, how fast, on which tuples
state.py         What a training is made of between two steps, and how it goes into a checkpoint and comes back
trainer.py       a training: epochs, steps, validation, checkpoints
training_set.py  The training split: what may be a query's positive, and what may not be its negative
triplets.py      the paper's objective: tuples of query, positive and hard negatives
tuples.py        a query with its positive and hard negatives, and batches of these
validation.py    which epoch's model is the best one, and its recalls on the test split
views/           the same images at night, in other weather, partly hidden, from a step aside
"""
