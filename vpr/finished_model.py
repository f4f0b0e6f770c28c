"""The model that test, whiten and export start from: a trained run's or the off-the-shelf one, whitened or not."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from vpr.centroids import start_pooling
from vpr.errors import UserError
from vpr.model import PlaceModel, build_model, describe_model
from vpr.onnx_model import OnnxModel
from vpr.progress import say
from vpr.training_state import load_model
from vpr.whitening import load_whitening, whitening_file


@dataclass(frozen=True)
class FinishedModel:
    """A model on the CPU, and where it comes from.

    Attributes:
        source: for results files.
        folder: where its whitening lies.
    """

    model: PlaceModel | OnnxModel
    source: dict
    folder: Path


def name_of(model: PlaceModel | OnnxModel, options: argparse.Namespace) -> str:
    """What a model is, in words: what every recall is labelled with."""
    return model.card["model"] if isinstance(model, OnnxModel) else describe_model(options, model)


def results_folder(finished: FinishedModel, options: argparse.Namespace) -> Path:
    """Where results of a model go: its run, beside its exported file, or for the off-the-shelf model --runsPath."""
    exported = isinstance(finished.model, OnnxModel)
    return finished.folder if exported else options.run or Path(options.runsPath)


def load_finished(options: argparse.Namespace, whitened: bool = True) -> FinishedModel:
    """The model of --resume, or the off-the-shelf one; with its whitening if it has one, unless --noWhiten.

    Raises:
        UserError: checkpoint, centroids or whitening are missing, damaged or of something else.
    """
    if options.run and options.run.suffix == ".onnx":
        return FinishedModel(OnnxModel(options.run), {"model": options.run.name}, options.run.parent)
    if options.run:
        model, epochs = load_model(options, options.run, options.ckpt)
        source = {"run": options.run.name, "checkpoint": options.ckpt, "epochs": epochs}
        folder = options.run / options.savePath
    else:
        model = build_model(options)
        source = {"run": None, "centroids": start_pooling(model, options)}
        path = Path(options.dataPath)
        folder = path.parent if path.is_file() else path
    if whitened and not options.noWhiten:
        _whiten(model, folder, options)
    return FinishedModel(model, source, folder)


def _whiten(model: PlaceModel, folder: Path, options: argparse.Namespace) -> None:
    path = whitening_file(folder, model)
    if path.is_file():
        whitening = load_whitening(path)
        model.whiten(whitening.cropped(options.pcaDim) if options.pcaDim else whitening)
    elif options.pcaDim:
        raise UserError(f"--pcaDim={options.pcaDim}: this model has no whitening; run --mode=whiten first, or drop it")
    elif options.run and list(folder.glob("whitening_*.pth.tar")):
        say(f"the whitening in {folder} belongs to other weights and is not used: run --mode=whiten again")
