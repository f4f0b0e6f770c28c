"""Graphs of exported models, rewritten to others with the same values that run faster or lose less in few bits."""

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def noted(node: "onnx.NodeProto", what: str) -> list[str]:
    """What PyTorch's exporter notes of a node: `class_hierarchy` or `name_scopes` of the modules it comes from."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    return ast.literal_eval(notes.get(f"pkg.torch.onnx.{what}", "[]"))  # ['', 'pool', 'pool.projection', ...]


def is_in_head(node: "onnx.NodeProto") -> bool:
    """Whether a node is of the layers behind the backbone."""
    return not {"pool", "whitening", "projection"}.isdisjoint(noted(node, "name_scopes"))


def whole_numbers(node: "onnx.NodeProto", name: str, default: list[int]) -> list[int]:
    """An attribute of a node, as a list also where it is one number; the default where it is left out."""
    found = next((each for each in node.attribute if each.name == name), None)
    return default if found is None else list(found.ints) or [found.i]


def pad_inside_convolutions(model: "onnx.ModelProto") -> None:
    """Let convolutions of TensorFlow's networks pad by themselves, in place.

    PyTorch has no padding that follows the size of the image, so that the exporter writes out its arithmetic and a copy
    of the map with zeros around it. ONNX has: `auto_pad` is SAME_UPPER.
    """
    import onnx

    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        pad = made_by.get(node.input[0]) if node.op_type == "Conv" else None
        if pad is None or pad.op_type != "Pad" or not _is_same_padding(pad, node):
            continue
        node.input[0] = pad.input[0]
        kept = [each for each in node.attribute if each.name not in ("pads", "auto_pad")]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("auto_pad", "SAME_UPPER")])
    drop_unused(model.graph)


def _is_same_padding(pad: "onnx.NodeProto", convolution: "onnx.NodeProto") -> bool:
    """Whether a padding is that of `SamePadded`, and its convolution one whose `auto_pad` ONNX Runtime knows."""
    kernel, strides = (whole_numbers(convolution, name, [1, 1]) for name in ("kernel_shape", "strides"))
    dilations, pads = (whole_numbers(convolution, name, []) for name in ("dilations", "pads"))
    covering = all(size >= step for size, step in zip(kernel, strides, strict=True))
    ours = any(name.endswith(".SamePadded") for name in noted(pad, "class_hierarchy"))
    return ours and covering and not any(pads) and all(dilation == 1 for dilation in dilations)


def drop_unused(graph: "onnx.GraphProto") -> None:
    """Remove nodes and stored values that nothing reads any more."""
    wanted = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):  # what a node reads is made before it
        if wanted.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            wanted.update(node.input)
    for value in [each for each in graph.initializer if each.name not in wanted]:
        graph.initializer.remove(value)
