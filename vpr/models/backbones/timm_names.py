"""Names of timm: its networks, their published weights, and what these expect. Imports timm where it is asked."""

import difflib
import re
from types import ModuleType
from typing import Any

from vpr.common.errors import UserError

NEAREST = 3  # names offered for one that timm lacks
SIZES = re.compile(r"(_(patch|window)?\d+)+")  # of patch, window and image, with which names of timm end


def timm_library() -> ModuleType:
    """The package; UserError if it is not installed."""
    try:
        import timm
    except ImportError as error:
        needed = f"this backbone needs timm, which cannot be imported ({error}): python -m pip install timm"
        raise UserError(needed) from error
    return timm


def split_tag(name: str) -> tuple[str, str | None]:
    """NAME.TAG, as timm writes a network with one of its published weights -> the name and the tag."""
    arch, _, tag = name.partition(".")
    return arch, tag or None


def completed(arch: str) -> str:
    """timm's name of a network: as it is typed, or with the sizes of patch, window and image that were left out.

    `swin_tiny` is `swin_tiny_patch4_window7_224`, the only network of timm that adds nothing but sizes to it;
    `swin_base` is none, because two do.
    Raises a UserError: timm has no such network, or several; with the nearest names.
    """
    names = timm_library().list_models()
    with_sizes = [name for name in names if name.startswith(arch) and SIZES.fullmatch(name.removeprefix(arch))]
    if arch not in names and len(with_sizes) == 1:
        return with_sizes[0]
    require_known(arch)
    return arch


def require_known(arch: str) -> None:
    """Raise a UserError, with the nearest names, unless timm has a network of this name."""
    names = timm_library().list_models()
    if arch in names:
        return
    longer = [name for name in names if arch and name.startswith(arch)]
    near = longer[:NEAREST] or difflib.get_close_matches(arch, ["vgg16", "alexnet", *names], NEAREST, 0.5)
    offered = f"the nearest are {', '.join(near)}" if near else "timm.list_models() has their names"
    raise UserError(f"--arch={arch[:60]} is neither vgg16 nor alexnet nor a network of timm: {offered}")


def tags_of(arch: str) -> list[str]:
    """The tags of a network's published weights, the default first."""
    names = timm_library().list_pretrained(f"{arch}.*")
    first = timm_library().get_pretrained_cfg(arch, allow_unregistered=True)
    tags = [tag for tag in (split_tag(name)[1] for name in names) if tag]
    default = first.tag if first is not None else None
    return sorted(tags, key=lambda tag: tag != default)


def configuration(arch: str, tag: str | None) -> dict[str, Any]:
    """timm's configuration of a network's weights: mean, std, licence, where they are; of the default without a tag."""
    found = timm_library().get_pretrained_cfg(f"{arch}.{tag}" if tag else arch, allow_unregistered=True)
    return found.to_dict() if found is not None else {}
