"""python -m benchmarks.whole_test: --mode=test of a folder, start-up included, beside a plain PyTorch program.

The plain program describes the same images in float32 with maps [B, C, H, W] as they come, by a DataLoader of two
workers and batches of 24, and searches by FAISS: what one writes in an afternoon.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGES, SIDE = 1892, 320  # half of them queries; pixels

PLAIN = """
import sys, faiss, torch
from pathlib import Path
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor
from vpr.models.place_model import PlainPlaceModel, build_model
from vpr.models.spec import ModelSpec

class Images(Dataset):
    def __init__(self, files): self.files = files
    def __len__(self): return len(self.files)
    def __getitem__(self, index): return pil_to_tensor(Image.open(self.files[index]).convert("RGB"))

folder, arch, weights = sys.argv[1:]
model = PlainPlaceModel(build_model(ModelSpec(arch, weights))).eval()
found = []
for part in ("database", "queries"):
    loader = DataLoader(Images(sorted(Path(folder, "val", part).iterdir())), 24, num_workers=2)
    with torch.no_grad():
        found.append(torch.cat([model(images.permute(0, 2, 3, 1)) for images in loader]).numpy())
print(faiss.knn(found[1], found[0], 20)[1].shape)
"""


@dataclass(frozen=True)
class Run:
    """What a program took: seconds by the clock, of the processor for itself and in the kernel, and page faults."""

    title: str
    seconds: float
    user: float
    kernel: float
    faults: int

    def line(self) -> str:
        """In words."""
        share = 100 * self.kernel / (self.user + self.kernel)
        processor = f"processor {self.user + self.kernel:.1f} s, of which the kernel {share:.0f} %"
        return f"{self.title}: {self.seconds:.1f} s; {processor}; {self.faults / 1e6:.2f} million page faults"


def main(arguments: list[str] | None = None) -> int:
    """Measure both in turn and print seconds, processor time of the kernel, page faults."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_test", description=__doc__)
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="none", help="a file, or none: random ones take as long")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("flags", nargs="*", help="further flags of --mode=test, after --")
    options = parser.parse_args(arguments)
    for run in whole_tests(options.arch, options.weights, options.images, options.flags):
        print(run.line(), flush=True)
    return 0


def whole_tests(arch: str, weights: str, images: int, flags: Sequence[str] = ()) -> Iterator[Run]:
    """The plain program, and --mode=test twice, on the same images."""
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name), images)
        common = [f"--arch={arch}", f"--weights={weights}", f"--root={name}", "--dataset=folder"]
        common += [f"--dataPath={name}/centroids"]
        main_py = [sys.executable, "main.py"]
        subprocess.run([*main_py, "--mode=cluster", *common], check=True, stdout=subprocess.DEVNULL)
        test = [*main_py, "--mode=test", "--panels=0", f"--runsPath={name}/runs", *common, *flags]
        yield measured("plain PyTorch", [sys.executable, "-c", PLAIN, name, arch, weights])
        yield measured("--mode=test", test)
        yield measured("--mode=test again", test)


def draw(folder: Path, count: int) -> None:
    """Smooth random images as JPEG files, half of them queries, 10 m from each other."""
    import numpy as np
    from PIL import Image

    numbers = np.random.default_rng(0)
    for part in ("train/database", "val/database", "val/queries"):
        (folder / part).mkdir(parents=True)
        for n in range(count // 2 if part.startswith("val") else 500):
            small = Image.fromarray(numbers.integers(0, 256, (20, 20, 3), dtype=np.uint8))
            file = folder / part / f"@{500000 + 10 * n:.2f}@4500000.00@{n:05}.jpg"
            small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, quality=90)


def measured(title: str, command: Sequence[str]) -> Run:
    """Run a program and say what it took. Raises SystemExit with what it printed if it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stdout)
    user, kernel = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Run(title, seconds, user, kernel, after.ru_minflt - before.ru_minflt)


if __name__ == "__main__":
    sys.exit(main())
