"""Pruning leaves a smaller dense model of the filters that matter, which is an ordinary run."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import main
from vpr.common.errors import UserError
from vpr.compression import pruning
from vpr.compression.pruning import filters_of, prune_backbone
from vpr.data.places import PlacesSpec
from vpr.data.reader import CPU, Reading
from vpr.models.backbones.base import build_backbone
from vpr.models.spec import ModelSpec
from vpr.runs.pytorch_model import restore_model
from vpr.runs.run import load_checkpoint, newest_run, read_flags
from vpr.training.losses import LOSSES
from vpr.training.rules import TrainingRules
from vpr.training.trainer import Trainer
from vpr.training.training_set import load_training_set

pytest.importorskip("torch_pruning", reason="torch-pruning, an optional package, is not installed")


@pytest.fixture
def encoder():
    encoder = build_backbone("alexnet")
    encoder.initialize(0)
    return encoder


def convolutions(encoder):
    return [layer for layer in encoder if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize(("ratio", "wanted"), [(0.5, [32, 96, 192, 128, 128]), (0.25, [48, 144, 288, 192, 192])])
def test_each_layer_loses_its_share_and_what_reads_it_follows(encoder, ratio, wanted):
    smaller, kept = prune_backbone(encoder, ratio, "magnitude")
    assert [len(filters) for filters in kept] == wanted
    assert filters_of(smaller) == wanted and filters_of(encoder) == [64, 192, 384, 256, 256]
    assert [layer.in_channels for layer in convolutions(smaller)] == [3, *wanted[:-1]]
    rebuilt = build_backbone("alexnet", wanted)
    rebuilt.load_state_dict(smaller.state_dict())
    images = torch.randn(2, 3, 80, 96)
    assert torch.equal(rebuilt(images.clone()), smaller(images.clone()))
    assert smaller(images).shape[1] == wanted[-1]


def test_filters_without_weight_go_first_and_change_nothing(encoder):
    """Half of the filters of each layer are zero: pruned by size, the trunk gives what it gave, on those left."""
    with torch.no_grad():
        for layer in convolutions(encoder):
            dead = torch.randperm(layer.out_channels)[: layer.out_channels // 2]
            layer.weight[dead], layer.bias[dead] = 0, 0
    images = torch.randn(2, 3, 80, 96)
    smaller, kept = prune_backbone(encoder, 0.5, "magnitude")
    smaller, whole = smaller(images.clone()), encoder(images.clone())
    alive = whole.abs().sum(dim=(0, 2, 3)) > 0
    assert torch.equal(kept[-1], alive.nonzero()[:, 0])
    torch.testing.assert_close(smaller, whole[:, alive], rtol=1e-4, atol=1e-4)


def test_taylor_keeps_the_filters_whose_loss_gradient_is_large(encoder):
    """Large weights without a gradient go, small ones with a gradient stay."""
    last = convolutions(encoder)[-1]
    useful = torch.arange(0, 256, 2)
    with torch.no_grad():
        last.weight[1::2] *= 100
    for parameter in encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    last.weight.grad.zero_()
    last.weight.grad[useful] = 1.0
    last.bias.grad.zero_()
    smaller = convolutions(prune_backbone(encoder, 0.5, "taylor")[0])[-1]
    kept = {tuple(row.tolist()) for row in smaller.weight[:, 0, 0, :2]}
    # Input filters went too: compare by a spatial corner of each kernel that is left, over all inputs.
    corners = {filter: {tuple(row.tolist()) for row in last.weight[filter, :, 0, :2]} for filter in range(256)}
    found = [filter for row in kept for filter in range(256) if row in corners[filter]]
    assert len(found) == 128 and all(filter % 2 == 0 for filter in found)


@pytest.mark.parametrize("ratio", [0.95, 0.999])
def test_a_ratio_that_leaves_nothing_is_refused(encoder, ratio):
    with pytest.raises(UserError, match="pruneRatio"):
        prune_backbone(encoder, ratio, "magnitude")


@pytest.fixture
def trained(toy_run, tmp_path):
    """Flags that name the places and a folder for runs, and a run, which pruning only reads."""
    return [*toy_run.places, f"--runsPath={tmp_path / 'runs'}"], toy_run.run


def pruned_run(trained, *flags):
    """The run that pruning makes."""
    places, run = trained
    assert main.main([*places, "--mode=prune", f"--resume={run}", *flags]) == 0
    return newest_run(Path(places[-1].partition("=")[2]))


def state_of(run, which="model_best"):
    return torch.load(run / "checkpoints" / f"{which}.pth.tar", weights_only=True)


def results_of(run):
    return json.loads((run / "results.json").read_text())


@pytest.mark.parametrize(
    ("importance", "typed", "moved"),
    [("taylor", ["--trainFrom=conv4"], [8, 10]), ("magnitude", [], [0, 3, 6, 8, 10])],
)
def test_a_pruned_run_is_an_ordinary_run(trained, importance, typed, moved, capsys):
    """It is trained as a whole unless it is told otherwise."""
    places, _ = trained
    pruned = pruned_run(trained, f"--importance={importance}", "--pruneRatio=0.5", "--distill=8", *typed)
    start = state_of(pruned, "checkpoint")["state_dict"]
    assert json.loads((pruned / "flags.json").read_text())["channels"] == [32, 96, 192, 128, 128]
    test = [*places, "--mode=test", f"--resume={pruned}", "--panels=0"]
    assert main.main(test) == 0
    assert main.main([*places, "--mode=train", f"--resume={pruned}", "--nEpochs=1"]) == 0
    end = state_of(pruned, "checkpoint")["state_dict"]
    entries = {layer: f"encoder.{layer}.weight" for layer in (0, 3, 6, 8, 10)}
    assert [layer for layer, name in entries.items() if not torch.equal(start[name], end[name])] == moved
    assert main.main([*places, "--mode=whiten", f"--resume={pruned}", "--pcaDim=8"]) == 0
    assert main.main(test) == 0
    first, _, last = results_of(pruned)
    assert first["descriptor_dim"] == 4 * 128 and first["epochs"] == 0
    assert "pruned to 32-96-192-128-128 filters" in first["model"]
    assert last["descriptor_dim"] == 8
    capsys.readouterr()
    assert main.main([*test, "--channels", "64", "192", "384", "256", "256"]) == 2
    assert "contradicts" in capsys.readouterr().err


def test_with_epochs_the_pruned_run_is_trained(trained):
    pruned = pruned_run(trained, "--importance=magnitude", "--nEpochs=1", "--distill=0")
    assert state_of(pruned, "checkpoint")["position"]["epoch"] == 2


def test_the_pruned_model_is_the_best_one_until_a_training_betters_it(trained, monkeypatch):
    """Its recalls are those that a test finds; an epoch that spoils the model leaves it where it is."""
    places, _ = trained
    pruned = pruned_run(trained, "--distill=64")
    assert main.main([*places, "--mode=test", f"--resume={pruned}", "--panels=0"]) == 0
    recalls, before = results_of(pruned)[-1]["recalls"], state_of(pruned)
    assert before["position"]["best"] == pytest.approx([recalls[n] for n in ("5", "1", "10")])
    assert before["position"]["best_epoch"] == 0 and recalls["5"] > 0.5

    def spoil(trainer):
        with torch.no_grad():
            for value in trainer.model.encoder.parameters():
                value.fill_(0.01)  # all images look alike
        return 0

    monkeypatch.setattr(Trainer, "epoch", spoil)
    assert main.main([*places, "--mode=train", f"--resume={pruned}", "--nEpochs=1"]) == 0
    after, latest = state_of(pruned), state_of(pruned, "checkpoint")
    assert all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())
    assert latest["state_dict"]["encoder.0.weight"].unique().numel() == 1
    assert latest["position"]["epochs_without_gain"] == 1
    assert latest["position"]["best"] == before["position"]["best"]
    tested = results_of(pruned)[-1]
    assert tested["checkpoint"] == "best" and tested["epochs"] == 0


def test_pruning_needs_no_images_of_val(trained, tiny_city, tmp_path, capsys):
    """Then nothing is measured, a line says what follows, and the first validation of a training will be the best."""
    (tmp_path / "city").mkdir()
    for entry in tiny_city.iterdir():
        if entry.name != "001":  # the database images of val
            (tmp_path / "city" / entry.name).symlink_to(entry)
    capsys.readouterr()
    pruned = pruned_run(trained, "--distill=0", "--importance=magnitude", f"--root={tmp_path / 'city'}")
    assert "no val split (48 of the 60 images of toy_val are missing" in capsys.readouterr().out
    assert state_of(pruned)["position"]["best"] == []


@pytest.fixture
def accumulate(tiny_city, toy_run, monkeypatch):
    """Gives the run's model in a number format, with the gradients of its trunk on a few tuples of a wide margin."""
    monkeypatch.setattr(pruning, "TUPLES", 6)
    rules = TrainingRules(margin=1.0)
    training = load_training_set(PlacesSpec("toy", tiny_city), rules)
    checkpoint = load_checkpoint(toy_run.run, "checkpoints", "latest")
    spec = ModelSpec.from_flags(read_flags(toy_run.run))

    def accumulated(precision, prepare=lambda model: None, **changes):
        model = restore_model(checkpoint, spec, toy_run.run).to_device(CPU, precision)
        prepare(model)
        pruning.accumulate_gradients(
            model, replace(rules, **changes), training, training.images.reader(Reading((60, 80)))
        )
        return model

    return accumulated


def test_which_layers_are_trained_is_as_it_was_though_gradients_fail(accumulate, monkeypatch):
    models = []

    def freeze(model):
        models.append(model)
        model.backbone.first_trained = 10
        for layer in model.encoder[:10]:
            layer.requires_grad_(False)

    monkeypatch.setitem(LOSSES, "triplet", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        accumulate("fp32", freeze)
    assert models[0].backbone.first_trained == 10
    assert [value.requires_grad for value in models[0].encoder.parameters()] == [False] * 8 + [True] * 2


def test_gradients_below_the_least_float16_number_are_found(accumulate, monkeypatch):
    """A loss of a 65536th has gradients that float16 cannot hold: they are those of float32 all the same."""
    violations = LOSSES["triplet"]

    def tiny(*given):
        violation, violating = violations(*given)
        return violation * 2.0**-16, violating

    monkeypatch.setitem(LOSSES, "triplet", tiny)
    single, half = ([value.grad for value in accumulate(name).encoder.parameters()] for name in ("fp32", "fp16"))
    for wanted, gradient in zip(single, half, strict=True):
        assert gradient.dtype == torch.float32 and wanted.norm() > 0
        assert (gradient - wanted).norm() < 0.1 * wanted.norm()


def test_gradients_of_few_images_at_a_time_are_those_of_all(accumulate):
    """By --gradientCache."""
    at_once = []

    def count(model):
        model.pool.register_forward_hook(lambda _, given, __: at_once.append(len(given[0])))

    whole, parts = ([value.grad for value in accumulate("fp32", count, gradient_cache=n).encoder.parameters()]
                    for n in (0, 2))  # fmt: skip
    assert max(at_once) > 2 and set(at_once[-6:]) <= {1, 2}
    for wanted, gradient in zip(whole, parts, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_a_gradients_scale_falls_until_nothing_overflows():
    """d/dx of c x through float16 is c, whatever c is, as long as c times some scale up to 65536 fits."""
    for c, largest in ((2.0**-26, 2.0**16), (1.0, 2.0**15), (2.0**10, 2.0**5)):
        weight = torch.ones(1, requires_grad=True)
        (found,), scale = pruning.scaled_gradients((weight.half().float() * c).sum(), [weight], 2.0**16)
        assert found.item() == c and scale == largest


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        *((["--resume", f"--pruneRatio={ratio}"], ["between 0 and 1"]) for ratio in (0, 1, -0.5, 1.5, "half", "nan")),
        ([], ["--resume"]),
        (["--resume"], ["torch-pruning", "requirements-deploy.txt"]),
    ],
)
def test_what_cannot_be_pruned_is_one_line(trained, flags, words, capsys, monkeypatch):
    """A ratio outside 0 to 1, no run, and a machine without torch-pruning."""
    find = importlib.util.find_spec
    if "torch-pruning" in words:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_pruning" else find(name))
    places, run = trained
    flags = [flag.replace("--resume", f"--resume={run}") for flag in flags]
    assert main.main([*places, "--mode=prune", *flags]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and all(word in lines[0] for word in words), lines


def test_a_wrong_number_of_channels():
    with pytest.raises(UserError, match="5 convolutions"):
        build_backbone("alexnet", [8, 8])
