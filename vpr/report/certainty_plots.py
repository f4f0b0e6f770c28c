"""Plots of how sure answers are: precision against recall, and what happens against what was predicted."""

from pathlib import Path
from typing import Any

import numpy as np

from vpr.common.files import atomic_write
from vpr.evaluation.calibration_error import Reliability
from vpr.evaluation.certainty import Certainty


def draw_precision_recall(path: Path, certainty: Certainty, title: str) -> None:
    """Precision against recall over the threshold of a score, a PNG.

    The curve is steps, as average precision counts it: to reach a recall all up to the next threshold are answered.
    """
    from matplotlib import pyplot

    figure, axes = _figure()
    curve = certainty.curve
    axes.step(100 * curve.recall, 100 * curve.precision, where="pre")
    if len(curve.right):
        last = f"all answered: {100 * curve.precision[-1]:.1f}% right"
        axes.plot(100 * curve.recall[-1], 100 * curve.precision[-1], "o", label=last)
        axes.axvline(100 * curve.recall[-1], color="#b4b4b4", lw=0.8)
        axes.legend(fontsize=8, loc="lower left")
    axes.set(xlabel="recall, percent of answerable queries", ylabel="precision, percent of answers")
    axes.set(xlim=(0, 102), ylim=(0, 102))
    axes.set_title(f"{title}\n{certainty.scores.kind}", fontsize=8, wrap=True)
    axes.grid(alpha=0.3)
    _save(figure, path, pyplot)


def draw_reliability(path: Path, table: Reliability, title: str) -> None:
    """Share of right answers against mean probability, a PNG: a point for each bin; bars are +-1 standard error."""
    from matplotlib import pyplot

    figure, axes = _figure()
    errors = np.sqrt(table.happened * (1 - table.happened) / table.counts)
    axes.plot([0, 100], [0, 100], color="#b4b4b4", lw=0.8, label="what is predicted happens")
    label = f"{len(table.counts)} bins of about {table.queries // len(table.counts)} queries"
    axes.errorbar(100 * table.predicted, 100 * table.happened, 100 * errors, fmt="o-", capsize=2, label=label)
    axes.set(xlabel="predicted: mean probability, percent", ylabel="happened: first hit right, percent")
    axes.set(xlim=(0, 100), ylim=(-2, 102))
    axes.set_title(title, fontsize=8, wrap=True)
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.3)
    _save(figure, path, pyplot)


def _figure() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(5.5, 4.5), layout="constrained")


def _save(figure: Any, path: Path, pyplot: Any) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
