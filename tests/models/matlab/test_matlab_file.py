"""MATLAB files that cannot be read say in one line why, and what to do."""

import builtins

import numpy as np
import pytest
from matlab_net import cell, custom, network, write
from scipy.io import savemat

from vpr.common.errors import UserError
from vpr.models.matlab.file import CLASS, plain, read_network

LAYERS = network("caffenet", "vlad", white=False)


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_network(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.fixture
def no_mat_io(monkeypatch):
    """As if mat-io were not installed."""
    found = builtins.__import__

    def without(name, *rest, **named):
        if name.split(".")[0] == "matio":
            raise ImportError(name)
        return found(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)


def test_a_struct_file_needs_no_mat_io(tmp_path, no_mat_io):
    layers, _ = read_network(write(tmp_path / "net.mat", LAYERS))
    assert [layer.fields["name"] for layer in layers] == [layer["name"] for layer in LAYERS]
    assert not any(CLASS in layer.fields for layer in layers)


@pytest.mark.parametrize("form", ["v7", "v7.3"])
@pytest.mark.parametrize("saveobj", [("layerVLAD",), ()])
def test_objects_have_their_class_and_their_properties(form, saveobj, tmp_path, mat_io):
    """Whether their class stores them itself, as one property `any`, or MATLAB does."""
    layers, _ = read_network(write(tmp_path / "a.mat", LAYERS, form, saveobj=saveobj))
    found = {layer.fields["name"]: layer.fields for layer in layers}
    assert [*found] == [layer["name"] for layer in LAYERS]
    assert found["vlad:core"][CLASS] == "layerVLAD" and found["postL2"][CLASS] == "layerWholeL2Normalize"
    assert CLASS not in found["conv1"] and found["vlad:core"]["type"] == "custom"
    stored = next(layer for layer in LAYERS if layer["name"] == "vlad:core")["weights"].ravel()
    assert all(np.array_equal(one, two) for one, two in zip(found["vlad:core"]["weights"], stored, strict=True))


@pytest.mark.parametrize(("form", "why"), [("v7", ["layerVLAD, layerWholeL2Normalize"]), ("v7.3", ["v7.3"])])
def test_without_mat_io_the_message_says_how_to_install_it_and_what_to_do_in_matlab(
    form, why, tmp_path, mat_io, request
):
    path = write(tmp_path / "net.mat", LAYERS, form)
    request.getfixturevalue("no_mat_io")
    text = refusal(path)
    for word in (*why, "pip install", "mat-io", "load('net.mat', 'net')", "struct(net.layers{i}(1))", "net_struct.mat"):
        assert word in text, text
    assert "netvlad, relja_matlab and matconvnet" in text


@pytest.mark.parametrize("form", ["struct", "v7", "v7.3"])
@pytest.mark.parametrize("kept", [0.99, 0.6, 0.2])
def test_a_truncated_file_says_its_size(form, kept, tmp_path, mat_io):
    path = write(tmp_path / "net.mat", LAYERS, form)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    text = refusal(path)
    assert f"found {int(len(content) * kept)} bytes" in text and "incomplete" in text and "get it again" in text
    wanted = int(text.split("wanted ")[1].split(" ")[0].rstrip(":"))
    assert int(len(content) * kept) < wanted <= len(content)


@pytest.mark.parametrize("offset", [140, 176, 300, 400])
def test_a_damaged_file_is_refused(offset, tmp_path):
    path = write(tmp_path / "net.mat", LAYERS)
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes([255] * 40)
    path.write_bytes(content)
    assert "cannot be read as a MATLAB file" in refusal(path)


@pytest.mark.parametrize("form", ["v7", "v7.3"])
def test_foreign_classes_are_named(form, tmp_path, mat_io):
    layers = [*LAYERS, custom("layerAttention", "a"), custom("dagnn.Conv", "b")]
    text = refusal(write(tmp_path / "net.mat", layers, form))
    assert "classes dagnn.Conv, layerAttention" in text and "layerVLADv2" in text


def test_an_object_that_was_stored_without_its_class_is_empty(tmp_path, mat_io):
    """MATLAB stores one whose class it does not find without properties."""
    from vpr.models.matlab.network import import_network

    layers = [layer if layer["name"] != "vlad:core" else {"class": "layerVLAD"} for layer in LAYERS]
    path = write(tmp_path / "net.mat", layers, "v7", saveobj=())
    with pytest.raises(UserError, match="matconvnet on MATLAB's path"):
        import_network(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": np.ones(3)}, ["no variable net", "model"]),
        ({"net": np.ones(3)}, ["net is no network"]),
        ({"net": {"weights": np.ones(3)}}, ["net is no network"]),
        ({"net": {"layers": np.ones(3)}}, ["net.layers is ndarray"]),
        ({"net": {"layers": cell([np.ones(3)])}}, ["layer 1 is ndarray"]),
        ({"net": {"layers": cell([{"type": "relu"}])}}, ["averageImage", "(0,)"]),
        ({"net": {"layers": cell([{"type": "relu"}]), "meta": {"normalization": {"averageImage": np.ones((4, 4))}}}},
         ["averageImage", "(4, 4)"]),
        ({"net": {"layers": cell([{"type": "relu"}]), "meta": {"normalization": {"averageImage": [1, np.nan, 2]}}}},
         ["averageImage"]),
    ],
)  # fmt: skip
def test_other_matlab_files_are_refused(content, words, tmp_path):
    savemat(tmp_path / "net.mat", content)
    text = refusal(tmp_path / "net.mat")
    assert all(word in text for word in words), text


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>404</html>", b"MATLAB 5.0 MAT-file", bytes(4096)])
def test_files_of_other_kinds_are_refused(content, tmp_path):
    path = tmp_path / "net.mat"
    path.write_bytes(content)
    assert "get it again" in refusal(path)


def test_a_missing_file_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "net.mat")


def test_plain_values():
    struct = np.zeros((1, 2), [("a", "O")])
    struct[0, 0]["a"], struct[0, 1]["a"] = np.array(["text"]), cell([np.ones(2)])
    first, second = plain(struct)
    assert first == {"a": "text"} and [*second] == ["a"] and np.array_equal(second["a"][0], np.ones(2))
