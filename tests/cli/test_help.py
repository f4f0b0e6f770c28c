"""What --help of a mode shows: what it is for, its own flags first, and examples that are right."""

import json

import pytest

from vpr.cli.examples import EXAMPLES
from vpr.cli.flags import MODES, all_flags
from vpr.cli.options import parse_options
from vpr.cli.parser import wanted_help


def test_each_mode_has_three_examples():
    assert set(EXAMPLES) == set(MODES) and {len(lines) for lines in EXAMPLES.values()} == {3}


@pytest.mark.parametrize("mode", MODES)
def test_the_examples_are_command_lines_that_the_program_takes(mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "2026-01-01_00-00-00.000_alexnet_netvlad"
    (run / "checkpoints").mkdir(parents=True)
    (run / "flags.json").write_text(json.dumps({"arch": "alexnet", "dataset": "toy", "pooling": "netvlad"}))
    monkeypatch.setattr("vpr.cli.flags.stored_flags", lambda _: {"arch": "alexnet", "dataset": "toy"})
    for line in EXAMPLES[mode]:
        assert parse_options(line.format("").split()).mode == ("train" if mode == "distill" else mode)


@pytest.mark.parametrize("words", [["locate", "--help"], ["--mode=locate", "-h"]])
def test_a_modes_help_begins_with_what_it_is_for(words):
    from vpr.cli.parser import with_mode

    text = wanted_help(with_mode(words))
    assert "locate: where were these images taken?" in text and " locate [flags] INPUT ..." in text
    own, model = text.index("index and locate:"), text.index("model:")
    assert own < model, "its own flags before those of all modes"
    assert text.rstrip().endswith(EXAMPLES["locate"][-1].format("python main.py"))
    assert text.index("--top") < text.index("--channels")


def test_no_flag_is_lost_by_the_order():
    text = wanted_help(["--help-all"])
    assert all(f"--{flag.name}" in text for flag in all_flags().values())
