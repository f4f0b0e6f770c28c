"""How well a score of answers tells right first hits from wrong ones, and how well probabilities are calibrated."""

from dataclasses import dataclass

import numpy as np

from vpr.evaluation.calibration_error import Reliability, reliability
from vpr.evaluation.precision_recall import PrecisionRecall, precision_recall

SURE = (1.0, 0.99)  # precisions at which recall is printed
EVEN = 0.5  # probability from which answers are counted where the user names none


@dataclass(frozen=True)
class Scores:
    """A score of each answer."""

    values: np.ndarray  # [M], the higher the surer; NaN where unknown
    kind: str  # what it is, in words
    probability: bool = False  # whether it is meant as the probability that the first hit is right
    note: str = ""  # on what it was learnt, where that are these very queries; empty where it is not


@dataclass(frozen=True)
class Certainty:
    """A score judged by what was right."""

    scores: Scores
    curve: PrecisionRecall  # precision and recall over a threshold
    table: Reliability | None  # the table of a reliability diagram; None where the score is no probability
    unmatched: np.ndarray  # [U] scores of the queries without a true match
    least: float | None  # threshold from which answers are counted; None counts none

    def figures(self) -> dict:
        """Numbers for a results file; None where there is none."""
        curve, table = self.curve, self.table
        sure = {f"{100 * precision:g}": curve.recall_at_precision(precision) for precision in SURE}
        known = {
            "score": self.scores.kind,
            "queries": curve.queries,
            "answerable": curve.answerable,
            "area": _number(curve.area),
            "area_at_most": _number(curve.recall[-1]) if len(curve.right) else None,
            "recall_at_precision": {name: _number(recall) for name, (recall, _) in sure.items()},
            "threshold_at_precision": {name: _number(threshold) for name, (_, threshold) in sure.items()},
            "unmatched_answered_at_precision": {name: self._unmatched_from(each) for name, (_, each) in sure.items()},
        }
        if table is not None:
            known["calibration_error"] = table.error
            known["calibration_bins"] = len(table.counts)
            known["calibration_note"] = self.scores.note
        if self.least is not None:
            known["least_confidence"] = self.at(self.least)
        return known

    def at(self, threshold: float) -> dict[str, float]:
        """What comes of answering only from a score on: counts of queries."""
        reached = int((self.curve.thresholds >= threshold).sum())
        counts = {"answered": self.curve.answered, "right": self.curve.right}
        return {
            "threshold": threshold,
            **{name: int(of[reached - 1]) if reached else 0 for name, of in counts.items()},
            "unmatched_answered": self._unmatched_from(threshold),
            "unmatched": len(self.unmatched),
        }

    def lines(self) -> str:
        """What the score is worth, in a few lines."""
        curve = self.curve
        said = [f"how sure: {self.scores.kind}; {curve.answerable} of {curve.queries} queries have a true match"]
        if curve.answerable and len(curve.right):
            parts = [f"area under precision-recall {100 * curve.area:.1f} of at most {100 * curve.recall[-1]:.1f}"]
            for precision in SURE:
                recall, threshold = curve.recall_at_precision(precision)
                over = f" (score from {threshold:.3f})" if recall else ""
                parts.append(f"recall at {100 * precision:g}% precision {100 * recall:.1f}{over}")
            said.append(", ".join(parts))
        if self.table is not None:
            note = f"; {self.scores.note}" if self.scores.note else ""
            said.append(
                f"expected calibration error {self.table.error:.3f} ({len(self.table.counts)} bins, "
                f"{self.table.queries} queries){note}"
            )
        if len(self.unmatched):
            _, threshold = curve.recall_at_precision(SURE[-1])
            said.append(
                f"not in the map: {self._unmatched_from(threshold)} of {len(self.unmatched)} queries without a true "
                f"match answered at {100 * SURE[-1]:g}% precision"
            )
        if self.least is not None:
            at = self.at(self.least)
            line = f"from {self.least:g} on: {at['answered']} answered, of which {at['right']} right"
            among = f"; of {at['unmatched']} queries without a true match {at['unmatched_answered']} answered"
            said.append(line + among if len(self.unmatched) else line)
        return "\n".join(said)

    def _unmatched_from(self, threshold: float) -> int:
        """Queries without a true match that have at least this score."""
        return int((self.unmatched >= threshold).sum())


def judge(scores: Scores, right: np.ndarray, answerable: np.ndarray, least: float | None = None) -> Certainty:
    """Compare a score with what was right.

    Args:
        right: bool [M], whether first hits are right.
        answerable: bool [M], whether queries have a true match in the database.
        least: from which score on answers are counted; None takes EVEN for probabilities.
    """
    known = ~np.isnan(scores.values)
    table = reliability(scores.values[known], right[known]) if scores.probability and known.any() else None
    if least is None and scores.probability:
        least = EVEN
    curve = precision_recall(scores.values, right, answerable)
    return Certainty(scores, curve, table, scores.values[~answerable], least)


def _number(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None
