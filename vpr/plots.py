"""Plots of results: recall against N, and the map of what was found and missed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pittsburgh import Places
from vpr.files import replacing
from vpr.outcomes import Outcome
from vpr.panels import NEUTRAL, RIGHT, WRONG

MOST_LINES = 1000  # to wrong hits; more hide the map
LONGEST_SHAPE = 4  # length over breadth of a map drawn to scale


def draw_recall(path: Path, curves: dict[str, dict[int, float]], title: str) -> None:
    """Recall@N as a curve for each model, a PNG.

    Args:
        curves: by name of the model, {N: recall between 0 and 1}.
    """
    figure, axes = _figure((7, 4.5))
    for name, recalls in curves.items():
        axes.plot(list(recalls), [100 * recall for recall in recalls.values()], label=name)
    axes.set(xlabel="N, database photos looked at", ylabel="Recall@N, percent", ylim=(0, 102))
    axes.set_xlim(1, max(max(recalls) for recalls in curves.values()))
    _title(axes, title, 80)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def draw_map(path: Path, places: Places, outcomes: Sequence[Outcome], title: str) -> None:
    """The map of a test, a PNG: database, queries found and missed by their first hit, and where wrong hits lie."""
    from matplotlib.collections import LineCollection

    figure, axes = _figure((8, 7))
    west, south = np.concatenate([places.database_positions, places.query_positions]).min(axis=0)
    database, queries = places.database_positions - (west, south), places.query_positions - (west, south)
    right = np.array([outcome.rank == 1 for outcome in outcomes], bool)
    wrong = [outcome for outcome in outcomes if outcome.rank != 1 and outcome.hits][:MOST_LINES]
    lines = [(queries[outcome.query], database[outcome.hits[0].photo]) for outcome in wrong]
    axes.add_collection(LineCollection(lines, colors=WRONG, linewidths=0.6, alpha=0.45, zorder=1))
    axes.scatter(*database.T, s=6, color="#b4b4b4", label=f"database ({len(database)})", zorder=2, linewidths=0)
    for chosen, colour, marker, label in ((~right, WRONG, "X", "missed"), (right, RIGHT, "o", "found")):
        label = f"query, {label} by its first hit ({chosen.sum()})"
        axes.scatter(
            *queries[chosen].T, s=22, color=colour, marker=marker, label=label, zorder=3, edgecolors="white", lw=0.4
        )
    if wrong:
        axes.plot([], [], color=WRONG, lw=0.6, label="from a missed query to its first hit")
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


def _figure(size: tuple[float, float]):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=size, layout="constrained")


def _title(axes, text: str, width: int) -> None:
    """A title of lines that are at most `width` characters long."""
    import textwrap

    axes.set_title("\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, width)), fontsize=9)


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
