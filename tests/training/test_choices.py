"""Schedules, optimisers, groups of weights, clipping, the mean of the weights: what a step does with a gradient."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import main
import vpr.training.place_batches
import vpr.training.trainer
from vpr.data.reader import SizeGroup
from vpr.models.place_model import build_model
from vpr.models.spec import ModelSpec
from vpr.training.choices import OPTIMIZERS
from vpr.training.rules import TrainingRules
from vpr.training.state import new_state
from vpr.training.trainer import BatchDescriber


def rates(schedule, steps=40, epochs=4, **rules):
    """The rate of each step, of ten in an epoch."""
    made = TrainingRules(schedule=schedule, epochs=epochs, lr=0.5, **rules)
    return [made.learning_rate(1 + step * epochs / steps, step) for step in range(steps)]


def test_linear_falls_from_step_to_step_to_a_fifth():
    assert rates("linear") == pytest.approx([0.5 - 0.4 * step / 40 for step in range(40)])
    assert TrainingRules(schedule="linear", epochs=4, lr=0.5).learning_rate(5) == pytest.approx(0.1)


def test_cosine_falls_to_nothing_and_is_half_in_the_middle():
    found = rates("cosine")
    assert found[0] == 0.5 and found[20] == pytest.approx(0.25) and found[10] == pytest.approx(0.25 * (1 + 2**-0.5))
    assert TrainingRules(schedule="cosine", epochs=4, lr=0.5).learning_rate(5) == pytest.approx(0, abs=1e-12)
    assert all(after < before for before, after in itertools.pairwise(found))


def test_drops_stay_where_they_are_within_an_epoch():
    found = rates("step", lr_step=2, lr_gamma=0.1)
    assert found == [0.5] * 20 + [0.5 * 0.1] * 20


@pytest.mark.parametrize("schedule", ["step", "linear", "cosine"])
def test_the_first_steps_warm_up(schedule):
    plain, warm = rates(schedule), rates(schedule, warmup=8)
    assert warm == pytest.approx([rate * min(1, (step + 1) / 8) for step, rate in enumerate(plain)])


def test_adamw_takes_weight_decay_from_the_weight_and_not_through_the_moments():
    """A first step of Adam is of the rate's size, whatever the gradient's."""
    weight = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    optimizer = OPTIMIZERS["ADAMW"]([{"params": [weight]}], 0.01, 0.5, 0.9)
    weight.grad = torch.tensor([3.0, 1e-3], dtype=torch.float64)
    optimizer.step()
    np.testing.assert_allclose(weight.detach(), [2 * (1 - 0.005) - 0.01, -1 * (1 - 0.005) - 0.01], rtol=1e-4)


class Counted(nn.Module):
    """Stands in for a model: counts the images of each call."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.calls = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double(), []

    tensor_of = staticmethod(torch.from_numpy)

    def forward(self, images, frozen=False):
        self.calls.append((len(images), frozen))
        return self.layers(images)


def test_few_images_at_a_time_give_the_gradient_of_all_at_once():
    """Images of two sizes that alternate; each goes through the layers once without a graph, and once with."""
    images, random = np.random.default_rng(0).normal(size=(12, 4)), torch.arange(36, dtype=torch.float64).view(12, 3)
    rows = [np.array([0, 2, 4, 6, 8, 10, 11]), np.array([1, 3, 5, 7, 9])]
    groups = [SizeGroup(row, images[row], (n, n), frozen=n == 1) for n, row in enumerate(rows)]
    found = []
    for at_once in (0, 3):
        model = Counted()
        descriptors = BatchDescriber(model, at_once)(groups)
        torch.testing.assert_close(descriptors, model.layers(torch.from_numpy(images)))
        (descriptors @ descriptors.T * (random @ random.T)).sum().backward()
        found.append([model.calls, [value.grad for value in model.parameters()]])
    assert found[0][0] == [(7, False), (5, True)]
    parts = [(3, False), (3, False), (1, False), (3, True), (2, True)]
    assert found[1][0] == [*parts, *parts[::-1]]
    for wanted, gradient in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=0)


@pytest.fixture
def trained(street_flags, tmp_path, monkeypatch):
    """Trains for two epochs of two steps by flags; gives the checkpoints at the start and after each step, and the
    weights of each validation."""

    def train(*words):
        states, measured = [], []

        def kept(save):
            def save_and_keep(folder, state, *others):
                states.append(copy.deepcopy(state))
                save(folder, state, *others)

            return save_and_keep

        def measure(model, *others, **named):
            measured.append(copy.deepcopy(model.state_dict()))
            return split(model, *others, **named)

        split = vpr.training.trainer.measure_split
        with monkeypatch.context() as patch:
            patch.setattr(vpr.training.place_batches, "STEPS", 1)
            patch.setattr(vpr.training.trainer, "measure_split", measure)
            for module in (vpr.training.trainer, vpr.runs.run):
                patch.setattr(module, "save_checkpoint", kept(module.save_checkpoint))
            call = [*street_flags, "--pooling=gem", "--nEpochs=2", f"--runsPath={tmp_path / 'runs'}"]
            assert main.main([*call, *words]) == 0
        return states, measured

    return train


PLAIN = ["--lr=1", "--momentum=0", "--weightDecay=0"]  # a step is the gradient times the rate


def first_step(states):
    """How each weight moved in the first step."""
    return {name: value - states[0]["state_dict"][name] for name, value in states[1]["state_dict"].items()}


def norm(moves):
    return math.sqrt(sum(float(value.double().square().sum()) for value in moves.values()))


def test_clipping_shortens_the_gradient_and_the_backbone_has_a_rate_of_its_own(trained):
    whole, _ = trained(*PLAIN)
    moved = first_step(whole)
    length = norm(moved)
    clipped = first_step(trained(*PLAIN, f"--clip={length / 4}")[0])
    longer = first_step(trained(*PLAIN, f"--clip={length * 4}")[0])
    slower, _ = trained(*PLAIN, "--backboneLr=0.25")
    for name, value in moved.items():
        factor = 0.25 if name.startswith("encoder.") else 1.0
        tolerance = {"rtol": 1e-3, "atol": 1e-3 * float(value.abs().max())}
        torch.testing.assert_close(clipped[name], value / 4, **tolerance)
        torch.testing.assert_close(longer[name], value, **tolerance)
        torch.testing.assert_close(first_step(slower)[name], factor * value, **tolerance)
    assert sorted(group["lr"] for group in slower[1]["optimizer"]["param_groups"]) == [0.25, 1]
    assert moved["pool.p"].abs() > 0


def test_the_mean_of_the_weights_follows_them_and_is_what_is_validated_and_kept(trained):
    states, measured = trained("--ema=0.75", "--optim=ADAMW", "--lr=0.01", "--schedule=cosine", "--warmup=3")
    start, *steps = [
        state for n, state in enumerate(states) if n not in (3, 6)
    ]  # those after a validation are no steps
    assert [state["position"]["steps"] for state in steps] == [1, 2, 3, 4]
    mean = start["state_dict"]
    for state in steps:
        for name, value in state["trained"].items():
            mean[name] = 0.75 * mean[name] + 0.25 * value
            torch.testing.assert_close(state["state_dict"][name], mean[name])
    for state, seen in ((steps[1], measured[0]), (steps[3], measured[1])):
        assert all(torch.equal(value, seen[name]) for name, value in state["state_dict"].items())
        assert not all(torch.equal(value, seen[name]) for name, value in state["trained"].items())
    wanted = [0.01 * min(1, (n + 1) / 3) * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]
    assert [state["optimizer"]["param_groups"][0]["lr"] for state in steps] == pytest.approx(wanted)


def test_the_mean_has_the_means_of_the_statistics_that_are_trained():
    """Those of a weight and those of a layer's inputs follow alike; without --trainBatchNorm there are none."""
    for trains in (True, False):
        spec = ModelSpec("resnet18", weights="none", pooling="gem", train_batch_norm=trains)
        model, rules = build_model(spec), TrainingRules(ema=0.75)
        state = new_state(model, rules, {"train": {"queries": 0}})
        layer = next(each for each in reversed([*model.encoder.modules()]) if isinstance(each, nn.BatchNorm2d))
        name = next(key for key, value in model.state_dict().items() if value is layer.running_mean or
                    value.data_ptr() == layer.running_mean.data_ptr())  # fmt: skip
        before, moved = layer.running_mean.clone(), torch.arange(len(layer.running_mean), dtype=torch.float32)
        layer.running_mean.copy_(moved)
        state.follow(0.75)
        wanted = 0.75 * before + 0.25 * moved if trains else moved
        with state.averaged():
            torch.testing.assert_close(layer.running_mean, wanted)
        assert torch.equal(layer.running_mean, moved)
        torch.testing.assert_close(state.checkpoint()["state_dict"][name], wanted)


def test_training_from_the_pooling_on_leaves_the_backbone_as_it_is(trained, tmp_path):
    states, _ = trained("--trainFrom=pool", "--lr=0.1", f"--cachePath={tmp_path}")
    moved = {
        name: norm({name: states[-1]["state_dict"][name] - value}) for name, value in states[0]["state_dict"].items()
    }
    assert [name for name, length in moved.items() if length] == ["pool.p"]
