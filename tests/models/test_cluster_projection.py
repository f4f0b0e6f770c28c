"""The linear map that all clusters share (NVL): a literal loop, its start, its gradient and its limits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from vpr.common.errors import UserError
from vpr.models.place_model import PlaceModel, PlainPlaceModel, build_model
from vpr.models.poolings.base import ClusterProjection, build_pooling
from vpr.models.spec import ModelSpec

CLUSTERS, DIM = 3, 6
ASSIGNMENTS = pytest.mark.parametrize("assign", ["soft", "hard"])


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_layer(assign, cluster_dim, vladv2=False):
    """A pooling with every parameter random, in float64."""
    spec = ModelSpec(clusters=CLUSTERS, vlad_assign=assign, cluster_dim=cluster_dim, vladv2=vladv2)
    layer = build_pooling("netvlad", DIM, spec).double()
    for seed, values in enumerate(layer.parameters()):
        nn.init.normal_(values, generator=torch.Generator().manual_seed(seed))
    return layer


def nvl_by_loop(layer, assign, features):
    """One image, one location, one cluster at a time; NumPy only. [B, D, H, W] -> [B, K * N]."""
    centres = layer.centroids.detach().numpy()
    matrix, bias = layer.projection.weight.detach().numpy(), layer.projection.bias.detach().numpy()
    descriptors = []
    for image in features.numpy():
        sums = np.zeros(centres.shape)
        for x in image.reshape(DIM, -1).T:
            y = x / np.sqrt((x**2).sum())
            if assign == "soft":
                powers = np.exp([(w * y).sum() for w in layer.conv.weight.detach().numpy()[:, :, 0, 0]])
                shares = powers / powers.sum()
            else:
                cosines = [(c * y).sum() / np.sqrt((c**2).sum()) for c in centres]
                shares = [float(k == int(np.argmax(cosines))) for k in range(CLUSTERS)]
            for k in range(CLUSTERS):
                sums[k] += shares[k] * (y - centres[k])
        mapped = []
        for row_sum in sums:
            length = np.sqrt((row_sum**2).sum())
            row = row_sum / length if length else row_sum
            mapped += [(matrix[n] * row).sum() + bias[n] for n in range(len(matrix))]
        descriptors.append(np.array(mapped) / np.sqrt((np.array(mapped) ** 2).sum()))
    return np.array(descriptors)


@ASSIGNMENTS
def test_it_is_the_loop_over_locations(assign):
    layer, features = make_layer(assign, 4), random(2, DIM, 3, 5, seed=9)
    wanted = nvl_by_loop(layer, assign, features)
    assert wanted.shape == (2, CLUSTERS * 4)
    for form in (layer, layer.plain()):
        np.testing.assert_allclose(form(features).detach().numpy(), wanted, rtol=1e-9, atol=1e-12)


@ASSIGNMENTS
def test_gradients_are_those_of_finite_differences(assign):
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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cluster_dim": 257}, "--clusterDim=257: local descriptors of this backbone have 256 dimensions"),
        ({"cluster_dim": 16, "pooling": "gem"}, "--clusterDim=16 maps clusters, --pooling=gem has none"),
        ({"cluster_dim": 16, "pooling": "avg"}, "--clusterDim=16 maps clusters, --pooling=avg has none"),
    ],
)
def test_what_cannot_be_mapped_is_refused_in_a_line(settings, said):
    with pytest.raises(UserError) as raised:
        PlaceModel(ModelSpec("alexnet", "none", **settings))
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_as_many_dimensions_as_local_descriptors_have_are_accepted():
    assert PlaceModel(ModelSpec("alexnet", "none", clusters=2, cluster_dim=256)).dim == 512
