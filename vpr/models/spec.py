"""What a model is: backbone, weights, pooling. Read from flags, stored beside checkpoints; needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpr.common.errors import UserError
from vpr.models.backbones import FACETS, default_train_from, entry_of

DEFAULT_SEED = 123
# What a model is whose flags were stored before these were added.
ADDED_FLAGS = {
    "normalization": None, "channels": None, "vladAssign": "soft", "clusterDim": None, "cut": None, "facet": None,
}  # fmt: skip


@dataclass(frozen=True)
class ModelSpec:
    """All that has to be known to build a model without its trained values.

    Attributes:
        arch: backbone, a key of `vpr.models.backbones.BACKBONES` or a network of timm.
        weights: pretrained weights of the backbone: a name, a file, or none.
        normalization: what a weights file expects of its input; None where the weights say it.
        channels: filters of each convolution after pruning; None are the backbone's own.
        pooling: a key of `vpr.models.poolings.POOLINGS`.
        clusters: K of NetVLAD, 2 or more.
        vladv2: NetVLAD version 2, which assigns by squared distance with a bias.
        vlad_assign: soft, NetVLAD's assignment, or hard, to the nearest cluster alone.
        cluster_dim: dimensions to which a linear map takes each cluster's row; None maps none.
        train_from: first layer that is trained, by name; None is the backbone's default.
        seed: of random weights.
        cut, facet: where a backbone of timm ends, see `vpr.models.backbones.Entry`; None are the backbone's defaults.
        train_batch_norm: whether a training moves the statistics of BatchNorm layers.
    """

    arch: str = "vgg16"
    weights: str = "IMAGENET1K_FEATURES"
    normalization: str | None = None
    channels: tuple[int, ...] | None = None
    pooling: str = "netvlad"
    clusters: int = 64
    vladv2: bool = False
    vlad_assign: str = "soft"
    cluster_dim: int | None = None
    train_from: str | None = None
    seed: int = DEFAULT_SEED
    cut: int | None = None
    facet: str | None = None
    train_batch_norm: bool = False

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
        """The first layer that is trained, by name."""
        return self.train_from or default_train_from(
            self.arch, self.from_scratch, self.channels is not None, self.cut, self.facet
        )

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> "ModelSpec":
        """The model of flags by their names on the command line, as runs and exported files store them.

        Flags that an earlier version did not store have their defaults.

        Raises:
            UserError: no model has such flags.
        """
        arch, channels = str(flags.get("arch")), flags.get("channels")
        cut, facet = flags.get("cut"), flags.get("facet")
        _require("cut", cut, cut is None or type(cut) is int, "a whole number, or none")
        _require("facet", facet, facet in (None, *FACETS), f"one of {', '.join(FACETS)}, or none")
        entry = entry_of(arch, cut, facet)
        _require("channels", channels, channels is None or _are_counts(channels), "whole numbers from 1, or none")
        spec = cls(
            arch=arch,
            weights=flags.get("weights") or entry.weights,
            normalization=flags.get("normalization"),
            channels=tuple(channels) if channels else None,
            pooling=flags.get("pooling", cls.pooling),
            clusters=flags.get("num_clusters", cls.clusters),
            vladv2=flags.get("vladv2", cls.vladv2),
            vlad_assign=flags.get("vladAssign", cls.vlad_assign),
            cluster_dim=flags.get("clusterDim", cls.cluster_dim),
            train_from=flags.get("trainFrom"),
            seed=flags.get("seed", cls.seed),
            cut=entry.cut,
            facet=entry.facet,
            train_batch_norm=bool(flags.get("trainBatchNorm")),
        )
        layers = entry.layers
        _require("weights", spec.weights, isinstance(spec.weights, str), "a name, a file or none")
        _require("pooling", spec.pooling, isinstance(spec.pooling, str), "the name of one")
        _require(
            "num_clusters", spec.clusters, _are_counts([spec.clusters]) and spec.clusters > 1, "a whole number from 2"
        )
        _require("vladv2", spec.vladv2, isinstance(spec.vladv2, bool), "true or false")
        dim = spec.cluster_dim
        _require("vladAssign", spec.vlad_assign, isinstance(spec.vlad_assign, str), "soft or hard")
        _require("clusterDim", dim, dim is None or _are_counts([dim]), "a whole number from 1, or none")
        _require("trainFrom", spec.train_from, spec.train_from in (None, *layers), f"one of {', '.join(layers)}")
        return spec

    def flags(self) -> dict[str, Any]:
        """The flags that say what the model is, by their names on the command line, as checkpoints store them."""
        return {
            "arch": self.arch,
            "weights": self.weights,
            "normalization": self.normalization,
            "fromscratch": self.from_scratch,
            "channels": list(self.channels) if self.channels else None,
            "pooling": self.pooling,
            "num_clusters": self.clusters,
            "vladv2": self.vladv2,
            "vladAssign": self.vlad_assign,
            "clusterDim": self.cluster_dim,
            "cut": self.cut,
            "facet": self.facet,
        }


def _require(flag: str, found: object, fits: bool, wanted: str) -> None:
    if not fits:
        raise UserError(f"a model cannot have {flag}={str(found)[:60]!r}, wanted {wanted}: restore its flags")


def _are_counts(values: object) -> bool:
    return isinstance(values, list | tuple) and all(type(value) is int and value > 0 for value in values)
