"""The seams of the model: a backbone or a pooling is one file and one line of a table."""

import subprocess
import sys
from collections import OrderedDict
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import main
from vpr.common.errors import UserError
from vpr.compression.pruning import prune_backbone
from vpr.models import backbones
from vpr.models.backbones import BACKBONES, Entry
from vpr.models.backbones.base import Backbone, build_backbone, published
from vpr.models.place_model import PlaceModel, build_model
from vpr.models.poolings import POOLINGS
from vpr.models.poolings.base import ClusterPooling, build_pooling
from vpr.models.spec import ModelSpec
from vpr.models.weights import load_pretrained

CPU = torch.device("cpu")


class Block(nn.Module):
    """Two branches that are added, with batch normalisation, as in a residual network."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, features):
        return torch.relu(features + self.norm(self.conv(features)))


def build_residual(arch, channels):
    if channels is not None:
        raise UserError(f"--channels: filters of {arch} cannot be dropped")
    stem = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.ReLU())
    stages = OrderedDict(stem=stem, layer1=Block(6), down=nn.AvgPool2d(2), layer2=Block(6))
    return Backbone(stages, dim=6, stride=8, smallest_side=8, stage_of={"stem": 0, "layer1": 1, "layer2": 3})


@pytest.fixture
def residual(monkeypatch):
    """A backbone that nothing here was written for: its file, and its line in the table."""
    module = ModuleType("vpr.models.backbones.residual")
    module.build = build_residual
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = Entry("residual", "NONE", 6, ("stem", "layer1", "layer2"), "layer2")
    monkeypatch.setitem(backbones.BACKBONES, "residual", entry)
    torch.manual_seed(0)
    return build_model(ModelSpec("residual", "none", pooling="avg", train_from="layer2")).to_device(CPU, "fp32")


def images(height=40, width=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8, generator=generator)


def test_the_tables_come_without_torch():
    code = "import sys, vpr.models.backbones, vpr.models.poolings, vpr.models.spec; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=main.__file__.removesuffix("main.py"))


@pytest.mark.parametrize("arch", BACKBONES)
@pytest.mark.parametrize("size", [(96, 128), (97, 150)])
def test_the_map_has_the_dim_and_the_stride_that_the_backbone_says(arch, size):
    backbone = build_backbone(arch)
    dim, height, width = backbone.shape_of(*size)
    assert dim == backbone.dim == BACKBONES[arch].dim
    assert all(abs(side / backbone.stride - count) < 3 for side, count in zip(size, (height, width), strict=True))

    assert backbone.shape_of(size[0] + 10 * backbone.stride, size[1])[1] == height + 10
    assert min(backbone.shape_of(backbone.smallest_side, backbone.smallest_side)) >= 1
    with pytest.raises(RuntimeError, match="size"):
        backbone.shape_of(backbone.smallest_side - 1, backbone.smallest_side)


@pytest.mark.parametrize("arch", BACKBONES)
def test_every_layer_of_the_table_is_a_stage_with_weights(arch):
    backbone, entry = build_backbone(arch), BACKBONES[arch]
    assert [*backbone.stage_of] == [*entry.layers] and entry.train_from in entry.layers
    stages = [backbone[number] for number in backbone.stage_of.values()]
    assert backbone.prunable() in (stages, [])
    assert entry.weights == "none" or published(arch, entry.weights).name == entry.weights


def test_pretrained_backbones_train_from_the_papers_layer_others_from_the_first():
    assert ModelSpec("vgg16").first_trained == "conv5_1"
    assert ModelSpec("vgg16", "none").first_trained == ModelSpec("vgg16", channels=(8,) * 13).first_trained == "conv1_1"
    assert ModelSpec("alexnet", "none").first_trained == "conv1"
    assert ModelSpec("alexnet", "IMAGENET1K_V1").first_trained == "conv5"
    assert ModelSpec("alexnet", "IMAGENET1K_V1", train_from="conv3").first_trained == "conv3"


def test_names_in_a_checkpoint_are_those_of_every_version():
    names = [*PlaceModel(ModelSpec("alexnet", "none", clusters=4, vladv2=True)).state_dict()]
    layers = [f"encoder.{number}.{kind}" for number in (0, 3, 6, 8, 10) for kind in ("weight", "bias")]
    assert names == [*layers, "pool.centroids", "pool.conv.weight", "pool.conv.bias"]


def test_a_new_backbone_describes_and_counts(residual):
    assert residual.dim == 6 and residual.smallest_side == 8
    with torch.no_grad():
        residual.eval()
        found = residual(images())
        values = residual.normalized(images())
        wanted = nn.functional.normalize(nn.Sequential(*residual.backbone)(values).mean(dim=(2, 3)), dim=1)
    torch.testing.assert_close(found, wanted)
    # 10x16 locations after the stem, 5x8 after the pooling; every multiplication comes with an addition.
    by_hand = 2 * (3 * 4 * 4 * 6 * 160 + 6 * 9 * 6 * 160 + 6 * 9 * 6 * 40)
    assert residual.gflop(40, 64) == pytest.approx(by_hand / 1e9, rel=1e-9)
    assert residual.bytes_per_image(40, 64) == 4 * (3 * 40 * 64 + 6 * 160), "the stem's input and output"
    with pytest.raises(UserError, match="at least 8"):
        residual.bytes_per_image(7, 64)


@pytest.mark.parametrize("follow", [False, True])
def test_frozen_stages_keep_their_statistics_and_weights(residual, follow):
    residual.backbone.train_batch_norm = follow
    before = {name: value.clone() for name, value in residual.state_dict().items()}
    residual.train()
    optimizer = torch.optim.SGD([value for value in residual.parameters() if value.requires_grad], lr=1.0)
    first, second, _ = residual(images())
    (first @ second).backward()
    optimizer.step()
    changed = {name for name, value in residual.state_dict().items() if not torch.equal(value, before[name])}
    assert {"encoder.layer2.norm.weight", "encoder.layer2.conv.weight"} <= changed
    assert ("encoder.layer2.norm.running_mean" in changed) == follow, "only with --trainBatchNorm"
    assert not [name for name in changed if not name.startswith("encoder.layer2")]
    with residual.backbone.wholly_trained():
        assert all(value.requires_grad for value in residual.parameters())
        first, second, _ = residual(images())
        (first @ second).backward()
        assert residual.backbone.stem[0].weight.grad is not None
    assert residual.backbone.first_trained == 3
    assert not any(value.requires_grad for value in residual.backbone.frozen.parameters())


def test_what_frozen_stages_gave_is_finished_to_the_same_descriptors(residual):
    residual.eval()
    with torch.no_grad():
        features = residual.frozen_features(images())
        assert features.shape[1:] == residual.backbone.shape_of(40, 64, stop=3)
        torch.testing.assert_close(residual(features, frozen=True), residual(images()), rtol=0, atol=0)


def test_filters_of_a_new_backbone_are_not_dropped_unless_it_says_how(residual):
    with pytest.raises(UserError, match="cannot drop filters"):
        prune_backbone(residual.backbone, 0.5, "magnitude")


def test_weights_of_a_file_are_found_by_their_names(residual, tmp_path):
    state = {name: torch.full_like(value, 2) for name, value in residual.backbone.state_dict().items()}
    torch.save(state, tmp_path / "own.pth")
    model = build_model(ModelSpec("residual", str(tmp_path / "own.pth"), pooling="max"))
    assert all((value == 2).all() for value in model.backbone.state_dict().values())
    del state["layer1.conv.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(UserError, match=r"layer1\.conv\.weight"):
        build_model(ModelSpec("residual", str(tmp_path / "less.pth"), pooling="max"))


@pytest.mark.parametrize("name", POOLINGS)
def test_every_pooling_keeps_its_contract(name):
    torch.manual_seed(0)
    pooling = build_pooling(name, 6, ModelSpec(clusters=3))
    features = torch.randn(2, 6, 1, 1) if POOLINGS[name].class_token else torch.randn(2, 6, 4, 5)
    found = pooling(features)
    assert found.shape == (2, pooling.out_dim)
    np.testing.assert_allclose(found.detach().norm(dim=1).numpy(), 1, rtol=1e-6)
    torch.testing.assert_close(pooling.plain()(features), found, rtol=1e-5, atol=1e-6)
    assert isinstance(pooling, ClusterPooling) == POOLINGS[name].clusters
    lengths = torch.rand(2, 1, *features.shape[2:]) + 0.5
    same = torch.allclose(pooling(features * lengths), found, atol=1e-5)
    assert same == pooling.normalizes_input, "whether lengths of local descriptors count"


def test_a_pooling_that_is_not_in_the_table_is_named():
    with pytest.raises(UserError, match="pooling 'mean' is unknown, wanted one of netvlad"):
        PlaceModel(ModelSpec("alexnet", "none", pooling="mean"))


@pytest.mark.parametrize("arch", ["vgg16", "alexnet"])
def test_layers_are_those_of_torchvision(arch):
    features = getattr(torchvision.models, arch)(weights=None).features
    ours = [(name, repr(layer)) for name, layer in build_backbone(arch).named_children()]
    assert ours == [(name, repr(layer)) for name, layer in features.named_children()][: len(ours)]
    left = [type(layer).__name__ for layer in list(features)[len(ours) :]]
    assert left == ["ReLU", "MaxPool2d"]


def test_a_download_says_what_it_is_and_where_to_put_it_by_hand(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", mock.Mock(side_effect=OSError("no route to host")))
    with pytest.raises(UserError, match=rf"no route.*download https://.*88682ab5.pth into {tmp_path}/checkpoints"):
        load_pretrained(build_backbone("vgg16"), "vgg16", "IMAGENET1K_FEATURES")
    file = "downloading vgg16_features-amdegroot-88682ab5.pth"
    assert f"{file} into {tmp_path}/checkpoints: 553 MB, CC BY 4.0, of Oxford's VGG, SHA-256 88682ab5" in (
        capsys.readouterr().out
    )
