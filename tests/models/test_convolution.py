"""The fast convolutions against PyTorch's own, in float64 where that decides."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vpr.common import device as precision
from vpr.models import nnpack as convolution
from vpr.models.nnpack import FastConvolution, has_fast_convolutions, max_pool, pays, run_layers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, params=list(convolution.RULES), ids=lambda widths: f"vectors{widths[0]}by{widths[1]}")
def processor(request, monkeypatch):
    """Every test by the rule of every kind of processor."""
    monkeypatch.setattr(convolution, "rule", lambda: convolution.RULES[request.param])
    return request.param


@pytest.fixture(autouse=True)
def available():
    if not has_fast_convolutions(CPU, torch.float32):
        pytest.skip("this build of PyTorch has no NNPACK for this processor")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def apart(found, wanted):
    """The largest difference, relative to the largest value."""
    return ((found.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()


@pytest.mark.parametrize(
    ("batch", "channels", "filters", "height", "width", "kernel", "padding"),
    [(1, 16, 24, 37, 41, 3, 1), (6, 16, 8, 15, 17, 3, 1), (3, 32, 16, 33, 35, 5, 2), (2, 16, 16, 40, 40, 3, 0)],
)
def test_results_and_gradients_are_those_of_float64(batch, channels, filters, height, width, kernel, padding):
    features = random(batch, channels, height, width)
    weight, bias = 0.1 * random(filters, channels, kernel, kernel, seed=1), random(filters, seed=2)
    exact = [value.double().requires_grad_() for value in (features, weight, bias)]
    wanted = F.conv2d(*exact, padding=padding)
    toward = random(*wanted.shape, seed=3)
    wanted.backward(toward.double())
    fast = [value.clone().requires_grad_() for value in (features, weight, bias)]
    found = FastConvolution.apply(*fast, (padding, padding))
    found.backward(toward)
    assert apart(found, wanted) < 1e-4
    for of_fast, of_exact in zip(fast, exact, strict=True):
        assert apart(of_fast.grad, of_exact.grad) < 1e-4


@pytest.mark.parametrize("used", [[1], [0, 2], []])
def test_images_without_a_gradient_change_nothing(used):
    """The gradient of a loss that looks at some of the images only."""
    toward = torch.zeros(3, 8, 40, 40)
    toward[used] = random(len(used), 8, 40, 40, seed=4)
    gradients = []
    for apply in (FastConvolution.apply, lambda values, weight, bias, _: F.conv2d(values, weight, bias, padding=1)):
        inputs = [random(3, 16, 40, 40), random(8, 16, 3, 3, seed=1), random(8, seed=2)]
        inputs = [value.requires_grad_() for value in inputs]
        apply(*inputs, (1, 1)).backward(toward)
        gradients.append([value.grad for value in inputs])
    for found, wanted in zip(*gradients, strict=True):
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_frozen_inputs_and_weights_get_no_gradient():
    features, weight, bias = random(1, 16, 40, 40), random(8, 16, 3, 3).requires_grad_(), random(8)
    FastConvolution.apply(features, weight, bias, (1, 1)).sum().backward()
    assert features.grad is None and weight.grad is not None and bias.grad is None


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (3, 1)])
@pytest.mark.parametrize(("height", "width"), [(8, 10), (9, 10), (8, 11), (9, 11), (3, 3)])
def test_max_pooling_is_that_of_pytorch(height, width, size, stride):
    features = random(2, 3, height, width)
    assert torch.equal(max_pool(features, size, stride), F.max_pool2d(features, size, stride))


@pytest.fixture
def trunk():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True),
        nn.MaxPool2d(2, 2), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(32, 16, 3, padding=1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 64, 80), (3, 64, 81), (12, 21, 30), (2, 9, 12), (2, 70, 70)]
)
def test_a_trunk_gives_what_its_layers_give(trunk, batch, height, width):
    images = random(batch, 3, height, width)
    with torch.no_grad():
        found = run_layers(trunk, images.clone(), fast=True)
        wanted = trunk.double()(images.double())
    assert apart(found, wanted) < 1e-4


def test_a_trunk_has_the_gradients_of_its_layers(trunk):
    images, gradients = random(3, 3, 64, 80), []
    for fast in (True, False):
        trunk.zero_grad()
        run_layers(trunk, images.clone(), fast).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in trunk.parameters()])
    for found, wanted in zip(*gradients, strict=True):
        assert apart(found, wanted) < 1e-3


@pytest.mark.parametrize("processor", [(8, 8)], indirect=True)
def test_the_fast_way_is_taken_where_it_pays(trunk, processor):
    """A layer has the values of the fast convolution, to the bit, where it pays, and others where it does not."""
    features, chosen = random(1, 3, 48, 56), []
    with torch.no_grad():
        for layer in trunk:
            if isinstance(layer, nn.Conv2d):
                fast = FastConvolution.apply(features, layer.weight, layer.bias, layer.padding)
                found, plain = (run_layers(nn.Sequential(layer), features.clone(), way) for way in (True, False))
                chosen.append(torch.equal(found, fast))
                assert pays(layer, features) == chosen[-1] and not torch.equal(plain, fast)
            features = layer(features)
    assert chosen == [True, True, True, False]  # the last map's 143 positions are too few


@pytest.mark.parametrize(("height", "width"), [(64, 80), (48, 60)])
@pytest.mark.parametrize("first", [nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 11, stride=2, padding=4)])
def test_values_depend_neither_on_the_other_images_nor_on_the_number_of_threads(trunk, first, height, width):
    """To the bit: two processes, with fewer images and threads each, start a training's step as one does."""
    trunk[0], images, threads = first, random(12, 3, height, width), torch.get_num_threads()
    with torch.no_grad():
        together = run_layers(trunk, images.clone(), fast=True)
        for size, count in ((2, threads), (2, 1), (5, 1), (12, 1)):
            torch.set_num_threads(count)
            apart = torch.cat([run_layers(trunk, part.clone(), fast=True) for part in images.split(size)])
            torch.set_num_threads(threads)
            assert torch.equal(together, apart)


@pytest.mark.parametrize("layer", [
    nn.Conv2d(16, 16, 3, stride=2), nn.Conv2d(16, 16, 3, dilation=2), nn.Conv2d(16, 16, 3, groups=2),
    nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 7),
])  # fmt: skip
def test_other_kinds_of_layers_are_left_alone(layer):
    assert not pays(layer, random(1, 16, 100, 100))


@pytest.mark.parametrize(
    ("features", "layer", "nnpack_on"),
    [
        ((64, 39, 39), (192, 5), {(8, 8), (16, 8)}),  # AlexNet's conv2 at 320x320
        ((192, 19, 19), (384, 3), set()),  # its conv3
        ((64, 240, 320), (64, 3), {(8, 8), (16, 8)}),  # VGG16's conv1_2 at 320x240
        ((128, 120, 160), (256, 3), {(8, 8), (16, 8), (16, 16)}),  # its conv3_1 at 640x480
        ((128, 60, 80), (256, 3), {(8, 8), (16, 8)}),  # and at 320x240
    ],
)
def test_the_choice_is_that_of_the_table(processor, features, layer, nnpack_on):
    filters, side = layer
    with torch.device("meta"):
        convolution_layer = nn.Conv2d(features[0], filters, side, padding=side // 2)
        for batch in (1, 7):
            assert pays(convolution_layer, torch.empty(batch, *features)) == (processor in nnpack_on)


@pytest.mark.parametrize(
    ("flags", "vendor", "family", "widths"),
    [
        ("fma avx2", "AuthenticAMD", "25", (8, 8)),
        ("avx2 avx512f", "AuthenticAMD", "25", (16, 8)),
        ("avx2 avx512f", "AuthenticAMD", "26", (16, 16)),
        ("avx2 avx512f", "GenuineIntel", "6", (16, 16)),
        ("", "", "", (8, 8)),
    ],
)
def test_the_processor_is_known_by_what_linux_says(monkeypatch, flags, vendor, family, widths):
    said = {"flags": flags, "vendor_id": vendor, "cpu family": family}
    monkeypatch.setattr(precision, "processor_field", lambda name: said.get(name, ""))
    assert precision.vector_widths() == widths


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_the_layout_of_images_does_not_change_the_values(trunk, layout):
    images = random(2, 3, 64, 80)
    with torch.no_grad():
        wanted = run_layers(trunk, images.clone(), fast=True)
        assert torch.equal(run_layers(trunk, images.clone(memory_format=layout), fast=True), wanted)


def test_only_float32_on_the_processor_has_it():
    assert not has_fast_convolutions(CPU, torch.bfloat16)
    assert not has_fast_convolutions(torch.device("cuda"), torch.float32)
