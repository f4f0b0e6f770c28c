"""Files that an earlier version of the program wrote still load, and give what they gave then.

They lie in tests/earlier_version/, which says how they were made. Each test works on a copy. A checkout gives photos
other times than they had: files of before photo files were told apart must not mind.
"""

import csv
import hashlib
import json
import math
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import main

STORED = Path(__file__).with_name("earlier_version")
REPOSITORY = str(Path(main.__file__).parent)
PLACES = ["--dataset=folder", "--root=photos"]
MODEL = ["--arch=alexnet", "--fromscratch", "--channels", "8", "8", "8", "8", "8", "--num_clusters=4"]
COMPUTE = ["--precision=fp32", "--device=cpu", "--threads=0"]
CENTROIDS = "alexnet_scratch-34d8b1_4_photos_train-9a583b-own.hdf5"
# Where results.json of the run has what a test of it gave; entry 0 is the training's own.
PLAIN, WHITENED, FP32_FILE, INT8_FILE = 1, 2, 3, 4
MEASURED = ("recalls", "split", "spec", "queries", "queries_without_positive", "database_photos", "descriptor_dim")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A copy of the stored files as working folder: the flags in them name it by relative paths."""
    copy = tmp_path / "copy"
    shutil.copytree(STORED, copy)
    monkeypatch.chdir(copy)
    return copy


def results(folder):
    return json.loads((folder / "results.json").read_text())


def measured(result):
    return {name: result[name] for name in MEASURED}


def stored_run():
    return results(STORED / "runs" / "run")


def descriptors(path):
    with h5py.File(path) as file:
        assert file["database"].dtype == file["queries"].dtype == np.float16
        return [file[name][:].astype(np.float32) for name in ("database", "queries")]


def same_descriptors(found, wanted):
    """To 1e-3: entries below 1 in float16."""
    for one, other in zip(descriptors(found), descriptors(wanted), strict=True):
        assert len(np.unique(other, axis=0)) == len(other), "photos come out unlike"
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("flags", "entry", "kept"),
    [(["--noWhiten"], PLAIN, "descriptors_run.h5"), ([], WHITENED, "descriptors_whitened.h5")],
    ids=["plain", "whitened"],
)
def test_a_run_gives_the_recalls_and_descriptors_that_it_gave(folder, flags, entry, kept):
    call = ["--mode=test", "--resume=runs/run", "--panels=0", "--saveDescriptors=now.h5", "--device=cpu", *flags]
    assert main.main(call) == 0
    found = results(folder / "runs" / "run")
    assert len(found) == len(stored_run()) + 1, "earlier results are kept"
    assert measured(found[-1]) == measured(stored_run()[entry])
    same_descriptors("now.h5", kept)


def draws_the_same_weights() -> bool:
    """Whether PyTorch draws the random numbers here that it drew where the files were made.

    Without AVX2 or AVX-512 the normal numbers of a seed have other last bits, so that --fromscratch is another network.
    """
    drawn = torch.empty(1000).normal_(generator=torch.Generator().manual_seed(1)).numpy()
    return hashlib.sha256(drawn.tobytes()).hexdigest().startswith("5107d171")


def refused(call, capsys) -> None:
    """Centroids of another network are not taken: the file that is wanted has another hash in its name."""
    assert main.main(call) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: no centroids at centroids/alexnet_scratch-") and "scratch-34d8b1" not in line


def test_centroids_are_used_off_the_shelf(folder, capsys):
    call = ["--mode=test", *PLACES, *MODEL, *COMPUTE, "--panels=0", "--saveDescriptors=now.h5"]
    if not draws_the_same_weights():
        return refused(call, capsys)
    assert main.main(call) == 0
    wanted, found = results(folder / "runs")
    assert measured(found) == measured(wanted) and found["centroids"] == wanted["centroids"] == CENTROIDS
    same_descriptors("now.h5", "descriptors_offtheshelf.h5")


def test_clustering_gives_the_centroids_that_it_gave():
    """Networks that differ in last bits have the same centroids but for that, in files of other names."""
    assert main.main(["--mode=cluster", *PLACES, *MODEL, *COMPUTE, "--dataPath=now"]) == 0
    (made,) = Path("now").iterdir()
    assert (made.name == CENTROIDS) == draws_the_same_weights()
    with h5py.File(made) as found, h5py.File(f"centroids/{CENTROIDS}") as wanted:
        np.testing.assert_allclose(found["centroids"][:], wanted["centroids"][:], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kept", "model", "entry"),
    [
        ("descriptors_offtheshelf.h5", [*PLACES, *MODEL, *COMPUTE], None),
        ("descriptors_run.h5", ["--resume=runs/run", "--noWhiten", "--device=cpu"], PLAIN),
        ("descriptors_whitened.h5", ["--resume=runs/run", "--device=cpu"], WHITENED),
    ],
    ids=["off the shelf", "plain", "whitened"],
)
def test_stored_descriptors_give_the_same_recalls_and_a_line_says_that_they_are_older(
    folder, capsys, kept, model, entry
):
    call = ["--mode=test", *model, "--panels=0", f"--loadDescriptors={kept}"]
    if entry is None and not draws_the_same_weights():
        return refused(call, capsys)
    assert main.main(call) == 0
    written = folder / "runs" if entry is None else folder / "runs" / "run"
    wanted = results(STORED / "runs")[0] if entry is None else stored_run()[entry]
    assert measured(results(written)[-1]) == measured(wanted)
    said = capsys.readouterr().out.splitlines()
    (line,) = [line for line in said if line.startswith(kept) and "cannot be told" in line]
    assert "earlier version" in line


@pytest.mark.parametrize(("name", "entry"), [("fp32", FP32_FILE), ("int8", INT8_FILE)])
def test_exported_files_give_the_recalls_that_they_gave(folder, name, entry):
    pytest.importorskip("onnxruntime", reason="onnxruntime, an optional package, is not installed")
    file = f"runs/run/model_best_{name}.onnx"
    call = ["--mode=test", *PLACES, f"--resume={file}", "--device=cpu", "--panels=0", "--saveDescriptors=now.h5"]
    assert main.main(call) == 0
    wanted, found = stored_run()[entry], results(folder / "runs" / "run")[-1]
    assert measured(found) == measured(wanted)
    assert found["model"].endswith(f"{name} ONNX") and wanted["model"].endswith(f"{name} ONNX")
    if name == "fp32":
        same_descriptors("now.h5", "descriptors_whitened.h5")  # the whitening is inside


def test_locate_finds_what_it_found_whether_or_not_the_index_is_made_anew(folder, capsys):
    index = folder / "runs" / "run" / "checkpoints" / "database_photos_val.h5"
    before = index.read_bytes()
    call = ["--mode=locate", "--resume=runs/run", "--json", "--panels=0", "--device=cpu", "photos/val/queries"]
    assert main.main(call) == 0
    printed = capsys.readouterr()
    assert (index.read_bytes() != before) == ("earlier version" in printed.err and "making it anew" in printed.err)
    found, wanted = json.loads(printed.out), json.loads((STORED / "locate.json").read_text())
    assert [answer["photo"] for answer in found] == [answer["photo"] for answer in wanted]
    for answer, known in zip(found, wanted, strict=True):
        assert [match["name"] for match in answer["matches"]] == [match["name"] for match in known["matches"]]
        for match, other in zip(answer["matches"], known["matches"], strict=True):
            assert match["distance"] == pytest.approx(other["distance"], abs=2e-3)
            for name in ("easting", "northing", "latitude", "longitude", "zone"):
                assert match[name] == other[name]
        assert answer["confidence"] == pytest.approx(known["confidence"], abs=1e-2)


def test_training_goes_on_from_a_run(folder):
    run = folder / "runs" / "run"
    states = [torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True)]
    assert main.main(["--mode=train", "--resume=runs/run", "--nEpochs=3", "--device=cpu", "--threads=0"]) == 0
    states.append(torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True))
    assert [state["position"]["epoch"] for state in states] == [3, 4], "the next one"
    assert states[1]["position"]["steps"] > states[0]["position"]["steps"]
    before, after = (state["state_dict"] for state in states)
    assert before.keys() == after.keys()
    assert not torch.equal(before["encoder.0.weight"], after["encoder.0.weight"])
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with open(STORED / "runs" / "run" / "metrics.csv", newline="", encoding="utf-8") as file:
        earlier = list(csv.DictReader(file))
    assert len(earlier) == 2 and [row["loss"] for row in rows[:2]] == [row["loss"] for row in earlier]
    assert rows[2]["epoch"] == "3" and 0 < float(rows[2]["loss"]) < math.inf
    # Nothing that the third epoch gives is better than the best one of before.
    assert measured(results(run)[-1]) == measured(stored_run()[PLAIN])


def test_the_hub_loads_a_run(folder):
    with h5py.File(folder / "descriptors_whitened.h5") as file:
        wanted = file["queries"][:].astype(np.float32)
    model = torch.hub.load(REPOSITORY, "netvlad", source="local", checkpoint="runs/run", device="cpu")
    found = model.describe_files(sorted((folder / "photos" / "val" / "queries").iterdir()))
    assert found.dtype == np.float32 and model.dimension == 7
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)  # the run's own flags say fp32
