"""--mode=compare: several models on one split, side by side: recall against size, arithmetic and time."""

import argparse
import datetime
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vpr.cost import milliseconds_per_photo, parameter_count, pooling_gflop, trunk_gflop
from vpr.errors import UserError
from vpr.files import replacing, write_json
from vpr.finished_model import FinishedModel, load_finished
from vpr.images import PhotoReader
from vpr.model import choose_device, device_line
from vpr.onnx_model import OnnxModel
from vpr.options import options_for
from vpr.places import PlacePhotos, load_places, require_queries
from vpr.plots import draw_recall
from vpr.progress import say
from vpr.test import Evaluation, describe_split, measure

TIMED_PHOTOS = 20


@dataclass(frozen=True)
class Row:
    """A model with its recalls and what it costs.

    Attributes:
        megabytes: of the exported file, or of a PyTorch model's values.
        gflop: for a photo of the first query's size, 2 for a multiplication and an addition.
        curve: Recall@N for all N up to 100.
        milliseconds: median for one photo at a time.
    """

    name: str
    evaluation: Evaluation
    curve: dict[int, float]
    megabytes: float
    parameters: int
    gflop: float
    milliseconds: float


def run(options: argparse.Namespace) -> None:
    """Measure all models; write and print the table."""
    if not options.inputs:
        raise UserError("--mode=compare wants runs or exported files: as in --mode=compare runs/RUN FILE.onnx")
    each = [options_for(options, "test", {"resume": item}) for item in options.inputs]
    device = choose_device(options)
    say(device_line(device))
    rows = [measure_model(model_options, device) for model_options in each]
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(options.runsPath) / f"compare_{options.split}_{stamp}"
    first = rows[0].evaluation
    about = (
        f"{device_line(device)}; split {first.split} ({first.spec}), {first.queries} queries, "
        f"{first.database_photos} database photos"
    )
    text = f"{about}; time: median of single photos\n\n{table(rows)}"
    with replacing(folder / "comparison.md") as path:
        path.write_text(text, encoding="utf-8")
    write_json(folder / "comparison.json", {"about": about, "rows": [asdict(row) for row in rows]})
    draw(rows, folder / "comparison.png")
    draw_recall(folder / "recall.png", {row.name: row.curve for row in rows}, about)
    say(f"{text}\nwrote {folder}/comparison.md, .json and .png, and recall.png")


def measure_model(options: argparse.Namespace, device: torch.device) -> Row:
    """Recalls and costs of one model."""
    photos = load_places(options, options.split)
    require_queries(photos)
    finished = load_finished(options)
    model = finished.model.place(device, options.precision).eval()
    reader = PhotoReader(photos.files, options.imageSize, options.threads, device)
    descriptors = describe_split(model, photos, reader, options, device)
    evaluation, answers = measure(descriptors, model, photos, options.recallValues, options)
    singles = _single_photos(photos, options)
    with torch.no_grad():
        milliseconds = milliseconds_per_photo(lambda photo: model(photo.to(device)).cpu(), singles)
    height, width = singles[0].shape[2:]
    megabytes, parameters = _size(finished, options)
    return Row(
        name=Path(options.resume).name if options.resume else "off the shelf",
        evaluation=evaluation,
        curve=answers.curve,
        megabytes=megabytes,
        parameters=parameters,
        gflop=model_gflop(options, finished, height, width),
        milliseconds=milliseconds,
    )


def model_gflop(options: argparse.Namespace, finished: FinishedModel, height: int, width: int) -> float:
    """GFLOP for one photo, of the arithmetic as designed, whatever the number format."""
    model = finished.model
    gflop, places = trunk_gflop(options.arch, options.channels, height, width)
    clusters = options.num_clusters if options.pooling == "netvlad" else 0
    whitened = model.descriptor_dim if model.descriptor_dim != model.pooled_dim else None
    return gflop + pooling_gflop(places, model.pooled_dim // max(clusters, 1), clusters, model.pooled_dim, whitened)


def table(rows: list[Row]) -> str:
    """Markdown."""
    recalls = list(rows[0].evaluation.recalls)
    headings = [
        "model", *(f"R@{n}" for n in recalls), "MB", "million parameters", "GFLOP per image", "ms per image",
        "descriptor bytes", "what it is",
    ]  # fmt: skip
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for row in rows:
        evaluation = row.evaluation
        cells = [
            row.name, *(f"{100 * value:.1f}" for value in evaluation.recalls.values()), f"{row.megabytes:.1f}",
            f"{row.parameters / 1e6:.2f}", f"{row.gflop:.2f}", f"{row.milliseconds:.1f}",
            f"{evaluation.bytes_per_image:.0f}", f"{evaluation.model}; images {evaluation.image_size}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """Recall at the first and the second N against size and against time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    chosen = list(rows[0].evaluation.recalls)[:2]
    for axes, name, values in (
        (panels[0], "MB", [row.megabytes for row in rows]),
        (panels[1], "ms per image", [row.milliseconds for row in rows]),
    ):
        for n, marker in zip(chosen, "os", strict=False):
            recalls = [100 * row.evaluation.recalls[n] for row in rows]
            axes.semilogx(values, recalls, marker, label=f"R@{n}")
        for row, value in zip(rows, values, strict=True):
            axes.annotate(row.name, (value, 100 * row.evaluation.recalls[chosen[0]]), fontsize=7, rotation=20)
        axes.set(xlabel=name, ylabel="recall, percent")
        axes.grid(alpha=0.3)
        axes.margins(0.25)
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)


def _single_photos(photos: PlacePhotos, options: argparse.Namespace) -> list[torch.Tensor]:
    reader = PhotoReader(photos.query_files[:TIMED_PHOTOS], options.imageSize, 0)
    return [group.values for (group,) in reader.batches([[index] for index in range(len(reader.files))])]


def _size(finished: FinishedModel, options: argparse.Namespace) -> tuple[float, int]:
    if isinstance(finished.model, OnnxModel):
        return options.run.stat().st_size / 1e6, int(finished.model.card["parameters"])
    count = parameter_count(finished.model)
    return 4 * count / 1e6, count
