"""python -m campaigns.killed_backbones: whether a killed training of each backbone ends as one that was left alone.

    python -m campaigns.killed_backbones
    python -m campaigns.killed_backbones --names resnet18 swin_tiny --seed 1

For each backbone, with random weights, on a small toy city: one training runs through; another, of the same flags, gets
SIGKILL at a random moment after the first checkpoint of its epoch and before the last, and is resumed. Exit code 1 if
the two differ in a weight or in the optimiser's state.
"""

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from campaigns.killing import CHECKPOINT, call, different, final_state, killed_after, newest_checkpoint, start

NAMES = (
    "resnet18", "resnet50", "tf_efficientnet_lite0", "mobilenetv3_large_100", "convnext_tiny",
    "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "swin_tiny",
)  # fmt: skip
PANORAMAS, QUERIES = 6, 12  # of each quarter of the toy city
BLOCK, BLOCKS = 2, 6  # queries of a block, after each of which there is a checkpoint; blocks of the epoch
ATTEMPTS = 5  # trainings started until one is killed in time
POLL = 0.02  # seconds between two looks at a checkpoint


@dataclass(frozen=True)
class Outcome:
    """What came of one backbone.

    Attributes:
        killed: seconds after the first checkpoint of the epoch.
        blocks_done: of the epoch's blocks in the checkpoint that was resumed.
        changed: tensors that the resumed training still changed, of `tensors` in all.
        apart: names of those that differ in the end.
    """

    killed: float
    blocks_done: int
    changed: int
    tensors: int
    apart: list[str]


def main(arguments: list[str] | None = None) -> int:
    """Train, kill, resume and compare; print a line of the table for each backbone."""
    options = _parser().parse_args(arguments)
    from toycity import make_toy_city

    chance, same = random.Random(options.seed), True
    print("| backbone | SIGKILL after the first checkpoint | blocks done | changed since | tensors that differ |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        city = Path(name) / "city"
        make_toy_city(city, panoramas=PANORAMAS, queries=QUERIES)
        for arch in options.names:
            found = _kill_and_resume(arch, _flags(options, city, Path(name) / arch), Path(name) / arch, chance)
            same = same and not found.apart
            cells = (arch, f"{found.killed:.2f} s", f"{found.blocks_done} of {BLOCKS}",
                     f"{found.changed} of {found.tensors}", ", ".join(found.apart) or "none")  # fmt: skip
            print("|", *(f"{cell} |" for cell in cells), flush=True)
    print("all end with the same bits" if same else "WEIGHTS DIFFER")
    return 0 if same else 1


def _kill_and_resume(arch: str, flags: list[str], folder: Path, chance: random.Random) -> Outcome:
    """Two trainings of one backbone, the second killed and resumed."""
    from vpr.models.backbones import entry_of
    from vpr.models.backbones.timm_names import completed

    clusters = [f"--arch={arch}", "--fromscratch", "--num_clusters=4"]
    call(["--mode=cluster", *flags, *clusters])
    # As from pretrained weights, so that frozen stages and their cache take part.
    train = ["--mode=train", *flags, *clusters, f"--trainFrom={entry_of(completed(arch)).train_from}", "--margin=1",
             "--nEpochs=1", f"--cacheRefreshRate={BLOCK}"]  # fmt: skip
    whole = folder / "whole"
    process = start([*train, f"--runsPath={whole}"])
    seconds = _seconds_of_blocks(process, whole)
    if process.wait():
        raise SystemExit(f"the training of {arch} ended with {process.returncode}")
    for attempt in range(ATTEMPTS):
        runs, moment = folder / f"killed{attempt}", chance.uniform(0, seconds)
        process = start([*train, f"--runsPath={runs}"])
        _wait_for_blocks(process, runs, 1)
        killed, position = killed_after(process, moment), newest_checkpoint(runs)["position"]
        if killed and (position["epoch"], position["blocks_done"]) < (1, BLOCKS):
            break
    else:
        raise SystemExit(f"{arch}: {ATTEMPTS} trainings had done all blocks before they were to be killed")
    before = final_state(runs)
    call(["--mode=train", "--resume", *flags, f"--runsPath={runs}"])
    wanted, found = final_state(whole), final_state(runs)
    return Outcome(moment, position["blocks_done"], len(different(before, found)), len(found), different(wanted, found))


def _seconds_of_blocks(process: Popen, runs: Path) -> float:
    """The time between the checkpoints of the first and of the last block of a training under way."""
    _wait_for_blocks(process, runs, 1)
    began = time.monotonic()
    _wait_for_blocks(process, runs, BLOCKS)
    return time.monotonic() - began


def _wait_for_blocks(process: Popen, runs: Path, count: int) -> None:
    """Wait until the checkpoint of a training of one epoch has so many blocks done, or until the training ends."""
    seen = None
    while process.poll() is None:
        for path in runs.glob(CHECKPOINT):
            if seen != (seen := path.stat().st_mtime_ns):
                position = newest_checkpoint(runs)["position"]
                if (position["epoch"], position["blocks_done"]) >= (1, count):
                    return
        time.sleep(POLL)


def _flags(options: argparse.Namespace, city: Path, folder: Path) -> list[str]:
    height, width = options.imageSize
    return [
        "--dataset=toy", f"--root={city}", "--imageSize", str(height), str(width), "--threads=1", "--device=cpu",
        f"--precision={options.precision}", f"--dataPath={folder / 'centroids'}", f"--cachePath={folder / 'cache'}",
    ]  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m campaigns.killed_backbones", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--names", nargs="+", default=NAMES, metavar="ARCH", help="backbones (default: the tested ones)"
    )
    parser.add_argument("--imageSize", type=int, nargs=2, default=(64, 80), metavar=("H", "W"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
