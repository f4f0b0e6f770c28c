"""--engine by the command line: Milvus Lite answers as FAISS does, in index, locate and test."""

import json
import re

import pytest
import torch
from drawing import draw_image

import main

pytest.importorskip("milvus_lite", reason="pip install -r requirements-milvus.txt")
MODEL = ["--arch=alexnet", "--fromscratch", "--pooling=avg", "--threads=0", "--device=cpu", "--precision=fp32"]


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a mode on 12 database images and 4 queries; gives exit code, standard output and what else was said."""
    root = tmp_path / "own"
    for n in range(12):
        draw_image(root / "val" / "database" / f"@{585000 + 30 * n}@4477000@17@T@{n}@.png", (96, 80), n)
    for n in range(4):
        draw_image(root / "val" / "queries" / f"@{585003 + 30 * n}@4477000@17@T@q{n}@.png", (96, 80), 2 * n)

    def call(mode, *words):
        places = ["--dataset=folder", f"--root={root}", f"--dataPath={tmp_path / 'model'}", f"--runsPath={tmp_path}"]
        extra = {"locate": [root / "val" / "queries", "--json", "--panels=0", "--top=12"], "test": ["--panels=0"]}
        code = main.main(list(map(str, [f"--mode={mode}", *MODEL, *places, *extra.get(mode, []), *words])))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def answers(out):
    return [
        (answer["confidence"], [(match["name"], match["distance"]) for match in answer["matches"]])
        for answer in json.loads(out)
    ]


def test_milvus_answers_as_faiss_does(run, tmp_path):
    engine = f"--engine=milvus:{tmp_path / 'map.db'}"
    code, _, err = run("locate", engine)
    assert code == 2 and "has no images yet" in err.splitlines()[-1]
    code, out, err = run("index", engine)
    assert code == 0 and "12 added; 12 described" in out and "100.00 % of the exact first 20 hits" in out, err
    assert "12 unchanged; 0 described" in run("index", engine)[1]
    for words in ([], ["--rerank=4"], ["--near=40.4393,-79.9967,100"]):
        theirs, ours = run("locate", engine, *words), run("locate", *words)
        assert theirs[0] == ours[0] == 0, theirs[2]
        assert answers(theirs[1]) == answers(ours[1]) and len(answers(ours[1])) == 4
        for sure, matches in answers(ours[1]):
            assert len(matches) == 12 if "near" not in str(words) else 0 < len(matches) < 12
            assert (sure is None) == ("near" in str(words))
            if words == []:  # the queries show the same as database images
                assert matches[0][1] < 5e-4 and sure > 0.99
    code, out, _ = run("index", engine, "--remove", "*@11@.png")
    assert code == 0 and len(answers(run("locate", engine)[1])[0][1]) == 11
    for words, said in ((["--index=IVF4,PQ8"], "PQ"), (["--indexFile=a.h5"], "--indexFile is of --engine=faiss")):
        code, _, err = run("index", engine, *words)
        assert code == 2 and said in err and err.count("\n") == 1


def test_recalls_through_milvus_are_those_of_the_exact_search(run, tmp_path):
    code, out, err = run("test", f"--engine=milvus:{tmp_path / 'map.db'}", "--rerank=4", "--recallValues", 1, 2, 5)
    assert code == 0, err
    assert re.search(r"milvus .*FLAT.*: lost against exact search: R@1: 0.0, R@2: 0.0, R@5: 0.0", out)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["search"].split(" (")[0] for entry in results] == ["exact", "by milvus", "by milvus"]
    assert results[0]["recalls"] == results[1]["recalls"] and "then a second look" in results[2]["search"]
    results_path = tmp_path / "results.json"
    results_path.unlink()
    assert run("test", "--rerank=4", "--recallValues", 1, 2, 5)[0] == 0
    assert json.loads(results_path.read_text())[-1]["recalls"] == results[2]["recalls"]


def test_several_processes_write_through_a_server_alone(run, monkeypatch, tmp_path):
    monkeypatch.setattr("vpr.common.processes.world", lambda: 2)
    monkeypatch.setattr("vpr.modes.index.choose_device", lambda name: torch.device("cpu"))  # would ask the other one
    for words in ([], [f"--engine=milvus:{tmp_path / 'map.db'}"]):
        code, _, err = run("index", *words)
        assert code == 2 and "only through a server, found 2" in err and err.count("\n") == 1
