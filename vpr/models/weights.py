"""Pretrained weights: names, files, downloads and hashes."""

import hashlib
from pathlib import Path
from typing import Any, Protocol

from vpr.common.files import is_file
from vpr.models.backbones.base import Backbone, published
from vpr.models.weights_file import read_weights_file
from vpr.models.weights_names import values_for


def load_pretrained(backbone: Backbone, arch: str, weights: str) -> None:
    """Fill a backbone from published weights by name, or from a file of tensors; see `values_for`.

    Raises:
        UserError: the name is unknown, the file does not fit, or the download fails.
    """
    state = read_weights_file(Path(weights)) if is_file(weights) else published(arch, weights).fetch()
    backbone.load_state_dict(values_for(backbone, arch, state, f"--weights={weights}"))


def weights_label(arch: str, weights: str) -> str:
    """A short name of the weights for file names and result lines."""
    if weights == "none":
        return "scratch"
    return Path(weights).stem if is_file(weights) else published(arch, weights).name


class HasState(Protocol):
    """A network, or whatever else is told from others by named values."""

    def state_dict(self) -> dict[str, Any]:
        """The values by name."""


def weights_hash(module: HasState) -> str:
    """A hash of the weights of a backbone or a whole model: equal exactly where they are, wherever they came from."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
