"""python -m benchmarks.recipe_run: a recipe's 100 steps on synthetic images, left alone, and killed and resumed.

    python -m benchmarks.recipe_run --recipe=dinov2 --arch=vit_small_patch14_dinov2
    python -m benchmarks.recipe_run --recipe=dinov2 --device=cuda -- --precision=bf16

Images/s and memory are those of metrics.csv: of a GPU what tensors held at most, else the process. Weights are random,
which takes as long. On one processor both trainings end with the same losses; on a GPU nearly so.
"""

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

from campaigns.killing import call, start

STEPS = 100
SIDE = 224  # pixels of images and of what the model sees
SHOWN = ("loss", "tuples", "seconds", "images_per_second", "memory_mb")
POLL = 0.2  # seconds between two looks at metrics.csv


def main(arguments: list[str] | None = None) -> int:
    """Train twice and print a table of epochs; exit code 1 if the resumed training did not end as the other."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, options.steps * options.places // options.epochs, options.images)
        common = [
            "--dataset=folder", f"--root={folder}", f"--arch={options.arch}", "--fromscratch", "--num_clusters=16",
            f"--dataPath={folder}/centroids", f"--device={options.device}", "--imageSize", f"{SIDE}", f"{SIDE}",
        ]  # fmt: skip
        flags = [
            f"--recipe={options.recipe}", f"--nEpochs={options.epochs}", f"--batchSize={options.places}",
            f"--imagesPerPlace={options.images}", "--placeFolders", f"{folder}/places", "--patience=0", *options.flags,
        ]  # fmt: skip
        call(["cluster", *common])
        print("| training | epoch |", " | ".join(SHOWN), "|\n|---|---|" + "---|" * len(SHOWN), flush=True)
        runs = folder / "alone", folder / "killed"
        call(["train", *common, *flags, f"--runsPath={runs[0]}"])
        alone = _show("left alone", runs[0])
        _killed_in_the_second_epoch(["train", *common, *flags, f"--runsPath={runs[1]}"], runs[1])
        call(["train", "--resume", f"--runsPath={runs[1]}", f"--device={options.device}"])
        resumed = _show("killed, resumed", runs[1])
    apart = max(abs(float(one["loss"]) - float(other["loss"])) for one, other in zip(alone, resumed, strict=True))
    print(f"losses of both differ by {apart:.2g} at most")
    return int(apart > options.apart)


def draw(folder: Path, places: int, images: int) -> None:
    """A folder for each place of smooth random images, each place's own and noise; and a small data set."""
    import numpy as np
    from PIL import Image

    numbers = np.random.default_rng(0)
    files = [(n, folder / "places" / f"{n:05}" / f"{image}.jpg") for n in range(places) for image in range(images)]
    for n, part in enumerate(("train/database", "train/queries", "val/database", "val/queries")):
        count = 200 if n == 0 else 10
        files += [(at, folder / part / f"@{500000 + 100 * at:.2f}@4500000.00@{at:05}.jpg") for at in range(count)]
    for place, file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        own = np.random.default_rng(place).integers(0, 256, (20, 20, 3))
        small = np.clip(own + numbers.normal(0, 60, own.shape), 0, 255).astype(np.uint8)
        Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, quality=90)


def _rows(runs: Path) -> list[dict[str, str]]:
    """Of metrics.csv of the only run in a folder; none where there is no file yet."""
    for file in runs.glob("*/metrics.csv"):
        with open(file, newline="", encoding="utf-8") as opened:
            return list(csv.DictReader(opened))
    return []


def _show(title: str, runs: Path) -> list[dict[str, str]]:
    rows = _rows(runs)
    for row in rows:
        print(f"| {title} | {row['epoch']} |", " | ".join(row[name] for name in SHOWN), "|", flush=True)
    return rows


def _killed_in_the_second_epoch(words: list[str], runs: Path) -> None:
    """SIGKILL once the first epoch is in metrics.csv, a fifth of its time later."""
    process = start(words)
    while not (rows := _rows(runs)) and process.poll() is None:
        time.sleep(POLL)
    if rows:
        time.sleep(float(rows[0]["seconds"]) / 5)
    if process.poll() is not None:
        raise SystemExit("the training ended before it was killed")
    process.kill()
    process.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe_run", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="dinov2")
    parser.add_argument("--arch", default="vit_base_patch14_dinov2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--places", type=int, default=60, help="of a step")
    parser.add_argument("--images", type=int, default=4, help="of each place")
    parser.add_argument("--apart", type=float, default=0.01, help="by how much losses may differ")
    parser.add_argument("flags", nargs="*", help="further flags of --mode=train, after --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
