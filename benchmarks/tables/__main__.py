"""python -m benchmarks.tables --root DIR: recall, size and time of the models of the README, from nothing.

    python -m benchmarks.tables --root DIR --weights FOLDER --out runs/tables

Only commands of main.py are run: cluster, train, prune, export, test and compare. What is done is skipped, so that what
was killed goes on when it is started again, and ends with the same tables.
"""

import argparse
import itertools
import shlex
import sys
import time
from pathlib import Path

from benchmarks.tables.plan import Wanted, estimates_of, steps_of
from benchmarks.tables.report import write_report
from benchmarks.tables.steps import StepFailed, Steps
from benchmarks.tables.timing import DATABASE, SAMPLE, images_under, make_sample, seconds_left

REPOSITORY = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Run what is left to do, and write the tables."""
    options = _parser().parse_args(arguments)
    root, out = Path(options.root).resolve(), Path(options.out).resolve()
    images = list(images_under(root))
    if len(images) <= DATABASE:
        print(f"error: --root={root}: found {len(images)} images, wanted more than {DATABASE}", file=sys.stderr)
        return 2
    weights = options.weights if options.weights in ("", "none") else str(Path(options.weights).resolve())
    wanted = Wanted(
        root, options.dataset, options.split, weights, None if options.ownSize else tuple(options.imageSize),
        options.epochs, options.distill, options.clusters, options.rerank, options.seed, len(images),
        out / f"sample_{root.name}",
    )  # fmt: skip
    command = shlex.split(options.main) if options.main else [sys.executable, str(REPOSITORY / "main.py")]
    plan, estimates = (
        Steps(each, out / "steps", command, REPOSITORY) for each in (steps_of(wanted), estimates_of(wanted))
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        make_sample(images[:SAMPLE], wanted.sample)
        if plan.left():
            _run(estimates, "estimating")
            minutes = seconds_left(plan.left(), estimates, len(images)) / 60
            print(f"{len(plan.left())} of {len(plan.steps)} commands are left: about {minutes:.0f} minutes", flush=True)
        _run(plan, "of the tables")
        written = write_report(plan, wanted, out)
    except StepFailed as error:
        print(f"error: {error}\nstart again to go on from here", file=sys.stderr)
        return 1
    print(f"{written.read_text(encoding='utf-8')}\nwrote {written}, tables.json and tables.png")
    return 0


def _run(steps: Steps, what: str) -> None:
    for number, name in zip(itertools.count(1), steps.steps, strict=False):
        if steps.is_done(name):
            print(f"{what} {number}/{len(steps.steps)} {name}: done before", flush=True)
            continue
        started = time.perf_counter()
        steps.run(name)
        print(f"{what} {number}/{len(steps.steps)} {name}: {time.perf_counter() - started:.0f} s", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--root", required=True, help="folder of the data set, as --root of main.py")
    parser.add_argument("--dataset", default="pittsburgh", help="as --dataset of main.py (default: pittsburgh)")
    parser.add_argument("--split", default="val", help="split that is tested (default: val)")
    parser.add_argument("--weights", default="", help="folder of weights files, or none: random (default: downloads)")
    parser.add_argument("--out", default="runs/tables", help="folder of the tables and of all that they need")
    parser.add_argument("--imageSize", type=int, nargs=2, default=(224, 224), metavar=("H", "W"),
                        help="all images are resized to this (default: 224 224)")  # fmt: skip
    parser.add_argument("--ownSize", action="store_true", help="images in their own size instead")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of each training (default: 1)")
    parser.add_argument("--distill", type=int, default=512, help="images of the distillation (default: 512)")
    parser.add_argument("--clusters", type=int, default=64, help="clusters of NetVLAD (default: 64)")
    parser.add_argument("--rerank", type=int, default=50, help="hits that are re-ranked (default: 50)")
    parser.add_argument("--seed", type=int, default=123, help="seed of every random choice (default: 123)")
    parser.add_argument("--main", help="command in place of main.py, for tests")
    return parser


if __name__ == "__main__":
    sys.exit(main())
