"""What a layer of a MATLAB network does, and its values, checked."""

import numpy as np

from vpr.common.errors import UserError
from vpr.models.matlab.file import Layer

ROLE_OF_CLASS = {
    "layerVLAD": "vlad", "layerVLADv2": "vladv2", "layerTotalMaxPool": "max", "layerTotalAvgPool": "avg",
    "layerWholeL2Normalize": "l2",
}  # fmt: skip
POOLINGS = ("vlad", "vladv2", "max", "avg")


def role_of(layer: Layer) -> str:
    """What a layer does: conv, relu, pool, norm, one of POOLINGS, or l2.

    A struct that was an object has lost its class: NetVLAD is told by how many weights it has, others by their names.

    Raises:
        UserError: it is none of these.
    """
    if layer.class_name in ROLE_OF_CLASS:
        return ROLE_OF_CLASS[layer.class_name]
    kind, name = layer.kind, layer.name.lower()
    if kind == "custom":
        weights = layer.fields.get("weights")
        if isinstance(weights, list) and len(weights) in (2, 3):
            return "vlad" if len(weights) == 2 else "vladv2"
        for role, word in (("l2", "l2"), ("max", "max"), ("avg", "avg")):
            if word in name:
                return role
    roles = {"conv": "conv", "relu": "relu", "pool": "pool", "normalize": "norm", "lrn": "norm"}
    if kind not in roles:
        raise UserError(f"{layer} is of the type {kind or 'none'!r}, which no model of the NetVLAD release has")
    return roles[kind]


def weights_of(layer: Layer, least: int) -> list[np.ndarray]:
    """The weights of a layer in float32, of four dimensions each; in files of the first version filters and biases.

    Raises:
        UserError: there are fewer than `least`, or they are no finite numbers.
    """
    cells = layer.fields.get("weights")
    if cells is None and "filters" in layer.fields:
        cells = [layer.fields["filters"], layer.fields.get("biases", np.empty(0))]
    if not isinstance(cells, list) or len(cells) < least:
        found = len(cells) if isinstance(cells, list) else 0
        raise UserError(
            f"{layer} has {found} arrays of weights, wanted {least}: if it was stored where MATLAB did not know its "
            "class, it is empty; store it again with netvlad, relja_matlab and matconvnet on MATLAB's path"
        )
    arrays = []
    for cell in cells:
        if not isinstance(cell, np.ndarray) or cell.dtype.kind not in "fiu" or not np.isfinite(cell).all():
            raise UserError(f"{layer} has weights that are no finite numbers: get the file again")
        # MATLAB drops dimensions of 1 at the end.
        arrays.append(cell.astype(np.float32).reshape(cell.shape + (1,) * (4 - cell.ndim)))
    return arrays


def shape_text(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape))


def norm_numbers(layer: Layer) -> tuple[float, ...]:
    """Window, kappa, alpha, beta."""
    numbers = numbers_of(layer, "param", 0.0)
    if len(numbers) != 4:
        raise UserError(f"{layer} has {len(numbers)} numbers as param, wanted window, kappa, alpha, beta")
    return numbers


def two(layer: Layer, name: str, default: float) -> tuple[float, ...]:
    """Of rows and columns; one number is both."""
    return _repeated(layer, name, default, 2)


def four(layer: Layer, name: str, default: float) -> tuple[float, ...]:
    """Above, below, left, right; one number is all."""
    return _repeated(layer, name, default, 4)


def _repeated(layer: Layer, name: str, default: float, count: int) -> tuple[float, ...]:
    numbers = numbers_of(layer, name, default)
    if len(numbers) not in (1, count):
        raise UserError(f"{layer} has {len(numbers)} numbers as {name}, wanted 1 or {count}")
    return numbers if len(numbers) == count else numbers * count


def numbers_of(layer: Layer, name: str, default: float) -> tuple[float, ...]:
    found = layer.fields.get(name)
    if found is None or (isinstance(found, np.ndarray) and found.size == 0):
        return (float(default),)
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub":
        raise UserError(f"{layer} has {name}={str(found)[:40]!r}, wanted numbers")
    return tuple(float(str(one)) if one.dtype.kind == "f" else float(one) for one in found.ravel())
