"""Does a bound of false answers hold? Many random halves of a split: learnt on the one, counted on the other.

python -m benchmarks.promises --splits 200 -- --root DIR --split=val --rerank 50 ...   # flags of --mode=test
"""

import argparse
import sys

import numpy as np

import vpr.modes.test as test_mode
from vpr.cli.app import main as program
from vpr.common.errors import UserError
from vpr.evaluation.calibrate import learn_calibration, place_groups
from vpr.retrieval.answer_features import Answers
from vpr.retrieval.calibration import SURE, Guarantee


def main(arguments: list[str] | None = None) -> int:
    """Test as the flags say, then print how often the bound was exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("flags", nargs="+", help="of --mode=test")
    options = parser.parse_args(arguments)
    kept, judge = [], test_mode.judge_answers

    def keep(images, results, *rest):
        kept.append((images, results, rest[-1]))
        return judge(images, results, *rest)

    test_mode.judge_answers = keep
    code = program(["test", "--calibrate", *options.flags])
    if not kept:  # the program has said why
        return code
    images, results, others = kept[-1]
    right = np.array([outcome.rank == 1 for outcome in results.outcomes])
    groups = place_groups(images.places.query_positions)
    for rate in options.rates:
        figures = halves(results.ranking.answers, others, right, groups, rate, options.splits)
        exceeded = (figures[:, 1:] > rate).mean(axis=0)
        answered, false, unknown = 100 * figures.mean(axis=0)
        print(
            f"at most {100 * rate:g}% false answers: {len(figures)} splits of {len(right)} queries; on the other half "
            f"{answered:.1f}% are answered, {false:.2f}% falsely, {unknown:.2f}% without their places; the bound is "
            f"exceeded in {100 * exceeded[0]:.1f}% and {100 * exceeded[1]:.1f}% of the splits, stated is at most "
            f"{100 - 100 * SURE:g}%"
        )
    return code


def halves(
    answers: Answers, others: Answers, right: np.ndarray, groups: np.ndarray, rate: float, splits: int
) -> np.ndarray:
    """Shares of the second halves: answered, answered falsely, and answered without their places; [splits, 3]."""
    found = []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(right))
        one, other = order[: len(order) // 2], order[len(order) // 2 :]
        try:
            calibration, held_out, unknown = learn_calibration(
                answers.only(one), right[one], groups[one], others.only(one)
            )
        except UserError as error:
            sys.exit(f"error: {error}")
        threshold = Guarantee(held_out, right[one], unknown).threshold(rate)
        sure, sure_elsewhere = (calibration.probability(each.only(other)) for each in (answers, others))
        given = sure >= threshold
        found.append((given.mean(), (given & ~right[other]).mean(), (sure_elsewhere >= threshold).mean()))
    return np.array(found)


if __name__ == "__main__":
    sys.exit(main())
