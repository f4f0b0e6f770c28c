"""Backbones: images to maps of local descriptors. A new one is a file in this folder and a line in the table.

base.py          What every backbone answers, and how one is found by its name
caffe.py         networks as Caffe computes them: the MATLAB release's CaffeNet and VGG16
cnn.py           VGG16 and AlexNet of torchvision, cut after the last convolution, each layer a stage
convolutions.py  of timm's networks in other forms: what can be exported, what does not crash in training
positions.py     position embeddings of a vision transformer on a grid of another size, by bicubic interpolation
timm_model.py    Backbones of timm: any of its networks by name, cut where the map of local descriptors is taken
timm_names.py    names of timm's networks, their published weights, and what these expect
timm_cuts.py     how networks of timm are cut into stages: what lies above the cut is left out
vit_stages.py    Stages of a vision transformer of timm: embedding, blocks, last norm, map
whole.py         a network of timm of a family without a plan of its own, as a whole
"""

from dataclasses import dataclass

from vpr.common.errors import UserError


@dataclass(frozen=True)
class Entry:
    """A backbone that --arch names."""

    module: str  # its file in this folder
    weights: str  # the default of --weights
    dim: int  # D, the length of a local descriptor, unless filters are pruned
    layers: tuple[str, ...]  # names at which --trainFrom can cut, from the image on; everything below the cut is frozen
    train_from: str  # the first layer that is trained when training starts from pretrained weights
    # Where a backbone of timm ends: the stride of the map in pixels, or of a vision transformer the number of the last
    # block, from 0; None where it cannot be chosen.
    cut: int | None = None
    # What of a vision transformer's last block makes the map, one of `FACETS`; None of other backbones.
    facet: str | None = None


FACETS = ("token", "key", "query", "value")

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


def entry_of(arch: str, cut: int | None = None, facet: str | None = None) -> Entry:
    """What is known of a backbone without its weights.
    `cut`: see `Entry`; None is the backbone's default, a negative number counts blocks from the end. `facet`: see
    `Entry`; None is the default.
    Raises a UserError: no backbone has this name, or it has no such cut or facet."""
    if arch not in BACKBONES:
        from vpr.models.backbones.timm_model import entry

        return entry(arch, cut, facet)
    for flag, value in (("cut", cut), ("facet", facet)):
        if value is not None:
            raise UserError(
                f"--{flag}={value} is for backbones of timm, {arch} always ends with its last convolution: "
                f"drop --{flag}, or give another --arch"
            )
    return BACKBONES[arch]
