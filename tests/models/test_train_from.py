"""--trainFrom: which layers of the trunk are trained, and what follows from it."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import main
from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec, places_spec
from vpr.common.errors import UserError
from vpr.data.places import load_places
from vpr.data.reader import ImageReader
from vpr.descriptors.trunk_cache import FrozenFeatures, cached_source
from vpr.models.backbones.base import build_backbone
from vpr.models.place_model import build_model
from vpr.runs.run import newest_run

ALEXNET = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
# Of the paper's column D: two, two, three, three, three convolutions, each with its ReLU, a pooling after each block.
VGG16 = {
    "conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12, "conv3_3": 14,
    "conv4_1": 17, "conv4_2": 19, "conv4_3": 21, "conv5_1": 24, "conv5_2": 26, "conv5_3": 28,
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights: what is in a file counts as pretrained."""
    files = {}
    for arch in ("alexnet", "vgg16"):
        encoder = build_backbone(arch)
        encoder.initialize(1)
        files[arch] = tmp_path_factory.mktemp("weights") / f"{arch}.pth"
        torch.save(encoder.state_dict(), files[arch])
    return files


def options_of(weights, arch, *more):
    return parse_options(["--mode=train", f"--arch={arch}", f"--weights={weights[arch]}", "--pooling=avg", *more])


def trained_layers(model):
    convolutions = [(number, layer) for number, layer in enumerate(model.encoder) if isinstance(layer, nn.Conv2d)]
    return [number for number, layer in convolutions if all(value.requires_grad for value in layer.parameters())]


@pytest.mark.parametrize(("arch", "layers"), [("alexnet", ALEXNET), ("vgg16", VGG16)])
def test_the_layer_named_and_those_after_it_are_trained(weights, arch, layers):
    for name in layers if arch == "alexnet" else ("conv1_1", "conv3_2", "conv4_1", "conv5_3"):
        model = build_model(model_spec(options_of(weights, arch, f"--trainFrom={name}")))
        assert model.backbone.first_trained == layers[name]
        assert trained_layers(model) == [number for number in layers.values() if number >= layers[name]]


def test_without_the_flag_the_last_block_or_from_random_weights_everything_is_trained(weights):
    assert options_of(weights, "alexnet").trainFrom == "conv5"
    assert options_of(weights, "vgg16").trainFrom == "conv5_1"
    assert parse_options(["--mode=train", "--arch=alexnet", "--fromscratch"]).trainFrom == "conv1"
    assert build_model(model_spec(options_of(weights, "alexnet"))).backbone.first_trained == 10
    assert build_model(model_spec(options_of(weights, "vgg16"))).backbone.first_trained == 24
    channels = ["--channels", "16", "16", "16", "16", "8"]
    assert options_of(weights, "alexnet", *channels).trainFrom == "conv1"  # pruned: filters are gone everywhere


@pytest.mark.parametrize(("arch", "name"), [("alexnet", "conv5_1"), ("vgg16", "conv5"), ("alexnet", "conv0")])
def test_a_layer_that_the_backbone_does_not_have_is_refused_with_those_it_has(weights, arch, name):
    with pytest.raises(UserError, match=f"trainFrom={name}") as error:
        options_of(weights, arch, f"--trainFrom={name}")
    layers = {"alexnet": ALEXNET, "vgg16": VGG16}[arch]
    assert "\n" not in str(error.value) and ", ".join(layers) in str(error.value)


@pytest.mark.parametrize("name", ["conv2", "conv4"])
def test_the_trunk_cache_holds_what_the_layers_below_give(weights, tiny_city, tmp_path, name):
    """From conv2 to conv4 on one disk: each training finds its own values, not the other's."""
    cache = f"--cachePath={tmp_path / 'cache'}"
    flags = ["--dataset=toy", f"--root={tiny_city}", "--imageSize", "64", "80", "--trunkCache=disk", "--precision=fp32"]
    for layer in ("conv5", name, "conv3", name):
        options = options_of(weights, "alexnet", *flags, "--cacheBatchSize=8", f"--trainFrom={layer}", cache)
        model = build_model(model_spec(options)).to_device(torch.device("cpu"), "fp32")
        reader = ImageReader(load_places(places_spec(options), "val").files[:8], options.imageSize, 0)
        source = cached_source(reader, "few", model, "memory")
        assert isinstance(source, FrozenFeatures)
    with torch.no_grad():
        images = model.tensor_of(next(reader.batches([range(8)]))[0].values)
        wanted = nn.Sequential(*list(model.encoder)[: ALEXNET[name]])(model.normalized(images))
    for index in range(8):
        found = source.features(index).astype(np.float32)
        assert found.shape == wanted[index].shape
        np.testing.assert_allclose(found, wanted[index], rtol=2e-3, atol=2e-3)


def changed_layers(run, start):
    state = torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True)["state_dict"]
    names = {name: f"{number}.weight" for name, number in ALEXNET.items()}
    return [name for name, entry in names.items() if not torch.equal(state[f"encoder.{entry}"], start[entry])]


@pytest.fixture(scope="module")
def run_from_conv3(weights, tiny_city, tmp_path_factory):
    folder = tmp_path_factory.mktemp("from_conv3")
    places = [
        "--dataset=toy", f"--root={tiny_city}", "--threads=0", "--device=cpu", "--imageSize", "64", "80",
        f"--runsPath={folder / 'runs'}", f"--cachePath={folder / 'cache'}",
    ]  # fmt: skip
    call = ["--mode=train", "--arch=alexnet", f"--weights={weights['alexnet']}", "--pooling=avg", "--trainFrom=conv3"]
    assert main.main([*places, *call, "--nEpochs=1", "--margin=1"]) == 0
    return places, newest_run(folder / "runs")


def test_a_run_trains_those_layers_stores_the_flag_and_goes_on_with_it(run_from_conv3, weights, capsys):
    places, run = run_from_conv3
    start = torch.load(weights["alexnet"], weights_only=True)
    assert changed_layers(run, start) == ["conv3", "conv4", "conv5"]
    assert json.loads((run / "flags.json").read_text())["trainFrom"] == "conv3"
    capsys.readouterr()
    assert main.main([*places, "--mode=train", f"--resume={run}", "--trainFrom=conv2", "--nEpochs=2"]) == 2
    said = capsys.readouterr().err.strip()
    assert "--trainFrom=conv2 contradicts" in said and "\n" not in said
    assert main.main([*places, "--mode=train", f"--resume={run}", "--nEpochs=2"]) == 0
    assert changed_layers(run, start) == ["conv3", "conv4", "conv5"]
    assert "trained from conv3 on" in capsys.readouterr().out


def test_a_run_of_before_the_flag_is_one_from_the_default_on(run_from_conv3, tmp_path):
    _, run = run_from_conv3
    flags = json.loads((run / "flags.json").read_text())
    del flags["trainFrom"]
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    assert parse_options(["--mode=train", f"--resume={tmp_path}"]).trainFrom == "conv5"
    assert parse_options(["--mode=train", f"--resume={tmp_path}", "--trainFrom=conv5"]).trainFrom == "conv5"
    with pytest.raises(UserError, match="contradicts"):
        parse_options(["--mode=train", f"--resume={tmp_path}", "--trainFrom=conv2"])


def test_a_checkpoint_whose_optimiser_is_of_other_layers_is_refused(run_from_conv3, tmp_path, capsys):
    places, run = run_from_conv3
    copied = tmp_path / "2000-01-01_run"
    (copied / "checkpoints").mkdir(parents=True)
    (copied / "checkpoints" / "checkpoint.pth.tar").symlink_to(run / "checkpoints" / "checkpoint.pth.tar")
    flags = json.loads((run / "flags.json").read_text())
    (copied / "flags.json").write_text(json.dumps({**flags, "trainFrom": "conv4"}))
    capsys.readouterr()
    assert main.main([*places, "--mode=train", f"--resume={copied}", "--nEpochs=3"]) == 2
    said = capsys.readouterr().err.strip()
    assert "trains other layers" in said and "\n" not in said
