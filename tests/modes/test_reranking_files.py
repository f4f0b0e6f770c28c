"""Stored local descriptors by the command line: which are taken, which are refused, and what a failure leaves."""

import json
import os
import subprocess
import sys

import pytest
from own_images import MODEL, draw_split

import main
import vpr.cli.locating

KEEP = ["--localDescriptors", "--localDim=8"]


@pytest.fixture
def run(tmp_path, call_on, monkeypatch):
    """Runs a mode on 9 database images and 2 queries; an index keeps local descriptors where that is asked for."""
    monkeypatch.setattr(vpr.cli.locating, "FEW", 0)
    root = draw_split(tmp_path / "own", 9, 2)
    extra = {"locate": [root / "val" / "queries", "--json"]}
    return lambda mode, *words: call_on(root, mode, *extra.get(mode, []), *words)


@pytest.fixture
def saved(run, tmp_path):
    """A file of descriptors with local ones beside it."""
    path = tmp_path / "kept.h5"
    assert run("test", "--rerank=3", "--localDim=8", f"--saveDescriptors={path}").code == 0
    assert path.with_suffix(".local").is_file()
    return path


def test_an_index_that_fails_leaves_the_earlier_one_with_its_local_descriptors(run, tmp_path):
    folder = tmp_path / "model"
    assert run("index", *KEEP).code == 0
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(before) == 3
    code, _, err = run("index", "--localDescriptors", "--localDim=4", "--index=Nonsense")
    assert code == 2 and "Nonsense" in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert run("index").code == 0
    assert sorted(path.suffix for path in folder.iterdir()) == [".descriptors", ".sqlite"]


def test_descriptors_saved_without_local_ones_leave_none(run, saved):
    assert run("test", f"--saveDescriptors={saved}").code == 0
    assert saved.is_file() and not saved.with_suffix(".local").exists()


def test_other_dimensions_than_those_stored_are_refused(run, saved):
    load = ["--rerank=3", f"--loadDescriptors={saved}"]
    assert run("test", *load).code == run("index", *KEEP).code == 0
    assert run("locate").code == run("locate", "--localDim=8").code == 0
    for mode, words in (("test", load), ("locate", [])):
        assert "of 8 dimensions, found --localDim=4" in run(mode, *words, "--localDim=4").last_error


def test_an_index_of_bits_is_re_ranked_by_the_descriptors_beside_it(run):
    assert run("index", *KEEP, "--index=LSH").code == 0
    code, out, err = run("locate")
    assert code == 0 and "no re-ranking" not in err, err
    assert "second look" in json.loads(out)[0]["confidence_kind"]


@pytest.mark.parametrize("mode", ["test", "locate"])
def test_a_score_of_no_re_ranking_is_refused(run, mode):
    assert "--rerankBy has no effect without --rerank K" in run(mode, "--rerankBy=spatial").last_error


def test_processes_write_the_local_descriptors_that_one_writes(tmp_path, run):
    """The 9 database images are 5 batches of 2, of which one process has three and the other two."""
    words = ["--rerank=3", "--localDim=8", "--cacheBatchSize=2", "--precision=fp32"]
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    assert run("test", *words, f"--saveDescriptors={one}").code == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", main.__file__]
    places = ["--dataset=folder", f"--root={tmp_path / 'own'}", f"--dataPath={tmp_path / 'model'}"]
    more = ["--mode=test", "--panels=0", f"--runsPath={tmp_path}", f"--saveDescriptors={two}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    call = [*torchrun, *MODEL, *places, *words, *more]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert one.with_suffix(".local").read_bytes() == two.with_suffix(".local").read_bytes()
