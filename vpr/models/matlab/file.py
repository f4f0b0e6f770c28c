"""A MATLAB file of a NetVLAD model (Arandjelovic et al.) as plain Python values, whatever its form.

    *_struct.mat, v5 or v7     all layers are structs: SciPy reads it
    v5 or v7                   some layers are objects of MATLAB classes: mat-io reads it
    v7.3                       an HDF5 file: mat-io reads it

Nothing of a file is run. What its layers mean is said in `network.py`.
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
CLASSES = ("layerVLAD", "layerVLADv2", "layerTotalMaxPool", "layerTotalAvgPool", "layerWholeL2Normalize")
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
    """A layer as the file has it.

    Attributes:
        number: its place among the layers, from 1, as MATLAB counts.
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
    """What a file holds.

    Attributes:
        path: of the file.
        layers: in the order in which they are applied.
        average: of `net.meta.normalization.averageImage`, at its first pixel: R, G, B from 0 to 255.
    """

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
    found = _variable(path, "net")
    if not isinstance(found, np.ndarray) or "layers" not in (found.dtype.names or ()) or found.size != 1:
        raise UserError(f"{path}: its variable net is no network (a struct with layers): name another file")
    net = found.ravel()[0]
    layers = plain(net["layers"])
    if isinstance(layers, dict | MatObject):
        layers = [layers]
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


def plain(value: Any) -> Any:
    """What SciPy or mat-io read, as plain values; see `Layer.fields`."""
    properties = getattr(value, "properties", None)
    if isinstance(properties, Mapping):
        # A class with its own saveobj stores what that gives, under the name `any`.
        content = {name: plain(one) for name, one in properties.items()}
        held = content.get("any", content)
        return MatObject(str(value.classname), held if isinstance(held, Mapping) else {})
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.names:
        structs = [{name: plain(one[name]) for name in value.dtype.names} for one in value.ravel(order="F")]
        return structs[0] if len(structs) == 1 else structs
    if value.dtype == object:
        return [plain(one) for one in value.ravel(order="F")]
    if value.dtype.kind in "US":
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


def _average(net: np.void, path: Path) -> tuple[float, float, float]:
    """The mean colour; in files of the first version net.normalization, later net.meta.normalization."""
    names = net.dtype.names or ()
    meta = plain(net["meta"]) if "meta" in names else {}
    normalization = meta.get("normalization") if isinstance(meta, dict) else None
    if normalization is None and "normalization" in names:
        normalization = plain(net["normalization"])
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
    """A variable as SciPy has it or, where objects of classes are in it, mat-io."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the .mat file of a MATLAB model")
    with open(path, "rb") as file:
        head = file.read(HEADER + 512)
    if is_v73(head):
        return _by_mat_io(path, name, "is of MATLAB's format v7.3")
    if not head.startswith(b"MATLAB"):
        raise UserError(f"{path} is no MATLAB file (it begins with {head[:12]!r}): {AGAIN}")
    _require_whole(path)
    found = _by_scipy(path, name)
    classes = sorted(_classes_in(found))
    return _by_mat_io(path, name, f"holds objects of the classes {', '.join(classes)}") if classes else found


def _require_whole(path: Path) -> None:
    """Raise a UserError where a v5 or v7 file ends before its last variable does."""
    size, offset = path.stat().st_size, HEADER
    with open(path, "rb") as file:
        head = file.read(HEADER)
        order = ">" if head[126:128] == b"MI" else "<"
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pandas, which it imports
            from matio import load_from_mat
    except ImportError as error:
        in_matlab = IN_MATLAB.format(name=path.name, stem=path.stem)
        raise UserError(f"{path} {why}, which needs mat-io: {INSTALL}; or {in_matlab}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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


def _classes_in(value: Any) -> set[str]:
    """Names of the classes of which SciPy found objects, whose content it does not read."""
    if not isinstance(value, np.ndarray):
        class_name = getattr(value, "classname", None)
        return {str(class_name)} if class_name else set()
    names = value.dtype.names or ()
    if "s2" in names and "arr" in names:  # what SciPy makes of an object
        return {one.decode() if isinstance(one, bytes) else str(one) for one in value["s2"].ravel()}
    class_name = getattr(value, "classname", None)
    if class_name:
        return {str(class_name)}
    parts = [one[name] for one in value.ravel() for name in names] if names else []
    if value.dtype == object:
        parts = list(value.ravel())
    return set().union(*map(_classes_in, parts)) if parts else set()
