"""--mode=import makes a run of a MATLAB model that every mode takes."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
from matlab_net import custom, forward, network, write
from PIL import Image

import main
from vpr.api import load_describer
from vpr.cli.options import parse_options
from vpr.runs.run import newest_run
from vpr.runs.stored import load_model

LAYERS = network("caffenet", "vladv2", clusters=3, dim=4)
NAME = "caffe_toy_conv5_vladv2_preL2_intra_white.mat"


def called(*words, code=0):
    """What a call prints, after it ended with `code`."""
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        assert main.main([*map(str, words)]) == code, said.getvalue()
    return printed.getvalue() if code == 0 else said.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An imported run, and what was printed. To be read only."""
    folder = tmp_path_factory.mktemp("imported")
    write(folder / NAME, LAYERS)
    text = called("--mode=import", folder / NAME, f"--runsPath={folder / 'runs'}", "--device=cpu")
    return newest_run(folder / "runs"), text


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the run to write into."""
    return shutil.copytree(made[0], tmp_path / "runs" / made[0].name)


@pytest.fixture
def on_the_city(tiny_city, tmp_path):
    """Flags of the places and the machine; arithmetic in float32, that values can be compared."""
    return ["--dataset=toy", f"--root={tiny_city}", "--threads=0", "--device=cpu", "--precision=fp32"]


def images_of(city, count=3):
    return sorted(city.rglob("*.jpg"))[:count]


def expected(files):
    """Descriptors by the file's own layers."""
    return np.stack([forward(LAYERS, np.asarray(Image.open(file).convert("RGB"))) for file in files])


def test_the_run_says_what_it_is(made):
    run, text = made
    assert run.name.endswith("_alexnet_caffe_netvlad_matlab")
    flags = json.loads((run / "flags.json").read_text())
    wanted = {
        "arch": "alexnet_caffe", "weights": NAME, "normalization": "123.68,116.779,103.939", "fromscratch": False,
        "channels": [6, 8, 4, 8, 6], "pooling": "netvlad", "num_clusters": 3, "vladv2": True, "trainFrom": "conv1",
        "dataset": "pittsburgh", "imageSize": None,
    }  # fmt: skip
    assert {name: flags[name] for name in wanted} == wanted
    assert "the run has --dataset=pittsburgh" in text and f"run: {run}" in text and "18-D -> 4-D" in text
    assert f"{NAME.removesuffix('.mat')} pruned to 6-8-4-8-6 filters, 123.68,116.779,103.939 input" in text


def test_the_run_describes_as_the_file_s_layers_do(made, tiny_city):
    files = images_of(tiny_city)
    loaded = load_model(made[0])
    assert loaded.model.name.split(", ")[-2] == f"18-D whitened to 4-D by the set of {NAME}"
    model, wanted = loaded.model.to_device(torch.device("cpu"), "fp32"), expected(files)
    images = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files])
    with torch.no_grad():
        found = model(images.permute(0, 3, 1, 2)).numpy()
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["vlad", "max", "avg"])
@pytest.mark.parametrize("trunk", ["vgg16", "caffenet"])
def test_all_kinds_make_runs(trunk, kind, tmp_path):
    called("--mode=import", write(tmp_path / "net.mat", network(trunk, kind)), f"--runsPath={tmp_path}")
    run = newest_run(tmp_path)
    options = parse_options(["--mode=test", f"--resume={run}"])
    assert options.pooling == ("netvlad" if kind == "vlad" else kind) and not options.vladv2
    assert options.arch == {"vgg16": "vgg16", "caffenet": "alexnet_caffe"}[trunk]
    assert load_model(run).model.dim == 5


def test_whole_networks_have_no_channels(tmp_path):
    """A file of the backbone's own filters."""
    layers = network("caffenet", "max", white=False)
    for layer, (size, before, after) in zip(
        [layer for layer in layers if layer["type"] == "conv"],
        [(11, 3, 96), (5, 48, 256), (3, 256, 384), (3, 192, 384), (3, 192, 256)],
        strict=True,
    ):
        layer["weights"][0, 0] = np.zeros((size, size, before, after), np.float32)
        layer["weights"][0, 1] = np.zeros((1, after), np.float32)
    called("--mode=import", write(tmp_path / "net.mat", layers), f"--runsPath={tmp_path}", "--dataset=tokyo247")
    flags = json.loads((newest_run(tmp_path) / "flags.json").read_text())
    assert flags["channels"] is None and flags["trainFrom"] == "conv5" and flags["dataset"] == "tokyo247"
    assert flags["lr"] == 0.0001


@pytest.mark.slow
def test_test_compare_and_locate_take_the_run(copied, on_the_city, tiny_city):
    text = called("--mode=test", f"--resume={copied}", *on_the_city, "--split=test", "--panels=0")
    assert f"whitening: learnt on the set of {NAME}" in text and "whitened to 4-D" in text
    unwhitened = called("--mode=test", f"--resume={copied}", *on_the_city, "--panels=0", "--noWhiten")
    assert "18-D, fp32" in unwhitened
    sized = called("--mode=test", f"--resume={copied}", *on_the_city, "--panels=0", "--imageSize", 80, 100)
    assert "whitened to 4-D" in sized and "100x80" in sized
    shorter = called("--mode=test", f"--resume={copied}", *on_the_city, "--panels=0", "--pcaDim=2")
    assert "whitened to 2-D" in shorter
    table = called("--mode=compare", copied, *on_the_city, f"--runsPath={copied.parent}")
    assert "whitened to 4-D" in table
    found = called("--mode=locate", f"--resume={copied}", *on_the_city, images_of(tiny_city)[0], "--panels=0", "--json")
    assert len(json.loads(found)) == 1


@pytest.mark.slow
def test_a_whitening_of_one_s_own_is_preferred(copied, on_the_city):
    called("--mode=whiten", f"--resume={copied}", *on_the_city, "--pcaDim=3")
    text = called("--mode=test", f"--resume={copied}", *on_the_city, "--panels=0")
    assert "18-D whitened to 3-D" in text and "images of toy_train" in text
    assert len([*copied.rglob("whitening_*")]) == 2


@pytest.mark.slow
def test_export_and_the_api_take_the_run(copied, on_the_city, tiny_city, tmp_path, onnx_packages):
    files, close = images_of(tiny_city), 1e-3
    wanted = expected(files)
    found = load_describer(copied, device="cpu").describe_files(files)
    assert found.shape == wanted.shape and np.abs(found - wanted).max() < 5e-2  # in bf16 on some processors
    for quantize in ([], ["--quantize=fp16"]):
        file = tmp_path / f"{len(quantize)}.onnx"
        called("--mode=export", f"--resume={copied}", f"--out={file}", *quantize)
        exported = load_describer(file, device="cpu").describe_files(files)
        assert np.abs(exported - wanted).max() < (5e-2 if quantize else close)


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["vgg16", "caffenet"])
def test_incomplete_windows_are_exported(trunk, tmp_path, onnx_packages):
    """At sizes at which the last windows are full, and at which they are not."""
    layers = network(trunk, "vlad", pad=np.array([[0.0, 1, 0, 1]]))
    called("--mode=import", write(tmp_path / "net.mat", layers), f"--runsPath={tmp_path}")
    called("--mode=export", f"--resume={newest_run(tmp_path)}", f"--out={tmp_path / 'net.onnx'}")
    model = load_describer(tmp_path / "net.onnx", device="cpu")
    for size in ((67, 90), (64, 81), (75, 75)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        found = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].numpy()
        wanted = forward(layers, image)
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.slow
def test_pruning_refuses_convolutions_in_groups(copied, on_the_city):
    text = called("--mode=prune", f"--resume={copied}", *on_the_city, code=2)
    assert text.count("\n") == 1 and "--mode=prune cannot drop filters of this backbone" in text


@pytest.mark.slow
def test_training_goes_on_from_the_imported_model(tiny_city, tmp_path):
    places = ["--dataset=toy", f"--root={tiny_city}", "--threads=0", "--device=cpu", f"--runsPath={tmp_path / 'runs'}"]
    called("--mode=import", write(tmp_path / NAME, LAYERS), *places[:2], *places[-1:], "--nEpochs=1", "--lr=0.0001")
    run = newest_run(tmp_path / "runs")
    before = load_model(run, "latest", whitened=False).model.state_dict()
    text = called("--mode=train", f"--resume={run}", "--threads=0", "--device=cpu", f"--cachePath={tmp_path}")
    after = load_model(run, "latest", whitened=False).model.state_dict()
    assert "trained from conv1 on" in text
    moved = {name: (after[name] - value).abs().max().item() for name, value in before.items()}
    assert 0 < max(moved.values()) < 0.1


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], ["wants one .mat file, found 0"]),
        (["a.mat", "b.mat"], ["wants one .mat file, found 2"]),
        (["a.mat"], ["a.mat does not exist"]),
        (["a.mat", "--resume"], ["makes a new run", "drop --resume"]),
        (["a.mat", "--weights=none"], ["--weights has no effect in --mode=import"]),
        (["a.mat", "--noWhiten"], ["--noWhiten has no effect in --mode=import"]),
    ],
)
def test_wrong_calls_end_in_one_line(words, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = called("--mode=import", *words, code=2)
    assert text.count("\n") == 1 and all(word in text for word in wanted), text


def test_a_refused_file_leaves_nothing(tmp_path):
    layers = [*LAYERS, custom("layerWholeL2Normalize", "L2 again")]
    text = called("--mode=import", write(tmp_path / "net.mat", layers), f"--runsPath={tmp_path / 'runs'}", code=2)
    assert "one too many" in text and not [*tmp_path.rglob("runs/*")]
