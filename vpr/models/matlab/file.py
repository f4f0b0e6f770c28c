"""A MATLAB file of a NetVLAD model (Arandjelovic et al.) as layers of plain Python values.

SciPy reads files of v5 and v7 whose layers are structs; mat-io those with objects of MATLAB classes, and v7.3 (HDF5).
Nothing of a file is executed. `network.py` knows what the layers mean.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from pittsburgh import is_v73
from vpr.common.errors import UserError

# What a layer does, by its class in the release or, in MatConvNet, by its type.
CLASSES = {
    "layerVLAD": "vlad", "layerVLADv2": "vladv2", "layerTotalMaxPool": "max", "layerTotalAvgPool": "avg",
    "layerWholeL2Normalize": "l2",
}  # fmt: skip
TYPES = {"conv": "conv", "relu": "relu", "pool": "pool", "normalize": "norm", "lrn": "norm"}
DEFAULTS = {"stride": 1, "dilate": 1}  # of fields that a layer lacks; of others 0
CLASS = ""  # the key of an object's class beside its properties, whose names are never empty
HEADER = 128  # bytes of a v5 or v7 file before its variables
AGAIN = "get it again and compare its size with the publisher's"
INSTALL = 'python -m pip install "mat-io>=1.0" (Python 3.11 or newer)'
IN_MATLAB = (
    "in MATLAB, with netvlad, relja_matlab and matconvnet on its path, run:   load('{name}', 'net');   "
    "for i = 1:numel(net.layers), net.layers{{i}} = struct(net.layers{{i}}(1)); end;   "
    "save('{stem}_struct.mat', 'net', '-v7')"
)


@dataclass(frozen=True)
class Layer:
    """A layer of a file."""

    where: str  # file, number from 1 and name, for messages
    role: str  # conv, relu, pool, norm (over channels), l2, or what pools to one descriptor: vlad, vladv2, max, avg
    fields: Mapping[str, Any]  # numbers are arrays, text is str, cells are lists, structs are dicts

    def weights(self) -> list[np.ndarray]:
        """Two or more arrays in float32, of four dimensions each; in files of the first version filters and biases.
        Raises a UserError: there are fewer, or they are no finite numbers."""
        cells = self.fields.get("weights")
        if cells is None and "filters" in self.fields:
            cells = [self.fields["filters"], self.fields.get("biases", np.empty(0))]
        cells = cells if isinstance(cells, list) else []
        if len(cells) < 2:
            raise UserError(
                f"{self.where} has {len(cells)} arrays of weights, wanted 2: if it was stored where MATLAB did not "
                "know its class, it is empty; store it again with netvlad, relja_matlab and matconvnet on MATLAB's path"
            )
        if not all(_is_of_kind(cell, "fiu") and cell.ndim <= 4 and np.isfinite(cell).all() for cell in cells):
            raise UserError(f"{self.where} has weights that are no finite numbers: get the file again")
        # MATLAB drops dimensions of 1 at the end.
        return [cell.astype(np.float32).reshape(cell.shape + (1,) * (4 - cell.ndim)) for cell in cells]

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """So many numbers of a field, of rows and columns or of four sides; where it has one, that is all of them.
        Raises a UserError: it has others, or no numbers."""
        found = self.fields.get(name)
        if found is None or (isinstance(found, np.ndarray) and found.size == 0):
            found = np.array(DEFAULTS.get(name, 0), float)
        if not _is_of_kind(found, "fiub"):
            raise UserError(f"{self.where} has {name}={str(found)[:40]!r}, wanted numbers")
        if found.size not in (1, count):
            raise UserError(f"{self.where} has {found.size} numbers as {name}, wanted 1 or {count}")
        return tuple(np.broadcast_to([_exact(one) for one in found.ravel()], count).tolist())


def read_network(path: Path) -> tuple[list[Layer], tuple[float, ...]]:
    """The layers of the variable `net` of a file, in their order, and the mean colour R, G, B, 0 to 255. Raises a
    UserError: the file is missing, incomplete, of another program or kind, or needs a package that is not there."""
    net = _variable(path, "net")
    if not isinstance(net, dict) or "layers" not in net:
        raise UserError(f"{path}: its variable net is no network (a struct with layers): name another file")
    layers = [net["layers"]] if isinstance(net["layers"], dict) else net["layers"]
    if not isinstance(layers, list):
        raise UserError(f"{path}: net.layers is {type(layers).__name__}, wanted a cell of layers: name another file")
    for number, layer in enumerate(layers):
        while isinstance(layer, list) and len(layer) == 1:  # an array of one object
            layers[number] = layer = layer[0]
        if not isinstance(layer, dict):
            found = type(layer).__name__
            raise UserError(f"{path}: layer {number + 1} is {found}, wanted a struct or an object: name another")
    if foreign := sorted({layer.get(CLASS, "layerVLAD") for layer in layers} - {*CLASSES}):
        raise UserError(
            f"{path} has layers of the classes {', '.join(foreign)}, known are {', '.join(CLASSES)}: it is no model of "
            "the NetVLAD release; name another file"
        )
    colour = _mean_colour(net, path)
    return [_layer(f"{path}: layer {number}", fields) for number, fields in enumerate(layers, 1)], colour


def plain(value: Any, unread: set[str] | None = None) -> Any:
    """What SciPy or mat-io read, as plain values: see `Layer.fields`; an object is a dict with its CLASS.
    `unread`: takes the names of classes of objects that SciPy found and did not read; None for values of mat-io."""
    if isinstance(getattr(value, "properties", None), Mapping):
        properties = {name: plain(one) for name, one in value.properties.items()}
        # A class with its own saveobj stores what that gives, under the name `any`.
        held = properties.get("any", properties)
        return {**(held if isinstance(held, dict) else {}), CLASS: str(value.classname)}
    names, kind = (value.dtype.names or (), value.dtype.kind) if isinstance(value, np.ndarray) else ((), "-")
    if unread is not None and {"s2", "arr"} <= {*names}:  # what SciPy makes of an object
        unread.update(one.decode() if isinstance(one, bytes) else str(one) for one in value["s2"].ravel())
    elif unread is not None and getattr(value, "classname", None):
        unread.add(str(value.classname))
    elif names:
        structs = [{name: plain(one[name], unread) for name in names} for one in value.ravel(order="F")]
        return structs[0] if len(structs) == 1 else structs
    elif kind == "O":
        return [plain(one, unread) for one in value.ravel(order="F")]
    elif kind in "US":
        return "".join(map(str, value.ravel()))
    return value


def _is_of_kind(value: Any, kinds: str) -> TypeGuard[np.ndarray]:
    """Whether a value is an array of one of NumPy's kinds of numbers."""
    return isinstance(value, np.ndarray) and value.dtype.kind in kinds


def _exact(number: np.generic) -> float:
    """A float32 as the shortest number that gives it: 123.68 rather than 123.68000030517578."""
    return float(str(number)) if number.dtype.kind == "f" else float(number)


def _layer(where: str, fields: dict[str, Any]) -> Layer:
    """A layer with its role. A struct that was an object has lost its class: NetVLAD is told by how many weights it
    has, others by their names."""
    name, kind, weights = str(fields.get("name", "")), str(fields.get("type", "")), fields.get("weights")
    where = f"{where} ({name or kind or fields.get(CLASS, 'struct')})"
    if CLASS in fields:
        return Layer(where, CLASSES[fields[CLASS]], fields)
    if kind == "custom" and isinstance(weights, list) and len(weights) in (2, 3):
        return Layer(where, "vlad" if len(weights) == 2 else "vladv2", fields)
    named = [role for role in ("l2", "max", "avg") if kind == "custom" and role in name.lower()]
    if not named and kind not in TYPES:
        raise UserError(f"{where} is of the type {kind or 'none'!r}, which no model of the NetVLAD release has")
    return Layer(where, named[0] if named else TYPES[kind], fields)


def _mean_colour(net: dict[str, Any], path: Path) -> tuple[float, ...]:
    """The colour of the average image's first pixel; in files of the first version net.normalization has that image."""
    image: np.ndarray = np.empty(0)
    for holder in (net, net.get("meta")):
        normalization = holder.get("normalization") if isinstance(holder, dict) else None
        found = normalization.get("averageImage") if isinstance(normalization, dict) else None
        image = found if _is_of_kind(found, "fiu") else image
    colour = image.ravel() if image.size == 3 else image[0, 0] if image.ndim == 3 and image.size else np.empty(0)
    if colour.shape != (3,) or not np.isfinite(colour).all():
        raise UserError(
            f"{path}: net.meta.normalization.averageImage is of shape {image.shape}, wanted 3 finite numbers or H x W "
            "x 3: the file does not say its input; name another"
        )
    return tuple(map(_exact, colour))


def _variable(path: Path, name: str) -> Any:
    """A variable as plain values, by SciPy or, where objects of classes are in it, by mat-io."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the .mat file of a MATLAB model")
    with open(path, "rb") as file:
        head = file.read(HEADER + 512)
    if is_v73(head):
        return plain(_loaded(path, name, "is of MATLAB's format v7.3"))
    if not head.startswith(b"MATLAB"):
        raise UserError(f"{path} is no MATLAB file (it begins with {head[:12]!r}): {AGAIN}")
    _require_whole(path, ">" if head[126:128] == b"MI" else "<")
    unread: set[str] = set()
    found = plain(_loaded(path, name), unread)
    if unread:
        return plain(_loaded(path, name, f"holds objects of the classes {', '.join(sorted(unread))}"))
    return found


def _require_whole(path: Path, order: str) -> None:
    """Raise a UserError where a v5 or v7 file, of big (>) or little (<) endian, ends before its last variable does."""
    size, offset = path.stat().st_size, HEADER
    with open(path, "rb") as file:
        while offset + 8 <= size:
            file.seek(offset)
            offset += 8 + int(np.frombuffer(file.read(8), f"{order}u4")[1])
    if offset != size or size <= HEADER:
        raise UserError(f"{path} is incomplete: found {size} bytes, wanted {max(offset, HEADER + 8)} or more: {AGAIN}")


def _loaded(path: Path, name: str, not_for_scipy: str = "") -> Any:
    """A variable of a file, by SciPy, or by mat-io for a reason that messages say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # also of pandas, which mat-io imports
        try:
            if not_for_scipy:
                from matio import load_from_mat as load
                from matio import whosmat
            else:
                from scipy.io import loadmat as load
                from scipy.io import whosmat
        except ImportError as error:
            in_matlab = IN_MATLAB.format(name=path.name, stem=path.stem)
            raise UserError(f"{path} {not_for_scipy}, which needs mat-io: {INSTALL}; or {in_matlab}") from error
        try:
            found = load(str(path), variable_names=[name])
            others = [] if name in found else [each[0] for each in whosmat(str(path))]
        except Exception as error:  # SciPy, mat-io and h5py raise anything at all on a damaged file
            size, wanted = path.stat().st_size, re.search(r"stored_eof = (\d+)", str(error))
            if wanted:
                raise UserError(f"{path} is incomplete: found {size} bytes, wanted {wanted[1]}: {AGAIN}") from error
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            raise UserError(f"{path} ({size} bytes) cannot be read as a MATLAB file ({words}): {AGAIN}") from error
    if name not in found:
        raise UserError(f"{path} has no variable {name} (found {', '.join(others) or 'nothing'}): name another file")
    return found[name]
