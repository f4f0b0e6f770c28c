"""PCA whitening against scikit-learn's, against its own definition, and as a mode."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import main
import vpr.runs.pytorch_model
from pittsburgh import read_places, write_places
from vpr.common.errors import UserError
from vpr.common.provenance import save_torch
from vpr.models.whitening import (
    ANY_SIZE,
    StoredWhitening,
    Whitening,
    WhiteningRecipe,
    learn_whitening,
    load_whitening,
    save_whitening,
    whitening_of_affine,
)
from vpr.runs.run import newest_run
from vpr.runs.stored import load_model


def correlated(count, length, seed=0):
    """Random rows with a spectrum that decays."""
    random = np.random.default_rng(seed)
    scales = 1 / np.arange(1, length + 1)
    turned = np.linalg.qr(random.normal(size=(length, length)))[0]
    return torch.from_numpy(random.normal(size=(count, length)) * scales @ turned + random.normal(size=length))


def unnormalised(whitening, rows):
    return ((rows.double() - whitening.mean.double()) @ whitening.projection.double().T).numpy()


def same_but_for_signs(found, wanted):
    """Whether whitened rows [n, dim] agree; the sign of a component is free."""
    return np.abs(found * np.sign((found * wanted).sum(axis=0)) - wanted).max() < 1e-3


@pytest.mark.parametrize(("count", "length"), [(200, 30), (25, 80), (40, 40)], ids=["primal", "dual", "square"])
def test_whitened_training_set_has_mean_zero_and_identity_covariance(count, length):
    rows = correlated(count, length)
    whitening = learn_whitening(rows, 1000)
    assert whitening.dim == min(length, count - 1)
    white = unnormalised(whitening, rows)
    assert np.abs(white.mean(axis=0)).max() < 1e-4
    assert np.abs(np.cov(white.T) - np.eye(whitening.dim)).max() < 2e-3
    principal = PCA(12, whiten=True, svd_solver="full").fit_transform(rows.numpy())
    assert same_but_for_signs(unnormalised(learn_whitening(rows, 12), rows), principal)


@pytest.mark.parametrize("length", [20, 12, 9000])  # more columns than are in float64 at a time, too
def test_an_affine_map_is_a_whitening_with_the_shortest_mean(length):
    """Of a matrix whose rows are neither of one length nor orthogonal, and a bias that no data set has given."""
    random, scales = np.random.default_rng(0), np.logspace(0, 4, 12)
    matrix, bias = random.normal(size=(12, length)) * scales[:, None], random.normal(size=12) * scales
    whitening = whitening_of_affine(torch.from_numpy(matrix).float(), torch.from_numpy(bias).float(), "elsewhere")
    assert torch.equal(whitening.projection, torch.from_numpy(matrix).float()) and whitening.learnt_on == "elsewhere"
    mean = whitening.mean.double().numpy()
    assert np.abs(matrix @ mean + bias).max() <= 1e-6 * np.abs(bias).max()
    wanted = np.linalg.lstsq(matrix / scales[:, None], -bias / scales, rcond=None)[0]
    assert np.abs(mean - wanted).max() < 1e-5 * np.abs(wanted).max()
    rows = torch.from_numpy(np.random.default_rng(1).normal(size=(3, length)))
    outcome = (matrix @ rows.numpy().T).T + bias
    outcome /= np.linalg.norm(outcome, axis=1, keepdims=True)
    assert np.abs(whitening.double()(rows).numpy() - outcome).max() < 1e-6


def test_a_bias_that_no_mean_gives_is_refused():
    """Two equal rows with unequal biases; with equal ones there is a mean."""
    matrix = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    with pytest.raises(UserError, match="depend on each other"):
        whitening_of_affine(matrix, torch.tensor([1.0, 2.0]))
    assert torch.allclose(whitening_of_affine(matrix, torch.tensor([1.0, 1.0])).mean, torch.tensor([-0.2, -0.4, 0.0]))


def test_dual_form_is_the_primal_one():
    """Rows in 40 of 400 dimensions: their primal whitening in those 40, their dual one in all 400."""
    rows = correlated(100, 40)
    turned = rows @ torch.from_numpy(np.linalg.qr(np.random.default_rng(1).normal(size=(400, 40)))[0]).T
    primal, dual = learn_whitening(rows, 20), learn_whitening(turned, 20)
    assert same_but_for_signs(unnormalised(dual, turned), unnormalised(primal, rows))


def test_tiles_of_columns_change_nothing(monkeypatch):
    rows = correlated(25, 80)
    wanted = learn_whitening(rows, 10).projection
    monkeypatch.setattr("vpr.models.whitening.TILE", 7)
    found = learn_whitening(rows, 10).projection
    signs = torch.sign((found * wanted).sum(dim=1, keepdim=True))
    assert (found * signs - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_largest_variance_comes_first_and_the_small_constant_is_in_the_scale():
    rows = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1e-4], [0.0, -1e-4]])
    wanted = np.diag(1 / np.sqrt(np.array([18 / 3, 2e-8 / 3]) + 1e-9))
    assert np.abs(np.abs(learn_whitening(rows, 2).projection.numpy()) - wanted).max() < 1e-3 * wanted.max()


def test_a_crop_is_the_first_dimensions_normalised_anew():
    rows = correlated(200, 30)
    whitening = learn_whitening(rows, 20)
    whole, cropped = whitening(rows.float()), whitening.cropped(5)(rows.float())
    wanted = whole[:, :5] / whole[:, :5].norm(dim=1, keepdim=True)
    torch.testing.assert_close(cropped, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(200))
    with pytest.raises(UserError, match="20 dimensions"):
        whitening.cropped(21)


@pytest.mark.parametrize("rows", [torch.ones(5, 3), torch.ones(1, 3), torch.ones(5, 9)])
def test_descriptors_that_do_not_differ_cannot_be_whitened(rows):
    with pytest.raises(UserError, match="do not differ"):
        learn_whitening(rows, 2)


def test_dependent_descriptors_give_fewer_components():
    rows = correlated(30, 6).repeat(1, 3)  # 18 columns, 6 of them independent
    assert learn_whitening(rows, 18).dim == 6


def test_a_whitening_is_a_module_with_its_tensors():
    whitening = Whitening(torch.zeros(3), torch.eye(3)[:2])
    assert whitening(torch.tensor([[3.0, 4.0, 12.0]])).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


def test_a_whitening_is_stored_whole_and_refused_where_it_is_damaged(tmp_path):
    path, whitening = tmp_path / "w.pth.tar", learn_whitening(correlated(50, 10), 4)
    recipe = WhiteningRecipe("0123", "alexnet", "avg", "torchvision", "fp32", "48 64", "city_train", "4567")
    save_whitening(path, StoredWhitening(whitening, 3, recipe, 50))
    loaded = load_whitening(path)
    assert torch.equal(loaded.whitening.mean, whitening.mean)
    assert torch.equal(loaded.whitening.projection, whitening.projection)
    assert (loaded.dim, loaded.recipe, loaded.images) == (3, recipe, 50)
    assert loaded.whitening.learnt_on == "50 images of city_train (48x64)"
    content = bytearray(path.read_bytes())
    content[content.index(whitening.mean.numpy().tobytes()) + 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_whitening(path)


@pytest.mark.parametrize("content", [b"junk", {"format": "another"}, {"mean": 3}])
def test_what_is_no_whitening_is_refused(tmp_path, content):
    path = tmp_path / "w.pth.tar"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match="whitening"):
        load_whitening(path)


# As a mode


@pytest.fixture
def trained(copy_toy_run, tmp_path):
    """Flags of a folder of the test's own with centroids and a run of one epoch."""
    copied = copy_toy_run(tmp_path)
    return [*copied.places, *copied.model]


def whiten(common, *flags):
    assert main.main([*common, "--mode=whiten", *flags]) == 0


def results_of(common, *flags):
    """The newest results of --mode=test with some flags."""
    assert main.main([*common, "--mode=test", "--panels=0", *flags]) == 0
    runs = next(flag.split("=")[1] for flag in common if flag.startswith("--runsPath"))
    folder = newest_run(Path(runs)) if "--resume" in flags else Path(runs)
    return json.loads((folder / "results.json").read_text())[-1]


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["off the shelf", "run"])
def test_a_whitening_is_learnt_once_and_used_by_test(trained, resume, capsys):
    plain = results_of(trained, *resume)
    assert plain["descriptor_dim"] == 1024
    whiten(trained, "--pcaDim=16", *resume)
    white = results_of(trained, *resume)
    assert white["descriptor_dim"] == 16 and "1024-D whitened to 16-D" in white["model"]
    assert white["bytes_per_image"] == 32
    assert results_of(trained, *resume, "--pcaDim=4")["descriptor_dim"] == 4
    again = results_of(trained, *resume, "--noWhiten")
    assert again["descriptor_dim"] == 1024 and again["recalls"] == plain["recalls"]
    assert "whitened" not in again["model"]
    capsys.readouterr()
    assert main.main([*trained, "--mode=test", "--pcaDim=17", *resume]) == 2
    assert "16 dimensions" in capsys.readouterr().err


def test_fewer_images_than_dimensions_are_said_aloud(trained, capsys):
    whiten(trained, "--nPCA=10", "--resume")
    assert "10 images and 1024 dimensions give 9 components" in capsys.readouterr().out
    assert main.main([*trained, "--mode=whiten", "--nPCA=1"]) == 2


def test_whitening_of_earlier_weights_is_not_used(trained, tmp_path, capsys):
    whiten(trained, "--pcaDim=8", "--resume", "--ckpt=best")
    assert main.main([*trained, "--mode=train", "--resume", "--nEpochs=2"]) == 0
    capsys.readouterr()
    result = results_of(trained, "--resume", "--ckpt=latest")
    assert result["descriptor_dim"] == 1024
    assert "belongs to other weights" in capsys.readouterr().out


def test_no_whitening_to_crop(trained, tmp_path, capsys):
    assert main.main([*trained, "--mode=test", "--pooling=avg", "--pcaDim=8"]) == 2
    assert "no whitening" in capsys.readouterr().err


@pytest.fixture
def averaged(tiny_city, tmp_path):
    """Flags of an off-the-shelf model that nothing but its flags tells from others: average pooling, small images."""
    return [
        "--dataset=toy", f"--root={tiny_city}", "--arch=alexnet", "--fromscratch", "--pooling=avg", "--threads=0",
        "--device=cpu", "--precision=fp32", "--imageSize", "48", "64", f"--dataPath={tmp_path / 'centroids'}",
        f"--runsPath={tmp_path}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (["--imageSize", "64", "80"], "image_size=48 64, not 64 80"),
        (["--normalization=unit"], "normalization=torchvision, not unit"),
        (["--pooling=max"], "pooling=avg, not max"),
    ],
)
def test_a_whitening_serves_only_what_it_was_learnt_for(averaged, capsys, other, named):
    whiten(averaged, "--pcaDim=8")
    capsys.readouterr()
    result = results_of(averaged, *other)
    assert result["descriptor_dim"] == 256 and result["whitening"] is None
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "is not used" in line]
    assert named in line
    assert main.main([*averaged, "--mode=test", "--panels=0", "--pcaDim=4", *other]) == 2
    assert named in capsys.readouterr().err
    whiten(averaged, "--pcaDim=6", *other)
    assert results_of(averaged, *other)["descriptor_dim"] == 6
    assert results_of(averaged)["descriptor_dim"] == 8, "both are kept"


def test_a_whitening_in_the_own_number_format_is_preferred_to_another(averaged):
    other = ["--precision=bf16"]
    whiten(averaged, "--pcaDim=8")
    assert results_of(averaged, *other)["descriptor_dim"] == 8, "as on a machine where auto means another format"
    whiten(averaged, "--pcaDim=6", *other)
    assert results_of(averaged, *other)["descriptor_dim"] == 6
    assert results_of(averaged)["descriptor_dim"] == 8


def test_a_whitening_of_another_training_set_is_not_used(averaged, tiny_city, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(tiny_city, other)
    spec = other / "datasets" / "toy_train.mat"
    places = read_places(spec)
    write_places(spec, places.only(list(range(1, len(places.database_names))), list(range(len(places.query_names)))))
    whiten(averaged, "--pcaDim=8", f"--root={other}")
    assert results_of(averaged, f"--root={other}")["descriptor_dim"] == 8
    capsys.readouterr()
    assert results_of(averaged)["descriptor_dim"] == 256
    assert "one was learnt on toy_train, the training set is toy_train" in capsys.readouterr().out


def test_a_smaller_whitening_does_not_cost_the_larger(averaged):
    """And results say what a whitening was learnt on."""
    whiten(averaged, "--pcaDim=12", "--nPCA=20")
    wanted = results_of(averaged, "--pcaDim=10")
    whiten(averaged, "--pcaDim=4", "--nPCA=20")
    result = results_of(averaged)
    learnt = result["whitening"]
    assert result["descriptor_dim"] == 4 and "whitened to 4-D by 20 images of toy_train (48x64)" in result["model"]
    assert (learnt["dataset"], learnt["image_size"], learnt["photos"], learnt["dim"]) == ("toy_train", "48 64", 20, 4)
    found = results_of(averaged, "--pcaDim=10")
    assert found["descriptor_dim"] == 10 and found["recalls"] == wanted["recalls"]


def test_a_whitening_of_an_earlier_version_is_used_where_it_is_the_only_one(averaged, tmp_path, capsys):
    whiten(averaged, "--pcaDim=8")
    (path,) = (tmp_path / "centroids").glob("whitening_*")
    stored = load_whitening(path)
    earlier = path.with_name(f"whitening_{path.name.split('_')[1]}.pth.tar")
    torch.save({"format": "netvlad whitening 1", **stored.whitening.state_dict()}, earlier)
    result = results_of(averaged)
    assert result["whitening"]["dataset"] == "toy_train", "the one that says what it was learnt on"
    path.unlink()
    capsys.readouterr()
    result = results_of(averaged)
    assert result["descriptor_dim"] == 8 and "by an unknown set" in result["model"]
    assert "was written by an earlier version" in capsys.readouterr().out


@pytest.fixture
def whitened_run(copy_toy_run, tmp_path, monkeypatch):
    """A run with a whitening to 6 dimensions, which may not open a data set."""
    copied = copy_toy_run(tmp_path)
    whiten(copied.places, f"--resume={copied.run}", "--pcaDim=6")
    for name in ("has_split", "training_set"):
        monkeypatch.setattr(vpr.runs.pytorch_model, name, lambda *_: pytest.fail("a data set was opened"))
    return copied.run


def change_flags(run, **changes):
    flags = json.loads((run / "flags.json").read_text())
    (run / "flags.json").write_text(json.dumps({**flags, **changes}))


def change_checkpoints(run, change):
    """Rewrite both checkpoints of a run after `change` has altered them."""
    for path in (run / "checkpoints").glob("*.pth.tar"):
        if not path.name.startswith("whitening"):
            state = torch.load(path, weights_only=True)
            change(state)
            save_torch(path, state)


def add_whitening(run, dim, **differences):
    """A second whitening of a run's model, learnt on something else."""
    (path,) = (run / "checkpoints").glob("whitening_*")
    stored = load_whitening(path)
    recipe = dataclasses.replace(stored.recipe, **differences)
    save_whitening(recipe.path(path.parent), StoredWhitening(stored.whitening.cropped(dim), dim, recipe))


def of_other_images(state):
    state["splits"]["train"]["places"] = "0" * 12


@pytest.mark.parametrize(
    "change",
    [
        lambda run: None,
        lambda run: change_flags(run, root="gone"),
        lambda run: change_checkpoints(run, lambda state: state.pop("splits")),  # as earlier versions left them
        # What is left of a spec without its broken images is not what the whitening says that it was learnt on.
        lambda run: (change_flags(run, skipBroken=True), change_checkpoints(run, of_other_images)),
        lambda run: add_whitening(run, 3, dataset="other", dataset_hash="0" * 12),
        lambda run: add_whitening(run, 3, image_size="8 8"),
    ],
    ids=["as it was", "images gone", "without a note of its images", "broken images", "two sets", "two sizes"],
)
def test_a_run_knows_its_whitening_without_opening_a_data_set(whitened_run, change):
    change(whitened_run)
    assert load_model(whitened_run).model.dim == 6


def test_a_run_without_a_whitening_that_fits_opens_no_data_set(whitened_run, capsys):
    change_checkpoints(whitened_run, of_other_images)
    assert load_model(whitened_run).model.dim == load_model(whitened_run, whitened=False).model.dim
    assert "one was learnt on toy_train, the training set is that of the run" in capsys.readouterr().out
    change_flags(whitened_run, imageSize=[8, 8])
    assert load_model(whitened_run).source["whitening"] is None
    assert "image_size=own, not 8 8" in capsys.readouterr().out


def test_a_whitening_that_was_learnt_comes_before_that_of_an_imported_model(whitened_run, monkeypatch, capsys):
    """An imported run does not say what it was trained on, and its file's whitening has no hash of a set either."""
    monkeypatch.undo()
    change_checkpoints(whitened_run, lambda state: state.pop("splits"))
    for number in range(4):  # files are met in the order of hashes
        add_whitening(whitened_run, 3, dataset=f"the set of {number}.mat", dataset_hash="", image_size=ANY_SIZE)
        assert load_model(whitened_run).model.dim == 6
        for path in (whitened_run / "checkpoints").glob("whitening_*"):
            if load_whitening(path).dim == 3:
                path.unlink()
    assert "does not say which images it was trained on" in capsys.readouterr().out
