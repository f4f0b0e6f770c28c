"""Plots as PNG files: recalls, the map of a test, how sure answers are, a training, a comparison of models."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pittsburgh import Places
from vpr.common.files import atomic_write
from vpr.evaluation.calibration_error import Reliability
from vpr.evaluation.certainty import Certainty
from vpr.evaluation.comparison import Row
from vpr.evaluation.outcomes import Outcome
from vpr.report.panels import NEUTRAL, RIGHT, WRONG

MOST_LINES = 1000  # to wrong hits; more hide the map
LONGEST_SHAPE = 4  # length over breadth of a map drawn to scale
GAINED, LOST, BOTH = "#0072b2", "#d55e00", "#8c8c8c"  # of Okabe and Ito's colours, which all can tell apart
LIGHT = "#b4b4b4"
SHOWN = {  # of a training's metrics the first that it has, beside loss and recalls
    "batch_accuracy": "batch accuracy",
    "cosines_apart": "cosines, apart from the teacher's",
    "violating_per_tuple": "violating negatives in a tuple",
}


@contextmanager
def _plot(path: Path, size: tuple[float, float], axes: int = 1, dpi: int = 120) -> Iterator[tuple[Any, Any]]:
    """A figure of `size` inches and its axes, to be filled; then it is written, whole or not at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, made = pyplot.subplots(1, axes, figsize=size, layout="constrained")
    yield figure, made
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
    pyplot.close(figure)


def draw_recall(path: Path, curves: dict[str, dict[int, float]], title: str) -> None:
    """Recall@N as a curve for each model; `curves` by its name, {N: recall between 0 and 1}."""
    with _plot(path, (7, 4.5)) as (_, axes):
        for name, recalls in curves.items():
            axes.plot(list(recalls), [100 * recall for recall in recalls.values()], label=_wrapped(name, 60))
        axes.set(xlabel="N, database images looked at", ylabel="Recall@N, percent", ylim=(0, 102))
        axes.set_xlim(1, max(max(recalls) for recalls in curves.values()))
        axes.set_title(_wrapped(title, 80), fontsize=9)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(fontsize=8, loc="lower right")


def draw_map(path: Path, places: Places, outcomes: Sequence[Outcome], title: str) -> None:
    """The map of a test: database, queries found and missed by their first hit, and where wrong hits lie."""
    missed = [outcome for outcome in outcomes if outcome.rank != 1]
    found = [outcome for outcome in outcomes if outcome.rank == 1]
    kinds = [
        Kind("query, missed by its first hit", missed, WRONG, "X"),
        Kind("query, found by its first hit", found, RIGHT, "o"),
    ]
    _draw_map(path, places, kinds, missed, "from a missed query to its first hit", WRONG, title)


def draw_changes(path: Path, places: Places, outcomes: Sequence[Outcome], title: str) -> None:
    """The map of what re-ranking changed: queries whose first hit is right now and was not, and the reverse."""
    both = [outcome for outcome in outcomes if not outcome.change]
    gained, lost = ([outcome for outcome in outcomes if outcome.change == kind] for kind in ("gained", "lost"))
    missed, found = ([each for each in both if (each.rank == 1) == right] for right in (False, True))
    kinds = [
        Kind("query, missed before and after re-ranking", missed, BOTH, "x", 14),
        Kind("query, found before and after re-ranking", found, BOTH, "o", 14),
        Kind("query, gained: found by its first hit after re-ranking only", gained, GAINED, "^", 40),
        Kind("query, lost: found by its first hit before re-ranking only", lost, LOST, "v", 40),
    ]
    _draw_map(path, places, kinds, lost, "from a lost query to its first hit", LOST, title)


class Kind(NamedTuple):
    """Queries that a map marks alike."""

    label: str
    outcomes: list[Outcome]
    colour: str
    marker: str
    size: int = 22  # square points


def _draw_map(
    path: Path, places: Places, kinds: Sequence[Kind], joined: list[Outcome], label: str, colour: str, title: str
) -> None:
    """The database, the queries by kind, and lines of a colour and label from `joined` queries to their first hits."""
    from matplotlib.collections import LineCollection

    west, south = np.concatenate([places.database_positions, places.query_positions]).min(axis=0)
    database, queries = places.database_positions - (west, south), places.query_positions - (west, south)
    joined = [outcome for outcome in joined if outcome.hits][:MOST_LINES]
    lines = [(queries[outcome.query], database[outcome.hits[0].image]) for outcome in joined]
    with _plot(path, (8, 7)) as (figure, axes):
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.6, alpha=0.45, zorder=1))
        axes.scatter(*database.T, s=6, color=LIGHT, label=f"database ({len(database)})", zorder=2, linewidths=0)
        for kind in kinds:
            edge = {} if kind.marker == "x" else {"edgecolors": "white"}  # which has a line only
            looks = {"s": kind.size, "color": kind.colour, "marker": kind.marker, "lw": 0.4 if edge else 1, **edge}
            points = queries[[outcome.query for outcome in kind.outcomes]]
            axes.scatter(*points.T, label=f"{kind.label} ({len(points)})", zorder=3, **looks)
        if lines:
            axes.plot([], [], color=colour, lw=0.6, label=label)
        axes.set(xlabel=f"metres east of {west:,.0f}", ylabel=f"metres north of {south:,.0f}")
        extent = np.ptp(np.concatenate([database, queries]), axis=0)
        if extent.max() <= LONGEST_SHAPE * extent.min():
            axes.set_aspect("equal", adjustable="datalim")
        else:
            title += " (the axes have different scales)"
        axes.set_title(_wrapped(title, 95), fontsize=9)
        axes.tick_params(colors=NEUTRAL)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)


def _wrapped(text: str, width: int) -> str:
    """Text in lines that are at most `width` characters long."""
    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, width))


def draw_precision_recall(path: Path, certainty: Certainty, title: str) -> None:
    """Precision against recall over the threshold of a score.

    The curve is steps, as average precision counts it: to reach a recall all up to the next threshold are answered.
    """
    curve = certainty.curve
    with _plot(path, (5.5, 4.5)) as (_, axes):
        axes.step(100 * curve.recall, 100 * curve.precision, where="pre")
        if len(curve.right):
            last = f"all answered: {100 * curve.precision[-1]:.1f}% right"
            axes.plot(100 * curve.recall[-1], 100 * curve.precision[-1], "o", label=last)
            axes.axvline(100 * curve.recall[-1], color=LIGHT, lw=0.8)
            axes.legend(fontsize=8, loc="lower left")
        axes.set(xlabel="recall, percent of answerable queries", ylabel="precision, percent of answers")
        axes.set(xlim=(0, 102), ylim=(0, 102))
        axes.set_title(f"{title}\n{certainty.scores.kind}", fontsize=8, wrap=True)
        axes.grid(alpha=0.3)


def draw_reliability(path: Path, table: Reliability, title: str) -> None:
    """Share of right answers against mean probability: a point for each bin; bars are +-1 standard error."""
    errors = np.sqrt(table.happened * (1 - table.happened) / table.counts)
    label = f"{len(table.counts)} bins of about {table.queries // len(table.counts)} queries"
    with _plot(path, (5.5, 4.5)) as (_, axes):
        axes.plot([0, 100], [0, 100], color=LIGHT, lw=0.8, label="what is predicted happens")
        axes.errorbar(100 * table.predicted, 100 * table.happened, 100 * errors, fmt="o-", capsize=2, label=label)
        axes.set(xlabel="predicted: mean probability, percent", ylabel="happened: first hit right, percent")
        axes.set(xlim=(0, 100), ylim=(-2, 102))
        axes.set_title(title, fontsize=8, wrap=True)
        axes.legend(fontsize=8, loc="upper left")
        axes.grid(alpha=0.3)


def draw(rows: list[Row], path: Path) -> None:
    """Recall of models at the first and the second N, against size and against time."""
    chosen = list(rows[0].evaluation.recalls)[:2]
    values = {"MB": [row.megabytes for row in rows], "ms per image": [row.milliseconds for row in rows]}
    with _plot(path, (11, 4.5), axes=2, dpi=110) as (_, panels):
        for axes, (name, measured) in zip(panels, values.items(), strict=True):
            for n, marker in zip(chosen, "os", strict=False):
                recalls = [100 * row.evaluation.recalls[n] for row in rows]
                axes.semilogx(measured, recalls, marker, label=f"R@{n}")
            for row, value in zip(rows, measured, strict=True):
                axes.annotate(row.name, (value, 100 * row.evaluation.recalls[chosen[0]]), fontsize=7, rotation=20)
            axes.set(xlabel=name, ylabel="recall, percent")
            axes.grid(alpha=0.3)
            axes.margins(0.25)
            axes.legend()


def draw_adaptation(path: Path, removed: Sequence[int], recalls: dict[str, list[float]], title: str) -> None:
    """Recalls of held-out images, by what they are of, against the directions that lose more than half."""
    with _plot(path, (7.5, 4.5)) as (_, axes):
        for (name, values), colour in zip(recalls.items(), (GAINED, LOST), strict=False):
            at = range(len(removed))
            axes.plot(at, [100 * value for value in values], "o-", color=colour, label=name)
        axes.set_xticks(range(len(removed)), ["as it was", *map(str, removed[1:])])
        axes.set(xlabel="directions that lose more than half", ylabel="Recall@1, percent")
        axes.set_title(_wrapped(title, 100), fontsize=7)
        axes.grid(alpha=0.3)
        axes.legend()


def recall_columns(rows: list[dict[str, float]]) -> list[str]:
    """recall_at_1, recall_at_5, ...: those that any row has."""
    names = {name for row in rows for name in row if name.startswith("recall_at_")}
    return sorted(names, key=lambda name: int(name.rsplit("_", 1)[1]))


def draw_training(path: Path, rows: list[dict[str, float]]) -> None:
    """Loss, what is left to learn and recalls over the epochs."""
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    shown = next(name for name in SHOWN if name in rows[-1])
    labels = ("training loss", SHOWN[shown], "validation recall, percent")
    with _plot(path, (12, 3.6), axes=3, dpi=110) as (_, panels):
        left, middle, right = panels
        left.plot(epochs, [row["loss"] for row in rows], "o-")
        middle.plot(epochs, [row[shown] for row in rows], "o-", color="#b92c2c")
        for name in recall_columns(rows):
            validated = [row for row in rows if name in row]
            recalls = [100 * row[name] for row in validated]
            right.plot([row["epoch"] for row in validated], recalls, "o-", label=f"R@{name.rsplit('_', 1)[1]}")
        for axes, label in zip(panels, labels, strict=True):
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        right.legend(fontsize=8)
