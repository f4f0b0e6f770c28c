"""The rows of both tables, and the networks that they are of."""

from dataclasses import dataclass
from pathlib import Path

from vpr.common.errors import UserError


@dataclass(frozen=True)
class Network:
    """A backbone.

    Attributes:
        flags: that name it.
        files: patterns of its weights files, each with flags that such a file needs; the first that fits is taken.
    """

    name: str
    flags: tuple[str, ...]
    files: tuple[tuple[str, tuple[str, ...]], ...]


OXFORD = ("--normalization=features",)
LITE0 = (("*efficientnet_lite0*", ()),)
NETWORKS = {
    "vgg16": Network(
        "VGG16", ("--arch=vgg16",), (("*vgg16*oxford*", OXFORD), ("*vgg16*amdegroot*", OXFORD), ("*vgg16*", ()))
    ),
    "alexnet": Network("AlexNet", ("--arch=alexnet",), (("*alexnet*", ()),)),
    "lite0_16": Network("EfficientNet-Lite0, stride 16", ("--arch=tf_efficientnet_lite0", "--cut=16"), LITE0),
    "lite0_8": Network("EfficientNet-Lite0, stride 8", ("--arch=tf_efficientnet_lite0", "--cut=8"), LITE0),
}


@dataclass(frozen=True)
class Row:
    """A model in a table.

    Attributes:
        network: a key of NETWORKS.
        state: shelf (clusters from k-means), trained, or pruned after training.
        form: fp32, fp16 or int8.
        cost: of an image, against the network in float32; for the estimate.
    """

    network: str
    state: str
    form: str

    @property
    def key(self) -> str:
        """The name of its file and of its steps."""
        return f"{self.network}_{self.state}_{self.form}"

    @property
    def title(self) -> str:
        """How the tables call it."""
        states = {"shelf": "off the shelf", "trained": "trained", "pruned": "trained, pruned"}
        return f"{NETWORKS[self.network].name}, {states[self.state]}"

    @property
    def cost(self) -> float:
        return (0.3 if self.state == "pruned" else 1.0) * (0.6 if self.form == "int8" else 1.0)


STAGE_1 = [Row(network, state, "fp32") for network in ("vgg16", "alexnet") for state in ("shelf", "trained")]
STAGE_2 = [
    *(Row("vgg16", state, form) for state in ("trained", "pruned") for form in ("fp32", "int8")),
    *(Row(network, "shelf", form) for network in ("lite0_16", "lite0_8") for form in ("fp32", "fp16", "int8")),
]
ROWS = list(dict.fromkeys(STAGE_1 + STAGE_2))


def model_flags(network: str, weights: Path | None) -> tuple[str, ...]:
    """Flags of main.py that name a network, with its file in a folder of weights; None leaves the usual download.

    Raises:
        UserError: the folder has no such file.
    """
    known = NETWORKS[network]
    if weights is None:
        return known.flags
    for pattern, needed in known.files:
        for file in sorted(weights.glob(pattern)):
            if file.suffix in (".pth", ".safetensors"):
                return (*known.flags, f"--weights={file}", *needed)
    raise UserError(f"--weights={weights}: found no file like {known.files[-1][0]}.pth, wanted one of {known.name}")
