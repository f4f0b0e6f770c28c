"""The program of the tables with a fake main.py: what it plans, skips and makes again, and that it survives SIGKILL."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tables.plan import rows
from benchmarks.tables.timing import SAMPLE, images_under
from vpr.cli.options import parse_options

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE = f"{sys.executable} {Path(__file__).with_name('fake_main.py')}"
STEPS = 4 + 2 + 1 + 2 * 13 + 2  # clusters, trainings, pruning, exports and tests, times
ESTIMATES = 4


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images" / "deep"
    folder.mkdir(parents=True)
    for number in range(130):
        (folder / f"{number:03}.JPG").write_bytes(b"%d" % number)
    return folder.parent


@pytest.fixture
def called(root, tmp_path):
    """Runs the program; gives its exit code, what it said, and the commands that it ran."""

    def call(*flags, out="out", breaks_at=None):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {**os.environ, "CALLS": str(calls), "BREAKS_AT": json.dumps(breaks_at)}
        words = [
            sys.executable,
            "-m",
            "benchmarks.tables",
            f"--root={root}",
            f"--out={tmp_path / out}",
            f"--main={FAKE}",
            *flags,
        ]
        done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        ran = [json.loads(line) for line in calls.read_text().splitlines()]
        return done.returncode, done.stdout + done.stderr, ran

    return call


def tables_in(folder):
    """All that is written but times and paths of the folder."""
    text = (folder / "tables.md").read_text(encoding="utf-8")
    return text.replace(str(folder), ""), json.loads((folder / "tables.json").read_text(encoding="utf-8"))


def test_all_commands_run_once_and_give_two_tables_and_a_picture(called, tmp_path):
    code, said, ran = called()
    assert code == 0 and len(ran) == STEPS + ESTIMATES, said
    assert re.search(rf"{STEPS} of {STEPS} commands are left: about \d+ minutes", said)
    text, lines = tables_in(tmp_path / "out")
    assert len(lines) == len(rows()) == 14 and text.count("\n| VGG16") == 2 + 4
    (pruned,) = (line for line in text.splitlines() if line.startswith("| VGG16, trained, pruned | int8 |"))
    recall = 100 * len("vgg16_pruned_int8") / 100
    cells = [f"{recall:.1f}"] * 4 + [f"{recall + 50:.1f}"] * 4 + ["3.2", "1.50", "1.50", "12.0", "12.0"]
    assert [cell.strip() for cell in pruned.split("|")[3:16]] == cells
    assert "of vgg16_pruned_int8" in pruned and "split val; 7 queries" in pruned and "4,096" in pruned
    assert all(words in text for words in ("Trained 1 epoch", "distilled on 512 images", "224x224", "a processor"))
    assert (tmp_path / "out" / "tables.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_not_done_again(called, tmp_path):
    called()
    before = tables_in(tmp_path / "out")
    code, said, ran = called()
    assert code == 0 and ran == [] and "done before" in said
    assert tables_in(tmp_path / "out") == before


@pytest.mark.parametrize("at", [2, 9, 14, ESTIMATES + STEPS])
def test_killed_it_goes_on_and_ends_with_the_same_tables(called, tmp_path, at):
    """The command had written all it had to write, but its step was not finished."""
    called(out="alone")
    code, _, ran = called(breaks_at=[at, "kill"])
    assert code < 0 and len(ran) == at and not (tmp_path / "out" / "tables.md").exists()
    code, _, ran = called()
    assert code == 0 and len(ran) == STEPS + ESTIMATES - at + 1
    assert tables_in(tmp_path / "out") == tables_in(tmp_path / "alone")
    assert not [*(tmp_path / "out" / "steps").glob(".*")]


def test_a_command_that_fails_is_named_and_tried_again(called, tmp_path):
    code, said, ran = called(breaks_at=[ESTIMATES + 5, "fail"])
    assert code == 1 and len(ran) == ESTIMATES + 5
    assert "error: train_vgg16 ended with exit code 2" in said and "said by train" in said and "--mode=train" in said
    assert not (tmp_path / "out" / "steps" / "train_vgg16").exists()
    code, _, again = called()
    assert code == 0 and len(again) == STEPS - 4 and "--mode=train" in again[0]


def test_other_flags_make_again_only_what_they_change(called):
    called()
    _, _, ran = called("--distill=64")
    modes = [next(word for word in words if word.startswith("--mode")) for words in ran]
    assert modes == ["--mode=prune", *2 * ["--mode=export", "--mode=test"], *2 * ["--mode=compare"]]
    assert "--distill=64" in ran[0]


def test_every_command_is_one_that_main_py_takes(called, tmp_path, monkeypatch):
    """But for files that other commands write: flags are known, and of the mode."""
    weights = tmp_path / "weights"
    weights.mkdir()
    _, _, ran = called(f"--weights={weights}")
    monkeypatch.chdir(tmp_path)
    modes = {}
    for words in ran:
        plain = [word for word in words if not word.startswith(("--resume", "--weights", "--normalization"))]
        parse_options([word for word in plain if not word.endswith(".onnx") or word.startswith("--out")])
        modes.setdefault(words[0], words)
    assert set(modes) == {f"--mode={name}" for name in ("cluster", "train", "prune", "export", "test", "compare")}
    assert any(f"--weights={weights}/vgg16_features_oxford_vd16.pth" in words for words in ran)


def test_the_sample_is_of_the_first_images(called, root, tmp_path):
    called()
    files = sorted((tmp_path / "out" / "sample_images").rglob("*"))
    counts = [sum(split in str(file) and file.is_file() for file in files) for split in ("train", "val/d", "val/q")]
    assert counts == [SAMPLE, 3, 20]
    assert [file.name for file in images_under(root)][:2] == ["000.JPG", "001.JPG"]


def test_a_folder_without_images(called, root):
    for file in root.rglob("*.JPG"):
        file.unlink()
    code, said, ran = called()
    assert code == 2 and ran == [] and "found 0 images" in said
