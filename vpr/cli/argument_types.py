"""What a flag's word must be, checked as argparse reads it: counts, shares, zones, names of backbones."""

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from vpr.common.errors import UserError
from vpr.common.files import is_file
from vpr.database.engines import engine_address
from vpr.models.backbones import BACKBONES

if TYPE_CHECKING:
    from vpr.database.filters import Condition

Value = TypeVar("Value")


def whole_number(at_least: int, at_most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number that is not below `at_least`, nor above `at_most`."""
    bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < at_least or (at_most is not None and int(text) > at_most):
            raise argparse.ArgumentTypeError(f"found {text!r}, wanted a whole number {bounds}")
        return int(text)

    return convert


def signed_number(text: str) -> int:
    """An argparse type: a whole number, perhaps a negative one."""
    if not text.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a whole number")
    return int(text)


def backbone_name(text: str) -> str:
    """An argparse type: a backbone of the table, or NAME or NAME.TAG of timm, imported for these alone.

    A name without its sizes stays as it is typed; see `completed`.
    """
    if text in BACKBONES:
        return text
    from vpr.models.backbones.timm_names import completed, split_tag

    try:
        completed(split_tag(text)[0])
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def number_or_all(text: str) -> int | str:
    """An argparse type: a whole number, or the word all."""
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a whole number or all")
    return text if text == "all" else int(text)


def utm_zone(text: str) -> str:
    """An argparse type: a UTM zone's number and hemisphere, such as 17N."""
    if text[-1:].upper() not in ("N", "S") or not text[:-1].isdecimal() or not 1 <= int(text[:-1]) <= 60:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a UTM zone and hemisphere such as 17N")
    return f"{int(text[:-1])}{text[-1].upper()}"


def quantity(text: str) -> float:
    """An argparse type: a finite number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a finite number of at least 0")
    return value


def signed_quantity(text: str) -> float:
    """An argparse type: a finite number, perhaps a negative one."""
    quantity(text.removeprefix("-"))
    return float(text)


def normalization(text: str) -> str:
    """An argparse type: the name of an input normalisation, or a mean colour R,G,B."""
    from vpr.models.normalization import NORMALIZATIONS, mean_colour

    if text not in NORMALIZATIONS:
        try:
            mean_colour(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return text


def finite_number(text: str) -> float:
    """An argparse type: a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not float("-inf") < value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a finite number")
    return value


def probability(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = quantity(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number from 0 to 1")
    return value


def share(text: str) -> float:
    """An argparse type: a number between 0 and 1, neither of them."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number between 0 and 1, neither of them")
    return value


def near(text: str) -> "tuple[float, float, float]":
    """An argparse type: a point in degrees and metres around it."""
    from vpr.database.filters import read_near

    return _read(read_near, text)


def box(text: str) -> "tuple[float, float, float, float]":
    """An argparse type: a box of degrees."""
    from vpr.database.filters import read_box

    return _read(read_box, text)


def condition(text: str) -> "Condition":
    """An argparse type: a condition on a column."""
    from vpr.database.filters import read_condition

    return _read(read_condition, text)


def engine(text: str) -> str:
    """An argparse type: faiss, milvus:FILE.db or milvus:http://HOST:PORT."""
    _read(engine_address, text)
    return text


def _read(reader: Callable[[str], Value], text: str) -> Value:
    """What a reader makes of a word; argparse prints what it says of a wrong one."""
    try:
        return reader(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def require_normalization(given: Mapping[str, Any]) -> None:
    """CaffeNet's weights are of pixels minus a mean colour, which their file does not hold; other networks of the table
    have weights of torchvision too, whose input is the default.

    Args:
        given: the flags that were typed, by their names.

    Raises:
        UserError: a file of CaffeNet's without --normalization.
    """
    arch, weights = given.get("arch", ""), given.get("weights", "")
    if arch in ("alexnet_caffe", "alexnet_caffe_ceil") and is_file(weights) and "normalization" not in given:
        raise UserError(
            f"--weights={weights} of {arch} does not say which mean colour its pixels are taken minus: give it with "
            "--normalization=R,G,B, or --normalization=caffe for 123.68,116.779,103.939"
        )
