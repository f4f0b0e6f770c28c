"""Filters that are left stand in for those that went, where that is possible at all."""

import numpy as np
import pytest
import torch
from torch import nn

from vpr.common.device import compute_dtype
from vpr.compression.reconstruction import distill, feature_distance, reconstruct, refit
from vpr.data.reader import SizeGroup
from vpr.models.place_model import PlaceModel
from vpr.models.spec import ModelSpec

CHANNELS = [16, 16, 16, 16, 16]


class Images:
    """Random images of two sizes as a source."""

    files = range(48)

    def batches(self, batches):
        for (index,) in batches:
            size = ((80, 96), (96, 80))[index % 2]
            image = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(index))
            yield [SizeGroup(np.zeros(1, np.int64), image.to(torch.uint8).numpy(), size)]


def small_model(channels, normalization, fast, pooling="avg"):
    spec = ModelSpec("alexnet", "none", normalization, tuple(channels), pooling, clusters=2, train_from="conv1")
    model = PlaceModel(spec)
    torch.manual_seed(0)
    for layer in model.encoder:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.normal_(layer.bias, std=0.1)
    model.backbone.fast = fast and model.to_device(torch.device("cpu"), "fp32").backbone.fast
    return model.eval()


@pytest.mark.parametrize(("fast", "precision"), [(True, "fp32"), (False, "fp32"), (False, "bf16")])
def test_twins_that_went_are_made_up_for(fast, precision):
    """Every second filter is a copy of the one before: half of them can do all, with other weights after them."""
    original = small_model(CHANNELS, "torchvision", fast)
    with torch.no_grad():
        for layer in original.encoder:
            if isinstance(layer, nn.Conv2d):
                layer.weight[1::2], layer.bias[1::2] = layer.weight[::2].clone(), layer.bias[::2].clone()
    pruned = small_model([8] * 5, "torchvision", fast)
    kept = [torch.arange(0, 16, 2)] * 5
    inputs = torch.arange(3)
    for model in (original, pruned):
        model.dtype = compute_dtype(precision, torch.device("cpu"))
    with torch.no_grad():
        for small, large in zip(pruned.encoder, original.encoder, strict=True):
            if isinstance(small, nn.Conv2d):
                small.weight.copy_(large.weight[::2, inputs])
                small.bias.copy_(large.bias[::2])
                inputs = torch.arange(0, 16, 2)
        images = torch.from_numpy(next(Images().batches([[100]]))[0].values)
        wanted = original.local_descriptors(images)[:, ::2]
        before = (pruned.local_descriptors(images) - wanted).norm() / wanted.norm()
        reconstruct(pruned, original, kept, Images(), seed=0)
        after = (pruned.local_descriptors(images) - wanted).norm() / wanted.norm()
    assert before > 0.3 and after < (0.02 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("rows", [400, 5])
def test_a_refit_is_the_ridge_regression_of_augmented_rows(rows):
    """Also with fewer rows than weights: NumPy solves the same problem, the ridge as rows of their own."""
    random = np.random.default_rng(0)
    inputs = np.concatenate([random.normal(size=(rows, 2 * 9)), np.ones((rows, 1))], axis=1)
    outputs = random.normal(size=(rows, 4))
    layer = nn.Conv2d(2, 4, 3)
    present = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], dim=1).T.detach().double().numpy()
    hold = np.sqrt(1e-3 * np.mean(np.sum(inputs**2, axis=0)))
    wanted, *_ = np.linalg.lstsq(
        np.concatenate([inputs, hold * np.eye(19)]), np.concatenate([outputs, hold * present]), rcond=None
    )
    inputs, outputs = torch.from_numpy(inputs), torch.from_numpy(outputs)
    with torch.no_grad():
        refit(layer, inputs.T @ inputs, inputs.T @ outputs)
    np.testing.assert_allclose(layer.weight.detach().flatten(1).T, wanted[:-1], atol=1e-5)
    np.testing.assert_allclose(layer.bias.detach(), wanted[-1], atol=1e-5)


def test_a_layer_that_lost_nothing_stays_as_it_is():
    original = small_model(CHANNELS, "torchvision", True)
    same = small_model(CHANNELS, "torchvision", True)
    reconstruct(same, original, [torch.arange(16)] * 5, Images(), seed=0)
    for found, wanted in zip(same.encoder.parameters(), original.encoder.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", ["netvlad", "avg"])
@pytest.mark.parametrize(("fast", "precision"), [(True, "fp32"), (False, "bf16")])
def test_distilling_brings_all_layers_nearer_to_what_the_original_gives(fast, precision, pooling):
    original = small_model(CHANNELS, "torchvision", fast)
    pruned = small_model([16, 16, 16, 16, 8], "torchvision", fast, pooling)
    filters = torch.arange(15, -1, -2)  # backwards, so that their order counts
    with torch.no_grad():
        for small, large in zip(pruned.encoder.parameters(), original.encoder.parameters(), strict=True):
            large = large[filters] if len(small) == 8 else large
            small.copy_(large + 0.3 * large.std(correction=0) * torch.randn(large.shape))
    for model in (original, pruned):
        model.dtype = compute_dtype(precision, torch.device("cpu"))
    kept = [value.clone() for value in original.encoder.parameters()]
    started = [value.clone() for value in pruned.encoder.parameters()]
    images = [next(Images().batches([[index]]))[0].values for index in (100, 101, 102)]

    def apart():
        with torch.no_grad():
            return sum(feature_distance(pruned, original, filters, image).item() for image in images)

    before = apart()
    distill(pruned, original, filters, Singles(), images=240, seed=0)
    assert apart() < 0.7 * before
    assert all(torch.equal(*pair) for pair in zip(kept, original.encoder.parameters(), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(started, pruned.encoder.parameters(), strict=True))


class Singles(Images):
    """The same images, in batches of any number."""

    def batches(self, batches):
        for batch in batches:
            yield [group for index in batch for group in next(super(Singles, self).batches([[index]]))]


@pytest.mark.parametrize("pooling", ["netvlad", "max"])
def test_the_distance_is_that_of_what_the_pooling_takes(pooling):
    """Position by position, in NumPy: directions for NetVLAD, else lengths too."""
    original = small_model(CHANNELS, "torchvision", True)
    pruned = small_model([16, 16, 16, 16, 8], "torchvision", True, pooling)
    filters = torch.arange(15, -1, -2)
    images = np.concatenate([next(Images().batches([[index]]))[0].values for index in (2, 4)])
    with torch.no_grad():
        found = feature_distance(pruned, original, filters, images).item()
        wanted = original.local_descriptors(torch.from_numpy(images))[:, filters].double().numpy()
        given = pruned.local_descriptors(torch.from_numpy(images)).double().numpy()
    given, wanted = (values.reshape(2, 8, -1).transpose(0, 2, 1) for values in (given, wanted))  # [B, P, 8]
    if pooling == "netvlad":
        given, wanted = (values / np.linalg.norm(values, axis=2, keepdims=True) for values in (given, wanted))
    distances = np.sum((given - wanted) ** 2, axis=2) / np.mean(np.sum(wanted**2, axis=2))  # 1 for directions
    assert found == pytest.approx(np.sum(np.mean(distances, axis=1)), rel=1e-4)
