"""Backbones are cut, and images normalised, as torchvision says."""

import numpy as np
import pytest
import torch
import torchvision
from drawing import noise
from PIL import Image
from torch import nn

from vpr.cli.options import parse_options
from vpr.common.errors import UserError
from vpr.models.backbones.base import build_backbone
from vpr.models.normalization import NORMALIZATIONS, Normalization, normalization_of
from vpr.models.place_model import build_model
from vpr.models.spec import ModelSpec


@pytest.mark.parametrize(("arch", "layers"), [("vgg16", 29), ("alexnet", 11)])
def test_trunk_ends_with_the_last_convolution(arch, layers):
    encoder = build_backbone(arch)
    assert len(encoder) == layers
    assert isinstance(encoder[-1], nn.Conv2d)
    with torch.device("meta"):
        whole = getattr(torchvision.models, arch)(weights=None).features
    assert [str(layer) for layer in encoder] == [str(layer) for layer in whole[:layers]]
    assert [type(layer) for layer in whole[layers:]] == [nn.ReLU, nn.MaxPool2d]


@pytest.mark.parametrize(
    ("name", "arch", "entry"),
    [
        ("features", "vgg16", torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES),
        ("torchvision", "alexnet", torchvision.models.AlexNet_Weights.IMAGENET1K_V1),
        ("torchvision", "vgg16", torchvision.models.VGG16_Weights.IMAGENET1K_V1),
    ],
)
def test_normalization_does_what_torchvision_does(name, arch, entry):
    pixels = noise(32, 32)
    wanted = entry.transforms(crop_size=32, resize_size=32)(Image.fromarray(pixels)).permute(1, 2, 0).numpy()
    found, values = normalization_of(arch, entry.name, None)
    assert found == name and values == NORMALIZATIONS[name]
    assert np.abs((pixels - np.array(values.mean)) / np.array(values.std) - wanted).max() < 1e-4


def test_a_mean_colour_is_subtracted_alone():
    named = "123.68,116.779,103.939"
    for weights in ("none", "weights.pth"):
        assert normalization_of("vgg16", weights, named) == (named, NORMALIZATIONS["caffe"])
    assert normalization_of("vgg16", "none", "1,-2,3.5")[1] == Normalization((1.0, -2.0, 3.5), (1.0, 1.0, 1.0))
    for wrong in ("1,2", "1,2,3,4", "caff", "1,2,nan"):
        with pytest.raises(UserError, match="wanted one of torchvision, caffe, features, unit, or a mean colour"):
            normalization_of("vgg16", "none", wrong)


def answer(*words):
    options = parse_options(["--mode=test", "--pooling=max", *words])
    return options.arch, options.normalization


@pytest.mark.parametrize("arch", ["alexnet_caffe", "alexnet_caffe_ceil"])
def test_a_file_of_caffenet_has_to_say_its_mean_colour(arch, tmp_path):
    """None are published that expect torchvision's input, which would be taken without a word."""
    torch.save(build_backbone(arch).state_dict(), tmp_path / "own.pth")
    weights = f"--weights={tmp_path / 'own.pth'}"
    with pytest.raises(UserError, match=f"own.pth of {arch} does not say which mean colour.*--normalization=") as error:
        answer(f"--arch={arch}", weights)
    assert "\n" not in str(error.value)
    for normalization in ("caffe", "122.7,116.7,104", "torchvision"):
        assert answer(f"--arch={arch}", weights, f"--normalization={normalization}") == (arch, normalization)
    assert answer(f"--arch={arch}", "--fromscratch") == (arch, None)


@pytest.mark.parametrize("arch", ["alexnet", "vgg16_ceil"])
def test_a_line_says_what_pixels_a_file_is_taken_to_expect(arch, tmp_path, capsys):
    file = tmp_path / "own.pth"
    torch.save(build_backbone(arch).state_dict(), file)
    build_model(ModelSpec(arch, str(file), pooling="max"))
    said = capsys.readouterr().out
    assert "pixels 0-255 minus 123.7 116.3 103.5, over 58.4 57.12 57.38; --normalization names others" in said
    build_model(ModelSpec(arch, str(file), normalization="caffe", pooling="max"))
    assert capsys.readouterr().out.endswith("minus 123.7 116.8 103.9, over 1 1 1\n")
