"""By which rules a search goes along sequences; imports nothing heavy, since `--help` reads their flags."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from vpr.common.settings import finite, flag, whole

if TYPE_CHECKING:
    import numpy as np

# Indices of queries int64 [m] -> bool [m, N], database images that may not be found for them.
Excluded: TypeAlias = Callable[["np.ndarray"], "np.ndarray"]
SPEEDS = (0.8, 1.0, 1.25)  # database frames for each query frame, by the numbers in their names

_rule = partial(flag, group="sequences", modes=("test", "locate"))


@dataclass(frozen=True)
class SequenceRule:
    """How similarities of sequences are combined. The flags' help says what the fields are."""

    length: int = _rule(
        MISSING,
        "compare with each query the L frames before and after it in its sequence, in which images differ in the last "
        "number of their names alone; 0: single images",
        name="sequence", typed=0, type=whole, metavar="L",
    )  # fmt: skip
    causal: bool = _rule(False, "use no frame after the query")
    speeds: tuple[float, ...] = _rule(
        SPEEDS,
        "how the database's frame numbers go on while the queries' go on by 1; 0: it stands still, below 0: the other "
        "way",
        type=finite, nargs="+", metavar="V",
    )  # fmt: skip

    def text(self) -> str:
        """How results name it."""
        frames = f"{self.length} frame{'s' * (self.length > 1)} before{'' if self.causal else ' and after'}"
        speeds = "" if self.speeds == SPEEDS else f" at speeds {' '.join(f'{speed:g}' for speed in self.speeds)}"
        return f"sequences of {frames}{speeds}"


@dataclass(frozen=True)
class RecentFrames:
    """Frames of the query's own sequence that may not be found, as loop closure has it: itself and those around it."""

    # How many before the query, and how many after.
    frames: int = flag(
        MISSING,
        "loop closure: the N frames before and after a query in its own sequence, and itself, are neither hits nor "
        "positives",
        name="excludeRecent", typed=None, group="sequences", modes=("test",), type=whole, metavar="N",
    )  # fmt: skip
    causal: bool = False  # all that come after it: when it was taken, they were not there

    def text(self) -> str:
        """How results name it."""
        after = "all after it" if self.causal else f"{self.frames} after it"
        return f"no hits nor positives among the {self.frames} frames of its walk before the query and {after}"

    def of(self, database_names: Sequence[str], query_names: Sequence[str]) -> "Excluded":
        """The rule for queries that are images of the database, or frames between them: see `times_in_sequences`."""
        import numpy as np

        from vpr.data.frames import times_in_sequences

        sequences, ranks = times_in_sequences([*database_names, *query_names])
        count = len(database_names)

        def excluded(queries: "np.ndarray") -> "np.ndarray":
            ago = ranks[count + queries][:, None] - ranks[:count]  # [m, N], in frames
            near = (ago <= self.frames) if self.causal else (np.abs(ago) <= self.frames)
            return near & (sequences[count + queries][:, None] == sequences[:count])

        return excluded
