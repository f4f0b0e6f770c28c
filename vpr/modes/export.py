"""--mode=export: a run or the off-the-shelf model as one self-contained ONNX file, in float32, float16 or int8."""

import argparse
import tempfile
from pathlib import Path

from vpr.artifacts.model import LoadedModel, load_finished
from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.progress import say
from vpr.compression.onnx_export import (
    _calibration_photos,
    _write_with_card,
    export_plain,
    model_card,
    quantize,
    require_packages,
    to_float16,
)
from vpr.models.weights import weights_label


def run(options: argparse.Namespace) -> None:
    """Write the file, beside the run's checkpoints unless --out names another."""
    require_packages()
    finished = load_finished(options)
    kind = options.quantize or "fp32"
    path = Path(options.out) if options.out else _default_path(options, finished, kind)
    if path.suffix != ".onnx":
        raise UserError(f"--out={path}: found {path.suffix or 'no ending'}, wanted .onnx")
    calibration = _calibration_photos(options) if kind == "int8" else None
    card = model_card(options, finished, kind)
    with tempfile.TemporaryDirectory() as folder, atomic_write(path) as temporary:
        plain = Path(folder) / "plain.onnx"
        export_plain(finished, plain)
        if kind == "int8":
            quantize(plain, calibration)
        elif kind == "fp16":
            to_float16(plain)
        _write_with_card(plain, temporary, card)
    say(f"wrote {path}: {card['model']}, {path.stat().st_size / 1e6:.1f} MB")


def _default_path(options: argparse.Namespace, finished: LoadedModel, kind: str) -> Path:
    if options.run:
        return options.run / f"model_{options.ckpt}_{kind}.onnx"
    weights = weights_label(options.arch, options.weights)
    return finished.folder / f"{options.arch}_{weights}_{options.pooling}_{kind}.onnx"
