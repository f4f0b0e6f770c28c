"""VLAD with hard assignment: a literal loop, closed forms, its gradient, and NetVLAD as its assignment sharpens."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from vpr.common.errors import UserError
from vpr.models.place_model import PlaceModel
from vpr.models.poolings.hard_vlad import HardVLAD
from vpr.models.poolings.netvlad_pooling import NetVLADPooling
from vpr.models.spec import ModelSpec


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_with(centres):
    layer = HardVLAD(*centres.shape).double()
    layer.init_from(centres, F.normalize(random(20, centres.shape[1]), dim=1))
    return layer


def vlad_by_loop(features, centres):
    """One image, one location, one cluster at a time; NumPy only. [B, D, H, W], [K, D] -> [B, K * D]."""
    descriptors = []
    for image in features:
        sums = np.zeros(centres.shape)
        for row in range(image.shape[1]):
            for column in range(image.shape[2]):
                x = image[:, row, column] / np.sqrt((image[:, row, column] ** 2).sum())
                cosines = [(x * centre).sum() / np.sqrt((centre**2).sum()) for centre in centres]
                nearest = cosines.index(max(cosines))
                sums[nearest] += x - centres[nearest]
        for k, row_sum in enumerate(sums):
            length = np.sqrt((row_sum**2).sum())
            sums[k] = row_sum / length if length else 0
        whole = np.concatenate(list(sums))
        descriptors.append(whole / np.sqrt((whole**2).sum()))
    return np.array(descriptors)


def test_it_is_the_loop_over_locations():
    features, centres = random(3, 5, 4, 6), random(7, 5, seed=1) * 0.4
    found = layer_with(centres)(features).detach().numpy()
    np.testing.assert_allclose(found, vlad_by_loop(features.numpy(), centres.numpy()), rtol=1e-10, atol=1e-12)


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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"vlad_assign": "hard", "pooling": "max"}, "--vladAssign=hard is a form of netvlad, not of --pooling=max"),
        ({"vlad_assign": "hard", "vladv2": True}, "--vladv2 is a soft assignment, --vladAssign=hard"),
        ({"vlad_assign": "firm"}, "--vladAssign=firm is unknown, wanted one of soft, hard"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_a_line(settings, said):
    with pytest.raises(UserError) as raised:
        PlaceModel(ModelSpec("alexnet", "none", **settings))
    assert said in str(raised.value) and "\n" not in str(raised.value)
