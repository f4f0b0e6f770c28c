"""Recall@N of a model on a split: describe, search, count, record."""

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.files import append_to_list, write_json
from vpr.common.progress import say
from vpr.data.places import PlaceImages
from vpr.data.protocol import protocol_label
from vpr.database.engine_search import EngineSearch
from vpr.descriptors.describe import LocalDescribing, Source, describe, describe_sizes
from vpr.evaluation.outcomes import SHOWN, Outcome, outcomes_of
from vpr.evaluation.recall import recall_at, recall_line
from vpr.models.describer import Describer
from vpr.retrieval.rerank import Reranked, SecondLook, rerank
from vpr.runs.descriptors_file import SplitDescriptors, SplitLocal
from vpr.search.approximate import IndexSearch, RefinedSearch, index_name, stored_bytes
from vpr.search.exact import descriptor_distances
from vpr.search.exclusion import RecentFrames, without_excluded
from vpr.search.protocols import search_frames, search_places
from vpr.search.sequences import SequenceRule

RESULTS_FILE = "results.json"
CURVE = 100  # the last N of the recall curve


@dataclass(frozen=True)
class Evaluation:
    """Recalls (between 0 and 1, by N) and what they were measured on."""

    recalls: dict[int, float]
    split: str
    spec: str
    queries: int
    queries_without_positive: int
    database_photos: int
    model: str
    descriptor_dim: int
    image_size: str
    search: str = "exact"
    bytes_per_image: float = 0
    protocol: str = ""  # its label; results of earlier versions have none
    certainty: dict | None = None  # figures of how sure the answers are, see `Certainty`

    def lines(self) -> str:
        """What was measured, then the recalls in percent."""
        return (
            f"split {self.split} ({self.spec}): {self.queries} queries, of which {self.queries_without_positive} have "
            f"no database image within reach and count as missed; {self.database_photos} database images\n"
            f"{self.model}; images {self.image_size}; "
            f"search {self.search}, {self.bytes_per_image:.0f} bytes per image\n"
            + (f"protocol: {self.protocol}\n" if self.protocol else "")
            + f"{recall_line(self.recalls)}"
        )


@dataclass(frozen=True)
class QueryResults:
    """What came of each query.

    Attributes:
        outcomes: of each.
        positives: for each the database images that would have been right.
        curve: Recall@N for all N up to CURVE.
        found: int64 [M, count] database indices, best first; -1 is no hit.
        similarities: float32 [M, count] by which sequences ordered them, means of cosines; None for single images.
        frames: int64 [M], of how many frames these are the means.
        reranked: how the second look ordered them; None without one.
    """

    outcomes: list[Outcome]
    positives: list[np.ndarray]
    curve: dict[int, float]
    found: np.ndarray
    similarities: np.ndarray | None = None
    frames: np.ndarray | None = None
    reranked: Reranked | None = None


def describe_split(
    model: Describer,
    images: PlaceImages,
    source: Source,
    batch_size: int = 24,
    local: LocalDescribing | None = None,
) -> SplitDescriptors:
    """Describe the database and the queries; complete in process 0. `batch_size` and `local` as of `describe`."""
    count, total = len(images.database_files), len(source.files)
    database, sizes = describe(model, source, range(count), batch_size, f"{images.split} database", local)
    queries, query_sizes = describe(model, source, range(count, total), batch_size, f"{images.split} queries", local)
    kept = SplitLocal(local.sink.finished(), count, local.projection) if local and processes.is_main() else None
    return SplitDescriptors(database, queries, sizes | query_sizes, source.size is not None, local=kept)


def measure(
    descriptors: SplitDescriptors,
    model: Describer,
    images: PlaceImages,
    recall_values: Sequence[int],
    depth: int = 0,
    recent: RecentFrames | None = None,
    engine: EngineSearch | RefinedSearch | None = None,
) -> tuple[Evaluation, QueryResults]:
    """Search, exactly unless an engine does it, and count Recall@N.

    Args:
        depth: how many hits of each query a second look will want.
        recent: frames of the query's own walk that are neither hits nor positives.
        engine: searches by itself.
    """
    places, foreign = images.places, bool(descriptors.made_by)
    dim, size = descriptors.database.shape[1], images.query_longest_side
    asking = descriptors.database, descriptors.queries, max(*recall_values, CURVE, depth), places
    positives, protocol = places.positives(), protocol_label(images)
    if recent:
        excluded = recent.of(places.database_names, places.query_names)
        found, _ = search_frames(*asking, SequenceRule(0), excluded)
        positives, protocol = without_excluded(positives, excluded), f"{protocol}; {recent.text()}"
    else:
        found = search_places(*asking, engine)
    distances = descriptor_distances(descriptors.database, descriptors.queries, found[:, :SHOWN])
    evaluation = Evaluation(
        recalls=recall_at(found, positives, recall_values),
        split=images.split,
        spec=places.name,
        queries=len(places.query_names),
        queries_without_positive=sum(len(indices) == 0 for indices in positives),
        database_photos=len(places.database_names),
        model=descriptors.made_by or model.name,
        descriptor_dim=dim,
        image_size="of unknown size" if foreign else describe_sizes(descriptors.image_sizes, descriptors.resized, size),
        bytes_per_image=descriptors.database.element_size() * dim,
        protocol=protocol,
        search=f"by {engine.name}" if engine else "exact",
    )
    curve = recall_at(found, positives, range(1, CURVE + 1))
    return evaluation, QueryResults(outcomes_of(found, distances, positives, places), positives, curve, found)


def measure_second_look(
    descriptors: SplitDescriptors, images: PlaceImages, first: Evaluation, answers: QueryResults, look: SecondLook
) -> tuple[Evaluation, QueryResults]:
    """Recall@N after a second look at the first hits.

    Args:
        descriptors: with local ones.
        first, answers: of the search before.
    """
    local, places = descriptors.local, images.places
    assert local is not None
    first_hits = answers.found[:, : max(look.depth, SHOWN)]
    distances = descriptor_distances(descriptors.database, descriptors.queries, first_hits)
    similarities = 1 - distances**2 / 2
    if answers.similarities is not None and answers.frames is not None:
        similarities = answers.similarities * answers.frames[:, None]  # each frame's cosine counts as one image's does
    again = rerank(answers.found, similarities, local.queries, local.database, look)
    depth = again.order.shape[1]
    distances[:, :depth] = np.take_along_axis(distances[:, :depth], again.order, axis=1)
    recalls = recall_at(again.found, answers.positives, list(first.recalls))
    evaluation = dataclasses.replace(
        first,
        recalls=recalls,
        search=f"{first.search}, then {look_text(look, local.maps.dim)}",
        bytes_per_image=first.bytes_per_image + local.database.bytes_per_image,
    )
    outcomes = outcomes_of(again.found, distances, answers.positives, places, answers.outcomes)
    curve = recall_at(again.found, answers.positives, range(1, CURVE + 1))
    return evaluation, QueryResults(outcomes, answers.positives, curve, again.found, reranked=again)


def look_text(look: SecondLook, dim: int) -> str:
    """A second look in words."""
    return f"a second look at the first {look.depth} hits ({look.by}, {dim}-D local descriptors in 8 bits)"


def how_ordered(rule: SequenceRule | None, look: str | None, approximate: str = "") -> str:
    """What ordered hits beside the descriptors of single images, in words, and what found them unless exactly.

    Args:
        approximate: see `vpr.database.engine.Searchable`.
    """
    order = ", then ".join(part for part in (rule.text() if rule else None, look) if part) or "none"
    return f"{order}; found by the approximate index {approximate}" if approximate else order


def measure_index(
    descriptors: SplitDescriptors,
    images: PlaceImages,
    exact: Evaluation,
    positives: list[np.ndarray],
    factory: str,
    index: faiss.Index,
) -> Evaluation:
    """Recall@N by an approximate search instead of the exact one.

    Args:
        factory, index: FAISS's string, and what `build_index` made of it and the database.
    """
    count = max(exact.recalls)
    search = IndexSearch(index)
    found = search_places(descriptors.database, descriptors.queries, count, images.places, search)
    # Where not every hit counts more are asked for, and some indexes then look deeper than for `count`.
    deeper = f", up to {search.deepest} hits asked for" if search.deepest > count else ""
    return dataclasses.replace(
        exact,
        recalls=recall_at(found, positives, list(exact.recalls)),
        search=f"by index {index_name(factory, index)}{deeper}",
        bytes_per_image=stored_bytes(index) / len(images.database_files),
        certainty=None,  # which is of the exact search
    )


def record(path: Path, evaluation: Evaluation, source: dict) -> None:
    """Add an evaluation to a results file: a list, oldest first.

    Raises:
        UserError: what is there is no such list. It stays as it is, and the evaluation goes into a file beside it.
    """
    now = datetime.datetime.now()
    entry = {"measured": now.isoformat(timespec="seconds"), **source, **asdict(evaluation)}
    try:
        append_to_list(path, entry)
    except UserError as error:
        beside = path.with_name(f"{path.stem}_{now:%Y-%m-%d_%H-%M-%S.%f}{path.suffix}")
        write_json(beside, [entry])
        raise UserError(f"{error}; it is unchanged, and the new result is in {beside}: mend or move it") from error
    say(f"wrote {path}")
