"""A few damaged files of each kind; `python -m campaigns.fuzz` tries many."""

import os
import random
import signal

import pytest

from campaigns import fuzz, fuzz_kinds

pytest.importorskip("onnx", reason="onnx is not installed")


def test_damaged_files_of_every_kind_are_refused_or_read_as_they_were(tmp_path):
    counts = fuzz.run(8, 1, tmp_path)
    assert set(counts) == set(fuzz_kinds.kinds()) and all(count.total() == 8 for count in counts.values())
    assert fuzz.failures(counts) == 0, fuzz.table(counts)
    checked = [name for name, kind in fuzz_kinds.kinds().items() if kind.checked]
    assert all(counts[name]["read"] == 0 and counts[name]["refused"] > 4 for name in checked), fuzz.table(counts)


def test_mutations_come_from_the_seed_and_change_the_file():
    content = bytes(range(1, 256)) * 40
    first, again = ([fuzz.mutate(content, chance) for _ in range(60)] for chance in map(random.Random, (7, 7)))
    assert first == again and all(changed != content for changed in first)
    lengths = {(len(changed) > len(content)) - (len(changed) < len(content)) for changed in first}
    assert lengths == {-1, 0, 1}


def read_badly(folder):
    def read(path):
        text = path.read_text()
        if text == "kill":
            os.kill(os.getpid(), signal.SIGSEGV)
        if text == "raise":
            raise ValueError(text)
        return text

    return read


def test_signals_and_tracebacks_are_told_apart_and_the_next_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "_answer", answer_badly)
    reader = fuzz.Reader(tmp_path)
    outcomes = []
    for text in ("fine", "raise", "kill", "fine"):
        (tmp_path / "file").write_text(text)
        outcomes.append(reader.read("bad", tmp_path / "file")[0])
    reader.end()
    assert outcomes == ["read", "traceback", "signal", "read"]


def answer_badly(pipe, folder):
    prepared = {"bad": read_badly(folder)}
    while True:
        try:
            kind, path = pipe.recv()
        except EOFError:
            return
        pipe.send(fuzz.outcome_of(kind, path, folder, prepared))


def test_what_is_accepted_though_changed_is_a_failure(tmp_path, monkeypatch):
    kind = fuzz_kinds.Kind(True, ["file"], read_badly)
    monkeypatch.setattr(fuzz_kinds, "kinds", lambda: {"bad": kind})
    monkeypatch.setattr(fuzz_kinds, "make_files", lambda folder: (folder / "file").write_text("fine and long enough"))
    monkeypatch.setattr(fuzz, "mutate", lambda content, chance: content.replace(b"fine", b"mine"))
    monkeypatch.setattr(fuzz, "_answer", answer_badly)
    counts = fuzz.run(3, 0, tmp_path)
    assert counts["bad"]["silent"] == fuzz.failures(counts) == 3
    assert (tmp_path / "file").read_text() == "fine and long enough"
