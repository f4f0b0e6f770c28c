"""The head of re-ranking: learnt on the scores of hits, judged with each set left out.

python -m benchmarks.hits --places DIR --weights DIR --out HITS
python -m benchmarks.head --hits HITS            # a table
python -m benchmarks.head --hits HITS --write    # and vpr/retrieval/verification/head.json
"""

import argparse
import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpr.retrieval.rules import LOCAL_WEIGHTS
from vpr.retrieval.verification.head import FILE, Head, standardised

PLAIN = ("global", "soft")  # with spatial it gains nothing but at night, and loses 2 points in the tower
WHOLE = ("global", "soft", "spatial", "inliers")
HOW, DEPTH, VERIFIED = ("plain", "session"), 50, 20
LISTED = (1, 5, 10, 20)


@dataclass(frozen=True)
class Run:
    """What `benchmarks.hits` kept of a model, a vocabulary, a seed of k-means and a set of images."""

    model: str
    vocabulary: str
    seed: str
    place: str
    arrays: dict[str, np.ndarray]

    def scores(self, how: str, names: Sequence[str], order: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Scores [M, K] of the first hits by name; `order` [M, K]: of those, in that order."""
        found = {name: self.arrays[f"{how}_{name}"][:, :DEPTH] for name in names}
        return found if order is None else {name: np.take_along_axis(value, order, 1) for name, value in found.items()}

    def ahead(self, how: str, head: Head) -> np.ndarray:
        """Ranks of the hits that are verified: the first by a head without inliers, [M, VERIFIED]."""
        return np.argsort(-head.log_odds(self.scores(how, PLAIN)), axis=1, kind="stable")[:, :VERIFIED]


def main(arguments: list[str] | None = None) -> None:
    """Judge, print, and with --write keep the heads that all sets make."""
    options = _parser().parse_args(arguments)
    runs = [Run(*file.stem.split("-", 3), dict(np.load(file))) for file in sorted(Path(options.hits).glob("*.npz"))]
    learnt = [run for run in runs if run.vocabulary == "own" and run.model in options.models]
    print("model | vocabulary | set | queries | conditions | first | soft | head | verified alone | head, verified")
    for key in sorted({(run.model, run.vocabulary, run.place) for run in runs}):
        mine = [run for run in runs if (run.model, run.vocabulary, run.place) == key]
        others = [run for run in learnt if run.place != key[2]]
        plain, whole = both(others)
        for how in HOW:
            print(*key, len(mine[0].arrays["positives"]), how, *cells(mine, how, plain, whole), sep=" | ", flush=True)
    heads = dict(zip(("plain", "verified"), both(learnt), strict=True))
    found = {name: {"weights": dict(head.weights), "bias": head.bias} for name, head in heads.items()}
    print(json.dumps(found))
    if options.write:
        names = {"sets": "place", "models": "model", "seeds": "seed"}
        about = {name: sorted({getattr(run, of) for run in learnt}) for name, of in names.items()}
        text = json.dumps({**about, "date": datetime.date.today().isoformat(), **found}, indent=1)
        FILE.write_text(text + "\n", encoding="utf-8")


def both(runs: Sequence[Run]) -> tuple[Head, Head]:
    """The heads for hits that are not verified, and for those that are."""
    plain = learn(runs, PLAIN)
    return plain, learn(runs, WHOLE, plain)


def learn(runs: Sequence[Run], names: Sequence[str], before: Head | None = None) -> Head:
    """A logistic regression on "this hit is right", every run weighing the same, with and without condition means.

    `before` is the head that chooses the hits.
    """
    from sklearn.linear_model import LogisticRegression

    features, right = [], []
    for run in runs:
        for how in HOW:
            order = run.ahead(how, before) if before else np.tile(np.arange(DEPTH), (len(run.arrays["positives"]), 1))
            columns = run.scores(how, names, order)
            features.append(np.stack([standardised(columns[name]) for name in names], axis=2).reshape(-1, len(names)))
            right.append(np.take_along_axis(run.arrays[f"{how}_right"], order, axis=1).ravel())
    weight = np.concatenate([np.full(len(each), 1 / len(each)) for each in right])
    weight *= len(weight) / weight.sum()
    model = LogisticRegression().fit(np.concatenate(features), np.concatenate(right), weight)
    weights = dict(zip(names, model.coef_[0].tolist(), strict=True))
    return Head(weights, float(model.intercept_[0]))


def cells(runs: Sequence[Run], how: str, plain: Head, whole: Head) -> list[str]:
    """R@1/5/10/20 in percent, means of the seeds: first search; soft; head; inliers alone; head with inliers."""
    first = {DEPTH: lambda run: None, VERIFIED: lambda run: run.ahead(how, plain)}
    ways: list[tuple[Sequence[str], int, Callable]] = [
        (("global",), DEPTH, lambda scores: scores["global"]),
        (PLAIN, DEPTH, lambda scores: scores["global"] + LOCAL_WEIGHTS["soft"] * scores["soft"]),
        (PLAIN, DEPTH, plain.log_odds),
        (WHOLE, VERIFIED, lambda scores: scores["inliers"] + scores["global"]),
        (WHOLE, VERIFIED, whole.log_odds),
    ]
    found = []
    for names, depth, score in ways:
        recalls = []
        for run in runs:
            chosen = first[depth](run)
            order = np.argsort(-score(run.scores(how, names, chosen)), axis=1, kind="stable")
            if chosen is not None:
                order = np.take_along_axis(chosen, order, axis=1)
            ordered = np.take_along_axis(run.arrays[f"{how}_right"], order, axis=1)
            recalls.append([ordered[:, :n].any(axis=1).mean() for n in LISTED])
        found.append("/".join(f"{100 * recall:.1f}" for recall in np.mean(recalls, axis=0)))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hits", required=True, help="folder that python -m benchmarks.hits wrote")
    parser.add_argument("--models", nargs="+", default=["fast"], help="whose hits heads are learnt on")
    parser.add_argument("--write", action="store_true", help="keep the heads in the program")
    return parser


if __name__ == "__main__":
    main()
