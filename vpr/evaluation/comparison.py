"""Several models on one split: recall against size, arithmetic and time."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vpr.data.places import PlaceImages
from vpr.data.reader import Reading
from vpr.descriptors.describe import LocalDescribing
from vpr.descriptors.local_maps import MemorySink
from vpr.evaluation.evaluate import SINGLE, Evaluation, describe_split, measure_each
from vpr.models.describer import Describer
from vpr.models.local_projection import LocalProjection
from vpr.retrieval.ask import Ask
from vpr.retrieval.rules import SECOND_LOOK
from vpr.retrieval.verification.kept import KeptKeypoints

TIMED_IMAGES, WARM_UP = 20, 3
# How the table calls stages, by the beginnings of their steps.
STAGES = {"conditions": "conditions", SECOND_LOOK: "re-ranked", "verification": "verified", "": "in order"}


@dataclass(frozen=True)
class Row:
    """A model with its recalls and what it costs."""

    name: str
    evaluation: Evaluation
    curve: dict[int, float]  # Recall@N for all N up to 100
    megabytes: float  # of the exported file, or of a PyTorch model's values
    parameters: int
    gflop: float  # for an image of the first query's size, 2 for a multiplication and an addition
    milliseconds: float  # median for one image at a time; with re-ranking, and that of a query
    device: str  # on which the model ran
    path: str  # of the run or exported file, in full; `name` is so much of its end as tells it from the others


def measure_model(
    model: Describer,
    images: PlaceImages,
    label: str,
    path: Path,
    reading: Reading,
    recall_values: Sequence[int],
    batch_size: int | None = None,
    ask: Ask = SINGLE,
    projection: LocalProjection | None = None,
    keypoints: KeptKeypoints | None = None,
) -> list[Row]:
    """Recalls and costs of one model, and again after re-ranking, if it is asked for, whose time is added.

    Args:
        label, path: how the table calls the model, and its run or exported file.
        projection: of local descriptors for re-ranking; None where the model brings it.
        keypoints: by which re-ranked hits are verified; None: they are not.
    """
    model.eval()
    how = ask.reranking(False)
    keeping = LocalDescribing(projection, MemorySink(len(images.files))) if how and how.takes_local else None
    descriptors = describe_split(model, images, images.reader(reading), batch_size, keeping)
    stages = measure_each(descriptors, model, images, recall_values, ask, keypoints=keypoints)
    evaluation, answers = next(stages)
    reader, count = images.reader(Reading(reading.size)), len(images.database_files)
    queries = range(count, min(count + TIMED_IMAGES, len(reader.files)))
    singles = [group.values for (group,) in reader.batches([[index] for index in queries])]
    milliseconds = milliseconds_per_image(model.describe, singles)
    height, width = singles[0].shape[2:]
    row = Row(
        name=label,
        evaluation=evaluation,
        curve=answers.curve,
        megabytes=model.megabytes,
        parameters=model.parameter_count,
        gflop=model.gflop(height, width),
        milliseconds=milliseconds,
        device=str(model.runs_on),
        path=str(path.resolve()),
    )
    rows, start = [row], time.perf_counter()
    for again, answers in stages:
        both = milliseconds + 1000 * (time.perf_counter() - start) / len(images.query_files)
        name = next(name for beginning, name in STAGES.items() if answers.ranking.steps[-1].startswith(beginning))
        rows.append(replace(row, name=f"{label}, {name}", evaluation=again, curve=answers.curve, milliseconds=both))
    return rows


def milliseconds_per_image(describe: Callable[[np.ndarray], object], images: list[np.ndarray]) -> float:
    """Median time of describing one image at a time, each uint8 [1, 3, H, W], after WARM_UP that do not count."""
    times = []
    for image in images[:WARM_UP] + images:
        started = time.perf_counter()
        describe(image)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[min(WARM_UP, len(images)) :])


def table(rows: list[Row]) -> str:
    """Markdown."""
    recalls = list(rows[0].evaluation.recalls)
    headings = [
        "model", *(f"R@{n}" for n in recalls), "MB", "million parameters", "GFLOP per image", "ms per image",
        "runs on", "descriptor bytes", "what it is",
    ]  # fmt: skip
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for row in rows:
        evaluation = row.evaluation
        cells = [
            row.name, *(f"{100 * value:.1f}" for value in evaluation.recalls.values()), f"{row.megabytes:.1f}",
            f"{row.parameters / 1e6:.2f}", f"{row.gflop:.2f}", f"{row.milliseconds:.1f}",
            row.device, f"{evaluation.bytes_per_image:.0f}", f"{evaluation.model}; images {evaluation.image_size}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
