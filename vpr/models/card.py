"""What an exported model says of itself, stored inside the ONNX file."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from vpr.common.errors import UserError
from vpr.common.provenance import check_onnx, say_without_checksum

FORMAT = "netvlad place recognition 1"
CARD = ("model", "dimension", "pooled_dimension", "smallest_side", "flags")  # what is read of a card
INSTALL = "python -m pip install -r requirements-deploy.txt"


def is_sealed(path: Path) -> bool:
    """Whether an exported file has a checksum, which then is right."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: export a run with --mode=export")
    return check_onnx(path, "export it again")


def read_card(path: Path, metadata: dict[str, str], sealed: bool) -> dict:
    """What an exported file says of itself; its flags are not checked here.

    Args:
        sealed: whether the file's checksum has been found right.

    Raises:
        UserError: another program wrote it, or it is damaged.
    """
    if metadata.get("format") != FORMAT:
        found = ", ".join(sorted(metadata)[:4]) or "nothing"
        raise UserError(f"{path} was exported by another program (it says {found}): export with --mode=export")
    try:
        card = json.loads(metadata["card"])
        missing = {*CARD} - card.keys()
    except (KeyError, ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} is damaged: its card cannot be read ({error}): export it again") from error
    if missing or (card.get("checksum") and not sealed):
        why = f"its card lacks {', '.join(sorted(missing))}" if missing else "its checksum is gone"
        raise UserError(f"{path} is damaged: {why}: export it again")
    if not isinstance(card["flags"], dict):
        raise UserError(f"{path} is damaged: its flags are {card['flags']!r}: export it again")
    if not sealed:
        say_without_checksum(path)
    return card


def card_of(path: Path) -> dict:
    """The card of an exported file, without loading its weights into a session; UserError as of `read_card`."""
    sealed = is_sealed(path)
    try:
        model = memoryview(path.read_bytes())
        entries = ([bytes(text).decode() for _, text in fields(entry)] for name, entry in fields(model) if name == 14)
        metadata: dict[str, str] = dict(entries)
    except (ValueError, LookupError) as error:
        raise UserError(f"{path} cannot be read as an ONNX model ({type(error).__name__}): export it again") from error
    return read_card(path, metadata, sealed)


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message of Protocol Buffers that have a length, by number; a ValueError where it is cut short.

    Of ONNX's ModelProto number 14, metadata_props, has messages of a key (1) and a value (2):
    https://protobuf.dev/programming-guides/encoding/ and onnx.proto. The package onnx takes longer to import than all
    else that a card is read for.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte, at = message[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            varint()
            continue
        length = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if at + length > len(message):
            raise ValueError("cut short")
        if kind == 2:
            yield number, message[at : at + length]
        at += length


def import_optional(name: str) -> ModuleType:
    """A module of requirements-deploy.txt; UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"ONNX models need {name}, which is not installed: {INSTALL}") from error
