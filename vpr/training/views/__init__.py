"""Views of training images: the same place at night, in other weather, partly hidden, from a step aside.

A view is a function `name(image, generator)`, both images uint8 [H, W, 3]; what is random is drawn from the generator
alone, since torch's random state, from which torchvision's transforms draw, is shared by the threads that decode.

augmentations.py  changes that any image may have: of colour and sharpness, hidden parts, another viewpoint
choices.py        views by name, and an image's views by a seed
conditions.py     night, rain and another season
reader.py         a reader of images that gives their views too
"""
