"""metrics.csv and training.png: a run's epochs as a table and as curves."""

import csv
import resource
import sys
from pathlib import Path

from vpr.errors import UserError
from vpr.files import replacing
from vpr.processes import is_main
from vpr.progress import say

METRICS_FILE, PLOT_FILE = "metrics.csv", "training.png"
COLUMNS = (
    "epoch", "loss", "tuples", "violating_per_tuple", "learning_rate", "seconds", "images_per_second", "memory_mb",
)  # fmt: skip


class Metrics:
    """The rows of a run, one for each epoch. They are a convenience: what cannot be written is said, once."""

    def __init__(self, run: Path, epoch: int):
        """Take over the rows of earlier epochs; those of `epoch` and later are of an earlier try."""
        self.run, self.lost = run, not is_main()
        try:
            with open(run / METRICS_FILE, newline="", encoding="utf-8") as file:
                rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
            self.rows = [row for row in rows if row["epoch"] < epoch]
        except (OSError, ValueError, KeyError, AttributeError):  # no table yet, or one that was edited
            self.rows = []

    def add(self, row: dict[str, float], recalls: dict[int, float]) -> None:
        """Add an epoch: its COLUMNS, and Recall@N by N where it was validated. Write the table and the plot."""
        self.rows.append({**row, **{f"recall_at_{n}": recall for n, recall in recalls.items()}})
        if self.lost:
            return
        try:
            self._write()
            if recalls:
                draw_training(self.run / PLOT_FILE, self.rows)
        except UserError as error:
            self.lost = True
            say(f"{METRICS_FILE} and {PLOT_FILE} are given up: {error}")

    def _write(self) -> None:
        with replacing(self.run / METRICS_FILE) as path, open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*COLUMNS, *recall_columns(self.rows)], restval="")
            writer.writeheader()
            writer.writerows({name: f"{value:g}" for name, value in row.items()} for row in self.rows)


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
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)


def peak_memory_mb(device) -> float:
    """The most memory held so far, in megabytes: on a GPU by tensors, else by this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
