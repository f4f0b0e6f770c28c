"""Recall@N of a model on a split: describe, search, count, record."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import faiss
import numpy as np

from pittsburgh import Places
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.files import append_to_list, write_json
from vpr.common.progress import say, track
from vpr.data.places import PlaceImages
from vpr.data.protocol import protocol_label
from vpr.descriptors.describe import LocalDescribing, Source, describe, describe_sizes
from vpr.evaluation.outcomes import Outcome, outcomes_of, recall_at, recall_line
from vpr.models.describer import Describer
from vpr.retrieval.ask import Ask
from vpr.retrieval.conditions.centring import MapConditions
from vpr.retrieval.ranking import Ranking, rerank_hits, search_for, verify_hits
from vpr.retrieval.rules import Reranking
from vpr.retrieval.split import SplitEngine, WithoutPlaces
from vpr.retrieval.verification.kept import KeptKeypoints, KeypointPairs
from vpr.runs.descriptors_file import SplitDescriptors, SplitLocal
from vpr.search.approximate import IndexSearch, index_name, measures_descriptors, stored_bytes
from vpr.search.protocols import search_places, without_excluded

RESULTS_FILE = "results.json"
CURVE = 100  # the last N of the recall curve
SINGLE = Ask()  # single images, in the order of their descriptors


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
    """What came of each query."""

    outcomes: list[Outcome]
    positives: list[np.ndarray]  # for each query the database images that would have been right
    curve: dict[int, float]  # Recall@N for all N up to CURVE
    ranking: Ranking  # the hits, and what ordered them

    @property
    def found(self) -> np.ndarray:
        """int64 [M, count] database indices, best first; -1 is no hit."""
        return self.ranking.answers.found


def describe_split(
    model: Describer,
    images: PlaceImages,
    source: Source,
    batch_size: int | None = None,
    local: LocalDescribing | None = None,
) -> SplitDescriptors:
    """Describe the database and the queries; complete in process 0. `batch_size` and `local` as of `describe`."""
    count, total = len(images.database_files), len(source.files)
    database, sizes = describe(model, source, range(count), batch_size, f"{images.split} database", local)
    queries, query_sizes = describe(model, source, range(count, total), batch_size, f"{images.split} queries", local)
    kept = SplitLocal(local.sink.finished(), count, local.projection) if local and processes.is_main() else None
    return SplitDescriptors(database, queries, sizes | query_sizes, source.size is not None, local=kept)


def measure_each(
    descriptors: SplitDescriptors,
    model: Describer,
    images: PlaceImages,
    recall_values: Sequence[int],
    ask: Ask = SINGLE,
    engine: SplitEngine | WithoutPlaces | None = None,
    means: Mapping[str, np.ndarray] | None = None,
    keypoints: KeptKeypoints | None = None,
) -> Iterator[tuple[Evaluation, QueryResults]]:
    """Recalls of single images; then, as far as asked for, without what conditions add, by sequences, and re-ranked.

    Each is measured when it is wanted, and has the hits of the one before.
    Raises a UserError: the images are no frames in order, or the engine does not answer.

    Args:
        descriptors: with local ones for re-ranking.
        ask: its `top` and `filter` do not count.
        engine: None searches exactly.
        means: of conditions that were learnt, [dim] by name.
        keypoints: by which re-ranked hits are verified; None: they are not.
    """
    places, how = images.places, ask.reranking(False, keypoints is not None)
    is_first, engine = engine is None, engine or SplitEngine(descriptors.database, places)
    conditions = MapConditions(engine, means or {})
    if is_first and ask.conditions == "stored" and (choices := conditions.choices(descriptors.queries)):
        say(f"conditions: {choices}")
    ask = replace(ask, top=max(*recall_values, CURVE))
    positives = places.positives()
    if ask.exclusion:
        positives = without_excluded(positives, ask.exclusion.of(places.database_names, places.query_names))

    counted = partial(_counted, positives, places, recall_values)
    evaluation, results = _before_search(descriptors, model, images, positives, ask, engine.name), None
    how_searched = evaluation.search
    for stage in dict.fromkeys((replace(ask, sequence=None, conditions="off"), replace(ask, sequence=None), ask)):
        ranking = search_for(conditions, descriptors.queries, stage, stage.hits(how), places.query_names)
        if results and ranking.steps == results.ranking.steps:
            continue  # of too few queries no mean is taken
        text = ", ".join((how_searched, *ranking.steps))
        evaluation, results = counted(replace(evaluation, search=text), ranking, results)
        yield evaluation, results
    assert results is not None  # the first stage is always measured
    for ranking, text, size in _looked_at_again(results.ranking, how, descriptors, images, keypoints) if how else ():
        search, size = f"{evaluation.search}, then {text}", evaluation.bytes_per_image + size
        evaluation, results = counted(replace(evaluation, search=search, bytes_per_image=size), ranking, results)
        yield evaluation, results


def _looked_at_again(
    ranking: Ranking,
    how: Reranking,
    descriptors: SplitDescriptors,
    images: PlaceImages,
    keypoints: KeptKeypoints | None,
) -> Iterator[tuple[Ranking, str, float]]:
    """The hits by local descriptors, then by keypoints; each with what that is in words, and its bytes per image."""
    if how.takes_local and (local := descriptors.local):
        ranking = rerank_hits(ranking, local.queries, local.database, how)
        yield ranking, how.text(local.maps.dim), local.database.bytes_per_image
    if how.takes_keypoints and keypoints:
        files = images.query_files
        own = [keypoints.made_of(file) for file in track(files, "keypoints", len(files))]
        named = list(zip(images.places.database_names, images.database_files, strict=True))
        ranking = verify_hits(ranking, KeypointPairs(own, keypoints, named.__getitem__), how)
        yield ranking, how.verified_text(), keypoints.bytes_per_image


def _counted(
    positives: list[np.ndarray],
    places: Places,
    recall_values: Sequence[int],
    evaluation: Evaluation,
    ranking: Ranking,
    before: QueryResults | None,
) -> tuple[Evaluation, QueryResults]:
    """An evaluation with the recalls of what was found, and each query's outcome beside that before."""
    found, distances = ranking.answers.found, ranking.answers.distances
    outcomes = outcomes_of(found, distances, positives, places, before.outcomes if before else None)
    curve = recall_at(found, positives, range(1, CURVE + 1))
    recalls = recall_at(found, positives, recall_values)
    return replace(evaluation, recalls=recalls), QueryResults(outcomes, positives, curve, ranking)


def _before_search(
    descriptors: SplitDescriptors,
    model: Describer,
    images: PlaceImages,
    positives: Sequence[np.ndarray],
    ask: Ask,
    engine: str,
) -> Evaluation:
    """What is measured, before any recall."""
    places, dim = images.places, descriptors.database.shape[1]
    size = "of unknown size"  # of images that another program described
    if not descriptors.made_by:
        size = describe_sizes(descriptors.image_sizes, descriptors.resized, images.query_longest_side)
    protocol = protocol_label(images)
    return Evaluation(
        recalls={},
        split=images.split,
        spec=places.name,
        queries=len(places.query_names),
        queries_without_positive=sum(len(indices) == 0 for indices in positives),
        database_photos=len(places.database_names),
        model=descriptors.made_by or model.name,
        descriptor_dim=dim,
        image_size=size,
        bytes_per_image=descriptors.database.itemsize * dim,
        protocol=f"{protocol}; {ask.exclusion.text()}" if ask.exclusion else protocol,
        search=f"by {engine}" if engine else "exact",
    )


def measure_index(
    descriptors: SplitDescriptors,
    images: PlaceImages,
    exact: Evaluation,
    positives: list[np.ndarray],
    factory: str,
    index: faiss.Index,
) -> Evaluation:
    """Recall@N by an approximate search instead of the exact one: by what `build_index` made of the database."""
    ordered = None if measures_descriptors(index) else descriptors.database
    count, searched = max(exact.recalls), IndexSearch(index, ordered)
    found = search_places(descriptors.database, descriptors.queries, count, images.places, searched)
    # Where not every hit counts more are asked for, and some indexes then look deeper than for `count`.
    deeper = f", up to {searched.deepest} hits asked for" if searched.deepest > count else ""
    return replace(
        exact,
        recalls=recall_at(found, positives, list(exact.recalls)),
        search=f"by index {index_name(factory, index)}{deeper}",
        bytes_per_image=stored_bytes(index) / len(images.database_files),
        certainty=None,  # which is of the exact search
    )


def record(path: Path, evaluation: Evaluation, source: dict) -> None:
    """Add an evaluation to a results file, a list, oldest first. Raises a UserError: what is there is no such list. It
    stays as it is, and the evaluation goes into a file beside it."""
    now = datetime.datetime.now()
    entry = {"measured": now.isoformat(timespec="seconds"), **source, **asdict(evaluation)}
    try:
        append_to_list(path, entry)
    except UserError as error:
        beside = path.with_name(f"{path.stem}_{now:%Y-%m-%d_%H-%M-%S.%f}{path.suffix}")
        write_json(beside, [entry])
        raise UserError(f"{error}; it is unchanged, and the new result is in {beside}: mend or move it") from error
    say(f"wrote {path}")
