"""The tables in Markdown and the picture, from what the steps left."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.tables.models import ROWS, STAGE_1, STAGE_2, Row
from benchmarks.tables.plan import RERANK, Wanted
from benchmarks.tables.steps import Steps
from vpr.common.files import atomic_write

AREA, SMALLEST = 12.0, 12.0  # square points of a megabyte, and of the smallest disc
RANKS = ("1", "5", "10", "20")
# By row what compare measured: of the first search, and after re-ranking, whose time is added.
Measured = dict[Row, tuple[dict[str, Any], dict[str, Any]]]


def write_report(steps: Steps, wanted: Wanted, machine: str, out: Path) -> Path:
    """tables.md and tables.png; returns the first."""
    measured = {row: tuple(steps.read(f"measure_{row.key}", "*/comparison.json")["rows"]) for row in ROWS}
    draw(measured, out / "tables.png")
    text = (
        f"{_caption(measured, wanted, machine)}\n\n"
        f"### Stage 1\n\n{stage_1(measured)}\n### Stage 2\n\n{stage_2(measured)}\n"
        "![Recall against time; area: megabytes](tables.png)\n"
    )
    with atomic_write(out / "tables.md") as part:
        part.write_text(text, encoding="utf-8")
    return out / "tables.md"


def stage_1(measured: Measured) -> str:
    """Markdown: recalls of the large models."""
    found = {row: measured[row][0]["evaluation"] for row in STAGE_1}
    cells = ([row.title, f"{one['descriptor_dim']:,}", *_recalls(one)] for row, one in found.items())
    return _table(["model", "dimension", *(f"R@{rank}" for rank in RANKS)], cells)


def stage_2(measured: Measured) -> str:
    """Markdown: recalls and costs of the small models."""
    headings = [
        "model", "format", "dimension", *(f"R@{rank}" for rank in RANKS), *(f"R@{rank} again" for rank in RANKS),
        "MB", "GFLOP", "ms", "ms again", "bytes", "bytes again",
    ]  # fmt: skip
    cells = []
    for row in STAGE_2:
        first, again = measured[row]
        one, two = first["evaluation"], again["evaluation"]
        cells.append([
            row.title, row.form, f"{one['descriptor_dim']:,}", *_recalls(one), *_recalls(two),
            f"{first['megabytes']:.1f}", f"{first['gflop']:.2f}",
            *(f"{each['milliseconds']:.1f}" for each in (first, again)),
            *(f"{each['bytes_per_image']:,.0f}" for each in (one, two)),
        ])  # fmt: skip
    return _table(headings, cells)


def _table(headings: list[str], rows: Iterable[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, ["---"] * len(headings), *rows))


def _recalls(evaluation: dict[str, Any]) -> list[str]:
    return [f"{100 * evaluation['recalls'][rank]:.1f}" for rank in RANKS]


def _caption(measured: Measured, wanted: Wanted, machine: str) -> str:
    shelf = [first["evaluation"] for row, (first, _) in measured.items() if row.state == "shelf"]
    weights = dict.fromkeys(each["model"].partition(", NetVLAD")[0] for each in shelf)
    return (
        f"{wanted.root.name}: {shelf[0]['protocol']}. Images {shelf[0]['image_size']}. {'; '.join(weights)}; NetVLAD "
        f"with 64 clusters; k-means and {wanted.epochs} epochs of triplets on the train split ({wanted.training:,} "
        f"images), float32. Pruned: half of each convolution's filters, the others refitted and distilled on "
        f"{wanted.distill:,} images. All models are exported files, run by ONNX Runtime. Again: after re-ranking the "
        f"first {RERANK} hits. MB: of the file, with what re-ranking needs. ms: median of single images; again: with "
        "the re-ranking of a query. bytes: of an image in the index; again: with its local descriptors. "
        f"{machine}."
    )


def draw(measured: Measured, path: Path) -> None:
    """R@1 against milliseconds, a disc for each model whose area is its megabytes; rings: after re-ranking."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for number, (row, rows) in enumerate(measured.items()):
        colour = pyplot.get_cmap("tab20")(number)
        disc = {"color": colour, "alpha": 0.6, "label": f"{row.title}, {row.form}"}
        for one, look in zip(rows, (disc, {"facecolors": "none", "edgecolors": colour}), strict=True):
            recall, area = 100 * one["evaluation"]["recalls"]["1"], max(AREA * one["megabytes"], SMALLEST)
            axes.scatter([one["milliseconds"]], [recall], s=area, **look)
    size = rows[0]["evaluation"]["image_size"]
    axes.set(xscale="log", xlabel=f"milliseconds an image, {size}", ylabel="R@1, percent")
    axes.set_title(f"Area: megabytes. Discs: first search; rings: after re-ranking {RERANK} hits", fontsize=9)
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for handle in legend.legend_handles:
        handle.set_sizes([30])
    with atomic_write(path) as part:
        figure.savefig(part, dpi=110, format="png")
    pyplot.close(figure)
