"""A training on TensorBoard and on the console."""

from pathlib import Path
from typing import TYPE_CHECKING

from vpr.processes import is_main
from vpr.progress import say

if TYPE_CHECKING:
    from PIL import Image


class Board:
    """Writes scalars into a run. Use as a context manager.

    Scalars are a convenience: a disk that fills loses them, aloud, and never hides the training's own error.
    """

    def __init__(self, run: Path, epoch: int):
        """Open the board of `run`; scalars of `epoch` and later, of an earlier try, are taken back."""
        self.writer = None
        if is_main():
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(run), purge_step=epoch)

    def __enter__(self) -> "Board":
        return self

    def add(self, name: str, value: float, epoch: int) -> None:
        """Write one scalar."""
        if self.writer is None:
            return
        try:
            self.writer.add_scalar(name, value, epoch)
        except OSError as error:
            self._give_up(error)

    def add_picture(self, name: str, picture: "Image.Image", epoch: int) -> None:
        """Write one picture."""
        if self.writer is None:
            return
        import numpy as np

        try:
            self.writer.add_image(name, np.asarray(picture), epoch, dataformats="HWC")
        except OSError as error:
            self._give_up(error)

    def __exit__(self, *_: object) -> None:
        if self.writer is None:
            return
        try:
            self.writer.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        say(f"TensorBoard scalars are lost: {error}")
        if self.writer.file_writer is not None:
            # tensorboardX closes it once more when Python ends, and would print a traceback.
            self.writer.file_writer.event_writer.close = lambda: None


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
