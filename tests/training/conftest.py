"""What the tests of a training share: its flags on small places, a stop after a checkpoint, one step by processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawing import draw_image

import main
import vpr.training.trainer


@pytest.fixture
def city_flags(tiny_city):
    """A training of AlexNet with mean pooling on the tiny city in float32; a test adds what it is about."""
    return [
        "--mode=train", "--dataset=toy", f"--root={tiny_city}", "--arch=alexnet", "--fromscratch", "--pooling=avg",
        "--imageSize", "48", "64", "--threads=0", "--device=cpu", "--precision=fp32",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def street_flags(tmp_path_factory):
    """A training of AlexNet on batches of places: six, 60 m apart, with four images each and no queries."""
    folder = tmp_path_factory.mktemp("street")
    for kind, count in (("train/database", 24), ("val/database", 12), ("val/queries", 12)):
        for number in range(count):
            place, view = number // 4, number % 4
            name = f"@{500000 + 60 * place + view}@4477000@{view}@.jpg"
            draw_image(folder / kind / name, (80, 64), [count == 24, place, view])
    return [
        "--mode=train", "--dataset=folder", f"--root={folder}", "--arch=alexnet", "--fromscratch", "--threads=0",
        "--imageSize", "48", "64", "--device=cpu", "--precision=fp32", "--loss=multi-similarity", "--batchSize=3",
    ]  # fmt: skip


class Stopped(BaseException):
    """Nothing in the program catches this: like a kill, it leaves the state as it was last written."""


@pytest.fixture
def stopped_after(monkeypatch):
    """Trains by flags until so many checkpoints are written."""

    def train(flags, checkpoints):
        written, save = [], vpr.training.trainer.save_checkpoint

        def save_and_stop(*arguments, **named):
            save(*arguments, **named)
            written.append(1)
            if len(written) == checkpoints:
                raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr(vpr.training.trainer, "save_checkpoint", save_and_stop)
            with pytest.raises(Stopped):
                main.main(flags)

    return train


@pytest.fixture(scope="session")
def step(street_flags, tmp_path_factory):
    """Takes the same step by so many processes with flags; gives its loss, figures and gradient."""
    folder, program = tmp_path_factory.mktemp("step"), Path(__file__).with_name("place_step.py")

    def take(processes, *words):
        file = folder / f"{processes}{''.join(words)}.pt".replace("/", "_")
        torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
        flags = [*street_flags, "--num_clusters=4"]
        if not file.exists():
            done = subprocess.run(
                [sys.executable, *(torchrun if processes > 1 else []), program, file, *flags, *words], timeout=300,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        return torch.load(file, weights_only=True)

    return take
