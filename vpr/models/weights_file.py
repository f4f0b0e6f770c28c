"""The tensors of a file of weights, whoever wrote it, and whatever else it holds; nothing of a file is run.

A checkpoint of another program also has arguments, paths, dates, NumPy numbers, settings of its framework. PyTorch's
reader of `weights_only` refuses a file for each class that it does not know; here an empty stand-in replaces every
such class, whatever it is, and the class itself is never imported.
"""

import pickletools
import re
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from vpr.common.errors import UserError
from vpr.common.provenance import ZIP_START, check_torch

# What checkpoints hold of the standard library. A file that names anything else of it wants something to be done.
PLAIN_DATA = {
    *(f"builtins.{name}" for name in ("bool", "bytes", "complex", "dict", "float", "frozenset", "int", "list")),
    *(f"builtins.{name}" for name in ("bytearray", "object", "range", "set", "slice", "str", "tuple", "type")),
    *(f"collections.{name}" for name in ("Counter", "OrderedDict", "defaultdict", "deque")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(
        f"{module}.{pure}{system}Path"
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for system in ("", "Posix", "Windows")
    ),
    "_codecs.encode", "argparse.Namespace", "copyreg._reconstructor", "decimal.Decimal", "fractions.Fraction",
    "functools.partial", "types.SimpleNamespace", "uuid.UUID", "zoneinfo.ZoneInfo._unpickle",
}  # fmt: skip
PICKLES_BEFORE_1_6 = 4  # in a file: a number, a version, the machine, the content

NO_MODEL = re.compile(r"numpy\.|torch\.(?!nn\.modules\.)")  # beginnings of names that say nothing of a model


class StandIn(list):
    """Stands for an object of any class: takes what it is given and keeps nothing of it but items of a list."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be the key of a dictionary

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None:
        """Leave what the object would remember."""


class MappingStandIn:
    """Stands for a class of dictionaries: its items are kept."""

    def __new__(cls, *_: object) -> Any:
        """An empty dictionary of the kind that PyTorch's reader fills."""
        return OrderedDict()


def read_weights_file(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file without running any code from it.

    Names of dictionaries in one another are joined by dots: `state_dict.conv1.weight`.
    Raises a UserError: missing, unreadable, without tensors, or with something to be run.
    """
    if not path.is_file():
        raise UserError(
            f"--weights={path} does not exist: name a .pth or .safetensors state dict, or weights of torchvision or "
            "timm"
        )
    names: set[str] = set()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            check_torch(path, "a state dict", "get the weights again")
            names = _names_in(path)
            content = _load(path, names)
        tensors = dict(_tensors_in(content, "", set()))
    except UserError:
        raise
    except Exception as error:  # torch.load raises anything at all on a damaged or foreign file
        raise UserError(f"--weights={path} cannot be read ({type(error).__name__}): it is no state dict") from error
    if not tensors:
        classes = sorted(name for name in names - PLAIN_DATA if not NO_MODEL.match(name))
        found = f" but objects of {', '.join(classes[:3])}: save the state_dict() of the model alone" if classes else ""
        raise UserError(f"--weights={path} holds no tensors by name{found or ': it is no state dict'}")
    return tensors


def _tensors_in(content: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of each dense tensor in dictionaries in one another; each dictionary once."""
    if not isinstance(content, dict) or id(content) in seen:
        return
    seen.add(id(content))
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            if value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu":
                yield f"{prefix}{key}", value
        else:
            yield from _tensors_in(value, f"{prefix}{key}.", seen)


def _load(path: Path, names: set[str]) -> Any:
    foreign = sorted(name for name in names - PLAIN_DATA if name.split(".")[0] in sys.stdlib_module_names)
    if foreign:
        raise UserError(
            f"--weights={path} would have {', '.join(foreign[:3])} of Python called or made, and nothing of it was "
            "run: get weights from their publisher, or save the state_dict() alone"
        )
    # PyTorch prefers its own classes to these.
    stand_ins: list[Any] = [(MappingStandIn if name.lower().endswith("dict") else StandIn, name) for name in names]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
        warnings.simplefilter("ignore")  # of a pickle protocol that fails a line later
        return torch.load(path, map_location="cpu", weights_only=True)


def _names_in(path: Path) -> set[str]:
    """Names of the classes and functions that a file asks for. It is parsed, not unpickled."""
    pickles: Iterable[IO[bytes] | bytes]
    with open(path, "rb") as file:
        is_zip = file.read(len(ZIP_START)) == ZIP_START  # as PyTorch tells its formats apart
        file.seek(0)
        if is_zip:
            with zipfile.ZipFile(file) as archive:
                pickles = [archive.read(entry) for entry in archive.namelist() if entry.endswith("data.pkl")]
        else:
            pickles = [file] * PICKLES_BEFORE_1_6  # one after the other
        asked = [
            str(argument).split(" ", 1)
            for pickled in pickles
            for code, argument, _ in pickletools.genops(pickled)
            if code.name == "GLOBAL"
        ]
    renamed = (NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)) for module, name in asked)
    return {".".join(one) for one in renamed}
