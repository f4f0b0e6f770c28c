"""What the program calls itself, by the name under which it was started, and which libraries wait until a mode."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_options import help_by, parse, refusal

from vpr.cli.flags import CLUSTER_FLAGS
from vpr.cli.options import command_line

ROOT = Path(__file__).resolve().parents[2]
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
        assert help_by(capsys, *words).startswith(f"usage: {name} ")
    line = command_line(parse("--mode=train", "--arch=alexnet"), "cluster", CLUSTER_FLAGS)
    assert line == f"{command} --mode=cluster --arch=alexnet"
    assert f"torchrun --nproc_per_node=2 {by_torchrun} --mode=train ..." in refusal("--mode=train", "--nGPU=2")


def test_torch_and_torchvision_of_two_builds_are_one_line(tmp_path):
    """What torchvision raises beside another build of torch, wherever it is imported."""
    (tmp_path / "torchvision").mkdir()
    code = "from importlib.metadata import version; print(version('torch'), version('torchvision'))"
    torch, torchvision = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    for text, one_line in (("operator torchvision::nms does not exist", True), ("something else", False)):
        (tmp_path / "torchvision" / "__init__.py").write_text(f"raise RuntimeError({text!r})")
        start = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from vpr.cli.app import main; sys.exit(main())"
        words = [sys.executable, "-c", start, "locate", "--model=fast", f"--root={tmp_path}", "x.jpg"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
        if not one_line:
            assert done.returncode == 1 and "Traceback" in done.stderr
            continue
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"torch {torch} and torchvision {torchvision}" in done.stderr and "pip install" in done.stderr


HEAVY = {"torch", "torchvision", "timm", "matplotlib", "scipy", "sklearn", "bokeh"}
UP_TO_THE_MODE = """
import contextlib, sys
from types import SimpleNamespace
from vpr.cli import app
from vpr.common.settings import MODES

for mode in MODES:
    sys.modules[app.module_of(mode)] = SimpleNamespace(run=lambda options: None)
    with contextlib.redirect_stdout(sys.stderr):
        assert app.main([f"--mode={mode}"]) == 0
        with contextlib.suppress(SystemExit):
            app.main([f"--mode={mode}", "--help"])
"""
IN_EVERY_MODE = """
import importlib, pkgutil, sys
import vpr.common
for module in pkgutil.iter_modules(vpr.common.__path__, "vpr.common."):
    importlib.import_module(module.name)
from vpr.common import device, memory, processes
with processes.process_group(), memory.out_of_memory_says("less"):
    assert processes.any_process(True) and device.find_device("cpu") == device.choose_device("cpu")
    assert device.device_line(device.CPU) == f"device: cpu ({device.compute_threads()} threads)"
    assert device.compute_precision("auto", device.CPU) in device.DTYPES
    if not device.has_gpu_driver():
        assert device.choose_device() == device.CPU
"""


@pytest.mark.parametrize("code", [UP_TO_THE_MODE, IN_EVERY_MODE])
def test_no_heavy_library_is_imported_before_something_needs_it(code):
    """PyTorch alone takes seconds, and an exported model runs without it."""
    code += f"\nassert not {HEAVY} & {{*sys.modules}}, {HEAVY} & {{*sys.modules}}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
