"""Plots of results: recall against N, and the map of what was found and missed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pittsburgh import Places
from vpr.common.files import atomic_write
from vpr.evaluation.comparison import Row
from vpr.evaluation.outcomes import Outcome
from vpr.report.panels import NEUTRAL, RIGHT, WRONG

MOST_LINES = 1000  # to wrong hits; more hide the map
LONGEST_SHAPE = 4  # length over breadth of a map drawn to scale
GAINED, LOST, BOTH = "#0072b2", "#d55e00", "#8c8c8c"  # of Okabe and Ito's colours, which all can tell apart


def draw_recall(path: Path, curves: dict[str, dict[int, float]], title: str) -> None:
    """Recall@N as a curve for each model, a PNG.

    Args:
        curves: by name of the model, {N: recall between 0 and 1}.
    """
    figure, axes = _figure((7, 4.5))
    for name, recalls in curves.items():
        axes.plot(list(recalls), [100 * recall for recall in recalls.values()], label=_wrapped(name, 60))
    axes.set(xlabel="N, database images looked at", ylabel="Recall@N, percent", ylim=(0, 102))
    axes.set_xlim(1, max(max(recalls) for recalls in curves.values()))
    _title(axes, title, 80)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def draw_map(path: Path, places: Places, outcomes: Sequence[Outcome], title: str) -> None:
    """The map of a test, a PNG: database, queries found and missed by their first hit, and where wrong hits lie."""
    right = np.array([outcome.rank == 1 for outcome in outcomes], bool)
    wrong = [outcome for outcome in outcomes if outcome.rank != 1 and outcome.hits]
    kinds = [
        Kind("query, missed by its first hit", ~right, WRONG, "X"),
        Kind("query, found by its first hit", right, RIGHT, "o"),
    ]
    _draw_map(path, places, kinds, Lines("from a missed query to its first hit", wrong, WRONG), title)


def draw_changes(path: Path, places: Places, outcomes: Sequence[Outcome], title: str) -> None:
    """The map of what re-ranking changed, a PNG: queries whose first hit is right now and was not, and the reverse."""
    right = np.array([outcome.rank == 1 for outcome in outcomes], bool)
    gained, lost = (np.array([outcome.change == kind for outcome in outcomes], bool) for kind in ("gained", "lost"))
    kinds = [
        Kind("query, missed before and after re-ranking", ~right & ~lost, BOTH, "x", 14),
        Kind("query, found before and after re-ranking", right & ~gained, BOTH, "o", 14),
        Kind("query, gained: found by its first hit after re-ranking only", gained, GAINED, "^", 40),
        Kind("query, lost: found by its first hit before re-ranking only", lost, LOST, "v", 40),
    ]
    now_wrong = [outcome for outcome in outcomes if outcome.change == "lost"]
    _draw_map(path, places, kinds, Lines("from a lost query to its first hit", now_wrong, LOST), title)


@dataclass(frozen=True)
class Kind:
    """Queries that a map marks alike."""

    label: str
    queries: np.ndarray  # bool [M]
    colour: str
    marker: str
    size: int = 22  # square points


@dataclass(frozen=True)
class Lines:
    """Queries with lines to their first hits."""

    label: str
    outcomes: list[Outcome]
    colour: str


def _draw_map(path: Path, places: Places, kinds: Sequence[Kind], joined: Lines, title: str) -> None:
    from matplotlib.collections import LineCollection

    figure, axes = _figure((8, 7))
    west, south = np.concatenate([places.database_positions, places.query_positions]).min(axis=0)
    database, queries = places.database_positions - (west, south), places.query_positions - (west, south)
    lines = [(queries[outcome.query], database[outcome.hits[0].image]) for outcome in joined.outcomes[:MOST_LINES]]
    axes.add_collection(LineCollection(lines, colors=joined.colour, linewidths=0.6, alpha=0.45, zorder=1))
    axes.scatter(*database.T, s=6, color="#b4b4b4", label=f"database ({len(database)})", zorder=2, linewidths=0)
    for kind in kinds:
        edge = {} if kind.marker == "x" else {"edgecolors": "white"}  # which has a line only
        label = f"{kind.label} ({kind.queries.sum()})"
        looks = {"s": kind.size, "color": kind.colour, "marker": kind.marker, "lw": 0.4 if edge else 1, **edge}
        axes.scatter(*queries[kind.queries].T, label=label, zorder=3, **looks)
    if lines:
        axes.plot([], [], color=joined.colour, lw=0.6, label=joined.label)
    axes.set(xlabel=f"metres east of {west:,.0f}", ylabel=f"metres north of {south:,.0f}")
    extent = np.ptp(np.concatenate([database, queries]), axis=0)
    if extent.max() <= LONGEST_SHAPE * extent.min():
        axes.set_aspect("equal", adjustable="datalim")
    else:
        title += " (the axes have different scales)"
    _title(axes, title, 95)
    axes.tick_params(colors=NEUTRAL)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    _save(figure, path)


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=size, layout="constrained")


def _title(axes: Any, text: str, width: int) -> None:
    """A title of lines that are at most `width` characters long."""
    axes.set_title(_wrapped(text, width), fontsize=9)


def _wrapped(text: str, width: int) -> str:
    """Text in lines that are at most `width` characters long."""
    import textwrap

    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, width))


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)


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
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)


def recall_columns(rows: list[dict[str, float]]) -> list[str]:
    """recall_at_1, recall_at_5, ...: those that any row has."""
    names = {name for row in rows for name in row if name.startswith("recall_at_")}
    return sorted(names, key=lambda name: int(name.rsplit("_", 1)[1]))


def draw_training(path: Path, rows: list[dict[str, float]]) -> None:
    """Loss, violating negatives and recalls over the epochs, a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["loss"] for row in rows], "o-")
    middle.plot(epochs, [row["violating_per_tuple"] for row in rows], "o-", color="#b92c2c")
    for name in recall_columns(rows):
        validated = [row for row in rows if name in row]
        recalls = [100 * row[name] for row in validated]
        right.plot([row["epoch"] for row in validated], recalls, "o-", label=f"R@{name.rsplit('_', 1)[1]}")
    labels = ("training loss", "violating negatives in a tuple", "validation recall, percent")
    for axes, label in zip((left, middle, right), labels, strict=True):
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    right.legend(fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)
