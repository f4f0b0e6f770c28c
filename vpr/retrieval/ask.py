"""What is asked of an image, and why it may have no answer."""

from dataclasses import dataclass

from vpr.common.errors import UserError
from vpr.database.filters import SearchFilter
from vpr.retrieval.answer_features import LOOKED_AT
from vpr.retrieval.conditions.session import Session
from vpr.retrieval.rules import HEAD, KEYPOINTS, Reranking
from vpr.search.rules import RecentFrames, SequenceRule

VERIFIED = 20  # of them that are verified by keypoints
DEPTH = 50  # hits that are re-ranked where a question does not say, and the engine keeps local descriptors


@dataclass(frozen=True)
class Ask:
    """What is asked of an image."""

    top: int = 5  # how many matches
    filter: SearchFilter | None = None  # which database images are searched; None: all
    # How many first hits are re-ranked; 0: none; None: DEPTH where the engine keeps local descriptors.
    rerank: int | None = None
    rerank_by: str = HEAD  # what re-ranking orders by, one of `vpr.retrieval.rules.BY`
    verify: int = VERIFIED  # how many of these are verified by keypoints, where the network for that is there
    # How similarities of consecutive frames are combined; None: images are single ones.
    sequence: SequenceRule | None = None
    conditions: str = "off"  # which means are subtracted, a key of `vpr.retrieval.conditions.centring.HOW`; off: none
    # Frames of one camera that came before; they are in order by themselves. None: it is none's.
    session: Session | None = None
    exclusion: RecentFrames | None = None  # frames of the image's own sequence that may not be found; None: all may
    # Confidence below which, or where it is unknown, an image gets no answer; None: all get one.
    least: float | None = None
    # Share of questions that may be answered falsely, from which such a confidence follows.
    false_rate: float | None = None
    agreement: bool = False  # whether the matches of local descriptors with the first hit are wanted

    def reranking(self, keeps_local: bool, verifies: bool = False) -> Reranking | None:
        """How hits are re-ranked, by an engine that keeps and measures what that takes, or does not; None: not.

        `verifies` says whether there is a network for keypoints.
        """
        usual = DEPTH if keeps_local or (verifies and self.rerank_by == KEYPOINTS) else 0
        depth = usual if self.rerank is None else self.rerank
        return Reranking(depth, self.rerank_by, self.verify if verifies else 0) if depth else None

    def hits(self, reranking: Reranking | None) -> int:
        """How many hits are searched for. By this some indexes look farther: what others ask for does not count."""
        return max(LOOKED_AT, reranking.depth if reranking else 0, self.top)


class Refusal(UserError):
    """Why a question has no answer."""

    def __init__(self, text: str, told: str | None = None) -> None:
        super().__init__(text)
        self.told = told or text  # the same for somebody who shall learn nothing of this machine's files


class TooSmall(Refusal):
    """The image is smaller than the model takes."""


class TooLarge(Refusal):
    """The image takes more memory than is free."""


class NotServed(Refusal):
    """Model, engine or database lack what is asked for."""


class Changed(Refusal):
    """Images came or went while the question was answered: another try may go well."""


class EngineAway(Refusal):
    """The engine does not answer; its own error is the cause of this one."""
