"""Queries minus the mean of their condition, the database minus its own: what night or a camera adds to all is gone.

At night, in rain or by another camera all global descriptors move alike, and the nearest database image is then the one
that lies farthest in that direction. Subtracting from either set its own mean before both are brought to length 1 again
takes that away. The same mean for both sets would change next to nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vpr.common.progress import say
from vpr.data.frames import Frames
from vpr.database.engine import Hits
from vpr.database.filters import SearchFilter
from vpr.retrieval.conditions.session import Session
from vpr.search.exact import measured
from vpr.search.rules import SequenceRule

LEAST = 5  # images of a session, from which on they have a mean
LONG, ALIKE = 100, 6  # images from which on their mean is taken as it is; the weight of pairs in that of fewer
PRIOR = 5  # images at the map's mean, which a running mean starts from
SAMPLE = 4096  # images of a map, evenly spread, of which its mean is taken
PARTS = 8  # of a map, whose means tell how far places alone move a mean
WIDER = 50  # more hits that are searched for than are wanted: centring the database moves some of them to the front
HOW = {
    "session": "the queries' own mean",
    "running": "the running mean of the queries so far",
    "stored": "of the means that were learnt, the nearest to each query",
}


def centred(descriptors: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Descriptors [n, dim] minus means [dim] or [n, dim], of length 1 again; float32."""
    values = descriptors.astype(np.float32) - means
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def session_mean(queries: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The mean [dim] of queries [M, dim] without what their few places have moved it from the map's mean `start`."""
    mean, count = queries.mean(axis=0, dtype=np.float32), len(queries)
    if count >= LONG:
        return mean
    products = queries.astype(np.float32) @ queries.T.astype(np.float32)
    np.fill_diagonal(products, np.nan)
    # By places alone it lies the map's spread / n from there, squared; farther where each has another that is alike.
    spread = 1 - start @ start + ALIKE * (np.nanmax(products, axis=1).mean() - np.nanmean(products))
    share = min(1.0, spread / max(count * float(np.square(mean - start).sum()), 1e-12)) * (1 - (count / LONG) ** 2)
    return np.asarray(mean + share * (start - mean), np.float32)


def running_means(queries: np.ndarray, start: np.ndarray, before: Any = (0.0, 0)) -> np.ndarray:
    """For each query the mean of it, all before it, and PRIOR images at `start`; float32 [M, dim].

    So an answer never changes by later frames. `before` has the sum [dim] and the number of those before the first.
    """
    total, count = before
    sums = PRIOR * start.astype(np.float64) + total + np.cumsum(queries, axis=0, dtype=np.float64)
    return np.asarray(sums / (PRIOR + count + np.arange(1, len(queries) + 1))[:, None], np.float32)


def nearest_means(queries: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Which of several means [c, dim] has the greatest cosine with each query; int64 [M]."""
    directions = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return (queries.astype(np.float32) @ directions.T.astype(np.float32)).argmax(axis=1)


@dataclass(frozen=True)
class CentredEngine:
    """An engine whose descriptors are centred when they are compared; as of `vpr.database.engine.Searchable`."""

    engine: Any
    mean: np.ndarray  # [dim], of the database

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def search(self, queries: np.ndarray, count: int, wanted: SearchFilter | None = None) -> Hits:
        """The nearest centred images of centred queries [M, dim], of the engine's own hits and WIDER more."""
        found, _, records = self.engine.search(queries, count + WIDER, wanted)
        found, distances = self._measured(queries, found)
        return Hits(found[:, :count], distances[:, :count], records)

    def search_in_order(
        self, queries: np.ndarray, count: int, sequences: tuple[Frames, Frames], rule: SequenceRule, **more: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As of `Engine`, by the sums of products of centred queries with the images as they are.

        A sum over frames differs from that with centred images by what is the same for all images, and by their norms.
        """
        found, _, similarities = self.engine.search_in_order(queries, count, sequences, rule, **more)
        columns = [self._measured(queries, found[:, [n]])[1] for n in range(found.shape[1])]  # which are in no order
        return found, np.concatenate(columns, axis=1), similarities

    def _measured(self, queries: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return measured(lambda rows: centred(self.engine.descriptors(rows), self.mean), queries, found)


@dataclass
class MapConditions:
    """The mean of a map, as it was when first asked for, and those that were learnt of other conditions."""

    engine: Any  # of the map; see `vpr.database.engine.Engine`, of which `rows` and `descriptors` are asked
    stored: Mapping[str, np.ndarray] = field(default_factory=dict)  # float32 [dim] by name

    @cached_property
    def _parts(self) -> tuple[np.ndarray, list[int]]:
        """Means of consecutive parts of the map, float32 [p, dim], and of how many images each is."""
        rows = np.asarray(self.engine.rows())
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(int))] if len(rows) > SAMPLE else rows
        parts = np.array_split(rows, min(PARTS, max(1, len(rows))))
        return np.stack([self._mean_of(part) for part in parts]), [len(part) for part in parts]

    def _mean_of(self, rows: np.ndarray) -> np.ndarray:
        parts = np.array_split(rows, len(rows) // 256 + 1)
        total = sum(self.engine.descriptors(some).sum(axis=0, dtype=np.float32) for some in parts)
        return np.asarray(total / max(1, len(rows)), np.float32)

    @cached_property
    def mean(self) -> np.ndarray:
        """Of the map, float32 [dim]."""
        means, sizes = self._parts
        return np.average(means, axis=0, weights=sizes).astype(np.float32)

    @property
    def _learnt(self) -> np.ndarray:
        return np.stack([self.mean, *self.stored.values()])  # [c, dim]

    def choices(self, queries: np.ndarray) -> str:
        """How many queries [M, dim] are nearest to which mean, in words; empty where none was learnt."""
        if not self.stored:
            return ""
        counts = np.bincount(nearest_means(queries, self._learnt), minlength=1 + len(self.stored))
        named = zip(("the map's mean", *self.stored), counts, strict=True)
        return "nearest to " + ", ".join(f"{name}: {count}" for name, count in named) + f" of {len(queries)} images"

    def means_for(self, queries: np.ndarray, how: str, session: Session | None = None) -> tuple[np.ndarray | None, str]:
        """What is subtracted from queries [M, dim], [dim] or [M, dim], and what that is in words; None: nothing.
        `how`: a key of HOW, or off. `session`: of a camera, whose next frames the queries are."""
        if session and how != "off" and len(self.engine.rows()):
            return running_means(queries, self.mean, (session.total, session.count)), f"conditions: {HOW['running']}"
        if how == "stored" and self.stored:
            means = self._learnt
            return means[nearest_means(queries, means)], f"conditions: {HOW[how]}"
        if how not in ("session", "running") or len(queries) < LEAST:
            return None, ""
        mean_of = session_mean if how == "session" else running_means
        return mean_of(queries, self.mean), f"conditions: {HOW[how]}"

    def of(self, queries: np.ndarray, how: str, session: Session | None = None) -> tuple[Any, np.ndarray, str]:
        """The engine to search in, queries for it [M, dim], and what was done in words; empty: nothing."""
        means, text = self.means_for(queries, how, session)
        if means is None:
            return self.engine, queries, ""
        return CentredEngine(self.engine, self.mean), centred(queries, means), text

    def warn_of_shift(self, queries: np.ndarray) -> None:
        """Say so where the mean of queries lies farther from the map's than the means of the map's parts do."""
        parts, _ = self._parts
        if len(queries) < LEAST or len(parts) < PARTS:
            return
        shift = float(np.linalg.norm(queries.mean(axis=0, dtype=np.float32) - self.mean))
        own = float(np.linalg.norm(parts - self.mean, axis=1).max())
        if shift > own:
            say(
                f"these images lie {shift:.2f} from the map on the average, parts of the map itself at most {own:.2f}: "
                "another time of day, weather or camera? --conditions=session subtracts that"
            )
