"""Every command with hard assignment and with a projection of the clusters, from the centroids that NetVLAD has."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from vpr.models.place_model import build_model
from vpr.models.spec import ModelSpec
from vpr.runs.centroids import read_centroids, recipe_for
from vpr.runs.run import newest_run

KINDS = {
    "hard": (["--vladAssign=hard"], 1024, "VLAD (hard assignment) with 4 clusters, 1024-D"),
    "projected": (["--clusterDim=160"], 640, "NetVLAD with 4 clusters of 160 dimensions, 640-D"),
}
REPOSITORY = str(Path(main.__file__).parent)


def stored_state(run, name="model_best"):
    return torch.load(run / "checkpoints" / f"{name}.pth.tar", weights_only=True)


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module", params=KINDS)
def trained(request, toy_run, tiny_city, tmp_path_factory):
    """A folder with the centroids of the soft model and a run of one epoch from them; and what the kind is."""
    flags, dim, label = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(toy_run.folder / "centroids", folder / "centroids")
    places = [
        "--dataset=toy", f"--root={tiny_city}", "--threads=0", "--device=cpu", f"--dataPath={folder / 'centroids'}",
        f"--runsPath={folder / 'runs'}", "--precision=fp32",
    ]  # fmt: skip
    model = [*toy_run.model, *flags]
    assert main.main([*places, *model, "--mode=test", "--split=test", "--panels=0"]) == 0
    assert main.main([*places, *model, "--mode=train", "--nEpochs=1", "--lr=0.01"]) == 0
    return places, model, newest_run(folder / "runs"), dim, label


def test_cluster_writes_the_file_that_netvlad_has(trained, toy_run, tmp_path):
    places, model, *_ = trained
    assert main.main([*places, *model, "--mode=cluster", f"--dataPath={tmp_path}"]) == 0
    (kept,), (made,) = (list(folder.glob("*.hdf5")) for folder in (toy_run.folder / "centroids", tmp_path))
    assert made.name == kept.name
    spec = ModelSpec("alexnet", "none", clusters=4)
    recipe = recipe_for(build_model(spec), "any", "any", None)
    for one, other in zip(*(read_centroids(file, recipe, any_images=True) for file in (made, kept)), strict=True):
        np.testing.assert_allclose(one, other, atol=0.02)  # that of the run may be of bf16


def test_it_is_tested_off_the_shelf_and_trained(trained):
    _, _, run, dim, label = trained
    before = results(run.parent)[0]
    assert before["descriptor_dim"] == dim and label in before["model"] and before["queries"] == 12
    stored = stored_state(run)
    flags = json.loads((run / "flags.json").read_text())
    for name in ("vladAssign", "clusterDim"):
        assert stored["flags"][name] == flags[name]
    assert (flags["vladAssign"], flags["clusterDim"]) == (("hard", None) if dim == 1024 else ("soft", 160))


def test_a_training_moves_centres_and_map(trained, toy_run):
    """The bias of the map starts at 0, its weight orthonormal; the centres at those of k-means."""
    _, _, run, dim, _ = trained
    state = stored_state(run, "checkpoint")["state_dict"]
    (file,) = (toy_run.folder / "centroids").glob("*.hdf5")
    recipe = recipe_for(build_model(ModelSpec("alexnet", "none", clusters=4)), "any", "any", None)
    centres, _ = read_centroids(file, recipe, any_images=True)
    moved = (state["pool.centroids"] - torch.from_numpy(centres)).abs().max()
    assert 0 < moved < 0.5
    if dim == 640:
        assert state["pool.projection.bias"].abs().max() > 0
        gram = state["pool.projection.weight"] @ state["pool.projection.weight"].T
        assert 0 < (gram - torch.eye(160)).abs().max() < 0.5
    else:
        assert [name for name in state if name.startswith("pool.")] == ["pool.centroids"]


def test_a_resumed_training_goes_on(trained, tmp_path):
    places, _, run, dim, _ = trained
    copied = Path(shutil.copytree(run, tmp_path / run.name))
    assert main.main([*places, "--mode=train", f"--resume={copied}", "--nEpochs=2"]) == 0
    assert stored_state(copied, "checkpoint")["position"]["epoch"] == 3
    assert results(copied)[-1]["descriptor_dim"] == dim


def test_it_is_whitened_explained_and_locates(trained, tmp_path, tiny_city, capsys):
    places, _, run, _, _ = trained
    copied = Path(shutil.copytree(run, tmp_path / run.name))
    resumed = f"--resume={copied}"
    assert main.main([*places, "--mode=whiten", resumed, "--pcaDim=8"]) == 0
    assert main.main([*places, "--mode=test", resumed, "--panels=1", "--explain"]) == 0
    assert results(copied)[-1]["descriptor_dim"] == 8
    image = next((tiny_city / "queries_real").rglob("*.jpg"))
    capsys.readouterr()
    call = ["--mode=locate", resumed, "--noWhiten", "--json", "--panels=0", str(image)]
    assert main.main([*places, *call]) == 0
    assert len(json.loads(capsys.readouterr().out)) > 0


def test_the_hub_and_an_exported_file_describe_alike_and_are_compared(trained, tmp_path, tiny_city, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    places, _, run, dim, label = trained
    file = tmp_path / "model.onnx"
    places = [flag for flag in places if not flag.startswith("--precision")]
    assert main.main([*places, "--mode=export", f"--resume={run}", f"--out={file}"]) == 0
    hub = torch.hub.load(REPOSITORY, "netvlad", source="local", checkpoint=str(run))
    hub.model.to_device(torch.device("cpu"), "fp32")
    exported = torch.hub.load(REPOSITORY, "netvlad", source="local", checkpoint=str(file))
    names = sorted((tiny_city / "queries_real").rglob("*.jpg"))[:2]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(name))).permute(2, 0, 1) for name in names])
    found, wanted = exported(pixels), hub(pixels)
    assert found.shape == (2, dim) and (found - wanted).abs().max() < 1e-5
    assert (wanted[0] - wanted[1]).norm() > 1e-3
    capsys.readouterr()
    assert main.main([*places, "--mode=compare", "--split=val", str(run), str(file)]) == 0
    assert capsys.readouterr().out.count(label) >= 2
    assert main.main([*places, "--mode=test", f"--resume={file}", "--vladAssign=hard", "--clusterDim=160"]) == 2
    assert "contradicts" in capsys.readouterr().err


def test_it_is_pruned_with_clusters_of_its_own(trained, tmp_path, capsys):
    pytest.importorskip("torch_pruning")
    places, _, run, dim, _ = trained
    call = ["--mode=prune", f"--resume={run}", f"--runsPath={tmp_path}", "--importance=magnitude", "--distill=0"]
    call += ["--imageSize", "64", "80"]  # smaller than in the training, which takes less time
    assert main.main([*places, *call, "--pruneRatio=0.25"]) == 0
    state = stored_state(newest_run(tmp_path))["state_dict"]
    assert state["pool.centroids"].shape == (4, 192)
    if dim == 640:
        assert state["pool.projection.weight"].shape == (160, 192)
        torch.testing.assert_close(state["pool.projection.weight"].norm(dim=1), torch.ones(160))
        assert main.main([*places, *call]) == 2
        said = "--pruneRatio=0.5 leaves local descriptors of 128 dimensions, the run's --clusterDim=160"
        assert said in capsys.readouterr().err
