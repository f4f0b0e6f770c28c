"""The three modes as commands on a tiny toy city, and what they say to bad input."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import main
from vpr.common.files import read_json
from vpr.models.backbones.base import build_backbone
from vpr.runs.run import newest_run

MODEL = ["--arch=alexnet", "--fromscratch", "--num_clusters=4", "--threads=0", "--device=cpu"]


def toy(root: Path, folder: Path) -> list[str]:
    return ["--dataset=toy", f"--root={root}", *paths(folder)]


def paths(folder: Path) -> list[str]:
    return [f"--dataPath={folder / 'centroids'}", f"--runsPath={folder / 'runs'}"]


@pytest.fixture
def trained(toy_run):
    """A folder with centroids and a run of one epoch, to be read only."""
    return toy_run.folder


@pytest.fixture
def one_line_error(capsys):
    """Run a command that must fail: exit code 2, one line, which has all `words`; nothing half-written."""

    def run(arguments: list[str], *words: str, folder: Path) -> str:
        capsys.readouterr()
        assert main.main(arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        for word in words:
            assert word in lines[0], (word, lines[0])
        assert not list(folder.rglob("*.part"))
        return lines[0]

    return run


@pytest.mark.slow
def test_cluster_as_a_command_and_tests_off_the_shelf_and_trained(tiny_city, copy_toy_run, tmp_path, capsys):
    """The training between them is that of the run which is copied."""

    def printed_by(*arguments):
        assert main.main([*arguments]) == 0
        return capsys.readouterr().out

    common = [*toy(tiny_city, tmp_path), *MODEL]
    command = [sys.executable, main.__file__, "--mode=cluster", *common]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0 and "4 centroids" in done.stdout, done.stderr
    off_the_shelf = printed_by("--mode=test", "--split=test", "--panels=2", *common)
    shutil.rmtree(tmp_path / "centroids")
    shutil.rmtree(tmp_path / "runs")
    run = copy_toy_run(tmp_path).run
    resumed = printed_by("--mode=test", "--resume", "--split=test", "--threads=0", *paths(tmp_path))
    for printed in (off_the_shelf, resumed):
        last, following = printed.strip().splitlines()[-2:]
        assert following.startswith("next: ")
        assert [part.split(":")[0] for part in last.split(", ")] == ["R@1", "R@5", "R@10", "R@20"]
        assert ": 12 queries, of which" in printed and "; 48 database images" in printed
        for label in ("split test (toy_test)", "alexnet", "1024-D", "160x120"):
            assert label in printed
    assert json.loads((run / "flags.json").read_text())["num_clusters"] == 4
    stored = json.loads((run / "results.json").read_text())[-1]
    shown = float(resumed.strip().splitlines()[-2].split(",")[0].split(":")[1])
    assert 100 * stored["recalls"]["1"] == pytest.approx(shown, abs=0.051)
    assert stored["queries"] == 12 and stored["descriptor_dim"] == 1024 and stored["checkpoint"] == "best"
    assert list(run.glob("test_test_*/panels/*.jpg")) and list(run.glob("events.out.tfevents*"))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_global_poolings_need_no_centroids(tiny_city, tmp_path, pooling):
    common = [*toy(tiny_city, tmp_path), *MODEL, f"--pooling={pooling}"]
    assert main.main([*common, "--mode=test"]) == 0
    assert json.loads((tmp_path / "runs" / "results.json").read_text())[0]["descriptor_dim"] == 256


def test_the_matlab_layout_is_found_too(tiny_city, tmp_path):
    def described(root, name):
        """Recalls, and the descriptors of database and queries."""
        kept = tmp_path / name
        flags = [*toy(root, tmp_path), *MODEL, "--pooling=max", "--panels=0", f"--saveDescriptors={kept}"]
        assert main.main([*flags, "--mode=test"]) == 0
        with h5py.File(kept) as file:
            return read_json(tmp_path / "runs" / "results.json")[-1]["recalls"], file["database"][:], file["queries"][:]

    root = tmp_path / "matlab"
    shutil.copytree(tiny_city, root)
    (root / "images").mkdir()
    for folder in root.glob("0*"):
        folder.rename(root / "images" / folder.name)
    (root / "queries_real").rename(root / "queries")
    (recalls, *wanted), (found_recalls, *found) = described(tiny_city, "usual.h5"), described(root, "matlab.h5")
    assert found_recalls == recalls
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def cluster(tiny_places, tmp_path):
    """The words of a clustering of the tiny places."""
    return ["--mode=cluster", f"--root={tiny_places}", *paths(tmp_path), *MODEL]


def test_no_data(cluster, tmp_path, one_line_error):
    wanted = ["pitts30k_train.mat", "missing", "--root", "--dataset=toy"]
    (tmp_path / "empty").mkdir()
    line = one_line_error([*cluster, f"--root={tmp_path / 'empty'}"], folder=tmp_path)
    assert all(word in line for word in wanted), line


def test_images_that_are_damaged_or_missing_and_a_truncated_mat(cluster, tiny_places, tmp_path, one_line_error):
    images = sorted((tiny_places / "000").rglob("*.jpg"))[:7]
    images[0].write_bytes(images[0].read_bytes()[:200])
    one_line_error([*cluster, "--threads=2"], str(images[0]), folder=tmp_path)
    assert not (tmp_path / "centroids").exists()
    for image in images:
        image.unlink()
    line = one_line_error(cluster, "7 of the", str(tiny_places), folder=tmp_path)
    assert sum(str(image) in line for image in images) == 5, "five are named"
    spec = tiny_places / "datasets" / "pitts30k_train.mat"
    spec.write_bytes(spec.read_bytes()[:300])
    one_line_error(cluster, str(spec), folder=tmp_path)


def test_a_spec_without_queries(tiny_places, write_spec, tmp_path, one_line_error):
    names = [str(path.relative_to(tiny_places)) for path in sorted((tiny_places / "000").rglob("*.jpg"))]
    spec = tiny_places / "datasets" / "pitts30k_val.mat"
    write_spec(spec, names, np.zeros((len(names), 2)), [], np.empty((0, 2)))
    line = one_line_error(["--mode=test", f"--root={tiny_places}", *paths(tmp_path), *MODEL], folder=tmp_path)
    assert "no queries" in line


def test_fewer_local_descriptors_than_clusters_and_too_small_images(cluster, tmp_path, one_line_error):
    line = one_line_error([*cluster, "--num_clusters=5000"], folder=tmp_path)
    assert "5000 clusters" in line and "--num_clusters" in line
    line = one_line_error([*cluster, "--imageSize", "20", "40"], folder=tmp_path)
    assert "40x20" in line and "--imageSize" in line


def test_missing_centroids_print_the_command_that_makes_them(tiny_city, tmp_path, one_line_error, capsys):
    common = [*toy(tiny_city, tmp_path), *MODEL]
    line = one_line_error([*common, "--mode=test"], "no centroids", folder=tmp_path)
    command = line.split("python main.py ")[1].split()
    assert main.main([*command, "--threads=0"]) == 0
    assert main.main([*common, "--mode=test"]) == 0


def test_centroids_that_do_not_fit(trained, tiny_city, tmp_path, one_line_error):
    """Those of another architecture, of other random weights, and damaged ones."""
    file, damaged = next((trained / "centroids").glob("*.hdf5")), tmp_path / "damaged.hdf5"
    damaged.write_bytes(file.read_bytes()[:5000])
    for path, word, said in (
        (file, "--arch=vgg16", ("arch=alexnet", "arch=vgg16")), (file, "--seed=7", ("weights",)),
        (damaged, "--seed=123", ()),
    ):  # fmt: skip
        arguments = [*toy(tiny_city, tmp_path), *MODEL, "--mode=test", word, f"--dataPath={path}"]
        line = one_line_error(arguments, folder=tmp_path)
        assert all(each in line for each in (str(path), *said)), line


def test_centroids_of_another_seed_are_not_used(tiny_places, tmp_path, one_line_error, capsys):
    """Pretrained weights, so that the seed changes the clusters alone."""
    encoder = build_backbone("alexnet")
    encoder.initialize(0)
    torch.save(encoder.state_dict(), tmp_path / "w.pth")
    flags = [
        f"--root={tiny_places}", "--arch=alexnet", f"--weights={tmp_path / 'w.pth'}", "--num_clusters=4", "--threads=0",
        "--device=cpu", f"--dataPath={tmp_path / 'centroids'}", f"--runsPath={tmp_path}",
    ]  # fmt: skip
    assert main.main([*flags, "--mode=cluster", "--seed=1"]) == 0
    assert main.main([*flags, "--mode=test", "--panels=0", "--seed=1"]) == 0
    for seed in ([], ["--seed=2"]):
        one_line_error([*flags, "--mode=test", *seed], "no centroids", "--mode=cluster", *seed, folder=tmp_path)
    assert main.main([*flags, "--mode=cluster"]) == 0
    (usual,) = (path for path in (tmp_path / "centroids").iterdir() if "seed" not in path.name)
    assert usual.name.startswith("alexnet_w-") and usual.name.endswith("-own.hdf5"), "the name that it always had"
    assert main.main([*flags, "--mode=test", "--panels=0"]) == 0
    (of_one,) = (tmp_path / "centroids").glob("*_seed1.hdf5")
    of_one.replace(usual)  # as earlier versions named it
    one_line_error([*flags, "--mode=test"], "seed=1", "wanted seed=123", folder=tmp_path)
    assert main.main([*flags, "--mode=test", "--panels=0", "--seed=1"]) == 0
    assert main.main([*flags, "--mode=test", f"--dataPath={usual}"]) == 0, "a file that is named is taken"


@pytest.fixture
def copied(copy_toy_run, tmp_path):
    """A copy of the trained run, which a test may damage."""
    return copy_toy_run(tmp_path / "copied").run


@pytest.mark.parametrize("mode", ["train", "test"])
def test_an_unreadable_checkpoint(copied, tmp_path, one_line_error, mode):
    for checkpoint in (copied / "checkpoints").iterdir():
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    one_line_error([f"--mode={mode}", f"--resume={copied}"], "cannot be read", str(copied), folder=tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "state_dict": {}}, ["another program", "epoch"]),
        ({"format": shutil.rmtree}, ["cannot be read"]),  # it would run code
    ],
)
def test_a_foreign_checkpoint(copied, tmp_path, one_line_error, content, words):
    torch.save(content, copied / "checkpoints" / "model_best.pth.tar")
    one_line_error(["--mode=test", f"--resume={copied}"], *words, folder=tmp_path)


def test_a_flag_that_contradicts_the_stored_model_names_both_values(trained, tmp_path, one_line_error):
    run = newest_run(trained / "runs")
    for mode, word, *said in (
        ("train", "--num_clusters=8", "8", "num_clusters=4"), ("test", "--num_clusters=8", "8", "num_clusters=4"),
        ("test", "--vladv2", "vladv2=False"),
    ):  # fmt: skip
        line = one_line_error([f"--mode={mode}", f"--resume={run}", word], folder=tmp_path)
        assert all(each in line for each in said), line


def test_no_run_to_resume(tmp_path, one_line_error):
    assert "no run under" in one_line_error(["--mode=test", "--resume", *paths(tmp_path)], folder=tmp_path)
    assert "not a run" in one_line_error(["--mode=test", f"--resume={tmp_path}"], folder=tmp_path)


def test_no_room_for_a_checkpoint_leaves_the_old_one(copied, tmp_path, one_line_error):
    checkpoint = copied / "checkpoints" / "checkpoint.pth.tar"
    before = checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # writing more fails, as a full disk does
    try:
        arguments = ["--mode=train", f"--resume={copied}", "--nEpochs=2", "--threads=0", "--device=cpu"]
        one_line_error(arguments, "cannot write", "unchanged", folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.read_bytes() == before
    assert main.main(arguments) == 0


def test_weights_that_do_not_fit(tiny_city, tmp_path, one_line_error):
    common = [*toy(tiny_city, tmp_path), "--arch=alexnet", "--mode=test", "--pooling=max", "--threads=0"]

    def said_of(weights):
        return one_line_error([*common, f"--weights={weights}"], folder=tmp_path)

    line, other = said_of("absent.pth"), tmp_path / "other.pth"
    assert "absent.pth" in line and "does not exist" in line
    line = said_of("IMAGENET1K_V9")
    assert "IMAGENET1K_V9" in line and "IMAGENET1K_V1" in line
    torch.save({"features.0.weight": torch.zeros(3, 3)}, other)
    line = said_of(other)
    assert "features.0.bias" in line and "alexnet" in line
    other.write_bytes(b"not a state dict")
    assert "cannot be read" in said_of(other)


def test_a_failed_download_says_which_file_goes_where(tiny_city, tmp_path, one_line_error, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    arguments = [*toy(tiny_city, tmp_path), "--arch=alexnet", "--mode=test", "--pooling=max"]
    one_line_error(arguments, "alexnet-owt", ".pth", "checkpoints", "--weights FILE", "--fromscratch", folder=tmp_path)
