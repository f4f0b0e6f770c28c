"""Several processes started by torchrun do what one does, and end together when one of them dies."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

import main
from vpr.runs import newest_run

MAIN = Path(main.__file__)
EPOCHS = 2


def command(count: int, *arguments: str, environment: dict | None = None) -> subprocess.CompletedProcess:
    """Run main.py in `count` processes; one needs no torchrun."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone"] if count > 1 else []
    return subprocess.run(
        [sys.executable, *torchrun, str(MAIN), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def flags(toy_root: Path, folder: Path) -> list[str]:
    return [
        "--dataset=toy", f"--root={toy_root}", "--arch=alexnet", "--fromscratch", "--num_clusters=4", "--threads=0",
        "--cacheBatchSize=5", "--imageSize", "64", "80", f"--dataPath={folder / 'centroids'}",
        f"--runsPath={folder / 'runs'}",
    ]  # fmt: skip


def losses(run: Path) -> list[float]:
    """The loss of each epoch from a run's TensorBoard file: length (8 bytes), check (4), event, check (4), ..."""
    found, content, place = [], next(run.glob("events.out.tfevents*")).read_bytes(), 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        event = Event.FromString(content[place + 12 : place + 12 + length])
        found += [value.simple_value for value in event.summary.value if value.tag == "train/loss"]
        place += length + 16
    return found


@pytest.fixture(scope="module")
def runs(tiny_city, tmp_path_factory):
    """Folders in which one, two and three processes did their work, and what they printed; three only train."""
    done = {}
    cluster, test = ["--mode=cluster"], ["--mode=test", "--split=train"]
    train = ["--mode=train", f"--nEpochs={EPOCHS}", "--cacheRefreshRate=6", "--batchSize=4"]
    for count, modes in ((1, (cluster, train, test)), (2, (cluster, train, test)), (3, (train,))):
        folder = tmp_path_factory.mktemp(f"by_{count}")
        printed = []
        if cluster not in modes:
            (folder / "centroids").symlink_to(done[1][0] / "centroids")
        for mode in modes:
            result = command(count, *mode, *flags(tiny_city, folder))
            assert result.returncode == 0, result.stderr
            printed.append(result.stdout)
        done[count] = (folder, printed)
    return done


@pytest.mark.parametrize("count", [2, 3])
def test_training_has_the_same_loss_recalls_and_weights(runs, count):
    """A block of six queries has a batch of four and one of two: of three processes one has no tuple then."""
    (one, _), (many, _) = runs[1], runs[count]
    runs_found = [newest_run(folder / "runs") for folder in (one, many)]
    wanted, found = (losses(run) for run in runs_found)
    assert len(wanted) == EPOCHS and wanted[0] > 0.01 and wanted[0] != wanted[1]
    assert found == pytest.approx(wanted, rel=1e-4)
    results = [json.loads((run / "results.json").read_text())[-1]["recalls"] for run in runs_found]
    assert results[0] == results[1]
    states = [torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True) for run in runs_found]
    assert states[0]["position"]["steps"] == states[1]["position"]["steps"] > 2
    assert torch.equal(states[0]["remembered"], states[1]["remembered"])
    for name, value in states[0]["state_dict"].items():
        apart = (states[1]["state_dict"][name] - value).norm()
        assert apart < 1e-4 * value.norm().clamp_min(1e-3), name


def test_clusters_and_off_the_shelf_recalls_are_the_same(runs):
    off_the_shelf = [json.loads((runs[count][0] / "runs" / "results.json").read_text())[-1] for count in (1, 2)]
    assert off_the_shelf[0]["recalls"] == off_the_shelf[1]["recalls"]
    assert off_the_shelf[0]["centroids"].split("/")[-1] == off_the_shelf[1]["centroids"].split("/")[-1]


def test_one_process_prints_and_writes(runs):
    (one, _), (two, printed) = runs[1], runs[2]
    files = [sorted(path.name for path in newest_run(folder / "runs").rglob("*.*")) for folder in (one, two)]
    assert len(files[0]) == len(files[1])
    for text in printed:
        assert text.count("device: ") == 1 and "2 processes" in text


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_run(tiny_city, runs, tmp_path, victim):
    """The victim is killed by its own first optimiser step, without a word to the others."""
    folder, _ = runs[1]
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        f"if os.environ.get('RANK') == '{victim}':\n"
        "    import torch\n"
        "    torch.optim.SGD.step = lambda *_, **__: os._exit(9)\n"
    )
    started = time.monotonic()
    result = command(
        2, "--mode=train", *flags(tiny_city, folder), f"--runsPath={tmp_path / 'runs'}",
        environment={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode != 0
    assert time.monotonic() - started < 120
    checkpoint = newest_run(tmp_path / "runs") / "checkpoints" / "checkpoint.pth.tar"
    # The first block's checkpoint may have been written by the time the other's death is noticed.
    assert torch.load(checkpoint, weights_only=True)["position"]["steps"] <= 3


def test_an_error_in_all_processes_is_one_line_each(tiny_city, tmp_path):
    result = command(2, "--mode=test", *flags(tiny_city, tmp_path))
    lines = [line for line in result.stderr.splitlines() if "no centroids" in line]
    assert result.returncode != 0 and "UserError" not in result.stderr
    # torchrun may end the second process before it has said the same.
    said = [line.split(":")[0] for line in lines]
    assert said and set(said) <= {"error", "error in process 1"} and len(said) == len(set(said))


def test_more_than_one_gpu_without_torchrun_says_what_to_type(capsys):
    assert main.main(["--mode=train", "--nGPU=4"]) == 2
    assert "torchrun --nproc_per_node=4 main.py --mode=train" in capsys.readouterr().err
