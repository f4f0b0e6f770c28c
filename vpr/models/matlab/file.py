"""A MATLAB file of a NetVLAD model (Arandjelovic et al.) as plain Python values.

SciPy reads files of v5 and v7 whose layers are structs; mat-io those with objects of MATLAB classes, and v7.3 (HDF5).
Nothing of a file is executed. `network.py` knows what the layers mean.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pittsburgh import is_v73
from vpr.common.errors import UserError

STRUCT = "struct"
# Classes of the release, and what their layers do.
CLASSES = {
    "layerVLAD": "vlad", "layerVLADv2": "vladv2", "layerTotalMaxPool": "max", "layerTotalAvgPool": "avg",
    "layerWholeL2Normalize": "l2",
}  # fmt: skip
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
    """A layer of a file.

    Attributes:
        number: among the layers, from 1, as MATLAB counts.
        class_name: of its MATLAB class; `struct` if it is a struct.
        fields: numbers are arrays, text is str, cells are lists, structs are dicts.
        path: of the file.
    """

    number: int
    class_name: str
    fields: Mapping[str, Any]
    path: Path

    @property
    def name(self) -> str:
        """Such as conv1_1; empty where it has none."""
        return str(self.fields.get("name", ""))

    @property
    def kind(self) -> str:
        """Such as conv, relu, pool, normalize, custom."""
        return str(self.fields.get("type", ""))

    def __str__(self) -> str:
        """In messages."""
        return f"{self.path}: layer {self.number} ({self.name or self.kind or self.class_name})"


@dataclass(frozen=True)
class MatNetwork:
    """What a file holds: its layers in the order in which they are applied, and the mean colour R, G, B, 0 to 255."""

    path: Path
    layers: list[Layer]
    average: tuple[float, float, float]


@dataclass(frozen=True)
class MatObject:
    """An object of a MATLAB class, with its properties as plain values."""

    class_name: str
    properties: Mapping[str, Any]


def read_network(path: Path) -> MatNetwork:
    """The network in the variable `net` of a MATLAB file.

    Raises:
        UserError: the file is missing, incomplete, of another program or kind, or needs a package that is not there.
    """
    net = _variable(path, "net")
    if not isinstance(net, dict) or "layers" not in net:
        raise UserError(f"{path}: its variable net is no network (a struct with layers): name another file")
    layers = [net["layers"]] if isinstance(net["layers"], dict | MatObject) else net["layers"]
    if not isinstance(layers, list):
        raise UserError(f"{path}: net.layers is {type(layers).__name__}, wanted a cell of layers: name another file")
    read = [_layer(number, value, path) for number, value in enumerate(layers, 1)]
    foreign = sorted({layer.class_name for layer in read} - {STRUCT, *CLASSES})
    if foreign:
        raise UserError(
            f"{path} has layers of the classes {', '.join(foreign)}, known are {', '.join(CLASSES)}: it is no model of "
            "the NetVLAD release; name another file"
        )
    return MatNetwork(path, read, _average(net, path))


def plain(value: Any, unread: set[str] | None = None) -> Any:
    """What SciPy or mat-io read, as plain values; see `Layer.fields`.

    Args:
        unread: takes the names of classes of objects that SciPy found and did not read; None for values of mat-io.
    """
    if isinstance(getattr(value, "properties", None), Mapping):
        # A class with its own saveobj stores what that gives, under the name `any`.
        content = {name: plain(one) for name, one in value.properties.items()}
        held = content.get("any", content)
        return MatObject(str(value.classname), held if isinstance(held, Mapping) else {})
    names, kind = (value.dtype.names or (), value.dtype.kind) if isinstance(value, np.ndarray) else ((), "")
    if unread is not None and {"s2", "arr"} <= {*names}:  # what SciPy makes of an object
        unread.update(one.decode() if isinstance(one, bytes) else str(one) for one in value["s2"].ravel())
    elif unread is not None and getattr(value, "classname", None):
        unread.add(str(value.classname))
    elif names:
        structs = [{name: plain(one[name], unread) for name in names} for one in value.ravel(order="F")]
        return structs[0] if len(structs) == 1 else structs
    elif kind == "O":
        return [plain(one, unread) for one in value.ravel(order="F")]
    elif kind and kind in "US":
        return "".join(map(str, value.ravel()))
    return value


def _layer(number: int, value: Any, path: Path) -> Layer:
    while isinstance(value, list) and len(value) == 1:  # an array of one object
        value = value[0]
    if isinstance(value, MatObject):
        return Layer(number, value.class_name, value.properties, path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: layer {number} is {type(value).__name__}, wanted a struct or an object: name another")
    return Layer(number, STRUCT, value, path)


def _average(net: dict[str, Any], path: Path) -> tuple[float, float, float]:
    """The colour of the average image's first pixel; in files of the first version net.normalization has that image."""
    meta = net.get("meta")
    normalization = meta.get("normalization") if isinstance(meta, dict) else None
    normalization = net.get("normalization") if normalization is None else normalization
    image = normalization.get("averageImage") if isinstance(normalization, dict) else None
    image = image if isinstance(image, np.ndarray) and image.dtype.kind in "fiu" else np.empty(0)
    colour = image.ravel() if image.size == 3 else image[0, 0] if image.ndim == 3 and image.size else np.empty(0)
    if colour.shape != (3,) or not np.isfinite(colour).all():
        raise UserError(
            f"{path}: net.meta.normalization.averageImage is of shape {image.shape}, wanted 3 finite numbers or H x W "
            "x 3: the file does not say its input; name another"
        )
    red, green, blue = (float(str(one)) for one in colour)  # the shortest text that gives the same float32
    return red, green, blue


def _variable(path: Path, name: str) -> Any:
    """A variable as plain values, by SciPy or, where objects of classes are in it, by mat-io."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the .mat file of a MATLAB model")
    with open(path, "rb") as file:
        head = file.read(HEADER + 512)
    if is_v73(head):
        return plain(_by_mat_io(path, name, "is of MATLAB's format v7.3"))
    if not head.startswith(b"MATLAB"):
        raise UserError(f"{path} is no MATLAB file (it begins with {head[:12]!r}): {AGAIN}")
    _require_whole(path, ">" if head[126:128] == b"MI" else "<")
    unread: set[str] = set()
    found = plain(_by_scipy(path, name), unread)
    if unread:
        return plain(_by_mat_io(path, name, f"holds objects of the classes {', '.join(sorted(unread))}"))
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


def _by_scipy(path: Path, name: str) -> Any:
    from scipy.io import loadmat, whosmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = loadmat(path, variable_names=[name])
            others = [] if name in found else [variable for variable, _, _ in whosmat(path)]
    except Exception as error:  # SciPy raises anything at all on a damaged file
        raise UserError(f"{path} cannot be read as a MATLAB file ({_in_words(error)}): {AGAIN}") from error
    if name not in found:
        raise UserError(f"{path} has no variable {name} (found {', '.join(others) or 'nothing'}): name another file")
    return found[name]


def _by_mat_io(path: Path, name: str, why: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, which mat-io imports
        try:
            from matio import load_from_mat
        except ImportError as error:
            in_matlab = IN_MATLAB.format(name=path.name, stem=path.stem)
            raise UserError(f"{path} {why}, which needs mat-io: {INSTALL}; or {in_matlab}") from error
        try:
            found = load_from_mat(str(path), variable_names=[name])
        except Exception as error:  # mat-io and h5py raise anything at all on a damaged file
            size, wanted = path.stat().st_size, re.search(r"stored_eof = (\d+)", str(error))
            if wanted:
                raise UserError(f"{path} is incomplete: found {size} bytes, wanted {wanted[1]}: {AGAIN}") from error
            raise UserError(f"{path} ({size} bytes) cannot be read by mat-io ({_in_words(error)}): {AGAIN}") from error
    if name not in found:
        raise UserError(f"{path} has no variable {name}: name another file")
    return found[name]


def _in_words(error: Exception) -> str:
    """What another library says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
