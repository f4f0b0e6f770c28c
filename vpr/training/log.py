"""What a training leaves to look at: metrics.csv, TensorBoard, console lines."""

import contextlib
import csv
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.processes import is_main
from vpr.common.progress import say
from vpr.report.plots import draw_training, recall_columns

if TYPE_CHECKING:
    from PIL import Image


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
        with atomic_write(self.run / METRICS_FILE) as path, open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*COLUMNS, *recall_columns(self.rows)], restval="")
            writer.writeheader()
            writer.writerows({name: f"{value:g}" for name, value in row.items()} for row in self.rows)


def peak_memory_mb(device) -> float:
    """The most memory held so far, in megabytes: on a GPU by tensors, else by this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


class Board:
    """Writes scalars and pictures into a run. Use as a context manager.

    They are a convenience: a disk that fills loses them, aloud, and never hides the training's own error. They are
    written at once, not by tensorboardX's thread, for which a full disk is the end and its queue then a trap.
    """

    def __init__(self, run: Path, epoch: int):
        """Open the board of `run`; what is of `epoch` and later, of an earlier try, is taken back."""
        self.writer = None
        if not is_main():
            return
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        try:
            self.writer = EventsWriter(str(run / "events"))
        except OSError as error:
            self._give_up(error)
        self._write(epoch, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> "Board":
        return self

    def add(self, name: str, value: float, epoch: int) -> None:
        """Write one scalar."""
        if self.writer is not None:
            from tensorboardX.summary import scalar

            self._write(epoch, summary=scalar(name, value))

    def add_picture(self, name: str, picture: "Image.Image", epoch: int) -> None:
        """Write one picture."""
        if self.writer is not None:
            import numpy as np
            from tensorboardX.summary import image

            self._write(epoch, summary=image(name, np.asarray(picture), dataformats="HWC"))

    def __exit__(self, *_: object) -> None:
        if self.writer is None:
            return
        try:
            self.writer.close()
        except OSError as error:
            self._give_up(error)

    def _write(self, epoch: int, **content: object) -> None:
        if self.writer is None:
            return
        from tensorboardX.proto.event_pb2 import Event

        try:
            self.writer.write_event(Event(wall_time=time.time(), step=epoch, **content))
            self.writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        say(f"TensorBoard's scalars and pictures are given up: {error}")
        if self.writer is not None:
            with contextlib.suppress(OSError):
                self.writer.close()
            self.writer = None


def report_epoch(board: Board, row: dict[str, float], last_epoch: int) -> None:
    """Show the figures of an epoch, by the columns of metrics.csv: scalars, and a line."""
    epoch = row["epoch"]
    for name in ("loss", "violating_per_tuple", "learning_rate", "images_per_second", "memory_mb"):
        board.add(f"train/{name}", row[name], epoch)
    say(
        f"epoch {epoch}/{last_epoch}: loss {row['loss']:.4f}, {row['tuples']} tuples, "
        f"{row['violating_per_tuple']:.1f} violating negatives each, learning rate {row['learning_rate']:g}, "
        f"{row['seconds']:.0f} s, {row['images_per_second']:.0f} images/s"
    )
