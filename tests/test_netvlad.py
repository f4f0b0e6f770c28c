"""The NetVLAD layer against the paper's equations, written out literally, and against closed forms."""

import math

import numpy as np
import pytest
import torch

from netvlad import NetVLAD
from vpr.models.poolings.netvlad_pooling import NetVLADPooling

SHAPE = (2, 7, 3, 5)  # B, D, H, W
CLUSTERS = 4
VERSIONS = pytest.mark.parametrize("vladv2", [False, True], ids=["v1", "v2"])
# The layer as the paper writes it, and that of a model, whose residual sums have derivatives of their own.
FORMS = pytest.mark.parametrize("form", [NetVLAD, NetVLADPooling], ids=["plain", "fast"])
NORMALIZE_INPUT = pytest.mark.parametrize("normalize_input", [True, False], ids=["normalised", "as-is"])


def make_layer(vladv2, normalize_input=True, seed=0, clusters=CLUSTERS, dim=SHAPE[1], form=NetVLAD):
    """A float64 layer whose weights, bias and centres have nothing to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    layer = form(clusters, dim, vladv2, normalize_input).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def make_map(seed=1, shape=SHAPE):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_rows(random, count, dim):
    rows = random.normal(size=(count, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def equation(features, weight, bias, centroids, normalize_input):
    """Equation 4 and both normalisations with every residual x_p - c_k spelled out: descriptors, x [B, P, D], a."""
    rows = features.flatten(2).permute(0, 2, 1)  # [B, P, D]
    if normalize_input:
        rows = rows / rows.pow(2).sum(dim=2, keepdim=True).sqrt()
    powers = torch.exp((rows[:, :, None, :] * weight).sum(dim=3) + bias)  # [B, P, K]
    shares = powers / powers.sum(dim=2, keepdim=True)
    vlad = (shares[..., None] * (rows[:, :, None, :] - centroids)).sum(dim=1)  # [B, K, D]
    vlad = (vlad / vlad.pow(2).sum(dim=2, keepdim=True).sqrt()).flatten(1)
    return vlad / vlad.pow(2).sum(dim=1, keepdim=True).sqrt(), rows, shares


def parts(layer):
    """Weight [K, D], bias [K] (zeros in version 1) and centres [K, D]."""
    bias = layer.conv.bias if layer.vladv2 else torch.zeros(layer.num_clusters, dtype=torch.float64)
    return layer.conv.weight[:, :, 0, 0], bias, layer.centroids


@FORMS
@VERSIONS
@NORMALIZE_INPUT
def test_forward_and_assignment_are_the_papers_equation(form, vladv2, normalize_input):
    layer, features = make_layer(vladv2, normalize_input, form=form), make_map()
    with torch.no_grad():
        expected, rows, shares = equation(features, *parts(layer), normalize_input)
        torch.testing.assert_close(layer(features), expected, rtol=0, atol=1e-12)
        summed, found = layer.assign(features.flatten(2))
    torch.testing.assert_close(summed, rows.transpose(1, 2), rtol=1e-12, atol=0)
    torch.testing.assert_close(found, shares.transpose(1, 2), rtol=1e-9, atol=0)


@FORMS
@VERSIONS
def test_float32_stays_close_to_float64(form, vladv2):
    layer, features = make_layer(vladv2, form=form), make_map()
    with torch.no_grad():
        expected = equation(features, *parts(layer), True)[0].float()
        torch.testing.assert_close(layer.float()(features.float()), expected, rtol=0, atol=1e-5)


def test_only_version_2_has_a_bias():
    assert [name for name, _ in NetVLAD(3, 5, vladv2=False).conv.named_parameters()] == ["weight"]
    assert sorted(name for name, _ in NetVLAD(3, 5, vladv2=True).conv.named_parameters()) == ["bias", "weight"]


@FORMS
@VERSIONS
@NORMALIZE_INPUT
def test_gradients_agree_with_finite_differences(form, vladv2, normalize_input):
    layer = make_layer(vladv2, normalize_input, clusters=3, dim=3, form=form)
    names = [name for name, _ in layer.named_parameters()]
    assert set(names) == {"conv.weight", "centroids"} | ({"conv.bias"} if vladv2 else set())

    def forward(features, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (features,))

    inputs = [make_map(shape=(2, 3, 1, 2)).requires_grad_()]
    inputs += [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    assert torch.autograd.gradcheck(forward, inputs)


@FORMS
@VERSIONS
@NORMALIZE_INPUT
def test_gradients_are_those_of_the_papers_equation(form, vladv2, normalize_input):
    """Also of the form that is exported, which autograd differentiates step by step."""
    layer, features = make_layer(vladv2, normalize_input, form=form), make_map().requires_grad_()
    wanted = [features, *layer.parameters()]
    direction = torch.randn(SHAPE[0], CLUSTERS * SHAPE[1], generator=torch.Generator().manual_seed(5)).double()
    reference, *_ = equation(features, *parts(layer), normalize_input)
    expected = torch.autograd.grad((reference * direction).sum(), wanted)
    for function in (layer, layer.plain()) if form is NetVLADPooling else (layer,):
        found = function(features)
        torch.testing.assert_close(found, reference, rtol=1e-9, atol=1e-11)
        for ours, theirs in zip(torch.autograd.grad((found * direction).sum(), wanted), expected, strict=True):
            assert theirs.abs().max() > 1e-3
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_map_is_read_as_it_lies_and_its_gradient_lies_likewise(layout):
    """No copy of the map in either layout, and the same values and gradients."""
    layer = make_layer(False, form=NetVLADPooling)
    features = make_map(shape=(2, 7, 3, 5)).contiguous(memory_format=layout).requires_grad_()
    with torch.profiler.profile(record_shapes=True) as profile:
        found = layer(features)
        (gradient,) = torch.autograd.grad(found[:, ::3].sum(), features)
    copied = [event.input_shapes[0] for event in profile.events() if event.name == "aten::copy_"]
    assert [2, 7, 3, 5] not in copied and [2, 7, 15] not in copied
    assert gradient.is_contiguous(memory_format=layout)
    wanted, *_ = equation(features, *parts(layer), True)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    expected = torch.autograd.grad(wanted[:, ::3].sum(), features)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


@VERSIONS
def test_it_starts_from_cosines_or_from_squared_distances(vladv2):
    random = np.random.default_rng(2)
    centres = unit_rows(random, 5, 7) * random.uniform(0.3, 0.9, (5, 1))
    descriptors = unit_rows(random, 40, 7)
    directions = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    if vladv2:
        far = np.sort([[((x - c) ** 2).sum() for c in centres] for x in descriptors], axis=1)
    else:
        far = np.sort(-descriptors @ directions.T, axis=1)
    expected = -np.log(0.01) / np.mean(far[:, 1] - far[:, 0])

    layer = make_layer(vladv2, clusters=5)
    alpha = layer.init_params(torch.from_numpy(centres), torch.from_numpy(descriptors))
    assert alpha == pytest.approx(expected, rel=1e-12)
    weights = 2 * expected * centres if vladv2 else expected * directions
    np.testing.assert_allclose(layer.conv.weight.detach()[:, :, 0, 0], weights, rtol=1e-11)
    if vladv2:
        np.testing.assert_allclose(layer.conv.bias.detach(), -expected * (centres**2).sum(axis=1), rtol=1e-11)
    else:
        assert layer.conv.bias is None
    np.testing.assert_array_equal(layer.centroids.detach(), centres)


def test_version_2_assigns_by_squared_distance():
    random = np.random.default_rng(4)
    centres, descriptors = 0.7 * unit_rows(random, 5, 7), unit_rows(random, 40, 7)
    layer = make_layer(True, clusters=5)
    alpha = layer.init_params(torch.from_numpy(centres), torch.from_numpy(descriptors))
    powers = np.exp([[-alpha * ((x - c) ** 2).sum() for c in centres] for x in descriptors])  # equation 2
    with torch.no_grad():
        shares = layer.conv(torch.from_numpy(descriptors)[:, :, None, None]).softmax(dim=1)[:, :, 0, 0]
    np.testing.assert_allclose(shares, powers / powers.sum(axis=1, keepdims=True), rtol=1e-9)


@VERSIONS
def test_second_nearest_gets_a_hundredth_where_all_gaps_are_equal(vladv2):
    random = np.random.default_rng(6)
    centres = unit_rows(random, 2, 7) * [[0.5], [0.8]]
    if vladv2:  # |x - c2|^2 - |x - c1|^2 = 2 x.(c1 - c2) + |c2|^2 - |c1|^2
        axis, offset = 2 * (centres[0] - centres[1]), (centres[1] ** 2).sum() - (centres[0] ** 2).sum()
    else:
        directions = centres / np.linalg.norm(centres, axis=1, keepdims=True)
        axis, offset = directions[0] - directions[1], 0.0
    descriptors = []
    for gap in (0.2, -0.2) * 10:  # unit vectors x with x.axis + offset = gap
        along = (gap - offset) / np.linalg.norm(axis)
        across = random.normal(size=7)
        across -= across @ axis / (axis @ axis) * axis
        across *= math.sqrt(1 - along**2) / np.linalg.norm(across)
        descriptors.append(along * axis / np.linalg.norm(axis) + across)
    descriptors = np.array(descriptors)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1)

    layer = make_layer(vladv2, clusters=2)
    alpha = layer.init_params(torch.from_numpy(centres), torch.from_numpy(descriptors))
    assert alpha == pytest.approx(math.log(100) / 0.2)
    with torch.no_grad():
        shares = layer.conv(torch.from_numpy(descriptors)[:, :, None, None]).softmax(dim=1)[:, :, 0, 0].numpy()
    np.testing.assert_allclose(shares[0::2, 1] / shares[0::2, 0], 0.01, rtol=1e-9)
    np.testing.assert_allclose(shares[1::2, 0] / shares[1::2, 1], 0.01, rtol=1e-9)


@VERSIONS
def test_scale_of_the_input_does_not_matter(vladv2):
    features = make_map()
    scales = torch.rand(SHAPE[0], 1, *SHAPE[2:], generator=torch.Generator().manual_seed(7)).double() * 9 + 0.1
    with torch.no_grad():
        layer = make_layer(vladv2)
        torch.testing.assert_close(layer(features * scales), layer(features), rtol=0, atol=1e-12)
        as_is = make_layer(vladv2, normalize_input=False)
        assert (as_is(features * scales) - as_is(features)).abs().max() > 1e-2


@VERSIONS
def test_order_of_the_locations_does_not_matter_but_that_of_the_images_does(vladv2):
    layer, features = make_layer(vladv2), make_map()
    with torch.no_grad():
        expected = layer(features)
        torch.testing.assert_close(layer(features.flip(2, 3)), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(layer(features.flip(0)), expected.flip(0), rtol=0, atol=1e-12)
        assert (expected[0] - expected[1]).abs().max() > 1e-2


@VERSIONS
@NORMALIZE_INPUT
def test_descriptor_and_its_clusters_have_equal_lengths(vladv2, normalize_input):
    with torch.no_grad():
        descriptors = make_layer(vladv2, normalize_input)(make_map()).numpy()
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, rtol=1e-12)
    rows = descriptors.reshape(SHAPE[0], CLUSTERS, SHAPE[1])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=2), 1 / math.sqrt(CLUSTERS), rtol=1e-12)


@FORMS
@VERSIONS
@NORMALIZE_INPUT
def test_black_input_stays_finite(form, vladv2, normalize_input):
    """Without descriptors every residual points away from its centre."""
    layer = make_layer(vladv2, normalize_input, form=form).float()
    features = torch.zeros(SHAPE, requires_grad=True)
    found = layer(features)
    centres = layer.centroids.detach()
    expected = -centres / centres.norm(dim=1, keepdim=True) / math.sqrt(CLUSTERS)
    torch.testing.assert_close(found.detach(), expected.flatten().expand(SHAPE[0], -1))
    found.pow(3).sum().backward()
    for tensor in (features, *layer.parameters()):
        assert torch.isfinite(tensor.grad).all()


@VERSIONS
def test_equal_centres_share_equally(vladv2):
    """Without any gap alpha has a limit instead of dividing by 0."""
    centres = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]], dtype=torch.float64)
    descriptors = torch.eye(3, dtype=torch.float64)
    layer = make_layer(vladv2, clusters=2, dim=3)
    assert math.isfinite(layer.init_params(centres, descriptors))
    with torch.no_grad():
        found = layer(make_map(shape=(1, 3, 2, 2)))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[:, :3], found[:, 3:])


@VERSIONS
def test_one_cluster_has_no_second_nearest(vladv2):
    with pytest.raises(ValueError, match="2 clusters or more, found 1"):
        NetVLAD(num_clusters=1, dim=3, vladv2=vladv2).init_params(torch.ones(1, 3), torch.eye(3))
