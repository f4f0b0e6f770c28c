"""--mode=export: a run or the off-the-shelf model as one self-contained ONNX file, in float32, float16 or int8."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from vpr.cli.flags import CARD_FLAGS
from vpr.cli.load import model_of
from vpr.cli.options import flags_of
from vpr.cli.specs import places_spec, reading
from vpr.common.device import CPU
from vpr.common.errors import UserError
from vpr.common.files import atomic_write, read_json
from vpr.common.progress import say
from vpr.compression.onnx_export import (
    calibration_images,
    export_plain,
    model_card,
    quantize,
    require_packages,
    to_float16,
    write_with_card,
)
from vpr.data.places import load_places
from vpr.models.place_model import PlaceModel
from vpr.models.weights import weights_label
from vpr.runs.local_projection import projection_for
from vpr.runs.model import LoadedModel


def run(options: argparse.Namespace) -> None:
    """Write the file, beside the run's checkpoints unless --out names another."""
    require_packages()
    finished = model_of(options, CPU)
    kind = options.quantize or "fp32"
    path = Path(options.out) if options.out else _default_path(options, finished, kind)
    if path.suffix != ".onnx":
        raise UserError(f"--out={path}: found {path.suffix or 'no ending'}, wanted .onnx")
    model = finished.model
    assert isinstance(model, PlaceModel)  # the command line refuses to export what is exported already
    if kind == "int8" and not model.backbone.convolutional:
        raise UserError(f"--quantize=int8 is for networks of convolutions, {options.arch} is a transformer: drop it")
    images, projection = [], None
    if kind == "int8" or options.localDescriptors:
        database, read = load_places(places_spec(options), "train").database_files, reading(options, CPU)
        if kind == "int8":
            images = calibration_images(database, read, options.seed)
        if options.localDescriptors:
            projection = projection_for(finished, read.of(database), options.seed, options.localDim)
    flags = {name: value for name, value in flags_of(options).items() if name in CARD_FLAGS}
    card = model_card(model, kind, finished.source, flags, _known_recalls(options))
    with tempfile.TemporaryDirectory() as folder, atomic_write(path) as temporary:
        plain = Path(folder) / "plain.onnx"
        export_plain(model, plain, projection)
        if kind == "int8":
            quantize(plain, images)
        elif kind == "fp16":
            to_float16(plain, model.backbone.convolutional)
        write_with_card(plain, temporary, card)
    say(f"wrote {path}: {card['model']}, {path.stat().st_size / 1e6:.1f} MB")


def _known_recalls(options: argparse.Namespace) -> list[dict]:
    """Results of the run's checkpoint, oldest first."""
    if not options.run or not (options.run / "results.json").is_file():
        return []
    results: Any = read_json(options.run / "results.json")
    return [entry for entry in results if entry.get("checkpoint") == options.ckpt]


def _default_path(options: argparse.Namespace, finished: LoadedModel, kind: str) -> Path:
    if options.run:
        return options.run / f"model_{options.ckpt}_{kind}.onnx"
    weights = weights_label(options.arch, options.weights)
    return finished.folder / f"{options.arch}_{weights}_{options.pooling}_{kind}.onnx"
