"""Backbones: images to maps of local descriptors. A new one is a file in this folder and a line in the table.

This table needs no torch, so that the command line can read it. The file of an entry has

    build(arch, channels) -> Backbone            see base.py
    published(arch, weights) -> Published        see base.py
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A backbone that --arch names.

    Attributes:
        module: its file in this folder.
        weights: what --weights is unless the user says otherwise.
        dim: D, the length of a local descriptor, unless filters are pruned.
        layers: names at which --trainFrom can cut, from the image on; everything below the cut is frozen.
        train_from: the first layer that is trained when training starts from pretrained weights.
    """

    module: str
    weights: str
    dim: int
    layers: tuple[str, ...]
    train_from: str


# The paper trains the last block of VGG16, the last layer of AlexNet. Its VGG16 is Oxford's network, which torchvision
# calls IMAGENET1K_FEATURES. Layers have the names of the papers of Simonyan and Zisserman, and of Krizhevsky et al.
VGG16_LAYERS = tuple(
    f"conv{block}_{number}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for number in range(1, count + 1)
)
ALEXNET_LAYERS = tuple(f"conv{number}" for number in range(1, 6))

BACKBONES = {
    "vgg16": Entry("cnn", "IMAGENET1K_FEATURES", 512, VGG16_LAYERS, "conv5_1"),
    "alexnet": Entry("cnn", "IMAGENET1K_V1", 256, ALEXNET_LAYERS, "conv5"),
    # Of imported MATLAB models.
    "alexnet_caffe": Entry("caffe", "none", 256, ALEXNET_LAYERS, "conv5"),
    "alexnet_caffe_ceil": Entry("caffe", "none", 256, ALEXNET_LAYERS, "conv5"),
    "vgg16_ceil": Entry("caffe", "IMAGENET1K_FEATURES", 512, VGG16_LAYERS, "conv5_1"),
}


def default_train_from(arch: str, from_scratch: bool, pruned: bool) -> str:
    """The first layer that is trained unless --trainFrom says otherwise: the first of all of a backbone with random
    weights, and of a pruned one, which has lost filters everywhere."""
    entry = BACKBONES[arch]
    return entry.layers[0] if from_scratch or pruned else entry.train_from
