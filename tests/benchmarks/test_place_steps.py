"""The benchmark's plain steps on places change the weights as the program's steps do."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawing import draw_image

from benchmarks import place_steps
from benchmarks.stages import Bench
from pittsburgh import Places
from vpr.data.places import PlaceImages
from vpr.models.backbones.base import build_backbone
from vpr.models.spec import ModelSpec
from vpr.training.training_set import TrainingSet, places_of

SPOTS, OF_EACH = 8, 4


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A trainer, its first steps, and a benchmark; places lie 100 m apart, each with 4 images of 64x64 pixels."""
    files = [draw_image(tmp_path / f"{n}.png", (64, 64), n) for n in range(SPOTS * OF_EACH)]
    where = np.column_stack([np.repeat(100.0 * np.arange(SPOTS), OF_EACH), np.zeros(len(files))])
    places = Places("line", [file.name for file in files], [], where, np.empty((0, 2)), 25.0, 10.0)
    images = PlaceImages(places, "train", files, [])
    training = TrainingSet(images, [], [], np.empty(0, np.int64), places_of(images))
    monkeypatch.setattr(place_steps, "load_training_set", lambda *_: training)
    encoder = build_backbone("alexnet")
    encoder.initialize(0)
    torch.save(encoder.state_dict(), tmp_path / "alexnet.pth")
    monkeypatch.setattr(Bench, "spec", lambda self, arch: ModelSpec(arch, self.weights[arch], clusters=4))
    bench = Bench(
        torch.device("cpu"), SimpleNamespace(), {"alexnet": str(tmp_path / "alexnet.pth")}, [], "", "", 1, "fp32"
    )
    rules = place_steps.TrainingRules(
        loss="multi-similarity", batch_size=place_steps.PLACES, images_per_place=OF_EACH, lr=0.01
    )
    return (*place_steps._prepared(bench, "alexnet", rules), bench)


def test_plain_steps_move_the_weights_as_the_programs_steps_do(prepared, monkeypatch):
    trainer, block, bench = prepared
    assert len(block.batches[0].images) == place_steps.PLACES * OF_EACH
    before = copy.deepcopy(trainer.model.pool.state_dict())
    plain_models, made = [], place_steps.textbook_of
    monkeypatch.setattr(place_steps, "textbook_of", lambda model: plain_models.append(made(model)) or plain_models[0])
    place_steps._plain_steps(trainer.model, trainer, block, bench)()
    trainer.train_block(block)
    for name, value in trainer.model.pool.state_dict().items():
        assert (value - before[name]).abs().max() > 1e-5
        torch.testing.assert_close(plain_models[0].pool.state_dict()[name], value, rtol=1e-3, atol=1e-5)
