"""Exported files that give local descriptors as well, so that they look again as their models do."""

import re
from pathlib import Path

import pytest
import torch

import main
from vpr.data.places import PlacesSpec, load_places
from vpr.data.reader import Reading
from vpr.models.onnx_model import OnnxModel
from vpr.runs.local_projection import projection_for
from vpr.runs.model import load_model

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package}, an optional package, is not installed")


@pytest.fixture(scope="module")
def exported(copy_toy_run, tmp_path_factory):
    """A run, and its files with local descriptors of 8 dimensions by kind."""
    copied = copy_toy_run(tmp_path_factory.mktemp("local"))
    files = {}
    for kind, flags in {"fp32": [], "fp16": ["--quantize=fp16"], "int8": ["--quantize=int8"]}.items():
        files[kind] = copied.run / f"{kind}.onnx"
        words = ["--mode=export", "--resume", "--localDescriptors", "--localDim=8", *flags, f"--out={files[kind]}"]
        assert main.main([*copied.places, *words]) == 0
    return copied, files


@pytest.mark.parametrize(("kind", "least"), [("fp32", 1 - 1e-5), ("fp16", 0.999), ("int8", 0.9)])
def test_the_second_output_is_the_projected_local_descriptors(exported, tiny_city, kind, least):
    copied, files = exported
    loaded = load_model(copied.run, "best")
    database = load_places(PlacesSpec("toy", tiny_city), "train").database_files
    projection = projection_for(loaded, Reading(None).of(database), 123, 8)
    images = torch.randint(0, 256, (2, 3, 100, 132), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        descriptors, local = loaded.model.eval().with_local(images, projection)
    found, found_local = OnnxModel(files[kind]).with_local(images, None)
    assert found_local.shape == local.shape and found_local.shape[1] == 8
    cosines = (found_local * local).sum(dim=1)
    assert cosines.mean() > least and (found * descriptors).sum(dim=1).min() > min(least, 0.99)
    if kind == "fp32":
        torch.testing.assert_close(found_local, local, rtol=1e-4, atol=1e-4)


def recalls(capsys, *words):
    assert main.main(["--mode=test", "--panels=0", *words]) == 0
    return re.findall(r"R@1: .*", capsys.readouterr().out)[:2]


def test_a_file_looks_again_as_its_run_does(exported, capsys, tiny_city):
    """The file's components come from training images: the run's are learnt on the same ones here."""
    copied, files = exported
    words = [*copied.places, "--split=train", "--precision=fp32", "--rerank=5", "--localDim=8"]
    of_run = recalls(capsys, *words, f"--resume={copied.run}")
    of_file = recalls(
        capsys,
        *[word for word in words if "localDim" not in word and "precision" not in word],
        f"--resume={files['fp32']}",
    )
    assert of_run == of_file and len(of_run) == 2


def test_a_file_without_local_descriptors_says_so(exported, exported_toy_run, capsys):
    copied, _ = exported
    file = Path(copied.run) / "plain.onnx"
    file.write_bytes(exported_toy_run.read_bytes())
    assert main.main([*copied.places, "--mode=test", f"--resume={file}", "--rerank=5", "--panels=0"]) == 2
    text = capsys.readouterr().err
    assert "gives no local descriptors: export it with --localDescriptors, or drop --rerank" in text
    assert text.count("\n") <= 1 or text.strip().splitlines()[-1].startswith("error:")
