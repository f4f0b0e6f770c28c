"""TensorBoard scalars of a training."""

from pathlib import Path

from vpr.processes import is_main
from vpr.progress import say


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
