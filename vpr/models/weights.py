"""Pretrained weights: names, files, downloads and hashes."""

import hashlib
from pathlib import Path
from typing import Any, Protocol

import torch

from vpr.common.errors import UserError
from vpr.common.files import is_file
from vpr.common.provenance import check_torch
from vpr.models.backbones.base import Backbone, published


def load_pretrained(backbone: Backbone, arch: str, weights: str) -> None:
    """Fill a backbone from published weights by name, or from a state-dict file.

    Raises:
        UserError: the name is unknown, the file does not fit, or the download fails.
    """
    state = read_weights_file(Path(weights)) if is_file(weights) else published(arch, weights).fetch()
    state, wanted = backbone.values_in(state), backbone.state_dict()
    found = {name: _find(state, name, backbone.prefixes) for name in wanted}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise UserError(
            f"--weights={weights} has no {backbone.name_in_file(missing[0])} ({len(missing)} of {len(wanted)} entries "
            f"of {arch} are missing): choose weights of {arch}"
        )
    for name, value in found.items():
        if value is not None and value.shape != wanted[name].shape:
            raise UserError(
                f"--weights={weights}: {backbone.name_in_file(name)} is {tuple(value.shape)}, {arch} wants "
                f"{tuple(wanted[name].shape)}: choose weights of {arch}"
            )
    backbone.load_state_dict(found)


def read_weights_file(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict of tensors without running any code from it.

    Raises:
        UserError: missing, unreadable, or not a state dict.
    """
    if not path.is_file():
        raise UserError(
            f"--weights={path} does not exist: name a .pth or .safetensors state dict, or weights of torchvision or "
            "timm"
        )
    try:
        state = _load(path)
    except UserError:
        raise
    except Exception as error:  # torch.load raises anything at all on a damaged or foreign file
        raise UserError(f"--weights={path} cannot be read ({type(error).__name__}): it is no state dict") from error
    for inner in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"--weights={path} holds no tensors by name: it is no state dict")
    return state


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    check_torch(path, "a state dict", "get the weights again")
    return torch.load(path, map_location="cpu", weights_only=True)


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


def _find(state: dict, name: str, prefixes: tuple[str, ...]) -> torch.Tensor | None:
    """A value of the backbone, by the first of the prefixes under which the file has it."""
    for prefix in prefixes:
        if isinstance(state.get(prefix + name), torch.Tensor):
            return state[prefix + name]
    return None
