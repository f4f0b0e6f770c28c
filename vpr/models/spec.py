"""What a model is: backbone, weights, pooling. Read from flags, stored beside checkpoints; needs no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from vpr.common.errors import UserError
from vpr.common.settings import MODEL, TRAINING, all_but, count, flag, flags_in, signed_number, values_of, whole_number
from vpr.models.backbones import BACKBONES, FACETS, entry_of

DEFAULT_SEED = 123
POOL = "pool"  # the layer after the backbone's, in --trainFrom
MAP = "map"  # likewise, the last of the pooling's: the map of --clusterDim
HUB = "hub:"  # before the name of a model of torch.hub


def backbone_name(text: str) -> str:
    """Reads a backbone of the table, or NAME or NAME.TAG of timm, imported for these alone.

    A name without its sizes stays as it is typed; see `vpr.models.backbones.timm_names.completed`.
    """
    if text in BACKBONES:
        return text
    from vpr.models.backbones.timm_names import completed, split_tag

    try:
        completed(split_tag(text)[0])
    except UserError as error:
        raise ValueError(str(error)) from error
    return text


def stored_backbone_name(text: str) -> str:
    """As `backbone_name`; whether timm has such a network turns out when it is built, if ever: an export is."""
    if not re.fullmatch(r"[\w.-]+", text):
        raise ValueError("wanted the name of a backbone")
    return text


def normalization_name(text: str) -> str:
    """Reads the name of an input normalisation, or a mean colour R,G,B."""
    from vpr.models.normalization import NORMALIZATIONS, mean_colour

    if text not in NORMALIZATIONS:
        try:
            mean_colour(text)
        except UserError as error:
            raise ValueError(str(error)) from error
    return text


_model = partial(flag, group="model", modes=all_but("spec", "import"), kept=MODEL)
_added = partial(_model, added=True)


@dataclass(frozen=True)
class ModelSpec:
    """All that has to be known to build a model without its trained values.

    The flags' help says what the fields are; None stands for what belongs to the weights or the backbone.
    """

    arch: str = _model(
        "vgg16",
        f"backbone: {', '.join(BACKBONES)}, or any network of timm by its NAME or NAME.TAG",
        type=backbone_name, stored=stored_backbone_name, metavar="NAME", on_card=True, tolerated=True, common=True,
    )  # fmt: skip
    weights: str = _model(
        "IMAGENET1K_FEATURES",
        "pretrained weights of the backbone: a torchvision name (DEFAULT, IMAGENET1K_V1, for vgg16 also "
        "IMAGENET1K_FEATURES), a tag of timm, a .pth or .safetensors file, or none (default: vgg16 "
        "IMAGENET1K_FEATURES, the paper's; alexnet IMAGENET1K_V1; timm's own)",
        typed=None, clusters=True, common=True,
    )  # fmt: skip
    normalization: str | None = _added(
        None,
        "what a weights FILE expects of its input: torchvision, caffe, features, unit, or R,G,B, a mean colour that is "
        "subtracted from pixels of 0 to 255 (default: torchvision; of a backbone of timm what timm says)",
        type=normalization_name, metavar="NAME", clusters=True,
    )  # fmt: skip
    channels: tuple[int, ...] | None = _added(
        None,
        "filters of each convolution, as --mode=prune leaves them (default: the backbone's own)",
        nargs="+", type=count, metavar="N", on_card=True,
    )  # fmt: skip
    pooling: str = _model(
        "netvlad", "how local descriptors become one",
        choices="vpr.models.poolings:POOLINGS", on_card=True, tolerated=True, common=True,
    )  # fmt: skip
    clusters: int = _model(
        64, "clusters of NetVLAD (visual words)",
        name="num_clusters", type=whole_number(2), on_card=True, clusters=True, tolerated=True, common=True,
    )  # fmt: skip
    vladv2: bool = _model(
        False, "NetVLAD version 2: assignment by squared distance, with a bias", on_card=True, tolerated=True
    )
    vlad_assign: str = _added(
        "soft",
        "how NetVLAD assigns local descriptors to clusters; hard: each wholly to the nearest by cosine, as AnyLoc does",
        name="vladAssign", choices="vpr.models.poolings:ASSIGNMENTS", on_card=True,
    )  # fmt: skip
    cluster_dim: int | None = _added(
        None,
        "map each cluster of NetVLAD to so many dimensions by one linear map, which is trained (default: none; "
        "SuperPlace's NVL takes 128)",
        name="clusterDim", type=count, on_card=True,
    )  # fmt: skip
    train_from: str | None = flag(
        None,
        "first layer that is trained, by name: conv1_1 ... conv5_3 of VGG16, conv1 ... conv5 of AlexNet, layer3, "
        "blocks.8, ... of timm; pool: the pooling alone; map: that of --clusterDim alone (default: conv5_1, conv5, a "
        "ResNet's layer3, the last 4 blocks and norm of a vision transformer, the last stage of others; from random "
        "weights and after pruning the first)",
        name="trainFrom", group="train", modes=("train", "distill", "prune"), metavar="LAYER", kept=TRAINING,
    )  # fmt: skip
    seed: int = DEFAULT_SEED  # of random weights
    cut: int | None = _added(
        None,
        "where a backbone of timm ends: the stride of the map of local descriptors in pixels, of a vision transformer "
        "the last block, from 0 or negative from the end (default: 16; the last block)",
        type=signed_number, metavar="N", on_card=True, clusters=True,
    )  # fmt: skip
    facet: str | None = _added(
        None,
        "what of a vision transformer's last block the local descriptors are (default: token)",
        choices=FACETS, on_card=True, clusters=True,
    )  # fmt: skip
    train_batch_norm: bool = flag(
        False, "let the statistics of BatchNorm layers that are trained follow the training images",
        name="trainBatchNorm", group="train", modes=("train", "distill"), kept=TRAINING,
    )  # fmt: skip

    @property
    def backbone_name(self) -> str:
        """The backbone in file names and result lines: with its cut and facet where these can be chosen."""
        entry = entry_of(self.arch, self.cut, self.facet)
        if entry.cut is None:
            return self.arch
        facet = "" if entry.facet in (None, FACETS[0]) else f"-{entry.facet}"
        return f"{self.arch}-{'stride' if entry.facet is None else 'block'}{entry.cut}{facet}"

    @property
    def from_scratch(self) -> bool:
        """Whether training starts from random weights."""
        return self.weights == "none"

    @property
    def first_trained(self) -> str:
        """The first layer that is trained, by name: unless --trainFrom says otherwise the first of all of a backbone
        with random weights, and of a pruned one, which has lost filters everywhere."""
        if self.train_from:
            return self.train_from
        entry = entry_of(self.arch, self.cut, self.facet)
        return entry.layers[0] if self.from_scratch or self.channels is not None else entry.train_from

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> "ModelSpec":
        """The model of flags by their names on the command line, as runs and exported files store them.

        Flags that an earlier version did not store have their defaults. Raises a UserError: no model has such flags.
        """
        for _, one in flags_in(cls):
            value = flags.get(one.key, one.default)
            if one.name != "arch" and not one.may_be(value):
                raise UserError(
                    f"a model cannot have {one.key}={str(value)[:60]!r}, wanted {one.wanted}: restore its flags"
                )
        entry = entry_of(str(flags.get("arch")), flags.get("cut"), flags.get("facet"))
        given = {name: value for name, value in values_of(cls, flags).items() if value is not None}
        settled = {"weights": entry.weights, "seed": flags.get("seed", cls.seed), **given}
        spec = cls(**{**settled, "cut": entry.cut, "facet": entry.facet})
        if spec.train_from == MAP and spec.cluster_dim is None:
            raise UserError("--trainFrom=map trains the map of --clusterDim, which is missing: add it, or name a layer")
        if spec.train_from not in (None, POOL, MAP, *entry.layers):
            found, layers = str(spec.train_from)[:60], ", ".join((*entry.layers, POOL, MAP))
            raise UserError(f"--trainFrom={found} is no layer of {spec.arch}: choose from {layers}")
        return spec

    def flags(self) -> dict[str, Any]:
        """The flags that say what the model is, by their names on the command line, as checkpoints store them."""
        values = {one.key: getattr(self, name) for name, one in flags_in(type(self)) if one.kept == MODEL}
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**lists, "fromscratch": self.from_scratch}


# What a model is whose flags were stored before these were added.
ADDED_FLAGS = {one.key: one.default for _, one in flags_in(ModelSpec) if one.added}
