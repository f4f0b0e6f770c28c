"""Training a student on what a teacher finds alike: its loss and batches, one process against several, a resumed
training, and cosines of images that it has not seen."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import main
import vpr.training.distilling
import vpr.training.place_batches
from campaigns.determinism import different
from vpr.cli.options import flags_of, parse_options
from vpr.cli.specs import places_spec, reading, training_rules
from vpr.common.device import CPU
from vpr.descriptors.describe import describe
from vpr.runs.run import newest_run
from vpr.runs.stored import load_model
from vpr.training.distilling import NEIGHBOURS, TEMPERATURE, Distilling, disagreement, with_teacher
from vpr.training.rules import TrainingRules
from vpr.training.state import Position
from vpr.training.training_set import load_training_set

SIZE = 8  # of a batch


def rows(count, dim=6, seed=0, dtype=np.float64):
    values = np.random.default_rng(seed).standard_normal((count, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(dtype)


def test_the_loss_is_the_divergence_of_rows_without_the_diagonal():
    student, teacher = rows(5), rows(5, 9, seed=1)
    wanted = []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        own, taught = ([float(np.exp(each[i] @ each[j] / TEMPERATURE)) for j in others] for each in (student, teacher))
        shares = [(p / sum(taught), q / sum(own)) for p, q in zip(taught, own, strict=True)]
        wanted.append(sum(p * np.log(p / q) for p, q in shares))
    cosines = [torch.from_numpy(each @ each.T) for each in (student, teacher)]
    found = disagreement(*cosines)
    assert found.numpy() == pytest.approx(np.array(wanted), rel=1e-12) and min(wanted) > 0.01
    cosines[0].fill_diagonal_(7), cosines[1].fill_diagonal_(-7)
    assert torch.equal(disagreement(*cosines), found)
    assert disagreement(cosines[1], cosines[1]).abs().max() < 1e-12


def test_the_gradient_is_that_of_finite_differences():
    teacher = torch.from_numpy(rows(5, 9, seed=1))
    student = torch.from_numpy(rows(5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: disagreement(values @ values.T, teacher @ teacher.T), student)


@pytest.fixture
def objective():
    """Makes the objective of so many images that the teacher has described."""

    def make(count=37, size=SIZE, **rules):
        images, taught = SimpleNamespace(files=[None] * count), rows(count, dtype=np.float16)
        training = SimpleNamespace(images=images, taught=taught)
        return Distilling(TrainingRules(loss="distill", batch_size=size, **rules), training, source=None)

    return make


def blocks_of(objective, epoch, blocks_done=0):
    return list(objective.batches(SimpleNamespace(position=Position(blocks_done=blocks_done)), epoch))


def images_of(blocks):
    return [batch.images for block in blocks for batch in block.batches]


@pytest.mark.parametrize("size", [SIZE, SIZE + 1])
def test_half_of_a_batch_are_neighbours_of_the_other_half(objective, size):
    made, drawn = objective(size=size), set()
    cosines = made.training.taught.astype(float) @ made.training.taught.astype(float).T
    for epoch in range(1, 5):
        batches = images_of(blocks_of(made, epoch))
        assert [len(set(batch)) for batch in batches] == [SIZE] * (37 // (SIZE // 2))
        anchors = [image for batch in batches for image in batch[::2]]
        assert len(set(anchors)) == len(anchors) == 36
        for batch in batches:
            for place, anchor in enumerate(batch[::2]):
                taken = batch[::2] + batch[1 : 2 * place : 2]
                free = [image for image in np.argsort(-cosines[anchor]).tolist() if image not in taken]
                drawn.add(free.index(batch[2 * place + 1]))
    assert drawn == {*range(NEIGHBOURS)}


def test_the_loss_compares_with_the_teachers_cosines_of_the_same_images(objective):
    made, student = objective(), torch.from_numpy(rows(37, 4, seed=5, dtype=np.float32))
    for block in blocks_of(made, 1):
        assert block.unit == "images" and block.sizes == [SIZE] * 9 and block.described == 9 * SIZE
        for batch in block.batches:
            taught, own = torch.from_numpy(made.training.taught[batch.images].astype(float)), student[batch.images]
            cosines, wanted = own.double() @ own.double().T, taught @ taught.T
            loss, terms, figures = made.loss(own, batch)
            assert terms == SIZE and loss.item() == pytest.approx(disagreement(cosines, wanted).sum().item(), rel=1e-5)
            apart = [(cosines - wanted)[i, j].abs().item() for i in range(SIZE) for j in range(SIZE) if i != j]
            assert figures["cosines_apart"] / terms == pytest.approx(np.mean(apart), abs=1e-3)


def test_as_few_images_as_a_batch_has_are_enough(objective):
    assert [sorted(batch) for batch in images_of(blocks_of(objective(count=4, size=4), 1))] == [[0, 1, 2, 3]] * 2


def test_batches_differ_by_epoch_and_seed_alone_and_blocks_share_the_epoch(objective, monkeypatch):
    monkeypatch.setattr(vpr.training.place_batches, "STEPS", 4)
    whole = blocks_of(objective(), 1)
    assert [len(block.batches) for block in whole] == [4, 4, 1]
    assert [block.share for block in whole] == [(0, 4 / 9), (4 / 9, 8 / 9), (8 / 9, 1)]
    assert images_of(blocks_of(objective(), 1, blocks_done=2)) == images_of(whole[2:])
    others = [blocks_of(objective(), 2), blocks_of(objective(seed=124), 1)]
    assert images_of(whole) not in [images_of(each) for each in others]
    position = SimpleNamespace(position=Position())
    assert images_of([objective().sample(position, 17, "some")]) == images_of(whole)[:3]


@pytest.fixture(scope="session")
def teacher(street_flags, tmp_path_factory) -> Path:
    """A run whose network is of random weights, and with no training to speak of."""
    folder = tmp_path_factory.mktemp("teacher")
    words = ["--pooling=avg", "--nEpochs=1", "--lr=0", "--seed=7", f"--runsPath={folder}"]
    assert main.main([*street_flags, *words]) == 0
    return newest_run(folder)


@pytest.fixture
def call(street_flags, teacher, tmp_path):
    """The words of a student's training, with a name for its folder."""
    flags = [word for word in street_flags if not word.startswith(("--mode", "--loss", "--batchSize"))]
    words = ["--mode=distill", *flags, f"--teacher={teacher}", "--batchSize=8", "--pooling=gem", "--nEpochs=3"]
    return lambda name, *more: [*words, f"--runsPath={tmp_path / name}", *more]


def state_of(run):
    return torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True)


def test_a_stopped_training_goes_on_to_the_bit(call, stopped_after, tmp_path, monkeypatch):
    monkeypatch.setattr(vpr.training.place_batches, "STEPS", 2)
    words = ["--ema=0.9", "--gradientCache=5"]
    assert main.main(call("whole", *words)) == 0
    wanted = state_of(newest_run(tmp_path / "whole"))
    assert wanted["position"]["steps"] == 3 * 6
    stopped_after(call("stopped", *words), checkpoints=5)  # after the first block of the second epoch
    run = newest_run(tmp_path / "stopped")
    assert different(wanted["state_dict"], state_of(run)["state_dict"])
    assert main.main(["--mode=distill", f"--resume={run}", "--threads=0", "--device=cpu"]) == 0
    found = state_of(run)
    assert found["position"] == wanted["position"]
    for part in ("state_dict", "trained"):
        assert not different(wanted[part], found[part])


def test_cosines_of_unseen_images_come_nearer_to_the_teachers():
    """Images are vectors, of which the teacher looks at three numbers; the student is a matrix, random at first."""
    images = np.random.default_rng(3).standard_normal((300, 10))
    taught = images * ([1.0] * 3 + [0.0] * 7)
    taught /= np.linalg.norm(taught, axis=1, keepdims=True)
    learnt, unseen = images[:200], torch.from_numpy(images[200:])
    training = SimpleNamespace(images=SimpleNamespace(files=[None] * 200), taught=taught[:200].astype(np.float16))
    made = Distilling(TrainingRules(loss="distill", batch_size=32), training, source=None)
    student = torch.from_numpy(np.random.default_rng(4).standard_normal((10, 10))).requires_grad_()
    optimizer, wanted = torch.optim.Adam([student], lr=0.02), torch.from_numpy(taught[200:] @ taught[200:].T)

    def described(values):
        return torch.nn.functional.normalize(values @ student, dim=1)

    def apart():
        return (described(unseen) @ described(unseen).T - wanted).abs().mean().item()

    before = apart()
    for epoch in range(1, 21):
        for block in blocks_of(made, epoch):
            for batch in block.batches:
                loss, terms, figures = made.loss(described(torch.from_numpy(learnt[batch.images])), batch)
                optimizer.zero_grad()
                (loss / terms).backward()
                optimizer.step()
    assert before > 0.3 and apart() < before / 4 and figures["cosines_apart"] / terms < before / 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--teacher=nowhere"], "nowhere is not a run"), (["--teacher=nowhere.onnx"], "nowhere.onnx does not exist"),
        (["--teacher=text.onnx"], "text.onnx"), (["--batchSize=25"], "found 24 training images and --batchSize=25"),
        (["--batchSize=3"], "--batchSize=3, wanted 4"),
    ],
)  # fmt: skip
def test_what_teaches_nothing_is_refused_in_a_line(call, words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.onnx").write_text("no model")
    assert main.main(call("run", *words)) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_teacher_may_be_a_run_or_an_exported_file(call, teacher, tmp_path, onnx_packages):
    file = tmp_path / "teacher.onnx"
    assert main.main(["--mode=export", f"--resume={teacher}", f"--out={file}"]) == 0
    taught = []
    for path in (teacher, file):
        options = parse_options(call("run", f"--teacher={path}"))
        rules, read = training_rules(options), reading(options, CPU)
        training = load_training_set(places_spec(options), rules)
        taught.append(with_teacher(training, rules, read, None).taught.astype(float))
    model = load_model(teacher).model.to_device(CPU, "fp32")
    wanted = describe(model, read.of(training.images.files), range(24))[0].astype(float)
    assert len(training.images.files) == 24 and np.abs(taught[1] - wanted).max() < 1e-3
    assert (taught[0] * wanted).sum(axis=1).min() > 0.999  # perhaps in bfloat16


def test_a_teacher_is_named_and_only_where_one_is_asked(street_flags, capsys):
    assert main.main(["--mode=distill", *street_flags[1:-2], "--batchSize=8"]) == 2
    assert "--teacher PATH" in capsys.readouterr().err
    assert main.main([*street_flags, "--teacher=runs/RUN"]) == 2
    assert "--teacher has no effect with --loss=multi-similarity" in capsys.readouterr().err
    assert main.main(["--mode=distill", "--imagesPerPlace=2"]) == 2
    assert "--imagesPerPlace has no effect in --mode=distill" in capsys.readouterr().err


def test_the_mode_is_a_training_by_its_recipe():
    words = ["--teacher=runs/RUN", "--lr=0.5"]
    found, typed = (parse_options([*mode, *words]) for mode in (["distill"], ["train", "--recipe=distill"]))
    assert flags_of(found) == flags_of(typed) and (found.loss, found.lr, found.batchSize) == ("distill", 0.5, 64)
    found = parse_options(["distill", "--teacher=runs/RUN", "--margin=0.2"])
    assert found.notes[0] == "without effect in --mode=distill: --margin" and found.margin == 0.1


@pytest.mark.slow
def test_another_teacher_in_the_same_place_is_refused_when_a_run_is_resumed(call, teacher, tmp_path, capsys):
    """Nothing of the run changes."""
    mine = tmp_path / "teacher"
    shutil.copytree(teacher, mine)
    assert main.main(call("run", f"--teacher={mine}", "--nEpochs=1")) == 0
    (run,) = (tmp_path / "run").iterdir()
    for file in (mine / "checkpoints").glob("*.pth.tar"):
        state = torch.load(file, weights_only=True)
        next(iter(state["state_dict"].values())).add_(0.1)
        torch.save(state, file)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main.main(["--mode=train", f"--resume={run}", "--nEpochs=2", "--threads=1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: the teacher of {run} has weights_hash ") and "train anew" in error
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "cached"), [(1, True), (2, False), (3, True)])
def test_a_step_is_that_of_the_whole_batch(step, teacher, processes, cached):
    """By several processes, and by few images at a time, in float32."""
    words = ["--loss=distill", f"--teacher={teacher}", "--batchSize=8"]
    wanted, found = step(1, *words), step(processes, *words, *(["--gradientCache=3"] if cached else []))
    # A difference of logarithms near 2, whose rounding stays.
    assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-6) and found["loss"] > 0.001
    assert found["images"] == wanted["images"] == 8 and found["sums"] == pytest.approx(wanted["sums"], rel=1e-6)
    for name, value in wanted["gradient"].items():
        apart = found["gradient"][name] - value
        assert value.norm() > 0 and apart.abs().max() < 1e-6 and apart.norm() < 1e-5 * value.norm(), name
