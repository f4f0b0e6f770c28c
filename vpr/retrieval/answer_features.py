"""What an answer shows of how sure it is: numbers of its hits, from which a probability is learnt."""

from dataclasses import dataclass

import numpy as np

LOOKED_AT = 100  # hits, among which one taken elsewhere is sought
ELSEWHERE = 25.0  # metres from the first hit, beyond which a hit is of another place
SPREAD_HITS = 10  # hits whose positions are compared (SUE)
SPREAD_CAP = 500.0  # metres, beyond which a hit lies no farther off (SUE)
# What stands for a probability where there is no calibration.
RATIO = (
    "1 - (descriptor distance of the best match) / (that of the best one taken over 25 m from it), no probability; "
    "near 0 another place looks as similar"
)
SCORE_RATIO = (
    "1 - (score of the best match taken over 25 m from the first, by a second look) / (that of the first), no "
    "probability; near 0 another place looks as similar"
)
SEQUENCE_RATIO = SCORE_RATIO.replace("a second look", "sequences")
# A filter hides the places that look as similar, which is what tells a right match from a wrong one.
LIMITED = (
    "unknown, since only a part of the database was searched: how sure a match is shows against all other places; "
    "search without near, box and where"
)
UNPLACED = "unknown, since no position of the first match is known: no match can be told to be of another place"

# The names of the features, in the order of the columns, and what each is.
FEATURES = {
    "lead": "of the first hit over the best one over 25 m from it, see `uncalibrated`",
    "similarity": "cosine of the descriptors of the query and its first hit",
    "spread": "how close together the first 10 hits lie (SUE)",
    "agreeing": "matches of local descriptors of the query and its first hit that agree",
    "inliers": "keypoints of the query and its first hit that agree with one camera's movement",
}


@dataclass(frozen=True)
class Answers:
    """Queries with what was found for them, best first."""

    found: np.ndarray  # [M, c] database indices; -1 is no hit
    distances: np.ndarray  # [M, c] Euclidean distances of the descriptors, 0 to 2; NaN where unknown
    positions: np.ndarray  # [N, 2] of the database, metres; NaN where unknown
    # [M, K] of the first K hits by re-ranking, -inf where there is no hit; None without one.
    scores: np.ndarray | None = None
    agreeing: np.ndarray | None = None  # [M, K] matches of their local descriptors that agree, likewise
    # [M, c] similarities of sequences, means of the frames' cosines; None where queries are single images.
    sequence: np.ndarray | None = None
    frames: np.ndarray | None = None  # int64 [M], of how many frames these are the means
    # int64 [M, V], keypoints of the query and its first V hits that agree with one camera's movement.
    inliers: np.ndarray | None = None

    def ordering(self, row: int) -> np.ndarray:
        """What orders the hits of a query, [c], NaN where their distances do."""
        values, scores = np.full(self.found.shape[1], np.nan), self.sequence if self.scores is None else self.scores
        if scores is not None:
            values[: scores.shape[1]] = scores[row]
        return values

    def only(self, rows: np.ndarray) -> "Answers":
        """Some of them, by index."""
        own = {name: value[rows] for name, value in vars(self).items() if name != "positions" and value is not None}
        return Answers(**own, positions=self.positions)


@dataclass(frozen=True)
class Uncertainty:
    """How far from the first match an image may have been taken: by the spread of what agrees with it."""

    metres: float  # one standard deviation in the direction in which that is largest
    covariance: list[list[float]]  # of easting and northing, [[ee, en], [en, nn]] in square metres


def answer_features(answers: Answers, slope: float) -> np.ndarray:
    """The features of each answer, float64 [M, 5] in the order of FEATURES; NaN where one is not known, or no hit is.

    Few queries teach few numbers: the score of re-ranking and its margin say no more than its lead.
    `slope`: of the weights of `hit_spread`, in 1 / squared descriptor distance.
    """
    found, distances = answers.found[:, :LOOKED_AT], answers.distances[:, :LOOKED_AT]
    unknown = np.full(len(found), np.nan)
    answered = found[:, 0] >= 0 if found.shape[1] else np.zeros(len(found), bool)
    first = distances[:, 0].astype(float) if distances.shape[1] else unknown
    agreeing = answers.agreeing[:, 0] if answers.agreeing is not None and answers.agreeing.shape[1] else unknown
    inliers = answers.inliers[:, 0] if answers.inliers is not None and answers.inliers.shape[1] else unknown
    columns = {
        "lead": uncalibrated(answers)[0],
        "similarity": 1 - first**2 / 2,  # |a - b|^2 = 2 - 2 a.b of vectors of length 1
        "spread": -np.log10(1 + hit_spread(found, distances, answers.positions, slope)),
        "agreeing": np.log1p(agreeing),
        "inliers": np.log1p(inliers),
    }
    features = np.stack([columns[name] for name in FEATURES], axis=1)  # [M, 5]
    return np.where(answered[:, None], features, np.nan)


def uncalibrated(answers: Answers) -> tuple[np.ndarray, str]:
    """A score of each answer that needs no calibration, float64 [M], NaN where unknown; and what it is, in words.

    It is of what orders the hits: the scores of re-ranking, unless at one hit alone, else of sequences, else distances.
    """
    found, distances = answers.found[:, :LOOKED_AT], answers.distances[:, :LOOKED_AT]
    elsewhere = hits_elsewhere(found, answers.positions)
    for scores, kind in ((answers.scores, SCORE_RATIO), (answers.sequence, SEQUENCE_RATIO)):
        if scores is not None and scores.shape[1] > 1:
            return score_ratio(found, scores[:, :LOOKED_AT], elsewhere), kind
    return distance_ratio(found, distances, elsewhere), RATIO


def hits_elsewhere(found: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Which hits were taken over ELSEWHERE metres from the first one, bool [M, c]; an unknown place is another one."""
    if not found.shape[1] or not len(positions):
        return np.zeros(found.shape, bool)
    places = positions[found]  # [M, c, 2]
    metres = np.linalg.norm(places - places[:, :1], axis=2)
    elsewhere = ~(metres <= ELSEWHERE) & (found >= 0)
    elsewhere[:, 0] = False
    return elsewhere


def first_is_placed(answers: Answers) -> np.ndarray:
    """Whether the position of each answer's first hit is known, bool [M]."""
    if not answers.found.shape[1] or not len(answers.positions):
        return np.zeros(len(answers.found), bool)
    first = answers.found[:, 0]
    return (first >= 0) & np.isfinite(answers.positions[first]).all(axis=1)


def distance_ratio(found: np.ndarray, distances: np.ndarray, elsewhere: np.ndarray) -> np.ndarray:
    """1 - d1 / d2, d2 being the smallest descriptor distance of a hit elsewhere, float64 [M].

    Where no hit lies elsewhere, the largest distance stands for d2, which can only make the ratio too small. NaN
    with a single hit, and where distances are not known. 0 where d2 is 0. Below 0 where re-ranking put a hit in
    front that is farther by its descriptor than one elsewhere.
    """
    first, second = _first_and_best_elsewhere(-distances, found, elsewhere)
    known = ~(np.isnan(distances) & (found >= 0)).any(axis=1)
    return np.where(known, _lead(-first, -second, found), np.nan)


def score_ratio(found: np.ndarray, scores: np.ndarray, elsewhere: np.ndarray) -> np.ndarray:
    """1 - s2 / s1 of re-ranking's scores [M, K], s2 being the best of a hit elsewhere, float64 [M].

    Where no hit lies elsewhere the smallest score stands for s2, as in `distance_ratio`. NaN with a single hit.
    """
    found, elsewhere = found[:, : scores.shape[1]], elsewhere[:, : scores.shape[1]]
    first, second = _first_and_best_elsewhere(scores, found, elsewhere)
    return _lead(np.maximum(second, 0), first, found)


def _first_and_best_elsewhere(
    values: np.ndarray, found: np.ndarray, elsewhere: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of values [M, c], the greater the better: the first hit's, and the best elsewhere or else the least of all."""
    values = values.astype(float)
    best = np.where(elsewhere, values, -np.inf).max(axis=1, initial=-np.inf)
    least = np.where(found >= 0, values, np.inf).min(axis=1, initial=np.inf)
    return values[:, :1].max(axis=1, initial=-np.inf), np.where(elsewhere.any(axis=1), best, least)


def _lead(part: np.ndarray, whole: np.ndarray, found: np.ndarray) -> np.ndarray:
    """1 - part / whole, 0 where the whole is not above 0, and NaN with a single hit."""
    ratio = np.where(whole > 0, 1 - part / np.where(whole > 0, whole, 1), 0)
    return np.where((found >= 0).sum(axis=1) >= 2, ratio, np.nan)


def place_uncertainty(answers: Answers, row: int) -> Uncertainty | None:
    """How far from its first match an image may have been taken, by the hits that agree with that.

    covariance = sum_i w_i (p_i - p_1) (p_i - p_1)^T / sum_i w_i + s^2 / 12 I, over those of the first LOOKED_AT hits
    that lie within ELSEWHERE of the first. A weight is the hit's cosine less the smallest of all that are looked at;
    all are equal where distances are unknown. s is the distance from the first match to the nearest other place among
    them, the spacing of the database there; s^2 / 12 is the variance of a camera anywhere within one step.

    None where the first match's position is unknown, and where no other place agrees: a single one says nothing of how
    far the camera may be from it.
    """
    hits = answers.found[row, :LOOKED_AT]
    hits = hits[hits >= 0]
    if not len(hits) or not len(answers.positions):
        return None
    places = answers.positions[hits]  # [c, 2]
    away = places - places[0]
    metres = np.linalg.norm(away, axis=1)
    agreeing = metres <= ELSEWHERE  # not so for NaN
    if not (metres[agreeing] > 0).any():
        return None
    cosines = 1 - answers.distances[row, : len(hits)].astype(float) ** 2 / 2
    weights = (cosines - cosines.min())[agreeing]
    if not weights.sum() > 0:  # so for NaN
        weights = np.ones(agreeing.sum())
    spacing = metres[agreeing & (metres > 0)].min()
    covariance = (weights[:, None] * away[agreeing]).T @ away[agreeing] / weights.sum() + spacing**2 / 12 * np.eye(2)
    return Uncertainty(float(np.sqrt(np.linalg.eigvalsh(covariance)[-1])), covariance.tolist())


def hit_spread(found: np.ndarray, distances: np.ndarray, positions: np.ndarray, slope: float) -> np.ndarray:
    """How far apart the first SPREAD_HITS hits lie: SUE's uncertainty as a length, float64 [M] metres.

    sqrt((Var_E + Var_N) / 2) of their positions with weights proportional to exp(-slope d^2), deviations from the
    weighted mean within +-SPREAD_CAP (Zaffar, Nan, Kooij, "On the estimation of image-matching uncertainty in visual
    place recognition", CVPR 2024). As published the cap is on the positive side alone, and weights are exp(-slope d^2)
    themselves, which vanish for distant hits; here d^2 is counted from the smallest, which changes no weight.
    NaN where a position or a distance of these hits is not known, and without hits.
    """
    hits = found[:, :SPREAD_HITS]
    there = hits >= 0
    squared = np.where(there, distances[:, : hits.shape[1]].astype(float) ** 2, np.inf)
    spread = np.full(len(found), np.nan)
    if not len(positions):
        return spread
    places = np.where(there[..., None], positions[hits], 0.0)  # [M, k, 2]
    known = there.any(axis=1) & ~np.isnan(squared).any(axis=1) & np.isfinite(places).all(axis=(1, 2))
    if not known.any():
        return spread
    squared, places = squared[known], places[known]
    weights = np.exp(-slope * (squared - squared.min(axis=1, keepdims=True)))
    weights /= weights.sum(axis=1, keepdims=True)
    origin = places[:, :1]  # positions are millions of metres
    mean = (weights[..., None] * (places - origin)).sum(axis=1, keepdims=True)
    deviations = np.clip(places - origin - mean, -SPREAD_CAP, SPREAD_CAP)
    variances = (weights[..., None] * deviations**2).sum(axis=1)  # [M, 2]
    spread[known] = np.sqrt(variances.mean(axis=1))
    return spread
