"""--mode=test: describe, search, and count Recall@N of a trained or an off-the-shelf model."""

import argparse
import datetime
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from vpr.centroids import start_pooling
from vpr.descriptors import describe_files, describe_sizes
from vpr.files import read_json, write_json
from vpr.model import PlaceModel, build_model, choose_device, describe_model, device_line
from vpr.panels import SHOWN, draw_panels
from vpr.places import PlacePhotos, load_places, require_queries
from vpr.progress import say
from vpr.recall import recall_at, recall_line
from vpr.search import search_places
from vpr.training_state import load_model

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class Evaluation:
    """Recalls (between 0 and 1, by N) and what they were measured on."""

    recalls: dict[int, float]
    split: str
    spec: str
    queries: int
    queries_without_positive: int
    database_photos: int
    model: str
    descriptor_dim: int
    image_size: str

    def lines(self) -> str:
        """What was measured, then the recalls in percent."""
        return (
            f"split {self.split} ({self.spec}): {self.queries} queries, of which {self.queries_without_positive} have "
            f"no database photo within reach and count as missed; {self.database_photos} database photos\n"
            f"{self.model}; images {self.image_size}\n"
            f"{recall_line(self.recalls)}"
        )


@dataclass(frozen=True)
class Answers:
    """What was found for each query, int64 [M, count] nearest first, and what would have been right."""

    found: np.ndarray
    positives: list[np.ndarray]


def run(options: argparse.Namespace) -> None:
    """Test the run of --resume, or without it the off-the-shelf model."""
    photos = load_places(options, options.split)
    require_queries(photos)
    device = choose_device(options)
    say(device_line(device))
    if options.run:
        model, epochs = load_model(options, options.run, options.ckpt)
        source = {"run": options.run.name, "checkpoint": options.ckpt, "epochs": epochs}
    else:
        model = build_model(options)
        source = {"run": None, "centroids": start_pooling(model, options)}
    evaluation, answers = evaluate(model.to(device), photos, options.recallValues, options, device)
    folder = options.run or Path(options.runsPath)
    record(folder / RESULTS_FILE, evaluation, source)
    if options.panels:
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        pictures = folder / f"test_{options.split}_{stamp}" / "panels.jpg"
        draw_panels(pictures, photos, answers.found, answers.positives, options.panels)
        say(f"wrote {pictures}")
    say(evaluation.lines())


def evaluate(
    model: PlaceModel,
    photos: PlacePhotos,
    recall_values: list[int],
    options: argparse.Namespace,
    device: torch.device,
) -> tuple[Evaluation, Answers]:
    """Recall@N of a model on a split, for each N of `recall_values`."""
    places = photos.places
    database, sizes = describe_files(model, photos.database_files, options, device, f"{photos.split} database")
    queries, query_sizes = describe_files(model, photos.query_files, options, device, f"{photos.split} queries")
    found = search_places(database, queries, max(*recall_values, SHOWN), places)
    positives = places.positives()
    evaluation = Evaluation(
        recalls=recall_at(found, positives, recall_values),
        split=photos.split,
        spec=places.name,
        queries=len(places.query_names),
        queries_without_positive=sum(len(indices) == 0 for indices in positives),
        database_photos=len(places.database_names),
        model=describe_model(options, model),
        descriptor_dim=model.descriptor_dim,
        image_size=describe_sizes(sizes | query_sizes, resized=options.imageSize is not None),
    )
    return evaluation, Answers(found, positives)


def record(path: Path, evaluation: Evaluation, source: dict) -> None:
    """Add an evaluation to a results file: a list, oldest first."""
    earlier = read_json(path) if path.is_file() else []
    now = datetime.datetime.now().isoformat(timespec="seconds")
    write_json(path, [*earlier, {"measured": now, **source, **asdict(evaluation)}])
    say(f"wrote {path}")
