"""What a training leaves to look at: metrics.csv, TensorBoard, console lines."""

import csv
import resource
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from vpr.common.device import Device
from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.processes import is_main
from vpr.common.progress import say
from vpr.data.places import PlaceImages
from vpr.evaluation.outcomes import Outcome
from vpr.report.panels import panel, stacked
from vpr.report.plots import draw_training, recall_columns

Recalls = dict[str, dict[int, float]]  # Recall@N by N, of sets by their names
PANELS = 3  # of the worst queries, for each validation
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

    def add(self, row: dict[str, float], recalls: dict[int, float], others: Recalls | None = None) -> None:
        """Add an epoch: its COLUMNS, and where it was validated Recall@N, of other sets too. Write table and plot."""
        named = {f"{name}_recall_at_{n}": recall for name, each in (others or {}).items() for n, recall in each.items()}
        self.rows.append({**row, **named, **{f"recall_at_{n}": recall for n, recall in recalls.items()}})
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
        with atomic_write(self.run / METRICS_FILE) as path, open(path, "w", newline="", encoding="utf-8") as file:
            recalls, names = recall_columns(self.rows), dict.fromkeys(name for row in self.rows for name in row)
            further = [name for name in names if name not in (*COLUMNS, *recalls)]
            writer = csv.DictWriter(file, [*COLUMNS, *further, *recalls], restval="")
            writer.writeheader()
            writer.writerows({name: f"{value:g}" for name, value in row.items()} for row in self.rows)


def peak_memory_mb(device: Device) -> float:
    """The most memory held so far, in megabytes: on a GPU by tensors, else by this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


class Board:
    """TensorBoard's scalars and images of a run. They are a convenience: what cannot be written is said, once.

    Each is written and flushed at once. tensorboardX's SummaryWriter writes in a thread that a full disk ends, after
    which its queue keeps the program from ending.
    """

    def __init__(self, run: Path, epoch: int):
        """Open the board of `run`; entries from `epoch` on, left by an interrupted run, are hidden."""
        from tensorboardX.proto.event_pb2 import SessionLog

        self.run, self.lost = run, not is_main()
        self.writer: Any = None
        self._write(epoch, session_log=SessionLog(status=SessionLog.START))

    def add(self, name: str, value: float, epoch: int) -> None:
        """Write one scalar."""
        from tensorboardX.summary import scalar

        self._write(epoch, summary=scalar(name, value))

    def add_image(self, name: str, image: Image.Image, epoch: int) -> None:
        """Write one image."""
        import numpy as np
        from tensorboardX import summary

        self._write(epoch, summary=summary.image(name, np.asarray(image), dataformats="HWC"))

    def _write(self, epoch: int, **content: Any) -> None:
        if self.lost:
            return
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        try:
            self.writer = self.writer or EventsWriter(str(self.run / "events"))
            self.writer.write_event(Event(wall_time=time.time(), step=epoch, **content))
            self.writer.flush()
        except OSError as error:
            self.lost = True
            say(f"TensorBoard's scalars and pictures are given up: {error}")


def report_epoch(board: Board, row: dict[str, float], last_epoch: int) -> None:
    """Show the figures of an epoch, by the columns of metrics.csv: scalars, and a line."""
    epoch = int(row["epoch"])
    for name in row:
        if name not in ("epoch", "tuples", "seconds"):
            board.add(f"train/{name}", row[name], epoch)
    found = f"{row['tuples']} tuples, {row['violating_per_tuple']:.1f} violating negatives each"
    if "batch_accuracy" in row:
        found = f"{row['tuples']} images, batch accuracy {row['batch_accuracy']:.1%}, "
        found += f"{row['mined_share']:.1%} of the pairs mined"
    if "cosines_apart" in row:
        found = f"{row['tuples']} images, cosines {row['cosines_apart']:.3f} from the teacher's"
    say(
        f"epoch {epoch}/{last_epoch}: loss {row['loss']:.4f}, {found}, learning rate {row['learning_rate']:g}, "
        f"{row['seconds']:.0f} s, {row['images_per_second']:.0f} images/s"
    )
    if not row["tuples"]:
        say(f"epoch {epoch}: no query has a negative within the margin (--margin) of its positive, nothing was learnt")


def show_worst(board: Board, images: PlaceImages, outcomes: list[Outcome], epoch: int) -> None:
    """Show the worst queries of a validation with their first hits; nothing where there are no outcomes."""
    worst = sorted(outcomes, key=lambda outcome: outcome.sort_key)[:PANELS]
    if worst:
        board.add_image("validation/worst", stacked([panel(images, each) for each in worst]), epoch)
