"""The tables in Markdown and the picture, from what the steps left."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables.plan import SIZES, Row, Wanted, rows
from benchmarks.tables.steps import Steps

TITLES = {1: "Stage 1: VGG16 and AlexNet, off the shelf and trained", 2: "Stage 2: smaller models"}
AREA = 30.0  # square points of a megabyte in the picture


@dataclass(frozen=True)
class Line:
    """A row with what was measured.

    Attributes:
        first, again: results of the first search and after re-ranking, as `results.json` holds them.
        milliseconds: by size, of one image.
    """

    row: Row
    first: dict[str, Any]
    again: dict[str, Any]
    megabytes: float
    gflop: dict[str, float]
    milliseconds: dict[str, float]


def lines_of(steps: Steps) -> list[Line]:
    """All rows, measured."""
    timed = {f"{width}x{height}": steps.read(f"time_{width}x{height}", "*/comparison.json") for height, width in SIZES}
    costs = {size: {Path(each["path"]).name: each for each in found["rows"]} for size, found in timed.items()}
    found = []
    for row in rows():
        file = row.timed.removeprefix("export_") + ".onnx"
        first, again = steps.read(row.exported.replace("export_", "test_", 1))
        cost = {size: rows_of_files[file] for size, rows_of_files in costs.items()}
        gflop, milliseconds = ({size: each[key] for size, each in cost.items()} for key in ("gflop", "milliseconds"))
        found.append(Line(row, first, again, next(iter(cost.values()))["megabytes"], gflop, milliseconds))
    return found


def write_report(steps: Steps, wanted: Wanted, out: Path) -> Path:
    """tables.md, tables.json and tables.png; returns the first."""
    lines = lines_of(steps)
    about = steps.read("time_{1}x{0}".format(*SIZES[0]), "*/comparison.json")["about"].split("; split")[0]
    draw(lines, out / "tables.png", wanted.rerank)
    of_stage = {stage: table([line for line in lines if line.row.stage == stage]) for stage in TITLES}
    caption = _caption(wanted, about)
    text = "\n".join(f"## {title}\n\n{caption}\n\n{of_stage[stage]}" for stage, title in TITLES.items())
    _write(out / "tables.json", json.dumps([asdict(line) for line in lines], indent=2))
    _write(out / "tables.md", f"{text}\n![Recall against time, area by megabytes](tables.png)\n")
    return out / "tables.md"


def table(lines: list[Line]) -> str:
    """Markdown of some rows."""
    ranks = list(lines[0].first["recalls"])
    sizes = [f"{width}x{height}" for height, width in SIZES]
    headings = [
        "model", "format", *(f"R@{rank}" for rank in ranks), *(f"R@{rank} again" for rank in ranks), "MB",
        *(f"GFLOP {size}" for size in sizes), *(f"ms {size}" for size in sizes), "bytes an image",
        "bytes an image, with local descriptors", "dimension", "images", "backbone and weights", "protocol",
    ]  # fmt: skip
    found = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for line in lines:
        first, again = line.first, line.again
        cells = [
            line.row.name, line.row.form,
            *(f"{100 * each['recalls'][rank]:.1f}" for each in (first, again) for rank in ranks),
            f"{line.megabytes:.1f}", *(f"{line.gflop[size]:.2f}" for size in sizes),
            *(f"{line.milliseconds[size]:.1f}" for size in sizes), f"{first['bytes_per_image']:,.0f}",
            f"{again['bytes_per_image']:,.0f}", f"{first['descriptor_dim']:,}", first["image_size"], first["model"],
            first["protocol"],
        ]  # fmt: skip
        found.append("| " + " | ".join(cells) + " |")
    return "\n".join(found) + "\n"


def _caption(wanted: Wanted, about: str) -> str:
    size = f"resized to {wanted.size[1]}x{wanted.size[0]} pixels" if wanted.size else "in their own size"
    weights = {"": "the default downloads", "none": "random"}.get(wanted.weights, f"files in {wanted.weights}")
    return (
        f"Split {wanted.split} of {wanted.dataset} in {wanted.root}; images {size}. Trained {wanted.epochs} "
        f"{'epoch' if wanted.epochs == 1 else 'epochs'}, seed {wanted.seed}; pruned: half of each convolution's "
        f"filters, refitted and distilled on {wanted.distill} images; {wanted.clusters} clusters; weights: {weights}. "
        f'All models are exported files, run by ONNX Runtime. "Again": after re-ranking the first {wanted.rerank} '
        f"hits. Times: median of single images, {about}."
    )


def draw(lines: list[Line], path: Path, rerank: int) -> None:
    """R@1 against milliseconds, a disc for each model whose area is its megabytes; rings: after re-ranking."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = "{1}x{0}".format(*SIZES[0])
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    for number, line in enumerate(lines):
        colour, area = f"C{number % 10}", AREA * max(line.megabytes, 0.2)
        time = line.milliseconds[size]
        recalls = [100 * each["recalls"][next(iter(each["recalls"]))] for each in (line.first, line.again)]
        axes.scatter([time], recalls[:1], s=area, color=colour, alpha=0.5, label=f"{line.row.name}, {line.row.form}")
        axes.scatter([time], recalls[1:], s=area, facecolors="none", edgecolors=colour)
    axes.set(xscale="log", xlabel=f"milliseconds an image of {size} pixels", ylabel="R@1, percent")
    axes.set_title(f"Area: megabytes. Discs: first search; rings: after re-ranking {rerank} hits", fontsize=9)
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for handle in legend.legend_handles:
        handle.set_sizes([30])
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, dpi=120, format="png")
    pyplot.close(figure)
    os.replace(part, path)


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
