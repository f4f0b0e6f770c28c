"""Contributions add up to similarities, shares are the softmax's, and the pictures show both where they are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from torch import nn

from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec
from vpr.common.errors import UserError
from vpr.evaluation import explanation
from vpr.evaluation.explanation import Explanation, explain, opened_at_pooling
from vpr.models.onnx_model import OnnxModel
from vpr.models.place_model import build_model
from vpr.models.poolings.netvlad_pooling import NetVLADPooling
from vpr.models.spec import ModelSpec
from vpr.models.whitening import Whitening
from vpr.report.heatmaps import (
    cluster_caption,
    cluster_colours,
    contribution_caption,
    draw_clusters,
    draw_contributions,
    explain_pair,
)
from vpr.report.panels import CELL, FRAME, LINE

CPU = torch.device("cpu")
CLUSTERS = 4


@pytest.fixture(params=[False, True], ids=["v1", "v2"])
def model(request):
    """A fast model whose descriptors tell images apart: its centres lie as near 0 as local descriptors do."""
    version = ["--vladv2"] if request.param else []
    flags = ["--mode=train", "--arch=alexnet", "--fromscratch", f"--num_clusters={CLUSTERS}", *version]
    torch.manual_seed(0)
    model = build_model(model_spec(parse_options(flags))).eval()
    nn.init.normal_(model.pool.centroids, std=0.02)
    nn.init.normal_(model.pool.conv.weight, std=3.0)
    if request.param:
        nn.init.normal_(model.pool.conv.bias)
    return model


@pytest.fixture
def images():
    """Two unlike images, uint8 [1, 3, H, W] each, of different sizes."""
    random = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=random) for size in ((96, 128), (80, 64))]


@pytest.fixture
def files(images, tmp_path):
    """The same two, one lying and one upright, as files without loss."""
    paths = [tmp_path / "query.png", tmp_path / "match.png"]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(path)
    return paths


def of_layer(layer):
    """A model that pools a given map of local descriptors."""
    return SimpleNamespace(pool=layer, whitening=None, local_descriptors=lambda features: features, pooled=layer)


@torch.no_grad()
def soft_assignment(model, image):
    return explanation.owners(model.pool, model.local_descriptors(image))


@torch.no_grad()
def region_contributions(model, image, other):
    return explanation.region_contributions(model, model.pool, model.local_descriptors(image), other)


def random_layer(normalize_input):
    """3 clusters of 5 dimensions with every parameter random, in float64."""
    torch.manual_seed(2)
    layer = NetVLADPooling(3, 5, vladv2=True, normalize_input=normalize_input).double()
    for values in layer.parameters():
        nn.init.normal_(values)
    return layer


def random_whitening(model, kind, dim=6):
    """Of kind `projected`, `removed and projected`, or `removed`."""
    random = torch.Generator().manual_seed(3)
    mean = torch.randn(model.pooled_dim, generator=random) / model.pooled_dim**0.5
    projection = torch.randn(dim, model.pooled_dim, generator=random)
    if kind == "projected":
        return Whitening(mean, projection)
    others = torch.randn(model.pooled_dim, model.pooled_dim // 4, generator=random)
    whitening = Whitening(mean, projection, removed=torch.linalg.qr(others).Q.T)
    return whitening.cropped(model.pooled_dim) if kind == "removed" else whitening


WHITENED = ["", "projected", "removed and projected", "removed"]


def unrolled(layer, features):
    """Inputs y [P, D] and shares a [P, K] of a layer, one region and one cluster at a time."""
    weight, bias = layer.conv.weight.detach().flatten(1).numpy(), layer.conv.bias.detach().numpy()
    inputs, shares = [], []
    for x in features.flatten(2)[0].T.numpy():
        y = x / np.sqrt((x * x).sum()) if layer.normalize_input else x
        powers = [np.exp(np.dot(weight[k], y) + bias[k]) for k in range(layer.num_clusters)]
        inputs.append(y)
        shares.append([power / sum(powers) for power in powers])
    return np.array(inputs), np.array(shares)


@pytest.mark.parametrize("normalize_input", [True, False])
@pytest.mark.parametrize("whitened", WHITENED)
@torch.no_grad()
def test_contributions_and_constant_add_up_to_the_similarity(model, images, normalize_input, whitened):
    model.pool.normalize_input = normalize_input
    contributions = sums_up(model, images, whitened, has_constant=whitened not in ("", "removed"))
    assert contributions.shape == model.local_descriptors(images[0]).shape[2:]


def sums_up(model, images, whitened, has_constant):
    """Whether each image's contributions add up to the similarity of the two; gives those of the first."""
    if whitened:
        model.whiten(random_whitening(model, whitened))
    first, second = (model(image)[0] for image in images)
    assert first @ second < 0.99  # else every image would do
    found = [region_contributions(model, *each) for each in zip(images, (second, first), strict=True)]
    for contributions, constant in found:
        assert contributions.sum().item() + constant == pytest.approx((first @ second).item(), abs=1e-5)
        assert (constant != 0) == has_constant
    return found[0][0]


@pytest.mark.parametrize(
    "settings", [{"vlad_assign": "hard"}, {"cluster_dim": 7}, {"vlad_assign": "hard", "cluster_dim": 7}]
)
@pytest.mark.parametrize("whitened", WHITENED)
@torch.no_grad()
def test_they_add_up_with_hard_assignment_and_a_projection_of_the_clusters(images, settings, whitened):
    torch.manual_seed(0)
    model = build_model(ModelSpec("alexnet", "none", clusters=CLUSTERS, **settings)).eval()
    for name, values in model.pool.named_parameters():
        nn.init.normal_(values, std={"centroids": 0.02, "conv.weight": 3.0}.get(name, 0.1))
    sums_up(model, images, whitened, whitened not in ("", "removed") or "cluster_dim" in settings)
    clusters, shares = soft_assignment(model, images[0])
    assert ((shares == 1).all().item()) == ("vlad_assign" in settings) and len(clusters.unique()) > 1


@torch.no_grad()
def test_an_image_adds_up_to_one_against_itself(model, images):
    contributions, constant = region_contributions(model, images[0], model(images[0])[0])
    assert (contributions.sum().item(), constant) == (pytest.approx(1, abs=1e-5), 0)


def test_stored_descriptors_of_half_precision_will_do(model, images):
    with torch.no_grad():
        other = model(images[1])[0]
    wanted, _ = region_contributions(model, images[0], other)
    found, _ = region_contributions(model, images[0], other.half())
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max()


def test_one_cluster_at_the_origin_has_a_closed_form():
    """All shares are 1 and v = (2, 1) / sqrt(5): each y adds y . g / sqrt(5)."""
    layer = NetVLADPooling(1, 2, normalize_input=False)
    nn.init.zeros_(layer.centroids)
    features = torch.tensor([[[[1.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]])  # [1, 2, 1, 3]
    contributions, constant = region_contributions(of_layer(layer), features, torch.tensor([0.6, 0.8]))
    assert torch.allclose(contributions, torch.tensor([[0.6, 0.8, 0.6]]) / 5**0.5)
    assert constant == 0


@pytest.mark.parametrize(("normalize_input", "projected"), [(True, False), (False, False), (True, True)])
def test_contribution_is_what_is_lost_without_the_region_under_the_same_norms(normalize_input, projected):
    layer = random_layer(normalize_input)
    matrix, bias = np.eye(5), np.zeros(5)
    if projected:
        layer.project_clusters(5, 2)
        layer.double()
        nn.init.normal_(layer.projection.bias)
        matrix, bias = (getattr(layer.projection, name).detach().numpy() for name in ("weight", "bias"))
    features, other = torch.randn(1, 5, 2, 3, dtype=torch.float64), torch.randn(3 * len(bias), dtype=torch.float64)
    inputs, shares = unrolled(layer, features)
    centroids = layer.centroids.detach().numpy()

    def residuals(regions):
        return np.array([sum(shares[p, k] * (inputs[p] - centroids[k]) for p in regions) for k in range(3)])

    norms = np.sqrt((residuals(range(6)) ** 2).sum(axis=1, keepdims=True))

    def mapped(regions):
        return (residuals(regions) / norms) @ matrix.T + bias

    length = np.sqrt((mapped(range(6)) ** 2).sum())

    def similarity(regions):
        return (mapped(regions) / length * other.numpy().reshape(3, -1)).sum()

    lost = [similarity(range(6)) - similarity([p for p in range(6) if p != left_out]) for left_out in range(6)]
    contributions, constant = region_contributions(of_layer(layer), features, other)
    assert np.allclose(contributions.numpy(), np.reshape(lost, (2, 3)))
    assert constant == pytest.approx((bias / length * other.numpy().reshape(3, -1)).sum())


@pytest.mark.parametrize("kind", ["projected", "removed and projected"])
@torch.no_grad()
def test_whitened_contribution_is_the_derivative_of_the_unnormalised_similarity(model, images, kind):
    """With |W (v - mean)| fixed the similarity is linear in v: g is its gradient, taken here by autograd."""
    model.whiten(random_whitening(model, kind))
    other = model(images[1])[0]
    whitened, _ = region_contributions(model, images[0], other)
    whitening, model.whitening = model.whitening, None
    pooled = model(images[0])[0]
    with torch.enable_grad():
        leaf = pooled.clone().requires_grad_()
        centred = leaf - whitening.mean
        for direction in () if whitening.removed is None else whitening.removed:
            centred = centred - (centred @ direction) * direction
        centred = centred @ whitening.projection.T
        (slope,) = torch.autograd.grad(centred @ other / centred.detach().norm(), leaf)
    plain, _ = region_contributions(model, images[0], slope)
    assert (whitened - plain).abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.parametrize("normalize_input", [True, False])
def test_assignment_is_the_largest_share_of_a_brute_force_softmax(normalize_input):
    layer = random_layer(normalize_input)
    features = torch.randn(1, 5, 2, 3, dtype=torch.float64)
    _, wanted = unrolled(layer, features)  # [P, K]
    clusters, shares = soft_assignment(of_layer(layer), features)
    assert clusters.dtype == torch.int64
    assert clusters.tolist() == wanted.argmax(axis=1).reshape(2, 3).tolist()
    assert np.allclose(shares.numpy(), wanted.max(axis=1).reshape(2, 3))
    assert len(clusters.unique()) > 1


def test_models_without_clusters_are_refused(tmp_path):
    pooled = build_model(ModelSpec("alexnet", "none", pooling="max"))
    exported = OnnxModel.__new__(OnnxModel)  # reading a file would need ONNX Runtime
    for model, found in ((pooled, "--pooling=max"), (exported, ".onnx")):
        for call in (
            lambda model=model: opened_at_pooling(model),
            lambda model=model: explain_pair(model, tmp_path / "none.jpg", tmp_path / "none.jpg", None),
        ):
            with pytest.raises(UserError, match="--explain needs a run with NetVLAD") as raised:
                call()
            assert found in str(raised.value) and "\n" not in str(raised.value)


@torch.no_grad()
def test_each_image_of_a_pair_is_explained_against_the_other(model, images, files):
    model.whiten(random_whitening(model, "projected"))
    similarity = (model(images[0])[0] @ model(images[1])[0]).item()
    for image, one in zip(images, explain(model, *files, None), strict=True):
        assert one.contributions.sum().item() + one.constant == pytest.approx(similarity, abs=1e-5)
        clusters, shares = soft_assignment(model, image)
        assert torch.equal(one.clusters, clusters) and torch.allclose(one.shares, shares)


def test_strip_has_four_cells_with_captions_in_them(model, files):
    width, height = CELL[0] + 2 * FRAME, CELL[1] + 3 * FRAME + 2 * LINE
    for size in (None, (72, 88)):
        strip = explain_pair(model, *files, size)
        assert strip.size == (4 * width, height)
        below = np.asarray(strip.convert("L"))[CELL[1] + 2 * FRAME :].reshape(2 * LINE + FRAME, 4, width)
        ink = (below < 128).any(axis=0)  # [4, width]
        assert ink[:, : width // 2].any(axis=1).all()
        assert not ink[:, -FRAME:].any()
        assert not (below[-1] < 128).any()


def test_longest_captions_fit_below_a_picture():
    font = ImageFont.load_default(12)
    clusters, contributions = torch.arange(256).view(16, 16), torch.full((10, 10), -0.1234)
    explanation = Explanation(clusters, torch.ones(16, 16), contributions, 12.0)
    tiny = Explanation(clusters, torch.ones(16, 16), contributions * 1e-5, 0.0)
    lines = cluster_caption("match", clusters, 256)
    for each in (explanation, tiny):
        lines += contribution_caption(each)
    assert max(font.getlength(line) for line in lines) < CELL[0]


def test_captions_say_owners_sum_scale_and_similarity():
    contributions = torch.tensor([[0.5, -0.25], [0.125, 0.125]])
    explanation = Explanation(torch.tensor([[0, 5], [5, 0]]), torch.ones(2, 2), contributions, 0.0)
    assert "2 of 64 clusters" in cluster_caption("query", explanation.clusters, 64)[0]
    assert contribution_caption(explanation)[0] == "adds to similarity 0.50 in all"
    assert contribution_caption(explanation)[1] == "red adds, blue takes, full at 0.5"
    whitened = Explanation(explanation.clusters, explanation.shares, contributions, -0.3)
    assert contribution_caption(whitened)[0] == "similarity 0.20, regions 0.50"


def test_heat_is_red_where_regions_add_and_blue_where_they_take_away():
    grey = Image.new("L", (120, 60), 100)
    contributions = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    red, _, blue = np.moveaxis(np.asarray(draw_contributions(grey, contributions)).astype(int), 2, 0)
    assert np.unravel_index((red - blue).argmax(), red.shape) == (0, 0)
    warmth = red - blue
    assert warmth[15, 20] > 0 and warmth[45, 100] < 0
    assert abs(warmth[59, 0]) <= 2, "nothing is added where a region adds nothing, furthest from those that do"
    assert warmth[59, 119] == pytest.approx(-warmth[0, 0] / 2, abs=2)  # half as much, half as blue
    assert (np.asarray(draw_contributions(grey, torch.zeros(2, 3))) == 100).all()


def test_clusters_have_colours_of_their_own_and_a_small_share_is_pale():
    grey = Image.new("L", (60, 40), 100)
    clusters = torch.tensor([[0, 1, 0], [2, 2, 1]])
    whole = np.asarray(draw_clusters(grey, clusters, torch.ones(2, 3), 3)).astype(int)
    corners = {(y, x): whole[y, x].tolist() for y in (0, 39) for x in (0, 30, 59)}
    assert corners[0, 0] == corners[0, 59] and corners[0, 30] == corners[39, 59] and corners[39, 0] == corners[39, 30]
    assert len({tuple(colour) for colour in corners.values()}) == 3
    pale = np.asarray(draw_clusters(grey, clusters, torch.full((2, 3), 0.5), 3)).astype(int)
    assert np.abs(2 * (pale - 100) - (whole - 100)).max() <= 2


@pytest.mark.parametrize("count", [1, 4, 64, 256])
def test_no_two_clusters_share_a_colour(count):
    colours = np.rint(255 * cluster_colours(count)).astype(int)
    assert colours.shape == (count, 3)
    apart = np.abs(colours[:, None] - colours[None]).max(axis=2) + 255 * np.eye(count)
    assert apart.min() >= min(4, 256 // count)
