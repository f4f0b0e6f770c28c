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
from vpr.model import choose_device, device_line
from vpr.onnx_model import OnnxModel, card_of
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
        device: on which the model ran.
        path: of the run or exported file, in full; `name` is so much of its end as tells it from the others.
    """

    name: str
    evaluation: Evaluation
    curve: dict[int, float]
    megabytes: float
    parameters: int
    gflop: float
    milliseconds: float
    device: str
    path: str


def run(options: argparse.Namespace) -> None:
    """Measure all models on the same photos; write and print the table."""
    if not options.inputs:
        raise UserError("--mode=compare wants runs or exported files: as in --mode=compare runs/RUN FILE.onnx")
    named = labels(options.inputs)
    each = options_on_one_set(options, list(named))
    device = choose_device(options)
    say(device_line(device))
    photos = load_places(each[0], options.split)
    require_queries(photos)
    rows = [
        measure_model(one, photos, label, device) for one, label in zip(each, named.values(), strict=True)
    ]  # fmt: skip
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(options.runsPath) / f"compare_{options.split}_{stamp}"
    first = rows[0].evaluation
    about = (
        f"{device_line(device)}; split {first.split} ({first.spec}), {first.queries} queries, "
        f"{first.database_photos} database photos"
    )
    text = f"{about}; time: median of single photos\n\n{table(rows)}"
    say(text)
    with replacing(folder / "comparison.md") as path:
        path.write_text(text, encoding="utf-8")
    write_json(folder / "comparison.json", {"about": about, "rows": [asdict(row) for row in rows]})
    draw(rows, folder / "comparison.png")
    draw_recall(folder / "recall.png", {row.name: row.curve for row in rows}, about)
    say(f"wrote {folder}/comparison.md, .json and .png, and recall.png")


def labels(inputs: list[str]) -> dict[str, str]:
    """Each run or file, once, with as much of the end of its path as no other has."""
    paths = {}
    for item in inputs:
        paths.setdefault(Path(item).resolve(), item)
    named = {}
    for path, item in paths.items():
        others = [other.parts for other in paths if other != path]
        length = next(n for n in range(1, len(path.parts) + 1) if all(o[-n:] != path.parts[-n:] for o in others))
        named[item] = str(Path(*path.parts[-length:]))
    return named


def options_on_one_set(options: argparse.Namespace, inputs: list[str]) -> list[argparse.Namespace]:
    """For each model the options of a test, all of the same data set and root.

    These are those that the user typed, else those of the first model that has its own.

    Raises:
        UserError: a model is missing, or belongs to other photos than the first and the user typed neither.
    """
    typed = {name: value for name, value in options.given.items() if name not in ("dataset", "root")}
    stored = [_test_options(typed, item, inputs) for item in inputs]
    own = {item: one for item, one in zip(inputs, stored, strict=True) if _says_its_photos(item)} or {
        inputs[0]: stored[0]
    }
    (first, chosen), *others = own.items()
    same = {"dataset": options.given.get("dataset", chosen.dataset)}
    roots = [one.root for one in own.values() if one.dataset == same["dataset"]]
    if "root" in options.given or roots:
        same["root"] = options.given.get("root") or roots[0]
    if not {"dataset", "root"} & set(options.given):
        for item, one in others:
            if (one.dataset, Path(one.root).resolve()) != (chosen.dataset, Path(chosen.root).resolve()):
                raise UserError(
                    f"{first} belongs to --dataset={chosen.dataset} in {chosen.root}, {item} to "
                    f"--dataset={one.dataset} in {one.root}: recalls on different photos do not compare; "
                    "say by --dataset and --root on which all shall be tested"
                )
    if any(one.skipBroken for one in stored):
        same["skipBroken"] = True
    each = [_test_options({**typed, **same}, item, inputs) for item in inputs]
    for item in inputs:
        if item not in own:
            say(f"{item} does not say where its photos are (an older export): tested on those in {each[0].root}")
    return each


def _says_its_photos(item: str) -> bool:
    """Whether a run or file brings its root along; files that were exported before cards held it do not."""
    return Path(item).suffix != ".onnx" or "root" in card_of(Path(item))["flags"]


def _test_options(typed: dict, item: str, inputs: list[str]) -> argparse.Namespace:
    """Those of --mode=test for one model. What only runs obey is not handed to files where there are also runs."""
    runs_only = ("precision", "ckpt") if any(Path(other).suffix != ".onnx" for other in inputs) else ()
    left_out = runs_only if Path(item).suffix == ".onnx" else ()
    kept = {name: value for name, value in typed.items() if name not in left_out}
    return options_for(argparse.Namespace(given=kept), "test", {"resume": item})


def measure_model(options: argparse.Namespace, photos: PlacePhotos, label: str, device: torch.device) -> Row:
    """Recalls and costs of one model."""
    finished = load_finished(options)
    model = finished.model.place(device, options.precision).eval()
    reader = photos.reader(options.imageSize, options.threads, device)
    descriptors = describe_split(model, photos, reader, options, device)
    evaluation, answers = measure(descriptors, model, photos, options.recallValues, options)
    singles = _single_photos(photos, options)
    on = model.device if isinstance(model, OnnxModel) else device
    with torch.no_grad():
        milliseconds = milliseconds_per_photo(lambda photo: model(photo.to(on)).cpu(), singles)
    height, width = singles[0].shape[2:]
    megabytes, parameters = _size(finished, options)
    return Row(
        name=label,
        evaluation=evaluation,
        curve=answers.curve,
        megabytes=megabytes,
        parameters=parameters,
        gflop=model_gflop(options, finished, height, width),
        milliseconds=milliseconds,
        device=str(on),
        path=str(Path(options.resume).resolve()),
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
    reader, count = photos.reader(options.imageSize, 0, torch.device("cpu")), len(photos.database_files)
    queries = range(count, min(count + TIMED_PHOTOS, len(reader.files)))
    return [group.values for (group,) in reader.batches([[index] for index in queries])]


def _size(finished: FinishedModel, options: argparse.Namespace) -> tuple[float, int]:
    if isinstance(finished.model, OnnxModel):
        return options.run.stat().st_size / 1e6, int(finished.model.card["parameters"])
    count = parameter_count(finished.model)
    return 4 * count / 1e6, count
