"""--engine by the command line: Milvus Lite answers as FAISS does, in index, locate and test."""

import json
import re

import pytest
import torch
from own_images import FP32, draw_split

pytest.importorskip("milvus_lite", reason="pip install -r requirements-milvus.txt")


@pytest.fixture
def run(tmp_path, call_on):
    """Runs a mode on 12 database images and 4 queries."""
    root = draw_split(tmp_path / "own", 12, 4)
    extra = {"locate": [root / "val" / "queries", "--json", "--top=12"]}
    return lambda mode, *words: call_on(root, mode, *extra.get(mode, []), *words, model=FP32)


def answers(out):
    return [
        (answer["confidence"], [(match["name"], match["distance"]) for match in answer["matches"]])
        for answer in json.loads(out)
    ]


def test_milvus_answers_as_faiss_does(run, tmp_path):
    engine = f"--engine=milvus:{tmp_path / 'map.db'}"
    assert "has no images yet" in run("locate", engine).last_error
    code, out, err = run("index", engine)
    assert code == 0 and "12 added; 12 described" in out and "100.00 % of the exact first 20 hits" in out, err
    assert "12 unchanged; 0 described" in run("index", engine).out
    for words in (["--rerank=0"], ["--rerank=4"], ["--rerank=0", "--near=40.4393,-79.9967,100"]):
        theirs, ours = run("locate", engine, *words), run("locate", *words)
        assert theirs.code == ours.code == 0, theirs.err
        assert answers(theirs.out) == answers(ours.out) and len(answers(ours.out)) == 4
        for sure, matches in answers(ours.out):
            assert len(matches) == 12 if "near" not in str(words) else 0 < len(matches) < 12
            assert (sure is None) == ("near" in str(words))
            if words == []:  # the queries show the same as database images
                assert matches[0][1] < 5e-4 and sure > 0.99
    assert run("index", engine, "--remove", "*@11@.png").code == 0
    assert len(answers(run("locate", engine).out)[0][1]) == 11
    for words, said in ((["--index=IVF4,PQ8"], "PQ"), (["--indexFile=a.h5"], "--indexFile is of --engine=faiss")):
        assert said in run("index", engine, *words).error


def test_recalls_through_milvus_are_those_of_the_exact_search(run, tmp_path):
    recalls, path = ["--rerank=4", "--recallValues", 1, 2, 5], tmp_path / "results.json"
    code, out, err = run("test", f"--engine=milvus:{tmp_path / 'map.db'}", *recalls)
    assert code == 0, err
    assert re.search(r"milvus .*FLAT.*: lost against exact search: R@1: 0.0, R@2: 0.0, R@5: 0.0", out)
    results = json.loads(path.read_text())
    assert [entry["search"].split(" (")[0] for entry in results] == ["exact", "by milvus", "by milvus"]
    assert results[0]["recalls"] == results[1]["recalls"] and "then a second look" in results[2]["search"]
    path.unlink()
    assert run("test", *recalls).code == 0
    assert json.loads(path.read_text())[-1]["recalls"] == results[2]["recalls"]


def test_several_processes_write_through_a_server_alone(run, monkeypatch, tmp_path):
    monkeypatch.setattr("vpr.common.processes.world", lambda: 2)
    monkeypatch.setattr("vpr.modes.index.device_of", lambda options: torch.device("cpu"))  # would ask the other one
    for words in ([], [f"--engine=milvus:{tmp_path / 'map.db'}"]):
        assert "only through a server, found 2" in run("index", *words).error
