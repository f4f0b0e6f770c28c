"""Stored local descriptors by the command line: which are taken, which are refused, and what a failure leaves."""

import json
import os
import subprocess
import sys

import pytest
from drawing import draw_image

import main

MODEL = ["--arch=alexnet", "--fromscratch", "--pooling=avg", "--threads=0", "--device=cpu"]


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a mode on 9 database images and 2 queries; gives exit code, standard output and what else was said."""
    root = tmp_path / "own"
    for n in range(9):
        draw_image(root / "val" / "database" / f"@{585000 + 30 * n}@4477000@17@T@{n}@.png", (96, 80), n)
    for n in range(2):
        draw_image(root / "val" / "queries" / f"@{585003 + 30 * n}@4477000@17@T@q{n}@.png", (96, 80), n)

    def call(mode, *words):
        places = ["--dataset=folder", f"--root={root}", f"--dataPath={tmp_path / 'model'}", f"--runsPath={tmp_path}"]
        extra = {"test": ["--panels=0"], "locate": [root / "val" / "queries", "--json", "--panels=0"]}.get(mode, [])
        code = main.main(list(map(str, [f"--mode={mode}", *MODEL, *places, *extra, *words])))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_an_index_that_fails_leaves_the_earlier_one_with_its_local_descriptors(run, tmp_path):
    keep = ["--localDescriptors", "--localDim=8"]
    assert run("index", *keep)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert len(before) == 3
    code, _, err = run("index", "--localDescriptors", "--localDim=4", "--index=Nonsense")
    assert code == 2 and "Nonsense" in err
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert run("index")[0] == 0
    assert sorted(path.suffix for path in (tmp_path / "model").iterdir()) == [".descriptors", ".sqlite"]


def test_descriptors_saved_without_local_ones_leave_none(run, tmp_path):
    path = tmp_path / "kept.h5"
    assert run("test", "--rerank=3", "--localDim=8", f"--saveDescriptors={path}")[0] == 0
    assert path.with_suffix(".local").is_file()
    assert run("test", f"--saveDescriptors={path}")[0] == 0
    assert path.is_file() and not path.with_suffix(".local").exists()


def test_other_dimensions_than_those_stored_are_refused(run, tmp_path):
    path = tmp_path / "kept.h5"
    assert run("test", "--rerank=3", "--localDim=8", f"--saveDescriptors={path}")[0] == 0
    assert run("test", "--rerank=3", f"--loadDescriptors={path}")[0] == 0
    assert run("index", "--localDescriptors", "--localDim=8")[0] == 0
    assert run("locate")[0] == run("locate", "--localDim=8")[0] == 0
    for mode, words in (("test", ["--rerank=3", f"--loadDescriptors={path}"]), ("locate", [])):
        code, _, err = run(mode, *words, "--localDim=4")
        assert code == 2 and "of 8 dimensions, found --localDim=4" in err.splitlines()[-1]


def test_an_index_of_bits_is_re_ranked_by_the_descriptors_beside_it(run):
    assert run("index", "--localDescriptors", "--localDim=8", "--index=LSH")[0] == 0
    code, out, err = run("locate")
    assert code == 0 and "no second look" not in err, err
    assert "second look" in json.loads(out)[0]["confidence_kind"]


@pytest.mark.parametrize("mode", ["test", "locate"])
def test_a_score_of_no_second_look_is_refused(run, mode):
    code, _, err = run(mode, "--rerankBy=spatial")
    assert code == 2 and "--rerankBy has no effect without --rerank K" in err.splitlines()[-1]


def test_processes_write_the_local_descriptors_that_one_writes(tmp_path, run):
    """The 9 database images are 5 batches of 2, of which one process has three and the other two."""
    words = ["--rerank=3", "--localDim=8", "--cacheBatchSize=2", "--precision=fp32"]
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    assert run("test", *words, f"--saveDescriptors={one}")[0] == 0
    places = ["--dataset=folder", f"--root={tmp_path / 'own'}", f"--dataPath={tmp_path / 'model'}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", main.__file__]
    more = ["--mode=test", "--panels=0", f"--runsPath={tmp_path}", f"--saveDescriptors={two}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, *MODEL, *places, *words, *more], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert one.with_suffix(".local").read_bytes() == two.with_suffix(".local").read_bytes()
