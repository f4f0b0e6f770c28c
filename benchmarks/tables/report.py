"""The tables in Markdown and the picture, from what the steps left."""

from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.tables.models import ROWS, STAGE_1, STAGE_2, Row
from benchmarks.tables.plan import RERANK, Wanted
from benchmarks.tables.steps import Steps
from vpr.common.files import atomic_write, write_json

AREA = 12.0  # square points of a megabyte in the picture
RANKS = ("1", "5", "10", "20")


@dataclass(frozen=True)
class Line:
    """A row with what was measured.

    Attributes:
        first, again: recalls by N in percent, of the first search and after re-ranking.
        milliseconds, milliseconds_again: of one image, median; with the re-ranking of a query.
        bytes, bytes_again: of one image in the index; with its local descriptors.
    """

    row: Row
    model: str
    protocol: str
    image_size: str
    dimension: int
    first: dict[str, float]
    again: dict[str, float]
    megabytes: float
    gflop: float
    milliseconds: float
    milliseconds_again: float
    bytes: float
    bytes_again: float


def lines_of(steps: Steps) -> dict[Row, Line]:
    """All rows, measured."""
    found = {}
    for row in ROWS:
        first, again = steps.read(f"measure_{row.key}", "*/comparison.json")["rows"]
        one, two = first["evaluation"], again["evaluation"]
        recalls = ({rank: 100 * each["recalls"][rank] for rank in RANKS} for each in (one, two))
        found[row] = Line(
            row, one["model"], one["protocol"], one["image_size"], one["descriptor_dim"], *recalls,
            first["megabytes"], first["gflop"], first["milliseconds"], again["milliseconds"],
            one["bytes_per_image"], two["bytes_per_image"],
        )  # fmt: skip
    return found


def write_report(steps: Steps, wanted: Wanted, machine: str, out: Path) -> Path:
    """tables.md, tables.json and tables.png; returns the first."""
    lines = lines_of(steps)
    draw(list(lines.values()), out / "tables.png")
    write_json(out / "tables.json", [asdict(line) for line in lines.values()])
    text = (
        f"{_caption(wanted, machine, next(iter(lines.values())))}\n\n### Stage 1\n\n"
        + stage_1([lines[row] for row in STAGE_1])
        + "\n### Stage 2\n\n"
        + stage_2([lines[row] for row in STAGE_2])
        + "\n![Recall against time; area: megabytes](tables.png)\n"
    )
    with atomic_write(out / "tables.md") as part:
        part.write_text(text, encoding="utf-8")
    return out / "tables.md"


def stage_1(lines: list[Line]) -> str:
    """Markdown: recalls of the large models."""
    headings = ["model", "backbone and weights", "dimension", *(f"R@{rank}" for rank in RANKS)]
    return _table(
        headings, ([line.row.title, line.model, f"{line.dimension:,}", *_percent(line.first)] for line in lines)
    )


def stage_2(lines: list[Line]) -> str:
    """Markdown: recalls and costs of the small models."""
    headings = [
        "model", "format", "dimension", *(f"R@{rank}" for rank in RANKS), *(f"R@{rank} again" for rank in RANKS),
        "MB", "GFLOP", "ms", "ms again", "bytes", "bytes again",
    ]  # fmt: skip
    cells = (
        [
            line.row.title, line.row.form, f"{line.dimension:,}", *_percent(line.first), *_percent(line.again),
            f"{line.megabytes:.1f}", f"{line.gflop:.2f}", f"{line.milliseconds:.1f}", f"{line.milliseconds_again:.1f}",
            f"{line.bytes:,.0f}", f"{line.bytes_again:,.0f}",
        ]
        for line in lines
    )  # fmt: skip
    return _table(headings, cells)


def _table(headings: list[str], rows) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _percent(recalls: dict[str, float]) -> list[str]:
    return [f"{recalls[rank]:.1f}" for rank in RANKS]


def _caption(wanted: Wanted, machine: str, line: Line) -> str:
    return (
        f"{line.protocol}. Images {line.image_size}; NetVLAD with 64 clusters, k-means and training on the train split "
        f"({wanted.training:,} images), float32, {wanted.epochs} epochs of triplets; pruned: half of each "
        f"convolution's filters, the others refitted and distilled on {wanted.distill:,} images. All models are "
        "exported files, run by ONNX Runtime. Again: after re-ranking the first "
        f"{RERANK} hits by local descriptors, which are kept beside the index. MB: of the file; ms: median of single "
        f"images, again: with the re-ranking of a query; bytes: of an image in the index. {machine}."
    )


def draw(lines: list[Line], path: Path) -> None:
    """R@1 against milliseconds, a disc for each model whose area is its megabytes; rings: after re-ranking."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for number, line in enumerate(lines):
        colour, area = pyplot.get_cmap("tab20")(number), max(AREA * line.megabytes, 12)
        name = f"{line.row.title}, {line.row.form}"
        axes.scatter([line.milliseconds], [line.first["1"]], s=area, color=colour, alpha=0.6, label=name)
        axes.scatter([line.milliseconds_again], [line.again["1"]], s=area, facecolors="none", edgecolors=colour)
    axes.set(xscale="log", xlabel=f"milliseconds an image, {lines[0].image_size}", ylabel="R@1, percent")
    axes.set_title(f"Area: megabytes. Discs: first search; rings: after re-ranking {RERANK} hits", fontsize=9)
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for handle in legend.legend_handles:
        handle.set_sizes([30])
    with atomic_write(path) as part:
        figure.savefig(part, dpi=110, format="png", metadata={"Software": None})
    pyplot.close(figure)
