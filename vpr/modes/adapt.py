"""--mode=adapt: fit a model to one's own place in minutes; `vpr.training.adapting` says how."""

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from vpr.cli.load import computing, model_of, results_folder, whitening_choice
from vpr.cli.specs import device_of, places_spec, reading
from vpr.common.files import write_json
from vpr.common.progress import say
from vpr.data.places import PlaceImages, is_plain_folder, load_database, load_places, training_set
from vpr.descriptors.describe import describe, describe_sizes
from vpr.models.place_model import PlaceModel
from vpr.models.poolings.base import ClusterPooling
from vpr.models.whitening import StoredWhitening, save_whitening
from vpr.report.plots import draw_adaptation
from vpr.runs.pytorch_model import whitening_recipe
from vpr.training.adapting.adapt import VIEWS, Adaptation, Trial, adapt, require_images
from vpr.training.views.reader import ViewedReader

MOST_IMAGES = 2000  # that are described in their views


def run(options: argparse.Namespace) -> None:
    """Write the adapted model's whitening where test, index, locate and serve look for it, if it helps."""
    device = device_of(options)
    places, read = places_spec(options), reading(options, device)
    images = load_database(places, options.split) if is_plain_folder(places) else load_places(places, "train", False)
    require_images(len(images.files))
    loaded = model_of(options, device, database=images)
    chosen = np.random.default_rng(options.seed).permutation(len(images.files))[:MOST_IMAGES]
    chosen.sort()
    model = computing(loaded.model, options, device, len(chosen) * (len(VIEWS) + 1))
    assert isinstance(model, PlaceModel)  # the command line refuses exported files, whose whitening is inside
    before, model.whitening = model.whitening, None
    own = before if before is not None and before.removed is None else None  # not what images held out now taught
    reader = ViewedReader.of(read.of([images.files[each] for each in chosen]), VIEWS, options.seed)
    described, sizes = describe(model, reader, range(len(reader)), options.cacheBatchSize, "descriptors of views")
    views = torch.from_numpy(described).float().view(len(chosen), len(VIEWS) + 1, -1)
    at = np.concatenate([images.places.database_positions, images.places.query_positions])[chosen]
    clusters = model.pool.num_clusters if isinstance(model.pool, ClusterPooling) else 1
    found = adapt(views, at, images.places.positive_radius, options.seed, clusters, own)
    size = describe_sizes(sizes, resized=options.imageSize is not None)
    say(f"{model.name}; images {size}")
    folder = results_folder(loaded, options) / f"adapted_{images.places.name}"
    _report(found, images, f"{model.name}; images {size}", folder)
    recipe = whitening_recipe(model, whitening_choice(options, device), *training_set(places))
    path = recipe.path(loaded.folder)
    if found.whitening is None:
        stays = f"as it was, with {path} of before" if path.is_file() else "as it was, nothing is written for it"
        say(f"nothing that was learnt finds held-out images better by more than chance: the model stays {stays}")
        return
    if path.is_file():
        say(f"{path}, of --mode=whiten or of images of before, is replaced")
    save_whitening(path, StoredWhitening(found.whitening, model.dim, recipe, len(chosen)))
    say(
        f"wrote {path}: test, index, locate and serve take it by themselves; --noWhiten leaves it out, "
        f"--pcaDim={found.whitening.dim} makes descriptors short"
    )


def _report(found: Adaptation, images: PlaceImages, model: str, folder: Path) -> None:
    """What came of each number of directions, in words, as a picture and as numbers."""
    count, protocol = len(found.questions.images), found.questions.protocol
    asked = f"held-out images of {images.places.name}, {count} queries; {protocol}; nights are drawn"
    say(f"learnt from {found.pairs} pairs of images of one place and views ({', '.join(VIEWS[:-1])})\n{asked}")
    for trial in (found.before, *found.trials):
        kept = " <- kept" if trial is found.best and trial.removed else ""
        changed = (
            f"; {trial.won} won, {trial.lost} lost, {trial.clearer} of {trial.asked} clearer" if trial.removed else ""
        )
        say(f"  less of {trial.removed:2} directions: {_recall_text(trial)}{changed}{kept}")
    folder.mkdir(parents=True, exist_ok=True)
    trials = [found.before, *found.trials]
    curves = {"as they are": [each.plain[1] for each in trials], "by night": [each.night[1] for each in trials]}
    draw_adaptation(folder / "adapted.png", [each.removed for each in trials], curves, f"{asked}; {model}")
    figures = {"model": model, "asked": asked, "kept": found.best.removed}
    write_json(folder / "adapted.json", {**figures, "trials": [asdict(each) for each in trials]})
    say(f"wrote {folder / 'adapted.png'} and adapted.json")


def _recall_text(trial: Trial) -> str:
    named = (("as they are", trial.plain), ("by night", trial.night))
    return "; ".join(
        f"{name} {', '.join(f'R@{n} {100 * recall:.1f}' for n, recall in each.items())}" for name, each in named
    )
