"""Pretrained weights: names, files, downloads and hashes."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from vpr.common.errors import UserError
from vpr.common.files import is_file
from vpr.common.provenance import check_torch


def load_pretrained(encoder: nn.Sequential, arch: str, weights: str) -> None:
    """Fill the trunk from a torchvision weight name or a state-dict file.

    Raises:
        UserError: the name is unknown, the file does not fit, or the download fails.
    """
    state = read_weights_file(Path(weights)) if is_file(weights) else _download(arch, weights)
    wanted = encoder.state_dict()
    found = {name: _find(state, name) for name in wanted}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise UserError(
            f"--weights={weights} has no features.{missing[0]} ({len(missing)} of {len(wanted)} entries of "
            f"{arch} are missing): choose weights of {arch}"
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"--weights={weights}: features.{name} is {tuple(value.shape)}, {arch} wants "
                f"{tuple(wanted[name].shape)}: choose weights of {arch}"
            )
    encoder.load_state_dict(found)


def read_weights_file(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict of tensors without running any code from it.

    Raises:
        UserError: missing, unreadable, or not a state dict.
    """
    if not path.is_file():
        raise UserError(f"--weights={path} does not exist: name a .pth state dict or a torchvision weight name")
    check_torch(path, "a state dict", "get the weights again")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything at all on a damaged or foreign file
        raise UserError(f"--weights={path} cannot be read ({type(error).__name__}): it is no state dict") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"--weights={path} holds no tensors by name: it is no state dict")
    return state


def torchvision_entry(arch: str, weights: str):
    """The torchvision weight entry of a name such as DEFAULT.

    Raises:
        UserError: this backbone has no such entry.
    """
    import torchvision

    entries = torchvision.models.get_model_weights(arch)
    name = weights.upper()
    if name not in entries.__members__:
        raise UserError(
            f"--weights={weights} is neither a file nor a name that {arch} has "
            f"({', '.join(entries.__members__)}) nor none"
        )
    return entries[name]


def weights_label(arch: str, weights: str) -> str:
    """A short name of the weights for file names and result lines."""
    if weights == "none":
        return "scratch"
    return Path(weights).stem if is_file(weights) else torchvision_entry(arch, weights).name


def weights_hash(module: nn.Module) -> str:
    """A hash of a trunk's or a whole model's weights: equal exactly where they are, wherever they came from."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _find(state: dict, name: str) -> torch.Tensor | None:
    """An entry of the trunk under the names in use: torchvision's, a bare trunk's, this project's."""
    for prefix in ("features.", "", "encoder."):
        if isinstance(state.get(prefix + name), torch.Tensor):
            return state[prefix + name]
    return None


def _download(arch: str, weights: str) -> dict[str, torch.Tensor]:
    url = torchvision_entry(arch, weights).url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # no network, a proxy's page, a broken file, no room
        raise UserError(
            f"cannot fetch {weights} of {arch} ({type(error).__name__}: {error}): download {url} into {folder}, "
            "or give a state dict with --weights FILE, or start without with --fromscratch"
        ) from error
