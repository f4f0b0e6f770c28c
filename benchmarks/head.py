"""The head of re-ranking: learnt on the scores of hits, judged with each set left out.

python -m benchmarks.hits --places DIR --weights DIR --out HITS
python -m benchmarks.head --hits HITS            # a table
python -m benchmarks.head --hits HITS --write    # and vpr/retrieval/verification/head.json
"""

import argparse
import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vpr.retrieval.rules import LOCAL_WEIGHTS
from vpr.retrieval.verification.head import FILE, Head, standardised

PLAIN = ("global", "soft", "spatial")
HOW, VERIFIED = ("plain", "session"), 20
Scores = dict[str, np.ndarray]  # [M, K] by name


def main(arguments: list[str] | None = None) -> None:
    """Judge, print, and with --write keep the heads that all sets make."""
    options = _parser().parse_args(arguments)
    files = sorted(Path(options.hits).glob("*.npz"))
    runs = {file.stem: dict(np.load(file)) for file in files}
    sets = sorted({name.rsplit("-", 1)[1] for name in runs})
    learnt = [name for name in runs if name.split("-")[1] == "own" and name.split("-")[0] in options.models]
    models = sorted({name.split("-")[0] for name in runs})
    for model in models:
        for vocabulary in ("own", "foreign"):
            for which in sets:
                mine = [
                    runs[name]
                    for name in runs
                    if name.split("-")[:2] == [model, vocabulary] and name.endswith(f"-{which}")
                ]
                if not mine:
                    continue
                others = [runs[name] for name in learnt if not name.endswith(f"-{which}")]
                plain, whole = learn(others, PLAIN, options.how), learn(others, (*PLAIN, "inliers"), options.how)
                for how in HOW:
                    print(
                        f"{model:8}{vocabulary:8}{which:18}{how:8}", *row(mine, how, plain, whole), sep="  ", flush=True
                    )
    everything = [runs[name] for name in learnt]
    heads = {
        "plain": learn(everything, PLAIN, options.how),
        "verified": learn(everything, (*PLAIN, "inliers"), options.how),
    }
    print(
        {name: ({k: round(v, 3) for k, v in head.weights.items()}, round(head.bias, 3)) for name, head in heads.items()}
    )
    if options.write:
        about = {"learnt on": sets, "runs": learnt, "date": datetime.date.today().isoformat()}
        found = {name: {"weights": dict(head.weights), "bias": head.bias} for name, head in heads.items()}
        FILE.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")


def scores_of(run: dict, how: str, query: int, depth: int, names: Sequence[str]) -> Scores:
    """Scores [K] of the first hits of a query."""
    return {name: run[f"{how}_{name}"][query, :depth] for name in names}


def learn(runs: list[dict], names: Sequence[str], hows: Sequence[str] = HOW) -> Head:
    """A logistic regression on "this hit is right", every set of images weighing the same."""
    from sklearn.linear_model import LogisticRegression

    features, right, weights = [], [], []
    for run in runs:
        for how in hows:
            depth = min(VERIFIED if "inliers" in names else 50, run[f"{how}_soft"].shape[1])
            columns = [
                np.sqrt(run[f"{how}_{name}"][:, :depth]) if name == "inliers" else run[f"{how}_{name}"][:, :depth]
                for name in names
            ]
            x = np.stack([standardised(column) for column in columns], axis=2).reshape(-1, len(names))
            features.append(x)
            right.append(run[f"{how}_right"][:, :depth].ravel())
            weights.append(np.full(len(x), 1 / len(x)))
    weight = np.concatenate(weights)
    model = LogisticRegression(C=1.0).fit(
        np.concatenate(features), np.concatenate(right), weight * len(weight) / weight.sum()
    )
    return Head(dict(zip(names, model.coef_[0].tolist(), strict=True)), float(model.intercept_[0]))


def row(runs: list[dict], how: str, plain: Head, whole: Head) -> list[str]:
    """Mean R@1/R@5 of the seeds: first search, soft, head without inliers, and with; xfeat alone."""
    ways: list[Callable[[dict, int], np.ndarray]] = [
        lambda run, q: np.arange(100),
        lambda run, q: by(run, q, 50, lambda s: s["global"] + LOCAL_WEIGHTS["soft"] * s["soft"]),
        lambda run, q: by(run, q, 50, plain.log_odds),
        lambda run, q: by(run, q, VERIFIED, lambda s: s["inliers"] + s["global"], (*PLAIN, "inliers")),
        lambda run, q: two(run, q),
    ]

    def by(run, q, depth, score, names=PLAIN):
        order = np.argsort(-score(scores_of(run, how, q, depth, names)), kind="stable")
        return np.concatenate([order, np.arange(depth, 100)])

    def two(run, q):
        n = run[f"{how}_inliers"].shape[1]
        first = by(run, q, 50, plain.log_odds)
        if n < 50:
            return by(run, q, VERIFIED, whole.log_odds, (*PLAIN, "inliers"))
        chosen = first[:VERIFIED]
        s = {name: run[f"{how}_{name}"][q, chosen] for name in (*PLAIN, "inliers")}
        return np.concatenate([chosen[np.argsort(-whole.log_odds(s), kind="stable")], first[VERIFIED:]])

    cells = []
    for way in ways:
        found = []
        for run in runs:
            right = run[f"{how}_right"]
            ordered = np.stack([right[q][way(run, q)] for q in range(len(right))])
            found.append([ordered[:, :n].any(axis=1).mean() for n in (1, 5)])
        mean = 100 * np.mean(found, axis=0)
        cells.append(f"{mean[0]:5.1f}/{mean[1]:5.1f}")
    return cells


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hits", required=True, help="folder that python -m benchmarks.hits wrote")
    parser.add_argument("--models", nargs="+", default=["fast"], help="whose hits heads are learnt on")
    parser.add_argument("--how", nargs="+", default=list(HOW), choices=HOW)
    parser.add_argument("--write", action="store_true")
    return parser


if __name__ == "__main__":
    main()
