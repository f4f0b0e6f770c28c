"""Caffe's networks: CaffeNet against a plain NumPy one, normalisation against PyTorch's, incomplete windows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vpr.common.errors import UserError
from vpr.models import nnpack
from vpr.models.backbones.base import build_backbone, published
from vpr.models.backbones.caffe import EdgeMaxPool, ResponseNorm


def test_response_norm_is_pytorchs_with_alpha_times_size():
    features = torch.randn(2, 9, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100
    for size in (3, 5):
        found = ResponseNorm(size, 2.0, 2e-5, 0.75)(features)
        wanted = F.local_response_norm(features, size, alpha=2e-5 * size, beta=0.75, k=2.0)
        assert torch.allclose(found, wanted, rtol=1e-12, atol=0)
    one = ResponseNorm(5, 1.0, 0.5, 0.75)(features)[1, 3, 2, 1]  # channels 1 to 5
    square = (features[1, 1:6, 2, 1] ** 2).sum()
    assert torch.isclose(one, features[1, 3, 2, 1] / (1 + 0.5 * square) ** 0.75, rtol=1e-12)


def test_response_norm_does_not_overflow_in_float16():
    features = torch.full((1, 8, 2, 2), 3000.0, dtype=torch.float16)  # the square of which is no float16
    wanted = 3000 / (1 + 2e-5 * 5 * 3000.0**2) ** 0.75
    assert ResponseNorm()(features)[0, 4, 0, 0].item() == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("arch", ["alexnet_caffe_ceil", "vgg16_ceil"])
@pytest.mark.parametrize("size", [(47, 50), (51, 64)])
def test_incomplete_windows_are_those_of_a_pad_below_and_right(arch, size):
    """The maxima over windows of a map that is one longer below and right, by values that are never the largest."""
    poolings = [stage for stage in build_backbone(arch) if isinstance(stage, EdgeMaxPool)]
    assert len(poolings) == {"alexnet_caffe_ceil": 2, "vgg16_ceil": 4}[arch]
    for stage in poolings:
        features = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0)).relu()
        padded = np.pad(features.numpy(), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=-np.inf)
        side = stage.size
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
        wanted = windows[:, :, ::2, ::2].max(axis=(4, 5))
        assert np.array_equal(stage(features).numpy(), wanted)


@pytest.mark.parametrize("arch", ["alexnet_caffe", "alexnet_caffe_ceil", "vgg16_ceil"])
def test_fast_and_plain_ways_agree(arch):
    backbone = build_backbone(arch).eval()
    backbone.initialize(0)
    images = torch.randn(2, 3, 75, 98, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = backbone(images)
        backbone.fast = nnpack.has_fast_convolutions(torch.device("cpu"), torch.float32)
        fast = backbone.run(images)
    assert plain.shape[1:] == backbone.shape_of(75, 98)
    assert torch.allclose(fast, plain, rtol=0, atol=1e-4 * plain.abs().max().item())


def test_caffenet_is_caffes():
    """Sizes of its maps on Caffe's input of 227 pixels, and its weights."""
    backbone = build_backbone("alexnet_caffe")
    sides, features = {}, torch.empty(1, 3, 227, 227, device="meta")
    for name, stage in backbone.without_data().named_children():
        features = stage(features)
        sides[name] = tuple(features.shape[1:])
    assert sides["conv1"] == (96, 55, 55) and sides["pool1"] == (96, 27, 27) and sides["pool2"] == (256, 13, 13)
    assert sides["conv5"] == (256, 13, 13)
    shapes = [tuple(value.shape) for name, value in backbone.state_dict().items() if name.endswith("weight")]
    assert shapes == [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]


def test_channels_must_fit_the_groups():
    assert build_backbone("alexnet_caffe", (4, 6, 3 + 1, 6, 2)).dim == 2
    with pytest.raises(UserError, match="from 5 to 6 in 2 groups"):
        build_backbone("alexnet_caffe", (5, 6, 4, 6, 2))
    with pytest.raises(UserError, match="found 2 numbers, alexnet_caffe has 5"):
        build_backbone("alexnet_caffe", (4, 6))


def test_caffenet_has_no_published_weights():
    with pytest.raises(UserError, match="--mode=import"):
        published("alexnet_caffe", "DEFAULT")
    assert published("vgg16_ceil", "IMAGENET1K_FEATURES").name == "IMAGENET1K_FEATURES"
