"""VLAD with hard assignment, and the linear map that all clusters share (NVL): a literal loop and closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from vpr.common.errors import UserError
from vpr.models.place_model import PlaceModel, PlainPlaceModel, build_model
from vpr.models.poolings.base import ClusterProjection, build_pooling
from vpr.models.poolings.hard_vlad import HardVLAD
from vpr.models.poolings.netvlad_pooling import NetVLADPooling
from vpr.models.spec import ModelSpec

CLUSTERS, DIM = 3, 6
ASSIGNMENTS = pytest.mark.parametrize("assign", ["soft", "hard"])


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_with(centres):
    """Hard assignment to centres [K, D]."""
    layer = HardVLAD(*centres.shape).double()
    layer.init_from(centres, F.normalize(random(20, centres.shape[1]), dim=1))
    return layer


def make_layer(assign, cluster_dim, vladv2=False):
    """A pooling with every parameter random, in float64."""
    spec = ModelSpec(clusters=CLUSTERS, vlad_assign=assign, cluster_dim=cluster_dim, vladv2=vladv2)
    layer = build_pooling("netvlad", DIM, spec).double()
    for seed, values in enumerate(layer.parameters()):
        nn.init.normal_(values, generator=torch.Generator().manual_seed(seed))
    return layer


def unit(values):
    """A vector of length 1, or zeros."""
    length = np.sqrt((values**2).sum())
    return values / length if length else values


def by_loop(layer, assign, features):
    """One image, one location, one cluster at a time; NumPy only. [B, D, H, W] -> [B, out_dim]."""
    values = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    centres, descriptors = values["centroids"], []
    for image in features.numpy():
        sums = np.zeros(centres.shape)
        for y in map(unit, image.reshape(centres.shape[1], -1).T):
            if assign == "soft":
                powers = np.exp([(w * y).sum() for w in values["conv.weight"][:, :, 0, 0]])
                shares = powers / powers.sum()
            else:
                shares = np.eye(len(centres))[np.argmax([(unit(centre) * y).sum() for centre in centres])]
            for k, centre in enumerate(centres):
                sums[k] += shares[k] * (y - centre)
        rows = [unit(row_sum) for row_sum in sums]
        if layer.projection is not None:
            rows = [values["projection.weight"] @ row + values["projection.bias"] for row in rows]
        descriptors.append(unit(np.concatenate(rows)))
    return np.array(descriptors)


@pytest.mark.parametrize(("assign", "cluster_dim"), [("hard", None), ("soft", 4), ("hard", 4)])
def test_it_is_the_loop_over_locations(assign, cluster_dim):
    layer, features = make_layer(assign, cluster_dim), random(2, DIM, 3, 5, seed=9)
    wanted = by_loop(layer, assign, features)
    assert wanted.shape == (2, CLUSTERS * (cluster_dim or DIM))
    for form in (layer, layer.plain()):
        np.testing.assert_allclose(form(features).detach().numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_more_clusters_than_dimensions_are_the_loop_too():
    features, centres = random(3, 5, 4, 6), random(7, 5, seed=1) * 0.4
    layer = layer_with(centres)
    found = layer(features).detach().numpy()
    np.testing.assert_allclose(found, by_loop(layer, "hard", features), rtol=1e-10, atol=1e-12)


# Hard assignment


def test_two_clusters_by_hand():
    """Directions (1, 0), (.8, .6) go to the centre (.5, 0) and (0, 1) to (0, .5): sums (.8, .6) and (0, .5)."""
    features = torch.tensor([[[[2.0, 4.0, 0.0]], [[0.0, 3.0, 5.0]]]], dtype=torch.float64)  # [1, 2, 1, 3]
    found = layer_with(torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=torch.float64))(features)[0]
    np.testing.assert_allclose(found.detach().numpy(), np.array([0.8, 0.6, 0.0, 1.0]) / np.sqrt(2), rtol=1e-12)


def test_the_nearest_centre_is_that_of_the_largest_cosine_whatever_its_length():
    """At 20 degrees: the short centre at 0 degrees has the larger cosine, the long one at 45 the smaller distance."""
    angle = np.radians(20)
    y = np.array([np.cos(angle), np.sin(angle)])
    centres = np.array([[0.1, 0.0], [0.9 * np.sqrt(0.5), 0.9 * np.sqrt(0.5)]])
    assert np.linalg.norm(y - centres[0]) > np.linalg.norm(y - centres[1])
    _, shares = layer_with(torch.from_numpy(centres)).assign(torch.from_numpy(y)[None, :, None])
    assert shares[0, :, 0].tolist() == [1, 0]


def test_shares_are_one_and_the_centres_those_of_k_means():
    centres = random(4, 5) * 0.3
    layer = layer_with(centres)
    summed, shares = layer.assign(random(2, 5, 9, seed=2))
    assert torch.equal(layer.centroids.detach(), centres), "not normalised again"
    assert set(shares.unique().tolist()) == {0.0, 1.0} and torch.equal(shares.sum(dim=1), torch.ones_like(shares[:, 0]))
    torch.testing.assert_close(summed.norm(dim=1), torch.ones_like(summed[:, 0]))


def test_netvlad_becomes_it_as_alpha_grows():
    features, centres = random(2, 5, 4, 6), random(3, 5, seed=1) * 0.4
    soft = NetVLADPooling(3, 5).double()
    soft.init_from(centres, F.normalize(random(20, 5), dim=1))
    wanted = layer_with(centres)(features)
    assert (soft(features) - wanted).abs().max() > 0.01
    with torch.no_grad():
        soft.conv.weight.copy_(1e6 * F.normalize(centres, dim=1)[:, :, None, None])
    torch.testing.assert_close(soft(features), wanted)


def test_gradients_are_those_of_finite_differences():
    """Of local descriptors and centres; no descriptor lies where the assignment jumps."""
    features = random(2, 4, 4, 4).requires_grad_()
    centres = (random(3, 4, seed=1) * 0.1 + 0.4 * torch.eye(3, 4, dtype=torch.float64)).requires_grad_()
    layer = layer_with(centres.detach())
    _, shares = layer.assign(features.flatten(2))
    assert (shares.sum(dim=2) > 0).sum(dim=1).tolist() == [3, 3], "all clusters have descriptors"
    cosines = (F.normalize(centres, dim=1) @ F.normalize(features.flatten(2), dim=1)).topk(2, dim=1).values
    assert (cosines[:, 0] - cosines[:, 1]).min() > 1e-3

    def pooled(features, centres):
        return functional_call(layer, {"centroids": centres}, (features,))

    assert torch.autograd.gradcheck(pooled, (features, centres))


def test_an_empty_cluster_is_zero_and_gets_no_gradient():
    centres = torch.eye(3, dtype=torch.float64) * torch.tensor([[1.0], [1.0], [-1.0]], dtype=torch.float64)
    layer, features = layer_with(centres / 2), random(1, 3, 4, 4).abs().requires_grad_()
    found = layer(features)
    assert found[0, 6:].tolist() == [0, 0, 0] and found.norm().item() == pytest.approx(1)
    (found * random(1, 9, seed=3)).sum().backward()
    assert features.grad.isfinite().all() and layer.centroids.grad[2].tolist() == [0, 0, 0]
    assert (layer.centroids.grad[:2] != 0).any()


def test_black_input_stays_finite():
    layer, features = layer_with(random(3, 5) * 0.4), torch.zeros(1, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    layer(features).sum().backward()
    assert features.grad.isfinite().all() and layer.centroids.grad.isfinite().all()


def test_a_model_says_how_it_assigns_and_trains_its_centres_alone():
    model = PlaceModel(ModelSpec("alexnet", "none", clusters=4, vlad_assign="hard"))
    assert model.dim == 4 * 256 and "VLAD (hard assignment) with 4 clusters, 1024-D" in model.name
    assert [name for name, _ in model.pool.named_parameters()] == ["centroids"]


# The map of clusters


@ASSIGNMENTS
def test_gradients_of_the_map_too_are_those_of_finite_differences(assign):
    layer, features = make_layer(assign, 2), random(1, DIM, 2, 4, seed=4).requires_grad_()
    named = {name: values.detach().clone().requires_grad_() for name, values in layer.named_parameters()}
    assert {"projection.weight", "projection.bias", "centroids"} <= named.keys()
    if assign == "hard":
        assert (layer.assign(features.flatten(2))[1].sum(dim=2) > 0).all(), "all clusters have descriptors"

    def pooled(features, *values):
        return functional_call(layer, dict(zip(named, values, strict=True)), (features,))

    assert torch.autograd.gradcheck(pooled, (features, *named.values()))


def clustered_descriptors(count=9000):
    """Descriptors of length 1 around 3 centres, spread most along some directions; and the centres' mean."""
    spread = torch.tensor([0.3, 0.25, 0.2, 0.1, 0.05, 0.02], dtype=torch.float64)
    owners = torch.arange(count) % CLUSTERS
    directions = torch.eye(DIM, dtype=torch.float64)[:CLUSTERS]
    descriptors = F.normalize(directions[owners] + random(count, DIM) * spread, dim=1)
    return descriptors, torch.stack([descriptors[owners == k].mean(dim=0) for k in range(CLUSTERS)])


@pytest.mark.parametrize(("assign", "vladv2"), [("soft", False), ("soft", True), ("hard", False)])
def test_it_starts_from_the_principal_directions_of_the_residuals(assign, vladv2):
    """Of as many descriptors as are taken in more than one part, by the singular vectors of all residuals."""
    descriptors, centres = clustered_descriptors()
    layer = make_layer(assign, 4, vladv2)
    layer.init_from(centres, descriptors)
    rows, means = descriptors.numpy(), centres.numpy()
    if vladv2:
        nearest = ((rows[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    else:
        nearest = (rows @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(axis=1)
    wanted = np.linalg.svd(rows - means[nearest], full_matrices=False)[2][:4]
    found = layer.projection.weight.detach().numpy()
    np.testing.assert_allclose(np.abs((found * wanted).sum(axis=1)), 1, rtol=1e-9)
    assert (found[range(4), np.abs(found).argmax(axis=1)] > 0).all(), "the sign is settled"
    np.testing.assert_allclose(found @ found.T, np.eye(4), atol=1e-12)
    assert not layer.projection.bias.any()


@ASSIGNMENTS
def test_with_as_many_dimensions_the_start_changes_no_similarity(assign):
    descriptors, centres = clustered_descriptors(600)
    layers = [make_layer(assign, cluster_dim) for cluster_dim in (DIM, None)]
    for layer in layers:
        layer.init_from(centres, descriptors)
    mapped, plain = (layer(random(8, DIM, 4, 4, seed=5)) for layer in layers)
    assert (mapped - plain).abs().max() > 0.01
    torch.testing.assert_close(mapped @ mapped.T, plain @ plain.T)


def test_descriptors_that_are_their_centres_give_an_orthonormal_start_too():
    centres = F.normalize(random(CLUSTERS, DIM), dim=1)
    layer = make_layer("soft", 4)
    layer.init_from(centres, centres)
    weight = layer.projection.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(4, dtype=torch.float64))


def test_the_map_is_float32_of_float64_sums():
    projection, rows = ClusterProjection(3, 1), torch.tensor([[3.0, 4.0, 0.0]])
    projection.init_from([rows, -2 * rows])
    torch.testing.assert_close(projection.weight.detach(), torch.tensor([[0.6, 0.8, 0.0]]))


def test_a_model_has_fewer_dimensions_and_says_so():
    for assign, label in (("soft", "NetVLAD"), ("hard", "VLAD (hard assignment)")):
        model = PlaceModel(ModelSpec("alexnet", "none", clusters=4, cluster_dim=16, vlad_assign=assign))
        assert model.dim == 64 and f"{label} with 4 clusters of 16 dimensions, 64-D" in model.name
        assert model.state_dict()["pool.projection.weight"].shape == (16, 256)
        assert model.pool.projection.weight.requires_grad and model.pool.projection.bias.requires_grad


def test_the_map_is_counted_once_for_each_cluster():
    """2 K D N operations, of which a multiplication with an addition is two."""
    with_map, without = (ModelSpec("alexnet", "none", clusters=4, cluster_dim=dim) for dim in (16, None))
    found = PlaceModel(with_map).gflop(96, 128) - PlaceModel(without).gflop(96, 128)
    assert found == pytest.approx(2 * 4 * 256 * 16 / 1e9, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"cluster_dim": 16}, {"vlad_assign": "hard"}, {"vlad_assign": "hard", "cluster_dim": 16}]
)
def test_an_exported_file_gives_what_the_model_gives(settings, tmp_path):
    """In float32 to 1e-5 for other numbers and sizes of images; in float16 finite where clusters are empty."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from vpr.compression.onnx_export import export_plain, to_float16

    model = build_model(ModelSpec("alexnet", "none", clusters=5, **settings)).eval()
    images = torch.randint(0, 256, (3, 3, 100, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = F.normalize(model.local_descriptors(images), dim=1).permute(0, 2, 3, 1).flatten(0, 2)  # [N, D]
        away = F.normalize(-rows.mean(dim=0, keepdim=True), dim=1)  # a centre that no descriptor is near
        model.pool.init_from(torch.cat([0.9 * rows[::25][:4], away]), rows)
        wanted = model(images).numpy()
        shares = model.pool.assign(model.local_descriptors(images).flatten(2))[1].sum(dim=2)
    assert "vlad_assign" not in settings or (shares[:, 4] == 0).all()
    assert np.linalg.norm(wanted[0] - wanted[1]) > 1e-2
    file = tmp_path / "model.onnx"
    for convert, bound in ((lambda _: export_plain(model, file), 1e-5), (to_float16, 0.02)):
        convert(file)
        session = onnxruntime.InferenceSession(str(file))
        (found,) = session.run(None, {"photos": images.permute(0, 2, 3, 1).contiguous().numpy()})
        assert np.abs(found - wanted).max() < bound
    with torch.no_grad():
        plain = PlainPlaceModel(model)(images.permute(0, 2, 3, 1))
    np.testing.assert_allclose(plain.numpy(), wanted, atol=1e-5)


# What cannot be


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"vlad_assign": "hard", "pooling": "max"}, "--vladAssign=hard is a form of netvlad, not of --pooling=max"),
        ({"vlad_assign": "hard", "vladv2": True}, "--vladv2 is a soft assignment, --vladAssign=hard"),
        ({"vlad_assign": "firm"}, "--vladAssign=firm is unknown, wanted one of soft, hard"),
        ({"cluster_dim": 257}, "--clusterDim=257: local descriptors of this backbone have 256 dimensions"),
        ({"cluster_dim": 16, "pooling": "gem"}, "--clusterDim=16 maps clusters, --pooling=gem has none"),
        ({"cluster_dim": 16, "pooling": "avg"}, "--clusterDim=16 maps clusters, --pooling=avg has none"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(settings, said):
    with pytest.raises(UserError) as raised:
        PlaceModel(ModelSpec("alexnet", "none", **settings))
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_as_many_dimensions_as_local_descriptors_have_are_accepted():
    assert PlaceModel(ModelSpec("alexnet", "none", clusters=2, cluster_dim=256)).dim == 512
