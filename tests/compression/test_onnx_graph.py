"""Graphs of exported networks: padding inside convolutions, and what int8 does to ReLU6 and depthwise layers."""

import numpy as np
import pytest
import torch
from torch import nn

from vpr.compression.onnx_export import quantize
from vpr.compression.onnx_graph import pad_inside_convolutions
from vpr.models.backbones.convolutions import SamePadded

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package}, an optional package, is not installed")
import onnx  # noqa: E402
import onnxruntime  # noqa: E402


class Small(nn.Module):
    """A network as MobileNet's: a small first convolution, then a wide one, a depthwise one, and a narrow one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            SamePadded(nn.Conv2d(3, 8, 3, stride=2)), nn.ReLU6(),
            nn.Conv2d(8, 160, 1), nn.ReLU6(),
            SamePadded(nn.Conv2d(160, 160, 5, stride=2, groups=160)), nn.ReLU6(),
            nn.Conv2d(160, 16, 1),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.encoder(images.permute(0, 3, 1, 2).float() / 8)
        return values / values.norm(dim=1, keepdim=True).clamp(min=1e-3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The network as PyTorch's exporter writes it."""
    path = tmp_path_factory.mktemp("graph") / "small.onnx"
    torch.manual_seed(0)
    free = torch.export.Dim
    torch.onnx.export(
        Small().eval(), (torch.zeros(1, 24, 40, 3, dtype=torch.uint8),), str(path), dynamo=True, external_data=False,
        input_names=["photos"], output_names=["descriptors"], opset_version=18, verbose=False,
        dynamic_shapes=({0: None, 1: free("height"), 2: free("width")},),
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def padding(written):
    """The same with padding inside its convolutions."""
    model, path = onnx.load(written), written.with_name("padding.onnx")
    pad_inside_convolutions(model)
    onnx.save(model, path)
    return path


def described(path, image):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"photos": image})[0]


def images(number, height=61, width=84):
    return list(np.random.default_rng(number).integers(0, 256, (number, 1, height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("height", "width"), [(24, 40), (25, 41), (26, 43), (31, 32)])
def test_convolutions_pad_by_themselves_as_tensorflow_pads(written, padding, height, width):
    (image,) = images(1, height, width)
    np.testing.assert_array_equal(described(padding, image), described(written, image))


def test_no_arithmetic_of_sizes_is_left(written, padding):
    before, after = (onnx.load(path).graph for path in (written, padding))
    assert {"Pad", "Shape"} <= {node.op_type for node in before.node}
    assert not {"Pad", "Mod", "Shape"} & {node.op_type for node in after.node}
    assert {value.name for value in after.initializer} <= {name for node in after.node for name in node.input}


@pytest.mark.parametrize("change", ["dilations", "another layer's"])
def test_padding_that_is_another_stays(written, change):
    model = onnx.load(written)
    for node in model.graph.node:
        if change == "dilations" and node.op_type == "Conv":
            (dilations,) = (each for each in node.attribute if each.name == "dilations")
            dilations.ints[:] = [2, 2]
        elif change != "dilations":
            del node.metadata_props[:]
    pad_inside_convolutions(model)
    assert sum(node.op_type == "Pad" for node in model.graph.node) == 2


@pytest.fixture(scope="module")
def in_8_bits(padding):
    path = padding.with_name("int8.onnx")
    path.write_bytes(padding.read_bytes())
    quantize(path, images(4))
    return path


def test_in_8_bits_the_map_is_nearly_the_same(padding, in_8_bits):
    (image,) = images(1)
    cosines = (described(padding, image) * described(in_8_bits, image)).sum(axis=1)
    assert cosines.min() > 0.995


def test_a_relu6_is_the_range_of_its_convolution(in_8_bits):
    """But for that of the first convolution, which stays in float, and the norm's least value."""
    graph = onnx.load(in_8_bits).graph
    made_by = {output: node for node in graph.node for output in node.output}
    values = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    clipped = [made_by[node.input[0]] for node in graph.node if node.op_type == "Clip"]
    assert [node.op_type for node in clipped].count("Conv") == 1
    readers = {name: node for node in graph.node for name in node.input}
    _, wide, depthwise, _ = (node for node in graph.node if node.op_type == "Conv")
    for convolution in (wide, depthwise):
        after = readers[convolution.output[0]]
        assert after.op_type == "QuantizeLinear" and values[after.input[2]] == 0
        assert 0 < values[after.input[1]] <= 6 / 255 + 1e-6


def test_weights_are_of_7_bits_but_those_of_depthwise_and_first_convolutions(in_8_bits):
    graph = onnx.load(in_8_bits).graph
    stored = [onnx.numpy_helper.to_array(value) for value in graph.initializer if len(value.dims) == 4]
    largest = {(str(value.dtype), value.shape[:2]): float(np.abs(value.astype(float)).max()) for value in stored}
    assert largest.pop(("float32", (8, 3))) < 1
    assert largest == {("int8", (160, 8)): 64, ("int8", (160, 1)): 127, ("int8", (16, 160)): 64}
