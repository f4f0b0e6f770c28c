"""From images to answers where they were taken: a model and a database, loaded once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from time import perf_counter

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say, track, without_progress
from vpr.data.reader import Reading
from vpr.database.engine import Engine, Unreachable
from vpr.database.records import Records
from vpr.descriptors.describe import LocalDescribing, describe
from vpr.descriptors.local_maps import LocalMaps, MemorySink
from vpr.models.local_projection import LOCAL_DIM
from vpr.models.spec import DEFAULT_SEED
from vpr.retrieval.answer import Answer
from vpr.retrieval.ask import DEPTH, Ask, EngineAway, NotServed, Refusal
from vpr.retrieval.calibration_file import StoredCalibration
from vpr.retrieval.conditions.centring import MapConditions
from vpr.retrieval.local_descriptors import LocalDescriptors
from vpr.retrieval.long_work import Pause, no_pause
from vpr.retrieval.model_pass import Described, ModelPass
from vpr.retrieval.ranking import Ranking, answer, confidences, rerank_hits, search_for, verify_hits, with_threshold
from vpr.retrieval.rerank import comparer
from vpr.retrieval.rules import Reranking
from vpr.retrieval.verification.chance import Chance
from vpr.retrieval.verification.kept import KeptKeypoints, KeypointPairs
from vpr.runs.model import LoadedModel

AT_ONCE = 2  # images of the database described between two pauses: of the largest networks half a second's work
USUAL = Ask()
Calibrations = Callable[[str], StoredCalibration | None]  # by how answers are ordered, see `Ranking.order`


def uncalibrated(order: str) -> None:
    """Of a model whose confidences are ratios, for want of a calibration."""


class Locator:
    """A model and a database; one thread at a time may ask it or change the database.

    `locate` and `answer_each` do all; the stages are `describe_files` or `describe_images`, `rank`, `answers`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        engine: Engine,
        read: Reading,
        root: Path,
        calibrations: Calibrations = uncalibrated,
        usual: Ask = USUAL,
        local_dim: int = LOCAL_DIM,
        seed: int = DEFAULT_SEED,
        batch_size: int | None = AT_ONCE,
        means: Mapping[str, np.ndarray] | None = None,
        keypoints: KeptKeypoints | None = None,
    ) -> None:
        """Nothing is described yet.

        Args:
            root: folder of the database's images, where the records do not say.
            usual: what is asked where nothing else is said.
            local_dim, seed: of the projection of local descriptors, where the engine has none.
            batch_size: image files described at once; 0: as many as memory holds.
            means: of conditions that were learnt, [dim] by name.
            keypoints: of the database; None: hits are not verified.
        """
        self.loaded, self.engine, self.read, self.root, self.usual = loaded, engine, read, root, usual
        self.local = LocalDescriptors(loaded, engine, read, root, batch_size, local_dim, seed)
        self._pass, self._batch_size = ModelPass(loaded.model), batch_size
        self._calibrations, self._known = calibrations, dict[str, StoredCalibration | None]()
        # As of the last change; any thread may read these.
        self.records, self.images = engine.records, engine.count()
        self.conditions = MapConditions(engine, means or {})
        self.keypoints, self._chance = keypoints, Chance(engine)

    @cached_property  # it is said of every answer, and looking weights up takes milliseconds
    def model_name(self) -> str:
        """See `Describer`."""
        return self.loaded.model.name

    def locate(self, images: Sequence[str | Path], ask: Ask | None = None) -> list[Answer]:
        """Where images were taken, by their files; for sequences these names say which are consecutive frames.
        Raises a UserError: an image cannot be decoded, or what is asked not answered."""
        ask, files = ask or self.usual, [Path(image) for image in images]
        return self.answers(self.rank(self.describe_files(files, ask), ask, [str(file) for file in files]), ask)

    def prepare(self) -> None:
        """Make now what re-ranking takes of the database; raises a UserError where files for that are damaged."""
        self.local.prepare()
        if self.keypoints:
            self.keypoints.prepare(self.engine.records, self.root)

    def reranking(self, ask: Ask) -> Reranking | None:
        """How hits are re-ranked for a question; None: not."""
        measures = self.engine.measures
        return ask.reranking(measures and self.engine.local is not None, measures and self.keypoints is not None)

    def describe_files(self, files: Sequence[Path], ask: Ask) -> Described:
        """Stage 1, of image files: what the question takes of them. Raises a UserError: one cannot be decoded."""
        sink, local = MemorySink(len(files)), None
        takes_local, verified = self._takes(ask)
        if takes_local:
            local = LocalDescribing(self.local.projection(), sink)
        every, batch = range(len(files)), self._batch_size
        descriptors, _ = describe(self.loaded.model, self.read.of(files), every, batch, "images", local)
        keypoints = [verified.made_of(file) for file in track(files, "keypoints", len(files))] if verified else None
        return Described(descriptors, sink.finished() if local else None, keypoints)

    def _takes(self, ask: Ask) -> tuple[bool, KeptKeypoints | None]:
        """Whether local descriptors of images are wanted for a question, and what makes their keypoints; None: not."""
        how = self.reranking(ask)
        verified = self.keypoints if how and how.takes_keypoints else None
        return (how.takes_local if how else ask.agreement), verified

    def describe_images(
        self, images: Sequence[np.ndarray], local: bool, pause: Pause = no_pause, verified: KeptKeypoints | None = None
    ) -> Described:
        """Stage 1, of images uint8 [3, H, W] in memory."""
        if local:
            described = self._pass.describe_with_local(images, self.local.projection(pause))
        else:
            described = self._pass.describe(images)
        return replace(described, keypoints=[verified.network.detect(image) for image in images] if verified else None)

    def rank(self, described: Described, ask: Ask, names: Sequence[str] = (), pause: Pause = no_pause) -> Ranking:
        """Stage 2: search the database, and re-rank the first hits by local descriptors, kept or computed.
        `names`: of the images, as of `search`. `pause`: called from time to time; another thread may change the
        database meanwhile.
        Raises a Refusal: the engine does not answer, or does not search so; or images whose local descriptors are
        wanted are not there.
        """
        how = self.reranking(ask)
        try:
            ranking = search_for(self.conditions, described.descriptors, ask, ask.hits(how), names)
        except Refusal:
            raise
        except UserError as error:
            raise EngineAway(str(error), "the search engine does not answer: ask again later") from error
        mean = self.conditions.mean if any(step.startswith("conditions") for step in ranking.steps) else None
        ranking = replace(ranking, usual_distances=self._chance.usual_distances(np.asarray(ranking.queries), mean))
        if described.local is not None and (how is None or how.takes_local):  # else they are for others that ask
            ranking = self._compared(ranking, described.local, how, ask, pause)
        if how is None or not how.takes_keypoints or described.keypoints is None or self.keypoints is None:
            return ranking
        if ask.agreement:
            ranking = replace(ranking, drawn=self._chance.rows(len(ranking.records)))
        records = ranking.records
        pairs = KeypointPairs(
            described.keypoints, self.keypoints, lambda row: (records.names[row], records.file(row, self.root))
        )
        return verify_hits(ranking, pairs, how, pause)

    def _compared(self, ranking: Ranking, queries: LocalMaps, how: Reranking | None, ask: Ask, pause: Pause) -> Ranking:
        """With the local descriptors of the queries: the first hits re-ranked, or what compares them."""
        seen = how or Reranking(1, ask.rerank_by)
        known, rows = self.engine.local, None  # by the same rows as the search, before anything changes
        if known is not None and ask.agreement:
            count = min(len(ranking.records), len(known.grids))
            ranking = replace(ranking, drawn=self._chance.rows(count))
        if known is None:
            known, rows = self.local.of(ranking.answers.found[:, : seen.depth], ranking.records, pause)
        if how is None:
            return replace(ranking, compare=comparer(queries, known, seen, rows))
        return rerank_hits(ranking, queries, known, how, rows, pause)

    def answers(self, ranking: Ranking, asks: Ask | Sequence[Ask]) -> list[Answer]:
        """Stage 3: the matches of each image, and how sure the first is; `asks` are of all images, or of each."""
        stored = self.calibration(ranking)
        values, kind = confidences(ranking, stored)
        each = [with_threshold(ask, stored) for ask in ([asks] * len(values) if isinstance(asks, Ask) else asks)]
        return [answer(ranking, n, ask, values[n], kind, self.root) for n, ask in enumerate(each)]

    def calibration(self, ranking: Ranking) -> StoredCalibration | None:
        """That of answers so ordered; None where there is none, or a filter hides what looks as similar."""
        if ranking.order not in self._known and not ranking.filtered:
            self._known[ranking.order] = self._calibrations(ranking.order)
        return self._known.get(ranking.order)

    def is_long(self, ask: Ask) -> bool:
        """Whether a question takes much more than others do: many comparisons, or images that have to be described."""
        depth = ask.rerank or 0
        return depth > DEPTH or (not self.local.are_kept and (depth > 0 or ask.agreement))

    def answer_each(
        self, images: Sequence[np.ndarray], asks: Sequence[Ask], pause: Pause = no_pause
    ) -> list[Answer | Refusal]:
        """An answer to each question about an image uint8 [3, H, W], or why there is none; `pause` as of `rank`."""
        with without_progress():
            found: list[Answer | Refusal | None] = [*map(self._refusal, images, asks)]
            sound = [number for number, refusal in enumerate(found) if refusal is None]
            if sound:
                answers = iter(self._answer_sound([images[n] for n in sound], [asks[n] for n in sound], pause))
        return [refusal or next(answers) for refusal in found]

    def _refusal(self, image: np.ndarray, ask: Ask) -> Refusal | None:
        """Why a question cannot be answered, as far as that is known before."""
        if ask.rerank and not self.engine.measures:
            return NotServed("rerank needs descriptor distances, which the index does not measure")
        if ask.sequence or ask.exclusion:
            return NotServed("frames in order are image files with names: locate those")
        return self._pass.refusal(image)

    def _answer_sound(self, images: Sequence[np.ndarray], asks: Sequence[Ask], pause: Pause) -> list[Answer | Refusal]:
        """As `answer_each`, of questions that nothing is known against."""
        began = perf_counter()
        try:
            takes = [self._takes(ask) for ask in asks]
            verified = self.keypoints if any(keypoints for _, keypoints in takes) else None
            described = self.describe_images(images, any(local for local, _ in takes), pause, verified)
        except Refusal as refusal:
            say(f"no re-ranking: {refusal}")
            return [refusal] * len(images)
        pause()
        model_seconds, began = perf_counter() - began, perf_counter()
        alike: dict[tuple, list[int]] = {}  # what is asked alike is searched at once
        for number, ask in enumerate(asks):
            how = self.reranking(ask)
            alike.setdefault((replace(ask, top=0), how, ask.hits(how)), []).append(number)
        answers, away = dict[int, Answer | Refusal](), None
        for numbers in alike.values():
            some: Sequence[Answer | Refusal] = [away] * len(numbers) if away else []
            some = some or self._answer_alike(described.only(numbers), [asks[n] for n in numbers], pause)
            if isinstance(some[0], EngineAway) and isinstance(some[0].__cause__, Unreachable):
                away = some[0]  # it is not asked again
            answers.update(zip(numbers, some, strict=True))
        took = perf_counter() - began
        return [
            replace(each, model_seconds=model_seconds, search_seconds=took) if isinstance(each, Answer) else each
            for each in (answers[number] for number in range(len(images)))
        ]

    def _answer_alike(self, described: Described, asks: list[Ask], pause: Pause) -> Sequence[Answer | Refusal]:
        """The answers to images of which the same is asked, but for how many of the same hits are told."""
        try:
            return self.answers(self.rank(described, asks[0], pause=pause), asks)
        except Refusal as refusal:
            say(f"{'a search failed' if isinstance(refusal, EngineAway) else 'no re-ranking'}: {refusal}")
            return [refusal] * len(asks)

    def check(self) -> None:
        """Raise a UserError where the database does not answer now; take what others have committed."""
        self.engine.check()
        self.follow()

    def follow(self) -> None:
        """Show what a database in files has by now."""
        if not self.engine.is_shared and self.engine.records is not self.records:
            self.records, self.images = self.engine.records, self.engine.count()

    def describe_to_add(self, image: np.ndarray) -> Described:
        """An image uint8 [3, H, W] as `add` takes it. Raises a Refusal: it is too small or too large."""
        if refusal := self._pass.refusal(image):
            raise refusal
        with without_progress():
            return self.describe_images([image], self.engine.local is not None)

    def add(self, records: Records, described: Sequence[Described]) -> None:
        """Add images to the database in one commit, where it has such, or replace those of their names.
        Raises a UserError: the engine cannot take them."""
        maps = [one for each in described for one in each.maps() or ()]
        self.engine.add(records, np.concatenate([each.descriptors for each in described]), maps or None)
        self._changed()

    def change(self, record: Records) -> None:
        """Give an image of the database another record, under its name and with the descriptors that it has.
        Raises a UserError: the engine cannot do it."""
        row, local = self.engine.row_of[record.names[0]], self.engine.local
        self.engine.add(record, self.engine.descriptors([row]), None if local is None else [local.map(row)])
        self._changed()

    def remove(self, name: str) -> None:
        """Remove an image from the database. Raises a UserError: the engine cannot do it."""
        self.engine.remove([name])
        self._changed()

    def _changed(self) -> None:
        self.local.changes += 1
        self.records, self.images = self.engine.records, self.engine.count()
