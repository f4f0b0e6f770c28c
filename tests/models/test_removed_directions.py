"""A whitening that takes directions out of a descriptor: against projectors and its own adjoint, and in files."""

import dataclasses

import numpy as np
import pytest
import torch

from vpr.common.errors import UserError
from vpr.common.provenance import save_torch
from vpr.models.place_model import build_model
from vpr.models.spec import ModelSpec
from vpr.models.whitening import (
    FORMATS,
    StoredWhitening,
    Whitening,
    WhiteningRecipe,
    learn_whitening,
    load_whitening,
    save_whitening,
)

DIM, REMOVED, KEPT = 12, 3, 5
RECIPE = WhiteningRecipe("0123", "alexnet", "avg", "torchvision", "fp32", "own", "street", "4567")


def basis(count=REMOVED, dim=DIM):
    """Orthonormal rows."""
    return np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))[0][:count]


def projector():
    return np.eye(DIM) - basis().T @ basis()


def random_rows(count, dim=DIM, seed=2):
    return np.random.default_rng(seed).normal(size=(count, dim))


def with_removal(projection=True):
    """A whitening in float64, by random values of the right shapes."""
    tensors = [torch.from_numpy(each) for each in (random_rows(1, seed=3)[0], random_rows(KEPT, seed=4), basis())]
    mean, rows, removed = tensors
    return Whitening(mean, rows if projection else None, "some images", removed)


@pytest.mark.parametrize("projection", [True, False])
def test_each_descriptor_loses_its_part_in_the_directions(projection):
    whitening, rows = with_removal(projection), random_rows(7)
    found = whitening(torch.from_numpy(rows)).numpy()
    assert found.shape == (7, whitening.dim) and whitening.dim == (KEPT if projection else DIM)
    for row, out in zip(rows, found, strict=True):
        value = row - whitening.mean.numpy()
        for direction in basis():
            value = value - (value @ direction) * direction
        value = whitening.projection.numpy() @ value if projection else value
        assert np.abs(out - value / np.linalg.norm(value)).max() < 1e-12
    if not projection:
        assert np.abs(found @ basis().T).max() < 1e-12


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("removal", [True, False])
def test_the_transpose_is_the_adjoint_and_the_matrix_is_the_products(projection, removal):
    whitening = with_removal(projection)
    whitening.removed = whitening.removed if removal else None
    matrix = (random_rows(KEPT, seed=4) if projection else np.eye(DIM)) @ (projector() if removal else np.eye(DIM))
    assert np.abs(whitening.linear(torch.eye(DIM).double()).T.numpy() - matrix).max() < 1e-12
    assert np.abs(whitening.transposed(torch.eye(whitening.dim).double()).numpy() - matrix).max() < 1e-12


def test_all_dimensions_are_the_removal_alone_and_fewer_are_projected_after_it():
    whitening, rows = with_removal(), random_rows(7)
    whole = whitening.cropped(DIM)
    wanted = rows @ projector()
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert whole.dim == DIM and whole.learnt_on == "some images"
    assert np.abs(whole(torch.from_numpy(rows)).numpy() - wanted).max() < 1e-12
    short = whitening.cropped(2)
    wanted = (rows - whitening.mean.numpy()) @ projector() @ random_rows(KEPT, seed=4)[:2].T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert short.dim == 2 and np.abs(short(torch.from_numpy(rows)).numpy() - wanted).max() < 1e-12
    for crop, wrong in ((whitening, KEPT + 1), (whitening, DIM + 1), (whole, 2)):
        with pytest.raises(UserError, match=f"--pcaDim={wrong}: the whitening has"):
            crop.cropped(wrong)
    plain = learn_whitening(torch.from_numpy(random_rows(50)), DIM)
    assert torch.equal(plain.cropped(DIM).projection, plain.projection), "without a removal all dimensions are whitened"


def test_a_removal_is_stored_and_its_label_says_so(tmp_path):
    path, whitening = tmp_path / "w.pth.tar", with_removal()
    save_whitening(path, StoredWhitening(whitening, DIM, RECIPE, 40))
    loaded = load_whitening(path)
    for name in ("mean", "projection", "removed"):
        assert torch.equal(getattr(loaded.whitening, name), getattr(whitening, name)), name
    assert (loaded.dim, loaded.recipe, loaded.images) == (DIM, RECIPE, 40)
    label = "40 images of street (own size), less of what varies within places, in 3 directions"
    assert loaded.whitening.learnt_on == label
    for size, said in (("longest 640", "longest 640"), ("480 640", "480x640")):
        save_whitening(path, dataclasses.replace(loaded, recipe=dataclasses.replace(RECIPE, image_size=size)))
        assert f"of street ({said}), less of" in load_whitening(path).whitening.learnt_on
    save_whitening(path, dataclasses.replace(loaded, recipe=None))
    assert load_whitening(path).whitening.learnt_on.startswith("an unknown set, less of what varies")


@pytest.mark.parametrize(
    "removed",
    [torch.zeros(REMOVED, DIM + 1), torch.zeros(DIM), torch.zeros(0, DIM), torch.zeros(1, REMOVED, DIM), [1.0], "none"],
    ids=["other dimensions", "one row", "no rows", "three axes", "a list", "a word"],
)
def test_a_removal_of_another_shape_is_refused_in_one_line(tmp_path, removed):
    path = tmp_path / "w.pth.tar"
    content = {"format": FORMATS[1], "mean": torch.zeros(DIM), "projection": torch.zeros(KEPT, DIM)}
    save_torch(path, {**content, "removed": removed})
    with pytest.raises(UserError, match=r"cannot be read as a whitening .*delete it") as raised:
        load_whitening(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)
    save_torch(path, content)
    assert load_whitening(path).whitening.removed is None


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_an_earlier_version_removes_nothing(tmp_path, format):
    path, rows = tmp_path / "w.pth.tar", torch.from_numpy(random_rows(9)).float()
    content = {"mean": rows[0], "projection": rows[1:5]}
    save_torch(path, {"format": format, **content})
    loaded = load_whitening(path)
    assert loaded.whitening.removed is None and "directions" not in loaded.whitening.learnt_on and loaded.dim == 4
    wanted = torch.nn.functional.normalize((rows - rows[0]) @ rows[1:5].T, dim=1)
    assert torch.equal(loaded.whitening(rows), wanted)


def test_a_models_name_says_that_it_is_adapted_and_its_weights_are_others():
    model = build_model(ModelSpec("alexnet", "none", pooling="avg"))
    plain = model.recipe
    removed = torch.from_numpy(basis(8, 256)).float()
    stored = Whitening(torch.zeros(256), torch.eye(256)[:20], "24 images of street, without 8 directions", removed)
    model.whiten(stored.cropped(256))
    assert "256-D adapted to 256-D by 24 images of street, without 8 directions" in model.name
    assert "whitened" not in model.name and model.dim == model.pooled_dim == 256
    adapted = model.recipe
    assert adapted["weights_hash"] != plain["weights_hash"], "descriptors of before are not taken for its own"
    assert {**adapted, "weights_hash": 0} == {**plain, "weights_hash": 0}
    model.whiten(stored.cropped(20))
    assert "256-D whitened to 20-D by 24 images of street, without 8 directions" in model.name
    with pytest.raises(UserError, match="whitening is of 12-D descriptors"):
        model.whiten(with_removal().cropped(DIM))
