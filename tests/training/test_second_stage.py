"""A run that begins from the best model of another (--startFrom), and trains the map of --clusterDim alone."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import main
import vpr.modes.train
from campaigns.determinism import different
from vpr.common.provenance import save_torch
from vpr.data.reader import ImageReader
from vpr.runs.run import newest_run
from vpr.runs.stored import load_model

MAP = ["pool.projection.bias", "pool.projection.weight"]
SECOND = ["--trainFrom=map", "--lr=0.5", "--threads=0", "--device=cpu"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def first_stage(street_flags, tmp_path_factory):
    """A trained run with a map to 8 dimensions and one without; the best model of each differs from the latest."""
    folder, runs = tmp_path_factory.mktemp("first_stage"), {}
    model = [*street_flags, "--num_clusters=4", f"--dataPath={folder / 'centroids'}"]
    unread = ("--mode", "--loss", "--batchSize")  # in --mode=cluster
    assert main.main(["--mode=cluster", *(word for word in model if not word.startswith(unread))]) == 0
    for name, words in (("plain", []), ("mapped", ["--clusterDim=8"])):
        call = [*model, *words, "--savePath=kept", "--nEpochs=1", "--evalEvery=1", f"--runsPath={folder / name}"]
        assert main.main(call) == 0
        runs[name] = newest_run(folder / name)
        best = torch.load(runs[name] / "kept" / "model_best.pth.tar", weights_only=True)
        for key in best["state_dict"]:
            best["state_dict"][key] = best["state_dict"][key] * 1.25 + 0.01
        save_torch(runs[name] / "kept" / "model_best.pth.tar", best)
    return runs


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Trains by flags; gives the state before the first step, and the run."""

    def train(*words):
        states, create = [], vpr.modes.train.create_run

        def keep(runs, arch, pooling, flags, folder, state):
            states.append(copy.deepcopy(state))
            return create(runs, arch, pooling, flags, folder, state)

        with monkeypatch.context() as patch:
            patch.setattr(vpr.modes.train, "create_run", keep)
            assert main.main(["--mode=train", *SECOND, f"--runsPath={tmp_path / 'runs'}", *words]) == 0
        return states[0], newest_run(tmp_path / "runs")

    return train


def weights_of(run, which):
    return torch.load(run / "kept" / f"{which}.pth.tar", weights_only=True)["state_dict"]


@pytest.mark.parametrize(("name", "added"), [("mapped", []), ("plain", ["--clusterDim=8"])])
def test_a_second_stage_begins_with_the_best_model_and_moves_the_map_alone(first_stage, begun, name, added):
    run = first_stage[name]
    best = weights_of(run, "model_best")
    assert len(different(best, weights_of(run, "checkpoint"))) == len(best)
    start, second = begun(f"--startFrom={run}", *added)
    end = weights_of(second, "checkpoint")
    same = sorted(best.keys() - set(MAP) if added else best)
    assert sorted({*same, *MAP}) == sorted(end) == sorted(start["state_dict"])
    assert all(torch.equal(start["state_dict"][key], best[key]) for key in same)
    moved = [key for key in sorted(end) if not torch.equal(end[key], start["state_dict"][key])]
    assert moved == MAP
    assert start["optimizer"]["state"] == {} and start["position"]["epoch"] == 1 and start["position"]["best"] == []
    flags = json.loads((second / "flags.json").read_text())
    assert (flags["startFrom"], flags["clusterDim"], flags["trainFrom"]) == (str(run), 8, "map")


def test_a_map_that_is_added_begins_with_the_directions_of_the_residuals_of_that_model(first_stage, begun):
    """By NumPy: each local descriptor of all training images minus the centre of its largest share."""
    run = first_stage["plain"]
    start, _ = begun(f"--startFrom={run}", "--clusterDim=8")
    model, residuals = load_model(run, "best", whitened=False).model, []
    files = sorted((Path(json.loads((run / "flags.json").read_text())["root"]) / "train" / "database").iterdir())
    assert len(files) == 24
    for (group,) in ImageReader(files, (48, 64), 0).batches([[number] for number in range(24)]):
        with torch.no_grad():
            local = model.local_descriptors(model.tensor_of(group.values))
            rows = F.normalize(local.flatten(2)[0].T, dim=1)
            shares = rows @ model.pool.conv.weight.flatten(1).T  # the softmax keeps their order
            residuals.append((rows - model.pool.centroids[shares.argmax(dim=1)]).double().numpy())
    directions = np.linalg.svd(np.concatenate(residuals), full_matrices=False)[2][:8]
    found = start["state_dict"]["pool.projection.weight"].double().numpy()
    np.testing.assert_allclose(found @ found.T, np.eye(8), atol=1e-5)
    assert np.abs((found * directions).sum(axis=1)).min() > 0.99
    assert not start["state_dict"]["pool.projection.bias"].any()


def test_a_second_stage_that_is_stopped_and_resumed_ends_with_the_same_bits(
    first_stage, begun, stopped_after, tmp_path
):
    words = [f"--startFrom={first_stage['plain']}", "--clusterDim=8", "--nEpochs=2", "--trunkCache=off"]
    _, whole = begun(*words)
    stopped_after(["--mode=train", *SECOND, *words, f"--runsPath={tmp_path / 'again'}"], 2)
    again = newest_run(tmp_path / "again")
    assert main.main(["--mode=train", f"--resume={again}", "--threads=0", "--device=cpu"]) == 0
    for which in ("checkpoint", "model_best"):
        assert different(weights_of(whole, which), weights_of(again, which)) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--trainFrom=map trains the map of --clusterDim, which is missing"),
        (["--clusterDim=8", "--arch=vgg16"], "--arch=vgg16 contradicts"),
        (["--clusterDim=8", "--pooling=gem"], "--pooling=gem contradicts"),
        (["--clusterDim=8", "--resume"], "--startFrom="),
    ],
)
def test_what_cannot_begin_from_a_run_is_one_line(first_stage, tmp_path, capsys, words, said):
    assert said in refusal(capsys, tmp_path, f"--startFrom={first_stage['plain']}", *words)


def refusal(capsys, folder, *words):
    """The one line by which a training is refused before it makes a run."""
    capsys.readouterr()
    assert main.main(["--mode=train", *SECOND, f"--runsPath={folder / 'runs'}", *words]) == 2
    found = capsys.readouterr().err.strip()
    assert "\n" not in found and not (folder / "runs").exists()
    return found


def test_another_map_a_missing_run_and_a_missing_best_model_are_one_line(first_stage, tmp_path, capsys):
    run = first_stage["mapped"]
    assert "--clusterDim=4 contradicts" in refusal(capsys, tmp_path, f"--startFrom={run}", "--clusterDim=4")
    assert "none is not a run" in refusal(capsys, tmp_path, f"--startFrom={tmp_path / 'none'}")
    assert "exported models are for" in refusal(capsys, tmp_path, f"--startFrom={tmp_path / 'model.onnx'}")
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    (copied / "kept" / "model_best.pth.tar").unlink()
    assert "model_best.pth.tar does not exist" in refusal(capsys, tmp_path, f"--startFrom={copied}")


def test_the_latest_model_is_taken_where_it_is_named(first_stage, begun):
    run = first_stage["mapped"]
    start, _ = begun(f"--startFrom={run}", "--ckpt=latest")
    assert different(weights_of(run, "checkpoint"), start["state_dict"]) == []
