"""Rows of whole programs, start-up included, and of the way from a JPEG to a descriptor."""

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Timing, compare_all
from benchmarks.report import Row
from benchmarks.stages import Bench, HeldImages
from benchmarks.whole_test import SIDE, draw, measured, whole_tests
from vpr.data.reader import in_batches
from vpr.descriptors.batches import Shares
from vpr.descriptors.describe import describe
from vpr.models.place_model import PlaceModel, build_model
from vpr.models.spec import ModelSpec


def way_in(bench: Bench, arch: str, size: tuple[int, int], count: int) -> Row:
    """JPEG files of (height, width) pixels to descriptors, beside the model alone and ONNX Runtime's bare backbone."""
    model, bare = _model(bench, arch, "auto", count), _model(bench, arch, "onnxruntime", 1, "fp32")
    with tempfile.TemporaryDirectory() as folder:
        files = _copies(bench.images, Path(folder), size, count)
        reader = bench.reading().of(files)
        own = Shares(model, reader, count, None).own  # the batches of the program itself
        held = HeldImages(files, list(reader.batches(own)))
        each = [batch[0].values for batch in reader.batches(in_batches(count, 1))]
        kernel = _KernelTime()
        whole, alone, session = compare_all(
            [
                lambda: kernel.of(lambda: describe(model, reader, range(count), len(own[0]), "way in")),
                lambda: describe(model, held, range(count), len(own[0]), "model alone"),
                lambda: [_bare(bare, image) for image in each],
            ],
            bench.repeats,
        )
    limit = (
        f"{1000 * whole.median / count:.3g} ms an image; the model alone {1000 * alone.median / count:.3g}: "
        f"{100 * alone.median / whole.median:.0f} %; the bare backbone by ONNX Runtime in fp32 "
        f"{1000 * session.median / count:.3g}: {whole.median / session.median:.2f} of it; the kernel's share of "
        f"the processor's time {kernel.share:.0f} %"
    )
    return Row(f"JPEG to descriptor, {model.name}", f"{count} images of {size[1]}x{size[0]}", None, whole, limit=limit)


class _KernelTime:
    """The kernel's share of this process's time, in percent, over some calls."""

    def __init__(self) -> None:
        self._kernel = self._all = 0.0

    def of(self, work) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF)
        work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        kernel = after.ru_stime - before.ru_stime
        self._kernel, self._all = self._kernel + kernel, self._all + kernel + after.ru_utime - before.ru_utime

    @property
    def share(self) -> float:
        return 100 * self._kernel / max(self._all, 1e-9)


def _model(bench: Bench, arch: str, backend: str, images: int, precision: str | None = None) -> PlaceModel:
    model = build_model(ModelSpec(arch, bench.weights.get(arch, "none"), clusters=64))
    model.to_device(bench.device, precision or bench.precision).eval()
    model.infer_by(backend, max(images, 1000) if backend == "auto" else images)  # as for many images
    return model


@torch.inference_mode()
def _bare(model: PlaceModel, images: np.ndarray) -> None:
    model.local_descriptors(torch.from_numpy(images))


def _copies(images: list[Path], folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """Images at another size, as JPEG files of quality 90."""
    files = [folder / f"{number:04}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        with Image.open(images[number % len(images)]) as image:
            image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC).save(file, quality=90)
    return files


def whole_test(bench: Bench, arch: str, images: int) -> Row:
    """--mode=test of drawn images, start-up included, beside a plain PyTorch program."""
    plain, first, second = whole_tests(
        arch, bench.weights.get(arch, "none"), images, [f"--precision={bench.precision}"]
    )
    slow, quick = (Timing(run.seconds, run.seconds, run.seconds, 1) for run in (plain, second))
    shares = [100 * run.kernel / (run.user + run.kernel) for run in (plain, second)]
    limit = (
        f"the first time {first.seconds:.3g} s; the kernel's share {shares[0]:.0f} -> {shares[1]:.0f} %; "
        f"page faults {plain.faults / 1e6:.2f} -> {second.faults / 1e6:.2f} million"
    )
    return Row(f"whole test, {arch}", f"{images} images of {SIDE}x{SIDE}", slow, quick, limit=limit)


def start_up(bench: Bench) -> list[Row]:
    """--mode=locate of one image by a run and by its exported model, with an index that is there."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, 200)
        (folder / "train" / "queries").mkdir()
        for file in sorted((folder / "train" / "database").iterdir())[:20]:
            shutil.copy(file, folder / "train" / "queries")
        common = ["--dataset=folder", f"--root={folder}", f"--dataPath={folder}/centroids", f"--runsPath={folder}/runs"]
        weights = bench.weights.get("tf_efficientnet_lite0", "none")
        new = [*common, "--arch=tf_efficientnet_lite0", f"--weights={weights}"]
        _main(*new, "--mode=cluster")
        _main(*new, "--mode=train", "--nEpochs=1", "--nNeg=2", "--nNegSample=10")
        (run,) = (folder / "runs").glob("*/flags.json")
        _main("--mode=export", f"--resume={run.parent}", f"--out={folder / 'model.onnx'}")
        image = next((folder / "val" / "queries").iterdir())
        for title, model in (("an exported model", folder / "model.onnx"), ("a run", run.parent)):
            asked = [*common, f"--resume={model}", "--split=val", f"--indexFile={folder / model.stem}.sqlite"]
            _main(*asked, "--mode=index")
            command = [sys.executable, "main.py", "--mode=locate", str(image), *asked, "--panels=0"]
            runs = [measured(title, command) for _ in range(1 + 2 * bench.repeats)][1:]
            seconds = [each.seconds for each in runs]
            timing = Timing(statistics.median(seconds), min(seconds), max(seconds), len(seconds))
            processor = statistics.median(each.user + each.kernel for each in runs)
            rows.append(
                Row(f"start-up, locate by {title}", "one image of 320x320, 100 in the index", None, timing,
                    limit=f"{processor:.2f} s of the processor")
            )  # fmt: skip
    return rows


def _main(*flags: str) -> None:
    done = subprocess.run(
        [sys.executable, "main.py", *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(done.stdout)
