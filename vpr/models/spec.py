"""What a model is: backbone, weights, pooling. Read from flags, stored beside checkpoints; needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpr.models.backbones import default_train_from


@dataclass(frozen=True)
class ModelSpec:
    """All that has to be known to build a model without its trained values.

    Attributes:
        arch: backbone, a key of `vpr.models.backbones.BACKBONES`.
        weights: pretrained weights of the backbone: a name, a file, or none.
        normalization: what a weights file expects of its input; None where the weights say it.
        channels: filters of each convolution after pruning; None are the backbone's own.
        pooling: a key of `vpr.models.poolings.POOLINGS`.
        clusters: K of NetVLAD.
        vladv2: NetVLAD version 2, which assigns by squared distance with a bias.
        train_from: first layer that is trained, by name; None is the backbone's default.
        seed: of random weights.
    """

    arch: str = "vgg16"
    weights: str = "IMAGENET1K_FEATURES"
    normalization: str | None = None
    channels: tuple[int, ...] | None = None
    pooling: str = "netvlad"
    clusters: int = 64
    vladv2: bool = False
    train_from: str | None = None
    seed: int = 123

    @property
    def from_scratch(self) -> bool:
        """Whether training starts from random weights."""
        return self.weights == "none"

    @property
    def first_trained(self) -> str:
        """The first layer that is trained, by name."""
        return self.train_from or default_train_from(self.arch, self.from_scratch, self.channels is not None)

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> "ModelSpec":
        """The model of flags by their names on the command line, as runs and exported files store them."""
        channels = flags.get("channels")
        return cls(
            arch=flags["arch"],
            weights=flags["weights"],
            normalization=flags.get("normalization"),
            channels=tuple(channels) if channels else None,
            pooling=flags["pooling"],
            clusters=flags["num_clusters"],
            vladv2=flags["vladv2"],
            train_from=flags.get("trainFrom"),
            seed=flags.get("seed", cls.seed),
        )

    def flags(self) -> dict[str, object]:
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
        }
