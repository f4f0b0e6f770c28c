"""What the program calls itself: by the name under which it was started."""

import sys

import pytest
from test_options import help_by, parse, refusal

from vpr.cli.flags import CLUSTER_FLAGS
from vpr.cli.options import command_line

STARTED = [
    ("/home/me/.venv/bin/vpr", "vpr", "vpr", "--no-python vpr"),
    ("vpr.exe", "vpr", "vpr", "--no-python vpr"),
    ("main.py", "main.py", "python main.py", "main.py"),
    ("/home/me/vpr/main.py", "main.py", "python main.py", "main.py"),
    ("/usr/bin/pytest", "main.py", "python main.py", "main.py"),
    ("-c", "main.py", "python main.py", "main.py"),
]


@pytest.mark.parametrize(("path", "name", "command", "by_torchrun"), STARTED)
def test_help_and_printed_commands_have_the_name_of_the_start(path, name, command, by_torchrun, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    for words in (["--help"], ["--help-all"], ["--mode=test", "--help"], ["--mode=locate", "--help"]):
        assert help_by(capsys, *words).startswith(f"usage: {name} --mode=")
    line = command_line(parse("--mode=train", "--arch=alexnet"), "cluster", CLUSTER_FLAGS)
    assert line == f"{command} --mode=cluster --arch=alexnet"
    assert f"torchrun --nproc_per_node=2 {by_torchrun} --mode=train ..." in refusal("--mode=train", "--nGPU=2")
