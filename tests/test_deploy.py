"""The files that run the server for others: their commands are ones that the program takes."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from vpr.cli.options import parse_options

ROOT = Path(__file__).resolve().parents[1]
UNIT, DOCKERFILE, DOCS = (
    ROOT / "deploy" / "netvlad.service",
    ROOT / "deploy" / "Dockerfile",
    ROOT / "docs" / "deploy.md",
)


def has_docker():
    """Whether there is docker, and its service runs."""
    return bool(shutil.which("docker")) and subprocess.run(["docker", "info"], capture_output=True).returncode == 0


@pytest.fixture
def beside_a_model(tmp_path, monkeypatch):
    """A folder with an exported model's card, whose flags alone are read, and images."""
    flags = {"arch": "alexnet", "pooling": "netvlad", "dataset": "folder", "num_clusters": 4}
    for name in ("model.onnx", "model/model.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr("vpr.cli.flags.stored_flags", lambda _: flags)
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)


def options_of(command):
    words = shlex.split(command)
    return parse_options(words[words.index("main.py") + 1 :])


def test_the_unit_starts_the_server_and_protects_the_machine(beside_a_model):
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read_string(UNIT.read_text())
    options = options_of(unit["Service"]["ExecStart"])
    assert options.mode == "serve" and options.host == "127.0.0.1" and str(options.run) == "model.onnx"
    protected = {
        "NoNewPrivileges": "true",
        "ProtectSystem": "strict",
        "ProtectHome": "true",
        "CapabilityBoundingSet": "",
    }
    assert protected.items() <= dict(unit["Service"]).items()
    assert int(unit["Service"]["TimeoutStopSec"]) > 30  # the server's own


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_takes_the_unit():
    said = subprocess.run(["systemd-analyze", "verify", UNIT], capture_output=True, text=True).stderr
    assert "Unknown" not in said and "Invalid" not in said


def test_the_container_makes_its_index_and_starts_the_server(beside_a_model):
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    (index,) = re.findall(r"^RUN (python main\.py .*)$", text, re.MULTILINE)
    (start,) = re.findall(r"^ENTRYPOINT \[(.*)\]$", text, re.MULTILINE)
    assert options_of(index).mode == "index" and options_of(index).localDescriptors
    served = options_of(" ".join(re.findall(r'"([^"]*)"', start)))
    assert (served.mode, served.host) == ("serve", "0.0.0.0")
    for source in re.findall(r"^COPY ([^$]*?) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), name


def test_the_commands_of_the_page_are_ones_that_the_program_takes(beside_a_model):
    lines = re.findall(r"python main\.py (?:serve|index) .*?(?=&|$| #)", DOCS.read_text(), re.MULTILINE)
    assert len(lines) >= 4
    assert [options_of(line).mode for line in lines] == ["index", "serve", "serve", "serve"]


@pytest.mark.slow
@pytest.mark.skipif(not has_docker(), reason="needs docker")
def test_docker_builds_it(tmp_path):
    """Up to the step that wants a model, which is not there."""
    command = ["docker", "build", "-f", DOCKERFILE, "--build-arg", "MODEL=none.onnx", ROOT]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode and "none.onnx" in said.stderr and "pip install" in said.stderr
