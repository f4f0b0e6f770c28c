"""--sequence in test and locate: the same order in both, and what is refused."""

import json

import h5py
import numpy as np
import pytest
from drawing import draw_image

import vpr.modes.test
from vpr.data.frames import find_sequences
from vpr.search.sequences import SequenceRule, search_sequences

NAMES = [f"val/database/{sequence}/{n:03d}.png" for sequence in "ab" for n in range(6)]


@pytest.fixture
def call(tmp_path, call_on):
    """Runs a mode on a database of two sequences of six frames, 20 m apart, and a sequence of four queries."""
    root, names = tmp_path / "own", [*NAMES, *(f"val/queries/{n}.png" for n in range(4))]
    for number, name in enumerate(names):
        draw_image(root / name, (96, 72), number)
    rows = [f"{name},{585000 + 20 * number},4477000" for number, name in enumerate(names)]
    (root / "positions.csv").write_text("\n".join(["image,easting,northing", *rows]))
    return lambda mode, *words: call_on(root, mode, *words)


@pytest.mark.parametrize("causal", [False, True])
def test_locate_gives_the_order_that_test_counts(call, tmp_path, causal):
    how = ["--sequence=1", *["--causal"] * causal]
    code, printed, _ = call("test", f"--saveDescriptors={tmp_path / 'kept.h5'}", *how)
    assert code == 0
    assert printed.count("R@1: ") == 2  # without and with
    assert f"search exact, sequences of 1 frame before{'' if causal else ' and after'}" in printed
    assert len(json.loads((tmp_path / "results.json").read_text())) == 2
    with h5py.File(tmp_path / "kept.h5") as file:
        database, queries = (file[name][:] for name in ("database", "queries"))
    sequences = find_sequences(NAMES), find_sequences([f"q/{n}.png" for n in range(4)])
    code, printed, said = call("locate", tmp_path / "own" / "val" / "queries", "--top=12", "--json", "--rerank=0", *how)
    assert code == 0
    assert "by sequences" in said
    answers = json.loads(printed)
    found, _ = search_sequences(database, queries, 12, sequences, SequenceRule(1, causal))
    assert len(answers) == 4
    for hits, query, answer in zip(found, queries, answers, strict=True):
        assert [match["name"] for match in answer["matches"]] == [NAMES[hit] for hit in hits]
        distances = np.linalg.norm(database[hits].astype(np.float32) - query, axis=1)
        np.testing.assert_allclose([match["distance"] for match in answer["matches"]], distances, atol=1e-3)


@pytest.mark.parametrize("depth", [2, 6])
def test_locate_gives_the_order_that_test_counts_after_re_ranking(call, tmp_path, monkeypatch, depth):
    counted, measure_all = [], vpr.modes.test.measure_all

    def keep(*arguments):
        counted.append(measure_all(*arguments))
        return counted[-1]

    monkeypatch.setattr(vpr.modes.test, "measure_all", keep)
    code, printed, _ = call("test", "--sequence=1", f"--rerank={depth}")
    assert code == 0
    results, answers = [each for each, _ in counted[0]], counted[0][-1][1]
    assert [evaluation.search.count("sequences") for evaluation in results] == [0, 1, 1]
    assert [evaluation.search.count("second look") for evaluation in results] == [0, 0, 1]
    assert answers.ranking.answers.scores is not None and printed.count("R@1: ") == 3
    how = ["--json", "--sequence=1", f"--rerank={depth}"]
    code, printed, said = call("locate", tmp_path / "own" / "val" / "queries", "--top=12", *how)
    assert code == 0
    assert "by a second look" in said
    for hits, answer in zip(answers.found, json.loads(printed), strict=True):
        assert [match["name"] for match in answer["matches"]] == [NAMES[hit] for hit in hits if hit >= 0]


@pytest.mark.parametrize(
    ("mode", "words", "said"),
    [
        ("test", ["--causal"], "--causal has no effect without --sequence L"),
        ("locate", ["--speeds", "1", "2"], "--speeds has no effect without --sequence L"),
        ("test", ["--excludeRecent=2", "--index=Flat"], "--excludeRecent searches exactly"),
        ("locate", ["--sequence=1", "--index=Flat"], "--sequence searches exactly"),
        ("test", ["--sequence=1", "--speeds", "nan"], "wanted a finite number"),
        ("test", ["--sequence=1", "--speeds", "500"], "in steps of 1 over sequences of 5 at most"),
    ],
)
def test_what_cannot_be_searched_in_order_is_said_in_a_line(call, tmp_path, mode, words, said):
    inputs = [tmp_path / "own" / "val" / "queries"] if mode == "locate" else []
    assert said in call(mode, *inputs, *words).last_error


def test_a_single_image_is_no_sequence(call, tmp_path):
    called = call("locate", tmp_path / "own" / "val" / "queries" / "1.png", "--sequence=1")
    assert "no two of the 1 queries are of one sequence" in called.last_error
