"""An exported model is tested, indexed, asked and served without PyTorch, whose import takes longer than an answer."""

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import onnx
import pytest

REFUSED = ("torch", "torchvision", "timm", "onnx", "sklearn", "matplotlib")
PROGRAM = f"""
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        assert name not in {REFUSED}, name

sys.meta_path.insert(0, Refusing())
from vpr.cli.app import main
sys.exit(main())
"""


@pytest.fixture
def start(exported_toy_run, tiny_city, tmp_path):
    """Starts a mode of an exported model, which lies with all that is made of it in a folder of its own."""
    model = shutil.copy(exported_toy_run, tmp_path / "model.onnx")

    def process(*flags):
        words = [f"--resume={model}", f"--root={tiny_city}", "--device=cpu", "--split=val", *flags]
        command = [sys.executable, "-c", PROGRAM, *words]
        return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)

    return process


@pytest.fixture
def run(start):
    """Runs such a mode; gives what it prints."""

    def done(*flags):
        process = start(*flags)
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return said

    return done


def test_the_name_of_a_network_of_timm_is_taken_without_timm(run, tmp_path):
    """The same file, whose card says that it was one."""
    model = onnx.load(tmp_path / "model.onnx")
    known = {entry.key: entry.value for entry in model.metadata_props}
    card = json.loads(known["card"])
    card["flags"] |= {"arch": "tf_efficientnet_lite0", "cut": 16}
    del card["checksum"], model.metadata_props[:]
    onnx.helper.set_model_props(model, {"format": known["format"], "card": json.dumps(card)})
    onnx.save(model, tmp_path / "model.onnx")
    assert "R@1:" in run("--mode=test", "--threads=2", "--panels=0")


def test_a_test_of_an_exported_model(run, tmp_path):
    assert "R@1:" in run("--mode=test", "--threads=2", "--panels=0") and (tmp_path / "results.json").is_file()


def test_index_locate_and_serve(run, start, tiny_city, tmp_path):
    query, index = next((tiny_city / "queries_real").rglob("*.jpg")), f"--indexFile={tmp_path / 'database.sqlite'}"
    assert "wrote" in run("--mode=index", index)
    (found,) = json.loads(run("--mode=locate", index, "--json", "--panels=0", str(query)))
    server = start("--mode=serve", index, "--port=0")
    try:
        address = next(line.split()[2] for line in server.stdout if line.startswith("listening at"))
        request = urllib.request.Request(f"{address}/locate", query.read_bytes(), {"content-type": "image/jpeg"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["matches"][0]["name"] == found["matches"][0]["name"]
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
