"""Models as ONNX files: float32, float16 and calibrated int8."""

import contextlib
import importlib.util
import itertools
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.common.progress import track
from vpr.common.provenance import NOTE, seal_onnx
from vpr.compression.onnx_graph import is_in_head, pad_inside_convolutions, whole_numbers
from vpr.data.reader import Reading
from vpr.models.card import FORMAT, INSTALL
from vpr.models.local_projection import LocalProjection
from vpr.models.onnx_model import LOCAL_OUTPUT
from vpr.models.place_model import PlaceModel, PlainPlaceModel
from vpr.models.weights import weights_label

if TYPE_CHECKING:
    import onnx

CALIBRATION_IMAGES = 64
OPSET = 18
RECALLS_KEPT = 4  # in a card
FEW_WEIGHTS = 1000  # of a convolution; sums of so few rounded products average little out, and cost little unrounded


def export_plain(place_model: PlaceModel, path: Path, projection: LocalProjection | None = None) -> None:
    """The float32 model for any number, height and width of images; given a projection, with local descriptors."""
    import onnx

    model = PlainPlaceModel(place_model, projection).eval()
    outputs = ["descriptors", *([LOCAL_OUTPUT] if projection else [])]
    model.encoder.to(memory_format=torch.contiguous_format)
    free = torch.export.Dim
    with warnings.catch_warnings(), contextlib.redirect_stdout(None), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own inner workings
        torch.onnx.export(
            model, (torch.zeros(2, 160, 192, 3, dtype=torch.uint8),), str(path), dynamo=True, external_data=False,
            input_names=["photos"], output_names=outputs, opset_version=OPSET, verbose=False,
            dynamic_shapes=({0: free("batch"), 1: free("height"), 2: free("width")},),
        )  # fmt: skip
    graph = onnx.load(path)
    pad_inside_convolutions(graph)
    onnx.save(graph, path)


def quantize(path: Path, images: list[np.ndarray]) -> None:
    """Turn the backbone's convolutions into int8 in place: per channel, with ranges that images [1, H, W, 3] show.

    Ranges are those behind a ReLU or ReLU6, which vanishes in them, and means over images of each one's extremes. The
    pooling head stays in float: its sums and norms suffer more than its few products cost. So do the first convolutions
    of small networks, whose errors all others would inherit.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    inputs = ({"photos": image} for image in track(images, "calibration", len(images)))

    class Inputs(CalibrationDataReader):
        def get_next(self) -> dict | None:
            return next(inputs, None)

    graph, whole = onnx.load(path).graph, path.with_name("quantized.onnx")
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    shapes = {value.name: tuple(value.dims) for value in graph.initializer}
    few = itertools.takewhile(lambda node: math.prod(shapes[node.input[1]]) < FEW_WEIGHTS, convolutions)
    eight_bits = {"quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": False, "axis": 0}
    grouped = [node.input[1] for node in convolutions if whole_numbers(node, "group", [1]) != [1]]
    depthwise = [name for name in grouped if shapes[name][1] == 1]
    quantize_static(
        str(path), str(whole), Inputs(), quant_format=QuantFormat.QDQ, per_channel=True,
        # Without VNNI two products of 8 bits do not fit the 16 of the sum; with 7 bits for weights they do. Depthwise
        # convolutions are not summed so.
        reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Relu", "Clip", "MaxPool"],
        nodes_to_exclude=[node.name for node in graph.node if is_in_head(node)] + [node.name for node in few],
        extra_options={
            "CalibMovingAverage": True,
            "TensorQuantOverrides": {name: [dict(eight_bits)] for name in depthwise},
        },
    )  # fmt: skip
    whole.replace(path)


def to_float16(path: Path, convolutional: bool = True) -> None:
    """Store weights and compute in float16 in place, with images and descriptors as before.

    The pooling head computes in float32 throughout: in float16 small residual sums, and the least norm by which that of
    an empty cluster is divided, would become 0.
    `convolutional`: whether the backbone is of convolutions; else its matrix products are in float16, the rest not.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(path)
    keep = ["Softmax", "ReduceSum", "ReduceL2", "Sub", "Mul", "Div", "Clip", "Max", "MatMul", "Cast", "Pow"]
    if not convolutional:
        keep = sorted({node.op_type for node in model.graph.node} - {"MatMul", "Gemm", "Conv"})
    head = [node.name for node in model.graph.node if is_in_head(node)]
    half = convert_float_to_float16(model, keep_io_types=True, op_block_list=keep, node_block_list=head)
    _drop_round_trips(half.graph)
    onnx.save(half, path)


def _drop_round_trips(graph: "onnx.GraphProto") -> None:
    """Where the converter takes a value to float16 only to take it back, use it as it was."""
    before = {node.output[0]: node.input[0] for node in graph.node if node.name.endswith("_cast_to_fp16_node")}
    back = [node for node in graph.node if node.name.endswith("_cast_to_fp32_node") and node.input[0] in before]
    same = {node.output[0]: before[node.input[0]] for node in back}
    for node in graph.node:
        for number, name in enumerate(node.input):
            node.input[number] = same.get(name, name)
    for node in back:
        graph.node.remove(node)


def model_card(model: PlaceModel, kind: str, source: dict, flags: dict, recalls: list[dict]) -> dict:
    """What the file says of itself.

    Args:
        kind: fp32, fp16 or int8.
        source: the run and checkpoint, or the centroids, that the model comes from.
        flags: with which the command line tests the model as its run is tested.
        recalls: results of the model before its export, newest last.
    """
    return {
        "model": f"{model.name.rsplit(', ', 1)[0]}, {kind} ONNX",
        "arch": model.spec.arch,
        "weights": weights_label(model.spec.arch, model.spec.weights),
        "dimension": model.dim,
        "pooled_dimension": model.pooled_dim,
        "smallest_side": model.smallest_side,
        "parameters": model.parameter_count,
        "precision": kind,
        "recipe": {name: model.recipe[name] for name in ("arch", "pooling", "normalization")},
        "source": source,
        "flags": flags,
        "recalls_before_export": recalls[-RECALLS_KEPT:],
    }


def require_packages() -> None:
    """Raise a UserError where the optional packages are missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--mode=export needs {', '.join(missing)}, which is not installed: {INSTALL}")


def calibration_images(files: Sequence[Path], reading: Reading, seed: int) -> list[np.ndarray]:
    """Random images uint8 [1, H, W, 3] of the training database, whose values show the ranges of 8 bits."""
    chosen = np.random.default_rng(seed).permutation(len(files))[:CALIBRATION_IMAGES]
    batches = reading.of(files).batches([[int(index)] for index in chosen])
    return [np.ascontiguousarray(group.values.transpose(0, 2, 3, 1)) for (group,) in batches]


def write_with_card(plain: Path, path: Path, card: dict) -> None:
    """Write an ONNX file again, with its card and a checksum."""
    import onnx

    model = onnx.load(plain)
    onnx.helper.set_model_props(model, {"format": FORMAT, "card": json.dumps({**card, "checksum": NOTE})})
    path.write_bytes(seal_onnx(model.SerializeToString()))
