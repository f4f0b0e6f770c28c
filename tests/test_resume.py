"""A training that is stopped and resumed ends where one that was never stopped ends, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import main
import vpr.train
from benchmarks.determinism import different, final_state
from vpr.encoder import build_encoder, initialize_randomly
from vpr.runs import newest_run

EPOCHS, BLOCKS = 2, 2
MAIN = Path(main.__file__)


def flags(toy_root: Path, folder: Path) -> list[str]:
    return [
        "--dataset=toy", f"--root={toy_root}", "--arch=alexnet", "--fromscratch", "--num_clusters=4", "--threads=0",
        "--device=cpu", "--imageSize", "48", "64",
        f"--dataPath={folder / 'centroids'}", f"--runsPath={folder / 'runs'}",
    ]  # fmt: skip


def training(toy_root: Path, folder: Path) -> list[str]:
    return [*flags(toy_root, folder), "--mode=train", f"--nEpochs={EPOCHS}", "--cacheRefreshRate=6", "--lrStep=10"]


def resuming(folder: Path) -> list[str]:
    return ["--mode=train", "--resume", f"--runsPath={folder / 'runs'}", "--threads=0", "--device=cpu"]


def newest_checkpoint(folder: Path) -> dict:
    path = newest_run(folder / "runs") / "checkpoints" / "checkpoint.pth.tar"
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def never_stopped(tiny_city, tmp_path_factory):
    folder = tmp_path_factory.mktemp("never_stopped")
    assert main.main([*flags(tiny_city, folder), "--mode=cluster"]) == 0
    assert main.main(training(tiny_city, folder)) == 0
    return folder


class Stopped(BaseException):
    """Nothing in the program catches this: like a kill, it leaves the state as it was last written."""


@pytest.mark.parametrize("checkpoints_before_stop", range(1, (BLOCKS + 1) * EPOCHS))
def test_a_run_stopped_at_any_checkpoint_and_resumed_ends_with_the_same_bits(
    tiny_city, never_stopped, tmp_path, monkeypatch, checkpoints_before_stop
):
    (tmp_path / "centroids").symlink_to(never_stopped / "centroids")
    written, save = [], vpr.train.save_checkpoint

    def save_and_stop(*arguments, **named):
        save(*arguments, **named)
        written.append(1)
        if len(written) == checkpoints_before_stop:
            raise Stopped

    monkeypatch.setattr(vpr.train, "save_checkpoint", save_and_stop)
    with pytest.raises(Stopped):
        main.main(training(tiny_city, tmp_path))
    monkeypatch.undo()
    assert main.main(resuming(tmp_path)) == 0

    wanted, found = newest_checkpoint(never_stopped), newest_checkpoint(tmp_path)
    assert wanted["state_dict"].keys() == found["state_dict"].keys()
    for name, value in wanted["state_dict"].items():
        assert torch.equal(value, found["state_dict"][name]), name
    for index, entry in wanted["optimizer"]["state"].items():
        assert torch.equal(entry["momentum_buffer"], found["optimizer"]["state"][index]["momentum_buffer"])
    assert torch.equal(wanted["remembered"], found["remembered"])
    assert wanted["position"] == found["position"]


def test_training_moves_the_weights(tiny_city, never_stopped):
    """Without this the comparison above would hold for a training that does nothing."""
    checkpoint = newest_checkpoint(never_stopped)
    start = vpr.train.build_model(
        main.parse_options([*flags(tiny_city, never_stopped), "--mode=train"])
    ).encoder.state_dict()
    assert not torch.equal(checkpoint["state_dict"]["encoder.0.weight"], start["0.weight"])
    assert checkpoint["position"]["steps"] >= EPOCHS * BLOCKS


def test_a_killed_run_goes_on(tiny_city, never_stopped, tmp_path):
    (tmp_path / "centroids").symlink_to(never_stopped / "centroids")
    command = [sys.executable, str(MAIN), *training(tiny_city, tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    give_up = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("[0-9]*/flags.json")) and time.monotonic() < give_up:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main.main(resuming(tmp_path)) == 0
    assert newest_checkpoint(tmp_path)["position"]["epoch"] == EPOCHS + 1
    wanted, found = newest_checkpoint(never_stopped)["state_dict"], newest_checkpoint(tmp_path)["state_dict"]
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


def test_more_epochs_can_be_added_to_a_finished_run(never_stopped, tmp_path):
    shutil.copytree(never_stopped / "runs", tmp_path / "runs")
    assert main.main([*resuming(tmp_path), f"--nEpochs={EPOCHS + 1}"]) == 0
    assert newest_checkpoint(tmp_path)["position"]["epoch"] == EPOCHS + 2
    results = json.loads((newest_run(tmp_path / "runs") / "results.json").read_text())
    assert [entry["split"] for entry in results] == ["test", "test"]


def test_ctrl_c_ends_with_a_line_and_the_run_goes_on(tiny_city, never_stopped, tmp_path):
    (tmp_path / "centroids").symlink_to(never_stopped / "centroids")
    command = [sys.executable, str(MAIN), *training(tiny_city, tmp_path), "--threads=2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # Tests that run in the background of a script ignore Ctrl-C, and what they start would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("epoch 1 block 1"):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted: --mode=train --resume goes on with the newest run\n"
    assert main.main(resuming(tmp_path)) == 0
    assert newest_checkpoint(tmp_path)["position"] == newest_checkpoint(never_stopped)["position"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equal_trainings_by_two_threads_end_with_the_same_bits(tiny_places, tmp_path, precision):
    """Three processes of two threads each; tuples that share their photos, so that gradients of several add up."""
    torch.manual_seed(0)
    encoder = build_encoder("alexnet")
    initialize_randomly(encoder, 0)
    torch.save(encoder.state_dict(), tmp_path / "weights.pth")
    common = [
        sys.executable, str(MAIN), "--dataset=pittsburgh", f"--root={tiny_places}", "--arch=alexnet", "--threads=0",
        f"--weights={tmp_path / 'weights.pth'}", "--imageSize", "48", "64", f"--dataPath={tmp_path}", "--device=cpu",
        f"--precision={precision}", "--num_clusters=16",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    train = ["--mode=train", "--nEpochs=3", "--nNeg=5", "--margin=2", "--lr=0.01", "--batchSize=5"]
    states = []
    for flags in (["--mode=cluster"], *([*train, f"--runsPath={tmp_path / name}"] for name in "abc")):
        done = subprocess.run([*common, *flags], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    for name in "abc":
        states.append(final_state(tmp_path / name))
    start = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert not torch.equal(states[0]["encoder.10.weight"], start["10.weight"]), "training must do something"
    assert different(states[0], states[1]) == different(states[0], states[2]) == []
