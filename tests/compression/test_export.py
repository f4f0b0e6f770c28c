"""Exported models give the descriptors, local descriptors and recalls of the models they were exported from."""

import json
import re
import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import main
import vpr.modes.export
from pittsburgh import read_places
from vpr.cli.options import parse_options
from vpr.common.device import Device
from vpr.common.errors import UserError
from vpr.compression.onnx_export import calibration_images, export_plain
from vpr.data.places import PlacesSpec, load_places
from vpr.data.reader import Reading, SizeGroup
from vpr.descriptors.describe import describe_batch
from vpr.models.card import card_of
from vpr.models.onnx_model import OnnxModel
from vpr.models.poolings.netvlad_pooling import NetVLADPooling
from vpr.modes.compare import options_on_one_set
from vpr.runs.local_projection import projection_for
from vpr.runs.stored import load_model

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package}, an optional package, is not installed")
import onnx  # noqa: E402

LOCAL = ["--noWhiten", "--localDescriptors", "--localDim=8"]
KINDS = {"local": LOCAL, "fp16": [*LOCAL, "--quantize=fp16"], "int8": [*LOCAL, "--quantize=int8"], "white": []}


@pytest.mark.parametrize("vladv2", [False, True])
@pytest.mark.parametrize("normalize_input", [True, False])
def test_the_plain_layer_is_the_layer(vladv2, normalize_input):
    torch.manual_seed(0)
    layer = NetVLADPooling(5, 7, vladv2, normalize_input)
    torch.nn.init.normal_(layer.conv.weight, std=3)
    features = torch.randn(2, 7, 4, 6)
    torch.testing.assert_close(layer.plain()(features), layer(features), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def trained(copy_toy_run, tmp_path_factory):
    """Flags of a folder with a run of one epoch, whitened to 16 dimensions."""
    copied = copy_toy_run(tmp_path_factory.mktemp("export"))
    assert main.main([*copied.places, "--mode=whiten", "--resume", "--pcaDim=16"]) == 0
    return copied.places, copied.run


@pytest.fixture(scope="module")
def exported(trained, exported_toy_run):
    """Files of a run's model by kind: without its whitening and without local descriptors (fp32), with these in 8
    dimensions (local, fp16, int8), and with the whitening (white)."""
    (places, run), graphs = trained, {}

    def export_once(model, path, projection):
        """PyTorch's exporter takes most of the time, and gives all number formats the same graph."""
        if (projection is None) not in graphs:
            export_plain(model, path, projection)
            graphs[projection is None] = path.read_bytes()
        path.write_bytes(graphs[projection is None])

    files = {"fp32": Path(shutil.copy(exported_toy_run, run / "fp32.onnx"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vpr.modes.export, "export_plain", export_once)
        for kind, flags in KINDS.items():
            files[kind] = run / f"{kind}.onnx"
            assert main.main([*places, "--mode=export", f"--resume={run}", f"--out={files[kind]}", *flags]) == 0
    return files


def images(batch, height, width, seed=0):
    coarse = torch.rand(batch, 3, 8, 10, generator=torch.Generator().manual_seed(seed))
    return (255 * torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")).to(torch.uint8)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 120, 160), (7, 120, 160), (2, 90, 133), (3, 161, 70)])
def test_descriptors_are_those_of_pytorch_for_any_batch_and_size(trained, exported, batch, height, width):
    """The file was exported from images of another size.

    The bounds of fp16 and int8 say what is still useful, not what rounding can do at most.
    """
    model = load_model(trained[1], whitened=False).model
    values = images(batch, height, width)
    with torch.no_grad():
        wanted = model.eval()(values)
    found = {kind: torch.from_numpy(OnnxModel(exported[kind])(values.numpy())) for kind in ("fp32", "fp16", "int8")}
    assert found["fp32"].shape == (batch, 1024)
    assert (found["fp32"] - wanted).abs().max() < 1e-4
    assert (found["fp16"] - wanted).norm(dim=1).max() < 0.02
    cosine = (found["int8"] * wanted).sum(dim=1)
    assert cosine.min() > 0.95 and (found["int8"] - wanted).abs().max() > 1e-4


@pytest.mark.parametrize(("kind", "least"), [("local", 1 - 1e-5), ("fp16", 0.999), ("int8", 0.9)])
def test_the_second_output_is_the_projected_local_descriptors(trained, exported, tiny_city, kind, least):
    loaded = load_model(trained[1], "best", whitened=False)
    database = load_places(PlacesSpec("toy", tiny_city), "train").database_files
    projection = projection_for(loaded, Reading(None).of(database), 123, 8)
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 100, 132), np.uint8)
    descriptors, local = loaded.model.eval().describe_with_local(values, projection)
    found, found_local = OnnxModel(exported[kind]).describe_with_local(values, None)
    assert found_local.shape == local.shape and found_local.shape[1] == 8
    cosines = (found_local * local).sum(axis=1)
    assert cosines.mean() > least and (found * descriptors).sum(axis=1, dtype=np.float32).min() > min(least, 0.99)
    if kind == "local":
        np.testing.assert_allclose(found_local, local, rtol=1e-4, atol=1e-4)


def results_of(places, run, *flags):
    assert main.main([*places, "--mode=test", "--panels=0", *flags]) == 0
    return json.loads((run / "results.json").read_text())[-1]


@pytest.mark.parametrize(("kind", "flags", "dim"), [("fp32", ["--noWhiten"], 1024), ("white", [], 16)])
def test_test_mode_takes_the_file_and_counts_the_same_recalls(trained, exported, kind, flags, dim):
    """Of which the whitening is a part."""
    places, run = trained
    wanted = results_of(places, run, f"--resume={run}", "--split=test", *flags)
    found = results_of(places, run, f"--resume={exported[kind]}", "--split=test")
    assert found["recalls"] == wanted["recalls"] and found["queries"] == wanted["queries"] == 12
    assert found["model"].endswith("fp32 ONNX") and found["descriptor_dim"] == wanted["descriptor_dim"] == dim


def test_a_file_reranks_as_its_run_does(trained, exported, capsys):
    """The file's components come from training images: the run's are learnt on the same ones here."""
    places, run = trained

    def recalls(*words):
        assert main.main([*places, "--mode=test", "--panels=0", "--split=train", "--rerank=5", *words]) == 0
        return re.findall(r"R@1: .*", capsys.readouterr().out)[:2]

    of_run = recalls(f"--resume={run}", "--precision=fp32", "--localDim=8", "--noWhiten")
    assert of_run == recalls(f"--resume={exported['local']}") and len(of_run) == 2


def test_the_card_says_what_the_model_is(trained, exported):
    card = card_of(exported["int8"])
    assert card["arch"] == "alexnet" and card["dimension"] == 1024 and card["precision"] == "int8"
    assert card["source"]["run"] == trained[1].name
    assert card["flags"]["num_clusters"] == 4
    state = torch.load(trained[1] / "checkpoints" / "model_best.pth.tar", weights_only=True)["state_dict"]
    assert card["parameters"] == sum(value.numel() for value in state.values())


@pytest.fixture
def elsewhere(trained):
    """Flags without those that name images."""
    return [flag for flag in trained[0] if not flag.startswith(("--dataset", "--root"))]


def test_a_file_is_tested_on_the_images_of_its_run(trained, exported, elsewhere):
    run = trained[1]
    wanted = results_of(elsewhere, run, f"--resume={run}", "--noWhiten")
    assert results_of(elsewhere, run, f"--resume={exported['fp32']}")["recalls"] == wanted["recalls"]
    assert main.main([*elsewhere, "--mode=compare", str(run), str(exported["fp32"])]) == 0


def rewritten(path, target, **flags):
    """An exported file of before checksums, with other flags in its card; None takes one out."""
    model = onnx.load(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    card = {name: value for name, value in card_of(path).items() if name != "checksum"}
    card["flags"] = {name: value for name, value in {**card["flags"], **flags}.items() if value is not None}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"format": properties["format"], "card": json.dumps(card)})
    onnx.save(model, target)
    return target


def test_a_file_without_its_root_is_still_taken_and_says_so(trained, exported, elsewhere, tmp_path, capsys):
    old = rewritten(exported["fp32"], tmp_path / "old.onnx", root=None, skipBroken=None)
    assert parse_options(["--mode=test", f"--resume={old}", "--root=typed"]).root == "typed"
    pittsburgh = rewritten(old, tmp_path / "pittsburgh.onnx", dataset="pittsburgh")
    (note,) = parse_options(["--mode=test", f"--resume={pittsburgh}"]).notes
    assert str(pittsburgh) in note and "--root" in note
    assert main.main([*elsewhere, "--mode=compare", str(old), str(trained[1])]) == 0
    assert f"{old} does not say where its images are" in capsys.readouterr().out


def test_a_file_on_another_dataset_leaves_the_images_of_its_run(exported):
    other = parse_options(["--mode=test", f"--resume={exported['fp32']}", "--dataset=tokyo247"])
    assert other.dataset == "tokyo247" and not other.root.endswith("city")


@pytest.mark.parametrize("flag", ["--pcaDim=8", "--noWhiten", "--precision=fp32", "--ckpt=latest"])
@pytest.mark.parametrize("mode", ["test", "index", "locate"])
def test_what_a_file_holds_inside_cannot_be_asked_for(exported, flag, mode):
    with pytest.raises(UserError) as caught:
        parse_options([f"--mode={mode}", f"--resume={exported['fp32']}", flag])
    assert flag.split("=")[0] in str(caught.value) and str(exported["fp32"]) in str(caught.value)


def test_runs_beside_a_file_may_be_asked_for_a_precision(trained, exported):
    words = ["--mode=compare", "--precision=fp32"]
    typed = parse_options([*words, "--ckpt=latest", str(trained[1]), str(exported["fp32"])])
    run, file = options_on_one_set(typed, typed.inputs)
    assert (run.precision, run.ckpt) == ("fp32", "latest") and "precision" not in file.given
    alone = parse_options([*words, str(exported["fp32"])])
    with pytest.raises(UserError, match="--precision has no effect"):
        options_on_one_set(alone, alone.inputs)


class Session:
    """Stands in for ONNX Runtime's session on a machine with a GPU."""

    def __init__(self, path, options, providers):
        self.providers = providers
        self.card = {entry.key: entry.value for entry in onnx.load(path).metadata_props}

    def set_providers(self, providers, options=None):
        self.providers, self.options = providers, options

    def get_inputs(self):
        return [SimpleNamespace(name="images")]

    def run(self, outputs, values):
        (pixels,) = values.values()
        return [np.full((len(pixels), 1), pixels.mean(), np.float32) for _ in outputs]

    def get_providers(self):
        return self.providers

    def get_modelmeta(self):
        return SimpleNamespace(custom_metadata_map=self.card)


@pytest.mark.parametrize(
    ("available", "asked", "wanted"),
    [
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "cuda:0", "cuda:0"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "cpu", "cpu"),
        (["CPUExecutionProvider"], "cuda:0", "cpu"),
    ],
)
def test_a_file_runs_on_the_device_that_was_asked_for(exported, monkeypatch, capsys, available, asked, wanted):
    """Images stay in main memory, from which ONNX Runtime takes them; float32 is float32 on a GPU too."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    model = OnnxModel(exported["fp32"]).to_device(Device(asked), "auto")
    assert model.session.providers[0] == ("CUDAExecutionProvider" if wanted != "cpu" else "CPUExecutionProvider")
    assert model.runs_on == wanted and model.device == "cpu"
    assert ("runs on the cpu: this ONNX Runtime computes on no cuda" in capsys.readouterr().out) == (wanted != asked)
    if wanted != "cpu":
        assert model.session.options == [{"device_id": 0, "use_tf32": 0}, {}]
    image = SizeGroup(np.arange(1), np.full((1, 3, 64, 64), 7, np.uint8), (64, 64))
    assert describe_batch(model, [image]).tolist() == [[7.0]]


def test_int8_and_fp16_files_are_smaller(exported):
    sizes = {kind: path.stat().st_size for kind, path in exported.items()}
    assert sizes["int8"] < sizes["fp32"] / 3.5
    assert sizes["fp16"] < sizes["fp32"] / 1.8


def test_the_trunk_is_in_int8_and_the_head_is_not(exported):
    graph = onnx.load(exported["int8"]).graph
    readers = {name: node for node in graph.node for name in node.input}
    quantised = {readers[node.output[0]].op_type for node in graph.node if node.op_type == "DequantizeLinear"}
    assert "Conv" in quantised and "MatMul" not in quantised and "Softmax" not in quantised
    assert sum(value.data_type == onnx.TensorProto.INT8 and len(value.dims) == 4 for value in graph.initializer) == 5


@pytest.mark.parametrize(("mode", "ending"), [("L", "PNG"), ("CMYK", "TIFF"), ("P", "GIF"), ("RGBA", "PNG")])
def test_images_of_any_kind_are_described_as_the_same_image_in_rgb(
    trained, exported, tmp_path, tiny_city, mode, ending
):
    """A grey, CMYK, palette or transparent image in the database."""
    root = tmp_path / "city"
    shutil.copytree(tiny_city, root)
    flags = [flag for flag in trained[0] if not flag.startswith("--root")]
    flags += [f"--root={root}", "--mode=test", "--split=train", f"--resume={exported['int8']}", "--panels=0"]
    image = root / read_places(root / "datasets" / "toy_train.mat").database_names[0]
    picture = Image.open(image).convert("RGB").convert(mode)
    described = []
    for one, form in ((picture, ending), (picture.convert("RGB"), "PNG")):
        one.save(image, format=form)
        kept = tmp_path / f"{len(described)}.h5"
        assert main.main([*flags, f"--saveDescriptors={kept}"]) == 0
        with h5py.File(kept) as file:
            described.append(file["database"][:2])
    np.testing.assert_array_equal(*described)
    assert np.abs(described[0][0].astype(float) - described[0][1]).max() > 1e-2, "images differ"


# What is refused in one line


@pytest.fixture
def refusal(trained, capsys):
    """A call of a mode that shall fail: the one line that it says."""

    def call(*flags, mode="test"):
        capsys.readouterr()
        assert main.main([*trained[0], f"--mode={mode}", *map(str, flags)]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return call


def test_a_file_of_another_program(refusal, tmp_path):
    value, out = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
    line = refusal(f"--resume={tmp_path / 'other.onnx'}")
    assert str(tmp_path / "other.onnx") in line and "another program" in line


@pytest.mark.parametrize("content", [None, b"junk"])
def test_a_file_that_is_missing_or_damaged(refusal, tmp_path, content):
    path = tmp_path / "model.onnx"
    if content:
        path.write_bytes(content)
    assert str(path) in refusal(f"--resume={path}")


@pytest.mark.parametrize("at", [0.01, 0.5, 0.9, -110, -3])
def test_a_changed_byte_of_an_exported_file_is_noticed(refusal, exported, tmp_path, at):
    """In the graph, its weights, the card, and the checksum itself."""
    content = bytearray(exported["fp32"].read_bytes())
    content[int(at * len(content)) if at > 0 else at] ^= 8
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    line = refusal(f"--resume={path}")
    assert str(path) in line and "damaged" in line


def test_a_file_without_local_descriptors_says_so(refusal, exported):
    words = "gives no local descriptors: export it with --localDescriptors, or drop --rerank"
    assert words in refusal(f"--resume={exported['fp32']}", "--rerank=5", "--panels=0")


def test_a_file_of_an_earlier_version_has_no_checksum_and_works(trained, exported, tmp_path, capsys):
    rewritten(exported["fp32"], tmp_path / "model.onnx")
    capsys.readouterr()
    assert main.main([*trained[0], "--mode=test", "--panels=0", f"--resume={tmp_path / 'model.onnx'}"]) == 0
    assert "without a checksum" in capsys.readouterr().out


def test_calls_that_cannot_be_followed(refusal, exported, tmp_path):
    only = "exported models are for test, index, locate and serve"
    assert only in refusal(f"--resume={exported['fp32']}", mode="train")
    assert "absent" in refusal(f"--resume={tmp_path / 'absent'}", mode="export")
    assert ".onnx" in refusal("--resume", f"--out={tmp_path / 'model.pt'}", mode="export")


def test_a_full_disk_leaves_nothing(refusal, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # writing more fails, as a full disk does
    try:
        assert "model.onnx" in refusal("--resume", f"--out={tmp_path / 'model.onnx'}", mode="export")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_runtime(trained, refusal, exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    for line in (refusal(f"--resume={exported['fp32']}"), refusal(f"--resume={trained[1]}", mode="export")):
        assert "onnxruntime" in line and "requirements-deploy.txt" in line


def test_images_too_small_for_an_exported_model(exported):
    with pytest.raises(UserError, match="12x10"):
        OnnxModel(exported["fp32"])(np.zeros((1, 3, 10, 12), np.uint8))


def test_images_for_calibration_are_bytes_in_the_models_layout(tiny_city):
    files = load_places(PlacesSpec("toy", tiny_city), "train").database_files
    calibration = calibration_images(files, Reading(), seed=0)
    assert len(calibration) == 48
    assert {image.dtype for image in calibration} == {np.dtype(np.uint8)}
    assert {image.shape for image in calibration} == {(1, 120, 160, 3)}
