"""What answers where images were taken: a model and a database, loaded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.common.progress import say, without_progress
from vpr.data.reader import Reading
from vpr.database.engine import Engine, Hits, Unreachable
from vpr.database.filters import SearchFilter
from vpr.database.records import Records, record_id
from vpr.evaluation.evaluate import how_ordered, look_text
from vpr.models.local_maps import joined
from vpr.report.matches import Compare, comparer
from vpr.retrieval.answer import Match, match_of
from vpr.retrieval.answer_features import LOOKED_AT, Answers, limited, uncalibrated
from vpr.retrieval.calibration_file import StoredCalibration
from vpr.retrieval.matching import Matches
from vpr.retrieval.rerank import SecondLook
from vpr.runs.model import LoadedModel
from vpr.serve.long_work import Pause
from vpr.serve.looking import LocalDescriptors, looked_again, no_pause
from vpr.serve.model_pass import Described, ModelPass
from vpr.serve.problems import Problem

AWAY_SECONDS = 5  # after which a client is told to ask again, where the engine does not answer
DEPTH = 50  # hits of a second look where a request does not say, and the index has local descriptors


@dataclass(frozen=True)
class Asked:
    """What is asked of an image.

    Attributes:
        top: how many matches.
        wanted: which images are searched; None: all.
        rerank: how many hits are ordered anew by a second look; None: DEPTH where the index serves it.
        agreement: whether the matches of local descriptors with the first hit are wanted.
    """

    top: int = 5
    wanted: SearchFilter | None = None
    rerank: int | None = None
    agreement: bool = False


@dataclass(frozen=True)
class Answer:
    """Where an image was taken, as far as that is known.

    Attributes:
        ids: of the database images that match, see `vpr.database.records.record_id`.
        matches: best first.
        confidence: of the first match; None if unknown.
        confidence_kind: what that is, in words.
        refused: whether it is below what is wanted.
        agreement: matches of local descriptors with the first match; None where they were not asked for.
        model_seconds, search_seconds: that all images of the batch took together.
    """

    ids: list[int]
    matches: list[Match]
    confidence: float | None
    confidence_kind: str
    refused: bool
    agreement: Matches | None
    model_seconds: float = 0.0
    search_seconds: float = 0.0


def hits_wanted(asked: Asked, look: SecondLook | None) -> int:
    """How many hits are searched for; by this some indexes look farther, so others' wishes do not count."""
    return max(LOOKED_AT, look.depth if look else 0, asked.top)


class Locator:
    """A model and a database; one thread at a time may ask it or change the database.

    Attributes:
        loaded: the model, on its device.
        engine: the database.
        records: of its images, as of the last change: any thread may read these, and `images`.
        images: how many it has.
        read: how images are read.
        root: folder of the database's images, where the records do not say.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        engine: Engine,
        read: Reading,
        root: Path,
        calibration: Callable[[str], StoredCalibration | None],
        local: LocalDescriptors | None = None,
        look_by: str = "soft",
        least_confidence: float | None = None,
    ) -> None:
        """Take what is there.

        Args:
            calibration: finds the calibration of answers that are ordered so, see `how_ordered`.
            local: local descriptors; None: with the usual projection.
            look_by: the score of a second look, a key of SCORES.
            least_confidence: below which there is no answer; None: never.
        """
        self.loaded, self.engine, self.read, self.root = loaded, engine, read, root
        self._pass, self._calibration = ModelPass(loaded.model), calibration
        self._local = local or LocalDescriptors(loaded, engine, read, root)
        self._look_by, self._least = look_by, least_confidence
        self._calibrations: dict[str, StoredCalibration | None] = {}
        self.records, self.images = engine.records, engine.count()

    @property
    def model_name(self) -> str:
        """Backbone and weights, pooling, dimension, number format."""
        return self.loaded.model.name

    def is_long(self, asked: Asked) -> bool:
        """Whether a question takes much more than others do: many comparisons, or images that have to be described."""
        depth = asked.rerank or 0
        return depth > DEPTH or (not self._local.are_kept and (depth > 0 or asked.agreement))

    def locate(
        self, images: Sequence[torch.Tensor], asked: Sequence[Asked], pause: Pause = no_pause
    ) -> list[Answer | Problem]:
        """Where images uint8 [3, H, W] were taken.

        Args:
            pause: called from time to time; another thread may ask or change the database meanwhile.

        Returns:
            for each an answer, or a Problem where it is too small or too large, or the index cannot serve what is
            asked of it.
        """
        with without_progress():
            found: dict[int, Answer | Problem] = {}
            for number, (image, each) in enumerate(zip(images, asked, strict=True)):
                if problem := self._problem(image, each):
                    found[number] = problem
            sound = [number for number in range(len(images)) if number not in found]
            if sound:
                answers = self._located([images[n] for n in sound], [asked[n] for n in sound], pause)
                found.update(zip(sound, answers, strict=True))
        return [found[number] for number in range(len(images))]

    def _problem(self, image: torch.Tensor, asked: Asked) -> Problem | None:
        """Why a question cannot be answered, as far as that is known before."""
        if asked.rerank and not self.engine.measures:
            return Problem(422, "rerank needs descriptor distances, which the index does not measure")
        return self._pass.problem(image)

    def _located(self, images: Sequence[torch.Tensor], asked: Sequence[Asked], pause: Pause) -> list[Answer | Problem]:
        """As `locate`, of questions that nothing is known against."""
        began = perf_counter()
        looks = [self._look(each) for each in asked]
        described = self._describe(images, any(looks) or any(each.agreement for each in asked), pause)
        pause()
        model_seconds, began = perf_counter() - began, perf_counter()
        alike: dict[tuple, list[int]] = {}  # what is asked alike is searched at once
        for number, (each, look) in enumerate(zip(asked, looks, strict=True)):
            alike.setdefault((each.wanted, look, each.agreement, hits_wanted(each, look)), []).append(number)
        answers: dict[int, Answer | Problem] = {}
        away: Problem | None = None
        for numbers in alike.values():
            some: Sequence[Answer | Problem] = [away] * len(numbers) if away else []
            try:
                which, look = [asked[n] for n in numbers], looks[numbers[0]]
                some = some or self._answers(which, look, described.only(numbers), pause)
            except Problem as problem:
                some = [problem] * len(numbers)
                away = problem if isinstance(problem.__cause__, Unreachable) else None  # then it is not tried again
            answers.update(zip(numbers, some, strict=True))
        seconds = perf_counter() - began
        found = [answers[number] for number in range(len(images))]
        return [
            each if isinstance(each, Problem) else replace(each, model_seconds=model_seconds, search_seconds=seconds)
            for each in found
        ]

    def check(self) -> None:
        """Raise a UserError where the database does not answer now."""
        self.engine.check()

    def add(self, image: torch.Tensor, record: Records) -> None:
        """Add an image uint8 [3, H, W] to the database, or put it in the place of that of its name.

        Raises:
            Problem: the image is too small or too large.
            UserError: the engine cannot take it.
        """
        if problem := self._pass.problem(image):
            raise problem
        with without_progress():
            described = self._describe([image], self.engine.local is not None)
            self.engine.add(record, described.descriptors, described.local)
            self._changed()

    def remove(self, name: str) -> None:
        """Remove an image from the database.

        Raises:
            UserError: the engine cannot do it.
        """
        self.engine.remove([name])
        self._changed()

    def _changed(self) -> None:
        self.records, self.images = self.engine.records, self.engine.count()

    def _describe(self, images: Sequence[torch.Tensor], local: bool, pause: Pause = no_pause) -> Described:
        if local:
            return self._pass.describe_with_local(images, self._local.projection(pause))
        return self._pass.describe(images)

    def _look(self, asked: Asked) -> SecondLook | None:
        """The second look that is asked for, or that the index serves."""
        engine = self.engine
        served = DEPTH if engine.local is not None and engine.measures else 0
        depth = served if asked.rerank is None else asked.rerank
        return SecondLook(depth, self._look_by) if depth else None

    def _answers(self, asked: list[Asked], look: SecondLook | None, described: Described, pause: Pause) -> list[Answer]:
        """The answers to images of which the same is asked, but for how many of the same hits are told."""
        # Their records are those of the search: images may come and go in a pause.
        found, distances, records = self._search(described.descriptors, hits_wanted(asked[0], look), asked[0].wanted)
        answers, compare, how = Answers(found, distances, records.positions), None, None
        if described.local is not None and (look or asked[0].agreement):
            queries, seen = joined(described.local), look or SecondLook(1, self._look_by)
            known, rows = self._local.of(found[:, : seen.depth], records, pause)
            if look:
                answers = looked_again(answers, queries, known, rows, look, pause)
                how = look_text(look, queries.dim)
            compare = comparer(queries, known, seen, rows) if asked[0].agreement else None
        values, kind = limited(answers) if asked[0].wanted else self._how_sure(answers, how)
        return [
            self._answer(records, number, answers, each.top, None if np.isnan(value) else float(value), kind, compare)
            for number, (each, value) in enumerate(zip(asked, values, strict=True))
        ]

    def _search(self, descriptors: torch.Tensor, count: int, wanted: SearchFilter | None) -> Hits:
        """See `vpr.database.engine.Searchable.search`."""
        try:
            return self.engine.search(descriptors, count, wanted)
        except UserError as error:
            say(f"a search failed: {error}")
            raise Problem(503, "the search engine does not answer: ask again later", seconds=AWAY_SECONDS) from error

    def _how_sure(self, answers: Answers, look: str | None) -> tuple[np.ndarray, str]:
        """How sure answers are [M], and what that is, in words; as --mode=locate has it."""
        how = how_ordered(None, look, self.engine.approximate)
        if how not in self._calibrations:
            self._calibrations[how] = self._calibration(how)
        stored = self._calibrations[how]
        return (stored.calibration.probability(answers), stored.label) if stored else uncalibrated(answers)

    def _answer(
        self, records: Records, number: int, answers: Answers, top: int, sure: float | None, kind: str,
        compare: Compare | None,
    ) -> Answer:  # fmt: skip
        """The answer to one of some images."""
        hits = answers.found[number]
        rows = [int(row) for row in hits[:top] if row >= 0]
        matches = [
            match_of(records.names[row], distance, records.positions[row], records.zone)
            for row, distance in zip(rows, answers.distances[number], strict=False)
        ]
        refused = self._least is not None and (sure is None or sure < self._least)
        agreement = compare(number, rows[0]).matches if compare and rows else None
        return Answer([record_id(match.name) for match in matches], matches, sure, kind, refused, agreement)
