"""python -m benchmarks.tables --root DIR: recall, size and time of the models of the README, from nothing.

    make tables ROOT=DIR [DATASET=NAME] [WEIGHTS=FOLDER] [OUT=FOLDER]

Only commands of main.py are run: cluster, train, prune, export and compare. What is done is skipped, so that what was
killed goes on when it is started again, and ends with the same tables.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.report import machine
from benchmarks.tables import estimate
from benchmarks.tables.models import NETWORKS, model_flags
from benchmarks.tables.plan import Wanted, steps_of
from benchmarks.tables.report import write_report
from benchmarks.tables.steps import StepFailed, Steps
from vpr.common.device import choose_device
from vpr.common.errors import UserError
from vpr.common.files import read_json, write_json
from vpr.data.catalogue import DATASETS

REPOSITORY = Path(__file__).resolve().parents[2]
MAIN = [sys.executable, str(REPOSITORY / "main.py")]


def main(arguments: list[str] | None = None) -> int:
    """Run what is left to do, and write the tables."""
    options = _parser().parse_args(arguments)
    out = Path(options.out).resolve()
    try:
        wanted, images = _wanted(options)
        steps = Steps(steps_of(wanted), out / "steps", MAIN, REPOSITORY)
        with steps.alone():
            _run_all(steps, wanted, images, out)
        written = write_report(steps, wanted, machine(choose_device()), out)
    except (StepFailed, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from here", file=sys.stderr)
        return 130
    print(f"\n{written.read_text(encoding='utf-8')}\nwrote {written} and tables.png")
    return 0


def _wanted(options: argparse.Namespace) -> tuple[Wanted, list[Path]]:
    """What the tables are of, and the training images."""
    from vpr.data.places import load_places, require_queries
    from vpr.data.settings import PlacesSpec

    root, weights = Path(options.root).resolve(), Path(options.weights).resolve() if options.weights else None
    models = {network: model_flags(network, weights) for network in NETWORKS}
    training, validation = (load_places(PlacesSpec(options.dataset, root), split) for split in ("train", "val"))
    require_queries(validation)
    settings = estimate.settings_for(len(training.files) + len(validation.files))
    size = tuple(options.imageSize or estimate.size_for(training.files[0], settings.longest))
    wanted = Wanted(
        options.dataset, root, models, size, options.epochs or settings.epochs, settings.distill,
        len(training.files), len(validation.files),
    )  # fmt: skip
    return wanted, training.files


def _seconds(wanted: Wanted, images: list[Path], path: Path) -> dict[str, float]:
    """Of an image through each network, measured once."""
    measured = {"size": list(wanted.size), "models": {name: list(flags) for name, flags in wanted.models.items()}}
    if path.is_file() and (found := read_json(path))["measured"] == measured:
        return found["seconds"]
    seconds = {}
    for network in NETWORKS:
        first = images[: estimate.FIRST]
        seconds[network] = estimate.seconds_per_image(NETWORKS[network].flags, first, wanted.size)
    write_json(path, {"measured": measured, "seconds": seconds})
    return seconds


def _run_all(steps: Steps, wanted: Wanted, images: list[Path], out: Path) -> None:
    if left := steps.left():
        minutes = estimate.minutes_of(left, _seconds(wanted, images, out / "estimate.json"))
        print(f"{len(left)} of {len(steps.steps)} steps are left: about {minutes:.0f} minutes", flush=True)
    for number, name in enumerate(steps.steps, 1):
        label, started = f"{number}/{len(steps.steps)} {name}", time.perf_counter()
        if steps.is_done(name):
            print(f"{label}: done before", flush=True)
            continue
        print(f"{label} ...", end=" ", flush=True)
        steps.run(name)
        print(f"{time.perf_counter() - started:.0f} s", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=str(REPOSITORY), help="folder of the data set (default: the project root)")
    parser.add_argument("--dataset", default="pittsburgh", choices=DATASETS, help="as --dataset of main.py")
    parser.add_argument("--weights", metavar="FOLDER", help="folder of weights files (default: the usual downloads)")
    parser.add_argument("--out", default="runs/tables", metavar="FOLDER", help="of the tables and all that they need")
    size = "of all images (default: their own, shrunk to 128 pixels, from 10,000 images on to 320)"
    parser.add_argument("--imageSize", type=int, nargs=2, metavar=("H", "W"), help=size)
    parser.add_argument("--epochs", type=int, help="of each training (default: 2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
