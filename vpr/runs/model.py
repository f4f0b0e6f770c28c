"""A model with what is known of where it comes from, and which of its whitenings is wanted; one of an exported file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vpr.common.errors import UserError
from vpr.data.places import PlacesSpec
from vpr.data.reader import Reading
from vpr.models.describer import Describer
from vpr.models.onnx_model import OnnxModel


@dataclass(frozen=True)
class LoadedModel:
    """A model on the CPU, and where it comes from."""

    model: Describer
    source: dict[str, Any]  # for results files
    folder: Path  # where its whitening lies
    # Where results of it go: its run, or beside its exported file; None for the off-the-shelf model.
    results: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)  # those stored with it
    trained_on: str = ""  # hash of a run's training set, as of `training_set`; empty where the run does not say


@dataclass(frozen=True)
class WhiteningChoice:
    """Which of a model's whitenings is wanted, if it has several: it was learnt on images like those to come."""

    reading: Reading  # how images are read
    precision: str  # number format, as of --precision
    places: PlacesSpec  # whose training split it was learnt on
    dims: int | None = None  # dimensions of a whitened descriptor; None takes what was asked for when it was learnt


def load_exported(path: Path, whitened: bool) -> LoadedModel:
    """An exported file's model, as of `load_model`."""
    model = OnnxModel(path)
    if not whitened and (
        model.dim != model.pooled_dim or any(f"-D {word} to " in model.name for word in ("adapted", "whitened"))
    ):
        raise UserError(f"{path} holds its whitening inside: export the run with --noWhiten, or name the run")
    return LoadedModel(model, {"model": path.name}, path.parent, path.parent, model.card["flags"])


def stored_choice(flags: Mapping[str, Any]) -> WhiteningChoice:
    """The whitening for images as a run's training had them, by the run's flags."""
    size = [flags["longSide"]] if flags.get("longSide") else flags.get("imageSize")
    reading = Reading(tuple(size) if size else None)
    return WhiteningChoice(reading, flags.get("precision", "auto"), stored_places(flags, None))


def stored_places(flags: Mapping[str, Any], other: PlacesSpec | None) -> PlacesSpec:
    """The places that a run was trained on, by its flags; what these lack is of others."""
    other = other or PlacesSpec(flags.get("dataset", "pittsburgh"), Path("."), flags.get("skipBroken", False))
    return replace(other, dataset=flags.get("dataset", other.dataset), root=Path(flags.get("root") or other.root))
