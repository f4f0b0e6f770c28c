"""Files of ours are checked whole before they are used: every single byte of small ones, and those without checksum."""

import struct
import zipfile

import h5py
import numpy as np
import onnx
import pytest
import torch

from vpr.cli.flags import check_flags
from vpr.common.errors import UserError
from vpr.common.provenance import check_onnx, files_digest, load_torch, open_hdf5, save_torch, seal_onnx, write_hdf5
from vpr.models.spec import ModelSpec
from vpr.models.weights_file import read_weights_file
from vpr.runs.run import load_checkpoint

VALUES = np.arange(12, dtype="f4").reshape(3, 4)


def read_hdf5(path):
    with open_hdf5(path, "numbers", "make them anew") as file:
        return file["values"][:], dict(file.attrs)


def read_torch(path):
    return load_torch(path, "numbers", "make them anew")


@pytest.fixture(params=["hdf5", "torch", "onnx"])
def sealed(request, tmp_path):
    """A small sound file, and what reads it."""
    path = tmp_path / "numbers"
    if request.param == "hdf5":
        write_hdf5(path, {"values": VALUES}, {"made by": "hand"})
        return path, read_hdf5
    if request.param == "torch":
        save_torch(path, {"values": torch.from_numpy(VALUES), "made by": "hand"})
        return path, read_torch
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"card": "{}"})
    path.write_bytes(seal_onnx(model.SerializeToString()))
    return path, lambda path: check_onnx(path, "export it again")


def test_what_was_written_is_read(sealed):
    path, read = sealed
    content = read(path)
    if read is read_hdf5:
        assert (content[0] == VALUES).all() and content[1]["made by"] == "hand"
    elif read is read_torch:
        assert torch.equal(content["values"], torch.from_numpy(VALUES)) and content["made by"] == "hand"
    else:
        assert content is True


def accepts(read, path, content) -> bool:
    """Whether `content` is taken for a whole file; refusals are one line that names it."""
    path.write_bytes(content)
    try:
        return read(path) is not False  # ONNX without a checksum; then its card tells
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return False


def test_every_changed_byte_is_noticed(sealed):
    path, read = sealed
    content = path.read_bytes()
    changed = (content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :] for at in range(len(content)))
    assert [at for at, each in enumerate(changed) if accepts(read, path, each)] == []


@pytest.mark.parametrize("at", [0.0, 0.3, 0.7, 0.999])
def test_bytes_that_are_missing_or_too_many_are_noticed(sealed, at):
    path, read = sealed
    content = path.read_bytes()
    here = int(at * len(content))
    for changed in (content[:here], content[:here] + b"!" + content[here:], content[:here] + content[here + 1 :]):
        assert not accepts(read, path, changed)


def test_other_programs_read_our_files(sealed):
    path, read = sealed
    if read is read_hdf5:
        with h5py.File(path) as file:
            assert (file["values"][:] == VALUES).all()
    elif read is read_torch:
        assert torch.equal(torch.load(path, weights_only=True)["values"], torch.from_numpy(VALUES))
        assert zipfile.ZipFile(path).testzip() is None
    else:
        model = onnx.load_model_from_string(path.read_bytes())
        onnx.checker.check_model(model)
        assert [entry.key for entry in model.metadata_props] == ["card", "checksum"]


def test_a_file_is_read_where_locks_are_not_to_be_had(tmp_path):
    """As on some network disks; it needs none, since it is only ever replaced."""
    fcntl = pytest.importorskip("fcntl")
    write_hdf5(tmp_path / "a.h5", {"values": VALUES}, {})
    with open(tmp_path / "a.h5", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert (read_hdf5(tmp_path / "a.h5")[0] == VALUES).all()


def test_files_without_a_checksum_are_read_and_that_is_said(tmp_path, capsys):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["values"] = VALUES
    torch.save({"values": VALUES.tolist()}, tmp_path / "old.pth")
    assert (read_hdf5(tmp_path / "old.h5")[0] == VALUES).all()
    assert read_torch(tmp_path / "old.pth") == {"values": VALUES.tolist()}
    assert capsys.readouterr().out.count("without a checksum") == 2


def test_a_file_that_lost_its_checksum_is_not_an_old_file(tmp_path):
    write_hdf5(tmp_path / "a.h5", {"values": VALUES}, {})
    (tmp_path / "a.h5").write_bytes((tmp_path / "a.h5").read_bytes()[512:])
    with pytest.raises(UserError, match="damaged"):
        read_hdf5(tmp_path / "a.h5")


def test_values_of_old_checkpoints_and_weights_are_compared_with_their_crc(tmp_path):
    run = tmp_path / "run"
    path = run / "checkpoints" / "checkpoint.pth.tar"
    path.parent.mkdir(parents=True)
    weights = torch.arange(1000.0)
    torch.save({
        "format": "netvlad place recognition 1", "flags": {}, "state_dict": {"w": weights}, "position": {},
    }, path)  # fmt: skip
    assert torch.equal(load_checkpoint(run, "checkpoints", "latest")["state_dict"]["w"], weights)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<f", 77), struct.pack("<f", 78), 1))
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(run, "checkpoints", "latest")
    with pytest.raises(UserError, match="damaged"):
        read_weights_file(path)
    path.write_bytes(content + b"behind it")
    with pytest.raises(UserError, match="damaged"):
        read_weights_file(path)


def test_a_checkpoint_with_too_little_in_it(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    save_torch(tmp_path / "checkpoints" / "checkpoint.pth.tar", {"format": "netvlad place recognition 1"})
    with pytest.raises(UserError, match="lacks flags, state_dict, position"):
        load_checkpoint(tmp_path, "checkpoints", "latest")


def test_files_before_version_1_6_of_pytorch_are_still_weights(tmp_path):
    torch.save({"features.0.weight": torch.ones(3)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights_file(tmp_path / "w.pth")["features.0.weight"], torch.ones(3))


def test_a_digest_of_images_sees_names_sizes_and_times_but_not_folders(tmp_path):
    import os

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(b"123")
        os.utime(tmp_path / folder / "1.jpg", ns=(5, 5))
    here, there = tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg"
    assert files_digest(["1.jpg"], [here]) == files_digest(["1.jpg"], [there])
    assert files_digest(["1.jpg"], [here]) != files_digest(["2.jpg"], [here])
    os.utime(there, ns=(5, 6))
    assert files_digest(["1.jpg"], [here]) != files_digest(["1.jpg"], [there])
    there.write_bytes(b"1234")
    os.utime(there, ns=(5, 5))
    assert files_digest(["1.jpg"], [here]) != files_digest(["1.jpg"], [there])
    here.unlink()
    with pytest.raises(UserError, match=r"1\.jpg"):
        files_digest(["1.jpg"], [here])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("arch", "vgg 16"), ("arch", 3), ("pooling", None), ("num_clusters", 1), ("num_clusters", "64"),
        ("num_clusters", 64.5), ("lr", -1), ("lr", float("nan")), ("lr", True), ("vladv2", 1), ("imageSize", [480]),
        ("imageSize", [480, 0]), ("imageSize", "480 640"), ("channels", []), ("recallValues", 5), ("root", 7),
        ("root", "a\0b"), ("seed", 10**30), ("archh", "vgg16"), ("weights", ["none"]), ("start_epoch", -1),
    ],
)  # fmt: skip
def test_nonsense_in_stored_flags_is_one_line(name, value):
    with pytest.raises(UserError, match=name) as caught:
        check_flags({"arch": "vgg16", name: value}, "flags.json")
    assert "\n" not in str(caught.value)


def test_a_stored_network_that_nobody_has_is_one_line_when_it_is_built():
    with pytest.raises(UserError, match="vgg17 is neither") as caught:
        ModelSpec.from_flags({"arch": "vgg17"})
    assert "\n" not in str(caught.value)


def test_flags_as_runs_store_them_are_accepted():
    from vpr.cli.options import flags_of, parse_options

    for words in ([], ["--imageSize", "48", "64", "--lr=0.1", "--fromscratch", "--channels", "4", "5"]):
        check_flags(flags_of(parse_options(["--mode=train", *words])), "flags.json")
    check_flags({"arch": "vgg16", "cachePath": None}, "flags.json")
