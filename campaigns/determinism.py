"""python -m campaigns.determinism: whether equal trainings, some of them killed and resumed, end with the same bits.

    python -m campaigns.determinism --root TOWER --weights FILE --undisturbed 5 --killed 10 --precision fp32 bf16

A killed training gets SIGKILL at a random moment and is resumed. Exit code 1 if any two of a precision and trunk cache
differ in a weight or in the optimiser's state.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from campaigns.killing import call, different, final_state, killed_after, run_exists, start


def main(arguments: list[str] | None = None) -> int:
    """Train, compare, print a line for each training."""
    options = _parser().parse_args(arguments)
    chance, same = random.Random(options.seed), True
    for precision in options.precision:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            call(["--mode=cluster", *_flags(options, folder, precision)])
            for cache in options.trunkCache:
                same = _trainings_agree(options, folder, precision, cache, chance) and same
    print("all weights have the same bits" if same else "WEIGHTS DIFFER")
    return 0 if same else 1


def _trainings_agree(options: argparse.Namespace, folder: Path, precision: str, cache: str, chance) -> bool:
    """Whether all trainings with one precision and trunk cache end with the bits of the first."""
    first, seconds, same = None, 0.0, True
    for number in range(options.undisturbed + options.killed):
        killed = number >= options.undisturbed
        runs = folder / f"{cache}{number}"
        flags = [f"--runsPath={runs}", f"--cachePath={runs / 'cache'}"]
        words = ["--mode=train", *_flags(options, folder, precision), *flags, f"--trunkCache={cache}",
                 f"--nEpochs={options.nEpochs}", f"--cacheRefreshRate={options.cacheRefreshRate}"]  # fmt: skip
        began, outcomes = time.monotonic(), []
        if killed:
            outcomes = _kill(words, flags, options, seconds, chance)
        if not killed or not run_exists(runs):
            call(words)
        else:
            call(["--mode=train", "--resume", *flags, f"--threads={options.threads}"])
        seconds = seconds or time.monotonic() - began
        found = final_state(runs)
        first = first or found
        apart = different(first, found)
        same = same and not apart
        how = ", ".join(outcomes) if killed else "undisturbed"
        verdict = f"DIFFERS from the first in {', '.join(apart)}" if apart else "same bits as the first"
        print(f"{precision}, trunk cache {cache}, training {number + 1}, {how}: {verdict}", flush=True)
    return same


def _kill(words: list[str], flags: list[str], options: argparse.Namespace, seconds: float, chance) -> list[str]:
    """Start a training and kill it at random, then its resumptions, --kills times in all. Returns what came of each."""
    done, command = [], words
    for _ in range(options.kills):
        moment = chance.uniform(0, seconds)
        killed = killed_after(start(command), moment)
        outcome = (
            f"killed after {moment:.1f} s" if killed else f"had ended before it was to be killed, at {moment:.1f} s"
        )
        if run_exists(Path(flags[0].partition("=")[2])):
            command = ["--mode=train", "--resume", *flags, f"--threads={options.threads}"]
        else:
            outcome += ", before there was a run"
        done.append(outcome)
    return done


def _flags(options: argparse.Namespace, folder: Path, precision: str) -> list[str]:
    height, width = options.imageSize
    return [
        "--dataset=pittsburgh", f"--root={options.root}", f"--arch={options.arch}", f"--weights={options.weights}",
        "--imageSize", str(height), str(width), f"--threads={options.threads}", f"--precision={precision}",
        f"--dataPath={folder / 'centroids'}", "--device=cpu",
    ]  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m campaigns.determinism", description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True, help="places in Pittsburgh's layout, with train and val")
    parser.add_argument("--weights", required=True, metavar="FILE", help="weights of the backbone")
    parser.add_argument("--arch", default="alexnet")
    parser.add_argument("--undisturbed", type=int, default=3, help="trainings that run through (default: 3)")
    parser.add_argument("--killed", type=int, default=3, help="trainings that are killed (default: 3)")
    parser.add_argument("--kills", type=int, default=1, help="how often each of these is killed (default: once)")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--trunkCache", nargs="+", default=["memory"], choices=("memory", "disk", "off"))
    parser.add_argument("--imageSize", type=int, nargs=2, default=(90, 160), metavar=("H", "W"))
    parser.add_argument("--cacheRefreshRate", type=int, default=40)
    parser.add_argument("--nEpochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="workers that decode (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
