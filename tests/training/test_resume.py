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
from drawing import draw_image

import main
from campaigns.determinism import different, final_state
from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec, training_rules
from vpr.common.device import AUTO_VARIABLE, compute_dtype, precision_name
from vpr.models.backbones.base import build_backbone
from vpr.models.place_model import build_model
from vpr.runs.run import newest_run
from vpr.training.state import load_state, new_state

EPOCHS, BLOCKS = 2, 2
CPU = torch.device("cpu")
pytestmark = pytest.mark.slow
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


@pytest.mark.parametrize("checkpoints_before_stop", range(1, (BLOCKS + 1) * EPOCHS))
def test_a_run_stopped_at_any_checkpoint_and_resumed_ends_with_the_same_bits(
    tiny_city, never_stopped, tmp_path, stopped_after, checkpoints_before_stop
):
    (tmp_path / "centroids").symlink_to(never_stopped / "centroids")
    stopped_after(training(tiny_city, tmp_path), checkpoints_before_stop)
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
    options = parse_options([*flags(tiny_city, never_stopped), "--mode=train"])
    start = build_model(model_spec(options)).encoder.state_dict()
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
    assert process.wait() == -signal.SIGKILL, "it had not ended by itself"
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


@pytest.mark.parametrize("noted", [True, False])
def test_a_resumed_run_keeps_the_number_format_that_auto_meant_when_it_began(
    never_stopped, tmp_path, monkeypatch, capsys, noted
):
    """On a machine where auto means the other one; a run without a note of it takes what auto means there."""
    shutil.copytree(never_stopped / "runs", tmp_path / "runs")
    run = newest_run(tmp_path / "runs")
    flags = json.loads((run / "flags.json").read_text())
    began = precision_name(compute_dtype("auto", torch.device("cpu")))
    other = {"fp32": "bf16", "bf16": "fp32"}[began]
    assert flags["precision"] == "auto" and flags["auto_precision"] == began
    if not noted:
        del flags["auto_precision"]
        (run / "flags.json").write_text(json.dumps(flags))
    monkeypatch.setenv(AUTO_VARIABLE, other)
    capsys.readouterr()
    assert main.main([*resuming(tmp_path), f"--nEpochs={EPOCHS + 1}"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "--precision=auto" in line]
    result = json.loads((run / "results.json").read_text())[-1]
    assert len(said) == 1 and said[0].endswith(f"goes on in {began}" if noted else f"{other} from here on")
    assert result["model"].endswith(f", {began if noted else other} by PyTorch")
    # A test has no earlier arithmetic to keep to: auto is what is fast where it runs.
    assert parse_options(["--mode=test", f"--resume={run}"]).precision == "auto"
    typed = parse_options(["--mode=train", f"--resume={run}", "--precision=fp16"])
    assert typed.precision == "fp16"


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
    else:
        pytest.fail(process.stderr.read())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted: --mode=train --resume goes on with the newest run\n"
    assert main.main(resuming(tmp_path)) == 0
    assert newest_checkpoint(tmp_path)["position"] == newest_checkpoint(never_stopped)["position"]


def one_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def own_images(tmp_path_factory):
    """A folder of own images in each split: a street with an image every 12 m and 4 queries; a run trained on it."""
    folder = tmp_path_factory.mktemp("own")
    for split, south in (("train", 0), ("val", 4000)):
        for kind, count, off in (("database", 24, 0), ("queries", 4, 3)):
            for number in range(count):
                name = f"@{500000 + 12 * number + off}@{4477000 + south}@{kind}@.jpg"
                draw_image(folder / "images" / split / kind / name, (80, 64), [south, off, number])
    call = [
        "--mode=train", "--dataset=folder", f"--root={folder / 'images'}", "--arch=alexnet", "--fromscratch",
        "--pooling=avg", "--threads=0", "--device=cpu", "--precision=fp32", f"--runsPath={folder / 'runs'}",
    ]  # fmt: skip
    assert main.main([*call, "--nEpochs=1", "--margin=1", "--cacheRefreshRate=2"]) == 0
    return folder


@pytest.fixture
def own_copy(own_images, tmp_path):
    """The same images and run in a folder of the test's own, and how the run is resumed with them."""
    shutil.copytree(own_images, tmp_path / "own")
    run = newest_run(tmp_path / "own" / "runs")
    return tmp_path / "own" / "images", run, [
        "--mode=train", f"--resume={run}", f"--root={tmp_path / 'own' / 'images'}", "--threads=0", "--nEpochs=2",
    ]  # fmt: skip


def checkpoint_of(run):
    return run / "checkpoints" / "checkpoint.pth.tar"


def forget_splits(run):
    """Make the checkpoint one of before it said which images it is of."""
    state = torch.load(checkpoint_of(run), weights_only=True)
    del state["splits"]
    torch.save(state, checkpoint_of(run))


def add_images(folder):
    """Three images of the database that come first in order, and so move the others' numbers."""
    first = sorted(folder.iterdir())[0]
    for number in range(3):
        shutil.copy(first, folder / f"@{499900 + number}@4477000@new@.jpg")


def remove_image(folder):
    sorted(folder.iterdir())[5].unlink()


def rename_image(folder):
    first = sorted(folder.iterdir())[0]
    first.rename(first.with_name("@500001@4477000@moved@.jpg"))


@pytest.mark.parametrize(
    ("split", "change", "said"),
    [
        ("train", add_images, ("24 database images", "27 database images")),
        ("train", remove_image, ("24 database images", "23 database images")),
        ("train", rename_image, ("24 database images", "other names or positions")),
        ("val", add_images, ("24 database images", "27 database images")),
    ],
)
def test_a_run_does_not_go_on_with_other_database_images(own_copy, capsys, split, change, said):
    images, run, call = own_copy
    change(images / split / "database")
    before = checkpoint_of(run).read_bytes()
    capsys.readouterr()
    assert main.main(call) == 2
    line = one_line(capsys)
    assert all(words in line for words in (f"its {split} split", *said)), line
    assert checkpoint_of(run).read_bytes() == before


def test_an_image_that_skip_broken_leaves_out_now_is_named_in_the_counts(own_copy, capsys):
    images, _, call = own_copy
    sorted((images / "train" / "database").iterdir())[3].write_bytes(b"no image")
    capsys.readouterr()
    assert main.main([*call, "--skipBroken"]) == 2
    line = one_line(capsys)
    assert all(words in line for words in ("24 database images", "23 database images", "--skipBroken"))


def test_images_that_only_moved_are_the_same(own_copy, capsys):
    """The folder of the run's own flags is another one, and still there: taken, and said."""
    _, run, call = own_copy
    capsys.readouterr()
    assert main.main(call) == 0
    assert "--root=" in changed_line(capsys.readouterr().out)
    assert torch.load(checkpoint_of(run), weights_only=True)["position"]["epoch"] == 3


def test_a_resumed_run_may_change_its_number_format_at_any_time(never_stopped, tmp_path):
    """float16 scales its gradients, the others do not: what a scaler stores is nothing to them, and they store none."""
    shutil.copytree(never_stopped / "runs", tmp_path / "runs")
    for epochs, precision, scaled in ((3, "fp16", True), (4, "fp32", False)):
        before = newest_checkpoint(tmp_path)["state_dict"]
        assert main.main([*resuming(tmp_path), f"--nEpochs={epochs}", f"--precision={precision}"]) == 0
        after = newest_checkpoint(tmp_path)
        assert bool(after["scaler"]) == scaled and after["position"]["epoch"] == epochs + 1
        assert all(value.isfinite().all() for value in after["state_dict"].values())
        if precision == "fp16":  # later there may be no hard negative left to learn from
            assert different(before, after["state_dict"])
        results = json.loads((newest_run(tmp_path / "runs") / "results.json").read_text())
        assert results[-1]["model"].endswith(f", {precision} by PyTorch")


@pytest.mark.parametrize(("began", "goes_on", "kept"), [("fp32", "fp16", False), ("bf16", "fp16", False),
                                                        ("fp16", "fp16", True), ("fp16", "bf16", False)])  # fmt: skip
def test_a_scale_of_gradients_is_kept_between_float16_and_float16(tiny_city, tmp_path, began, goes_on, kept):
    """Also of a run that no training made, as a pruned one's: its checkpoint is a state before the first step."""
    options = parse_options([*flags(tiny_city, tmp_path), "--mode=train", "--pooling=max"])
    model, rules = build_model(model_spec(options)).to_device(CPU, began), training_rules(options)
    splits = {"train": {"places": "", "database": 3, "queries": 2}}
    state = new_state(model, rules, splits)
    state.scaler.scale(torch.ones(1))  # which sets it up
    state.scaler.update(8.0)
    checkpoint = state.checkpoint()
    found = load_state(checkpoint, model.to_device(CPU, goes_on), rules, splits, tmp_path)
    assert found.scaler.is_enabled() == (goes_on == "fp16")
    assert found.scaler.get_scale() == (8.0 if kept else 65536.0 if goes_on == "fp16" else 1.0)


def changed_line(printed):
    (line,) = [line for line in printed.splitlines() if "differs from one that was never stopped" in line]
    return line


def test_a_checkpoint_that_does_not_know_its_images_goes_on_and_says_so_once(own_copy, capsys):
    _, run, call = own_copy
    forget_splits(run)
    assert main.main(call) == 0
    printed = capsys.readouterr().out
    assert "does not say which images" in printed and "from now on it is of 4 queries" in printed
    assert main.main([*call, "--nEpochs=3"]) == 0
    assert "does not say which images" not in capsys.readouterr().out


def test_remembered_images_that_are_not_there_are_noticed_without_a_fingerprint(own_copy, capsys):
    images, run, call = own_copy
    forget_splits(run)
    remembered = torch.load(checkpoint_of(run), weights_only=True)["remembered"]
    for image in sorted((images / "train" / "database").iterdir())[int(remembered.max()) :]:
        image.unlink()
    capsys.readouterr()
    assert main.main(call) == 2
    assert "database images" in one_line(capsys)


def test_a_run_keeps_its_flags_but_those_of_the_machine(own_copy, tmp_path, capsys):
    _, run, call = own_copy
    flags = json.loads((run / "flags.json").read_text())
    changed = {"recallValues": [1, 3], "cachePath": str(tmp_path / "big"), "cacheBatchSize": 7, "threads": 1}
    (run / "flags.json").write_text(json.dumps({**flags, **changed, "device": "cuda"}))
    options = parse_options(["--mode=train", f"--resume={run}"])
    assert (options.recallValues, options.cachePath, options.cacheBatchSize) == ([1, 3], str(tmp_path / "big"), 7)
    assert options.threads == parse_options(["--mode=train"]).threads and options.device == "auto"
    assert parse_options(["--mode=train", f"--resume={run}", "--recallValues", "2"]).recallValues == [2]
    assert main.main([*call, "--device=cpu"]) == 0
    results = json.loads((run / "results.json").read_text())[-1]
    assert list(results["recalls"]) == ["1", "3"]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["--precision=bf16", "--evalEvery=2"], ("--precision=bf16 (was fp32)", "--evalEvery=2 (was 1)")),
        (["--cacheBatchSize=5"], ("--cacheBatchSize=5 (was 24)",)),
    ],
)
def test_flags_that_change_how_a_resumed_run_ends_are_said(own_copy, capsys, typed, says):
    images, run, call = own_copy
    flags = json.loads((run / "flags.json").read_text())
    (run / "flags.json").write_text(json.dumps({**flags, "root": str(images), "cacheBatchSize": 24}))
    capsys.readouterr()
    assert main.main([*call, "--nEpochs=1", *typed]) == 0
    line = changed_line(capsys.readouterr().out)
    assert all(words in line for words in says) and "--root" not in line
    assert main.main([*call, "--nEpochs=1", "--precision=fp32", "--evalEvery=1", "--cacheBatchSize=24"]) == 0
    assert "never stopped" not in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equal_trainings_by_two_threads_end_with_the_same_bits(tiny_places, tmp_path, precision):
    """Three processes of two threads each; tuples that share their images, so that gradients of several add up."""
    torch.manual_seed(0)
    encoder = build_backbone("alexnet")
    encoder.initialize(0)
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
