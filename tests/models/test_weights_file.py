"""Files of weights by other programs: tensors are found under any prefix, what stands beside them does nothing."""

import argparse
import collections
import datetime
import enum
import functools
import os
import pathlib
import pickle
import subprocess
import sys
import types
import uuid

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vpr.common.errors import UserError
from vpr.models.backbones.base import build_backbone
from vpr.models.weights import load_pretrained

CHANNELS = (8, 8, 8, 8, 8)  # of a small AlexNet


@functools.cache
def _values(seed):
    generator = torch.Generator().manual_seed(seed)
    own = build_backbone("alexnet", CHANNELS).state_dict()
    return {name: torch.rand(value.shape, generator=generator) for name, value in own.items()}


def values(seed=0):
    """Random values of the small AlexNet, by torchvision's names without `features.`."""
    return dict(_values(seed))


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def save(content, path, old=False):
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def loaded(path, arch="alexnet", channels=CHANNELS):
    """What the small AlexNet, or another backbone, has after it was given a file."""
    backbone = build_backbone(arch, channels)
    load_pretrained(backbone, arch, str(path))
    return backbone.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refusal(path, *backbone):
    with pytest.raises(UserError) as caught:
        loaded(path, *backbone)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.mark.parametrize(
    ("container", "prefix"),
    [
        (None, ""),
        (None, "features."),
        (None, "backbone."),  # CosPlace
        ("state_dict", "encoder."),  # pytorch-NetVlad, Patch-NetVLAD
        ("state_dict", "encoder.module."),  # of several GPUs
        ("state_dict", "module.features."),
        ("state_dict", "features.module."),
        ("state_dict", "module.base_model.module.base."),  # OpenIBL
        ("state_dict", "backbone.model.features."),  # Lightning
        ("model_state_dict", "module.backbone."),  # the deep-visual-geo-localization benchmark
        ("weights of somebody", "_orig_mod.trunk."),
    ],
)
def test_a_backbone_is_found_under_any_prefix(container, prefix, tmp_path, capsys):
    state = {"aggregation.centroids": torch.rand(4, 8), **under(prefix, values()), "pool.conv.weight": torch.rand(4, 8)}
    content = {"epoch": 3, container: state} if container else state
    assert same(loaded(save(content, tmp_path / "file.pth")), values()) and not capsys.readouterr().out


@pytest.mark.parametrize("form", ["old.pth", "safetensors"])
def test_a_backbone_is_found_in_every_format(form, tmp_path):
    file = save(under("module.backbone.", values()), tmp_path / f"file.{form}", old=form == "old.pth")
    assert same(loaded(file), values())


def test_layers_that_were_wrapped_one_by_one_are_found(tmp_path):
    state = {name.replace(".", ".module.", 1): value for name, value in values().items()}  # 0.module.weight
    assert same(loaded(save(under("module.encoder.", state), tmp_path / "file.pth")), values())


class Colour(enum.Enum):
    RED = 1


class AttributeDict(dict):
    """As Lightning keeps hyper-parameters."""


class Config:
    """Any class of another program, which this one does not have."""

    def __init__(self):
        self.nested = {"path": pathlib.Path("x"), "tensor": torch.ones(3)}


def beside():
    """What checkpoints of others hold beside tensors."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    gone = types.ModuleType("a_framework")  # its classes cannot be imported when the file is read
    gone.AttributeDict, gone.Config, gone.Colour = AttributeDict, Config, Colour
    for one in (AttributeDict, Config, Colour):
        one.__module__ = "a_framework"
    sys.modules["a_framework"] = gone
    return {
        "args": argparse.Namespace(lr=0.1, root=pathlib.Path("/data"), when=datetime.datetime(2024, 1, 1)),
        "hyper_parameters": AttributeDict(lr=0.1, config=Config(), colour=Colour.RED),
        "recalls": np.array([1.0, 2.0]), "best_r5": np.float64(0.5), np.int64(5): np.float32(2), "bytes": b"abc",
        "callbacks": collections.defaultdict(list, {"a": [np.float32(1)]}), "order": collections.OrderedDict(a=1),
        "paths": [pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("b")], "days": {datetime.date(2024, 1, 1): 1},
        "delta": datetime.timedelta(1), "id": uuid.UUID(int=5), "set": {1, 2}, "frozen": frozenset([1]),
        "space": types.SimpleNamespace(a=1), "optimizer_state_dict": optimizer.state_dict(), "dtype": torch.float16,
        "numpy": np.dtype("float32"), "object": np.array(["a", None], dtype=object), "slice": slice(1, 2),
    }  # fmt: skip


@pytest.mark.parametrize("old", [False, True])
def test_what_stands_beside_the_tensors_does_no_harm(old, tmp_path):
    content, allowed = beside(), set(torch.serialization.get_safe_globals())
    try:
        file = save({**content, "state_dict": under("model.", values())}, tmp_path / "a.ckpt", old)
    finally:
        del sys.modules["a_framework"]
    assert same(loaded(file), values()) and "a_framework" not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == allowed, "what was allowed for this file is allowed no longer"


class Calls:
    """An object that, where it is unpickled, calls a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


BAD = {
    "os.system": lambda marker: Calls(os.system, f"touch {marker}"),
    "exec": lambda marker: Calls(exec, f"open({str(marker)!r}, 'w')"),
    "subprocess": lambda marker: Calls(subprocess.call, ["touch", str(marker)]),
    "touch": lambda marker: Calls(pathlib.Path.touch, marker),
    "open": lambda marker: Calls(open, str(marker), "w"),
    "getattr": lambda marker: Calls(getattr, marker, "touch"),
    "import": lambda marker: Calls(__import__, "subprocess"),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(bad, old, tmp_path):
    marker = tmp_path / "marker"
    content = {"state_dict": under("features.", values()), "args": [argparse.Namespace(x=bad(marker))]}
    assert "nothing of it was run" in refusal(save(content, tmp_path / "bad.pth", old))
    assert not marker.exists()


def test_a_function_of_another_package_is_not_run(tmp_path):
    from numpy.testing._private.utils import runstring

    marker = tmp_path / "marker"
    bad = Calls(runstring, f"open({str(marker)!r}, 'w')", {})
    assert same(loaded(save({"bad": bad, "state_dict": values()}, tmp_path / "bad.pth")), values())
    assert not marker.exists()


def test_a_plain_pickle_is_no_file_of_weights(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(BAD["os.system"](marker), protocol=2))
    refusal(tmp_path / "bad.pth")
    assert not marker.exists()


def test_a_whole_model_is_refused_by_the_name_of_its_class(tmp_path):
    text = refusal(save({"model": nn.Sequential(nn.Conv2d(3, 8, 11))}, tmp_path / "whole.pth"))
    assert "torch.nn.modules.conv" in text and "state_dict()" in text


def test_dictionaries_that_hold_themselves_are_read(tmp_path):
    content = {"state_dict": values()}
    content["itself"] = content
    assert same(loaded(save(content, tmp_path / "round.pth")), values())


@pytest.mark.parametrize(
    ("model", "average"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model_state_dict", "ema.module"), ("net", "zz.net")],
)
@pytest.mark.parametrize("turned", [False, True])
def test_of_two_copies_the_model_is_taken_and_named(model, average, turned, tmp_path, capsys):
    parts = [(model, values()), (average, values(1))]
    content = dict(reversed(parts) if turned else parts)
    assert same(loaded(save(content, tmp_path / "two.pth")), values())
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "2 times" in said and f"took {model}" in said and f"not {average}" in said
    assert same(loaded(save({model: values(), average: values()}, tmp_path / "same.pth")), values())
    assert not capsys.readouterr().out, "equal copies are no doubt"


# A ResNet that was cut


def numbered(state, numbers):
    """Layers of a ResNet by the numbers that nn.Sequential gives them."""
    divided = ((name.partition("."), value) for name, value in state.items())
    return {f"{numbers[layer]}.{rest}": value for (layer, _, rest), value in divided if layer in numbers}


CHILDREN = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("resnet18", pretrained=False).state_dict()


@pytest.mark.parametrize("prefix", ["backbone.", "module.backbone.", "", "model.0."])
@pytest.mark.parametrize("numbers", [CHILDREN, {name: number for number, name in enumerate(CHILDREN)}])
def test_numbered_layers_of_a_cut_resnet_are_taken_in_order(prefix, numbers, resnet, tmp_path):
    file = save(under(prefix, {**numbered(resnet, numbers), "aggregation.0.p": torch.ones(1)}), tmp_path / "cut.pth")
    found = loaded(file, "resnet18", None)
    assert {name.split(".")[0] for name in found} == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert all(torch.equal(value, resnet[name]) for name, value in found.items())


def test_numbered_layers_of_another_network_or_of_too_few_layers_are_refused(resnet, tmp_path):
    text = refusal(save(under("backbone.", numbered(resnet, CHILDREN)), tmp_path / "cut.pth"), "resnet50", None)
    assert "backbone.0.weight" in text and "conv1.weight (64, 3, 7, 7)" in text and "does not fit resnet50" in text
    few = {name: number for name, number in CHILDREN.items() if number < 6}
    text = refusal(save(under("backbone.", numbered(resnet, few)), tmp_path / "few.pth"), "resnet18", None)
    assert "does not fit resnet18" in text


# What does not fit


def test_a_misfit_says_what_the_file_has_and_what_is_wanted(tmp_path):
    text = refusal(save({"state_dict": {"stem.kernel": torch.rand(3)}}, tmp_path / "a.pth"))
    assert "state_dict.stem.kernel" in text and "10 of 10 values are missing" in text
    assert "features.0.weight (8, 3, 11, 11)" in text
    less = {name: value for name, value in values().items() if name != "3.bias"}
    text = refusal(save(under("encoder.", less), tmp_path / "b.pth"))
    assert "1 of 10 values are missing, such as features.3.bias (8,)" in text and "encoder.0.weight" in text


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("weight", torch.rand(8, 8, 3, 3), "features.3.weight is (8, 8, 3, 3), wanted (8, 8, 5, 5)"),
        ("bias", torch.ones(8, dtype=torch.int8), "features.3.bias is (8,) of torch.int8, wanted (8,)"),
        ("bias", torch.ones(8).to_sparse(), "1 of 10 values are missing, such as features.3.bias (8,)"),
    ],
)
def test_values_of_other_shapes_and_kinds_are_no_weights(name, value, said, tmp_path):
    assert said in refusal(save({**values(), f"3.{name}": value}, tmp_path / "c.pth"))


def test_values_in_float16_are_weights(tmp_path):
    half = {name: value.half() for name, value in values().items()}
    found = loaded(save(half, tmp_path / "half.pth"))
    assert same(found, {name: value.float() for name, value in half.items()})


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04", b"\x80\x02.", b"cos\nsystem\n"])
def test_what_is_no_file_of_tensors_is_one_line(content, tmp_path):
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert name in refusal(tmp_path / name)


def test_lists_and_numbers_are_no_tensors_by_name(tmp_path):
    text = refusal(save([torch.ones(2)], tmp_path / "list.pth"))
    assert "holds no tensors by name: it is no state dict" in text
