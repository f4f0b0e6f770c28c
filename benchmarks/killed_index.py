"""python -m benchmarks.killed_index: whether an index that is killed again and again ends as one that was left alone.

    python -m benchmarks.killed_index
    python -m benchmarks.killed_index --images 2000 --kills 20 --seed 0 --localDescriptors

An index of some images is made undisturbed. Then the same index, beside another model folder, gets SIGKILL at random
moments while it is made, and while its journal is merged into its file, and runs to its end. Printed are what each
kill left, whether an image was kept twice, and whether the two files hold the same names, descriptors and local
descriptors, to the bit. Exit code 1 if they do not. Words that are not known here are handed to --mode=index.
"""

import argparse
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.killing import MAIN, start

MODEL = ["--arch=alexnet", "--fromscratch", "--pooling=avg", "--precision=fp32", "--threads=2", "--device=cpu"]
POLL = 0.002  # seconds between two looks at the journal
MERGING_KILLS = 5  # of all, once everything is in the journal
LONGEST = 120.0  # seconds that a start may take


def main(arguments: list[str] | None = None) -> int:
    """Make, kill, make again and compare."""
    options, more = _parser().parse_known_args(arguments)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw(root / "images", options.images, options.seed)
        whole, killed = (index_words(root, name, more) for name in ("whole", "killed"))
        seconds = seconds_of(whole)
        print(f"undisturbed: {options.images} images described in {seconds:.1f} s")
        kept, kills = 0, 0
        while kills < options.kills:
            merging = kills >= options.kills - MERGING_KILLS
            left = kill_once(killed, root / "killed", options.images, merging, seconds, options.kills, chance)
            if left is None:
                print("it ended before it was killed")
                break
            names, kills = left, kills + 1
            twice = [name for name, count in Counter(names).items() if count > 1]
            print(f"kill {kills}: {len(names)} images kept, {len(names) - kept} more than before, {len(twice)} twice")
            if twice or len(names) < kept:
                return 1
            kept = len(names)
        done = subprocess.run([sys.executable, str(MAIN), *killed], capture_output=True, text=True)
        print(f"run to the end: {done.returncode}, {done.stdout.strip().splitlines()[-1]}")
        same = done.returncode == 0 and content(root / "whole") == content(root / "killed")
        print("the same names, descriptors and local descriptors" if same else "DIFFERENT")
    return 0 if same else 1


def seconds_of(words: list[str]) -> float:
    """Make an index undisturbed, and give how long its images took."""
    done = subprocess.run([sys.executable, str(MAIN), *words], capture_output=True, text=True, check=True)
    found = re.search(r"^index: (\d+)/\d+ images, ([\d.]+) images/s", done.stdout, re.MULTILINE)
    assert found
    return int(found[1]) / float(found[2])


def index_words(root: Path, name: str, more: list[str]) -> list[str]:
    """The command that makes the index."""
    places = ["--dataset=folder", f"--root={root / 'images'}", f"--dataPath={root / name}", f"--runsPath={root / name}"]
    return ["--mode=index", *MODEL, *places, *more]


def draw(folder: Path, count: int, seed: int) -> None:
    """Small images, each another."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(seed)
    for number in range(count):
        pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg")


def kill_once(
    words: list[str], folder: Path, images: int, merging: bool, seconds: float, kills: int, chance: random.Random
) -> list[str] | None:
    """Start the index, kill it at a random moment, and give the names that it has kept; None if it ended by itself.

    Args:
        merging: wait until all images are kept, so that it dies while they are merged.
    """
    before, process = size_of(folder), start(words)
    deadline = time.monotonic() + LONGEST
    while process.poll() is None and time.monotonic() < deadline:
        if size_of(folder) > before if not merging else len(kept_names(folder)) >= images:
            break
        time.sleep(POLL if not merging else 10 * POLL)
    try:
        process.wait(chance.uniform(0, 0.2 if merging else 1.6 * seconds / kills))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return kept_names(folder)
    return None


def size_of(folder: Path) -> int:
    """Bytes of the journal."""
    return sum(path.stat().st_size for path in folder.glob("*.journal"))


def kept_names(folder: Path) -> list[str]:
    """The names of all images that the journal, or the file once they are merged, has, in order."""
    from vpr.common.errors import UserError
    from vpr.database.index_file import read_index
    from vpr.database.journal import entries_of

    try:
        paths = [*folder.glob("*.journal")]
        if paths:
            return [name for entry in entries_of(paths[0]) if entry.says.get("do") == "add"
                    for name in entry.says["names"]]  # fmt: skip
        found = read_index(next(folder.glob("*.h5")), 256).records
        return list(found.names) if found else []
    except (UserError, StopIteration, FileNotFoundError):
        return []


def content(folder: Path) -> list[bytes]:
    """All that an index holds but its generation."""
    import h5py

    (path,) = folder.glob("*.h5")
    with h5py.File(path) as file:
        arrays = [name.encode() + file[name][:].tobytes() for name in sorted(file)]
    leftovers = [file.name.encode() for file in folder.glob("*.journal")]
    return arrays + leftovers + [file.read_bytes() for file in sorted(folder.glob("*.local"))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.killed_index", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
