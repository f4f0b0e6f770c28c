"""What an exported model says of itself, stored inside the ONNX file."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from vpr.common.device import compute_threads
from vpr.common.errors import UserError
from vpr.common.provenance import check_onnx, say_without_checksum

FORMAT = "netvlad place recognition 1"
CARD = ("model", "dimension", "pooled_dimension", "smallest_side", "flags")  # what is read of a card
INSTALL = "python -m pip install -r requirements-deploy.txt"


def read_card(path: Path, metadata: dict[str, str], sealed: bool) -> dict:
    """What an exported file, `sealed` where its checksum was right, says of itself; its flags are not checked here.
    Raises a UserError: another program wrote it, or it is damaged."""
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
    """The card of an exported file; UserError as of `read_card`."""
    return open_session(path, optimized=False)[1]


def open_session(path: Path, optimized: bool = True) -> tuple[Any, dict]:
    """An exported file in ONNX Runtime on the processor, and its card; UserError as of `read_card`.
    It is `optimized` if it will compute; to be read alone it need not."""
    runtime = import_optional("onnxruntime")
    if not path.is_file():
        raise UserError(f"{path} does not exist: export a run with --mode=export")
    sealed = check_onnx(path, "export it again")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = compute_threads()
    if not optimized:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises kinds of its own on damaged files
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read as an ONNX model ({reason}): export it again") from error
    return session, read_card(path, session.get_modelmeta().custom_metadata_map, sealed)


def import_optional(name: str) -> ModuleType:
    """A module of requirements-deploy.txt; UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"ONNX models need {name}, which is not installed: {INSTALL}") from error
