"""The convolutions, ReLUs, poolings and LRN of a MATLAB network -> a backbone of this program.

Each layer is checked against the layer of the backbone that it becomes. A convolution is stored as S x S x IN x OUT,
not flipped.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from vpr.common.errors import UserError
from vpr.models.backbones.base import Backbone, build_backbone
from vpr.models.backbones.caffe import EdgeMaxPool, ResponseNorm
from vpr.models.matlab.file import Layer, MatNetwork
from vpr.models.matlab.layers import four, norm_numbers, numbers_of, role_of, shape_text, two, weights_of

# By the number of convolutions: with full windows alone in its poolings, and with incomplete ones.
ARCHS = {13: ("vgg16", "vgg16_ceil"), 5: ("alexnet_caffe", "alexnet_caffe_ceil")}
TOLERANCE = 1e-5  # relative, of numbers that are stored in float32


def read_backbone(layers: list[Layer], network: MatNetwork) -> tuple[Backbone, str, tuple[int, ...] | None]:
    """A backbone with the weights of layers, its name in the table, and its channels if they are not the table's."""
    found = [layer for layer in layers if role_of(layer) == "conv"]
    if len(found) not in ARCHS:
        known = ", ".join(f"{count} ({names[0]})" for count, names in ARCHS.items())
        raise UserError(
            f"{network.path} has {len(found)} convolutions before its pooling, wanted {known}: no backbone here has so "
            "many; name another file"
        )
    arch = ARCHS[len(found)][_pads(layers, network)]
    channels = tuple(weights_of(layer, 2)[0].shape[3] for layer in found)
    whole = build_backbone(arch)
    is_whole = channels == tuple(stage.out_channels for stage in whole if isinstance(stage, nn.Conv2d))
    backbone = whole if is_whole else build_backbone(arch, channels)
    ordered = relu_first(layers)
    names = [name for name, _ in backbone.named_children()]
    if len(ordered) != len(names):
        raise UserError(
            f"{network.path} has {len(ordered)} layers before its pooling, {arch} has {len(names)} up to its last "
            "convolution: name a file of the NetVLAD release"
        )
    for layer, name, stage in zip(ordered, names, backbone, strict=True):
        _require_same(layer, stage, f"{arch}'s layer {name}")
        if isinstance(stage, nn.Conv2d):
            fill_convolution(stage, layer)
    return backbone, arch, None if is_whole else channels


def relu_first(layers: list[Layer]) -> list[Layer]:
    """A ReLU that follows a maximum pooling before it, as backbones here have it: the values are the same."""
    ordered = list(layers)
    for number in range(len(ordered) - 1):
        if [role_of(layer) for layer in ordered[number : number + 2]] == ["pool", "relu"]:
            ordered[number], ordered[number + 1] = ordered[number + 1], ordered[number]
    return ordered


@torch.no_grad()
def fill_convolution(stage: nn.Conv2d, layer: Layer) -> None:
    """Weights S x S x IN x OUT of a layer into [OUT, IN, S, S]."""
    weights, bias = weights_of(layer, 2)
    wanted = tuple(stage.weight.shape)
    if weights.shape != (wanted[2], wanted[3], wanted[1], wanted[0]) or bias.size not in (0, wanted[0]):
        raise UserError(
            f"{layer} has weights {shape_text(weights)} and {bias.size} biases, wanted "
            f"{wanted[2]}x{wanted[3]}x{wanted[1]}x{wanted[0]} and {wanted[0]}: name another file"
        )
    assert stage.bias is not None
    stage.weight.copy_(torch.from_numpy(weights.transpose(3, 2, 0, 1).copy()))
    stage.bias.copy_(torch.from_numpy(bias.reshape(-1).copy()) if bias.size else torch.zeros(wanted[0]))


def _pads(layers: Iterable[Layer], network: MatNetwork) -> bool:
    """Whether the poolings keep incomplete windows, by MatConvNet's padding below and right."""
    pads = {four(layer, "pad", 0) for layer in layers if role_of(layer) == "pool"}
    if not pads <= {(0, 0, 0, 0)} and not pads <= {(0, 1, 0, 1)}:
        found = " and ".join(str(list(pad)) for pad in sorted(pads))
        raise UserError(f"{network.path} has poolings with pad {found}, wanted [0, 0, 0, 0] or [0, 1, 0, 1] in all")
    return pads == {(0, 1, 0, 1)}


def _require_same(layer: Layer, stage: nn.Module, where: str) -> None:
    """Raise a UserError unless a layer does what a stage does."""
    role, found, wanted = role_of(layer), _of_layer(layer), _of_stage(stage)
    if found.keys() != wanted.keys() or role != wanted["role"]:
        raise UserError(f"{layer} is {role}, {where} is {wanted['role']}: the file is no model of the NetVLAD release")
    for name, value in wanted.items():
        if isinstance(value, str) and found[name] != value:
            raise UserError(f"{layer} has {name}={found[name]}, {where} has {value}: no backbone here computes that")
        if isinstance(value, tuple) and not np.allclose(found[name], value, rtol=TOLERANCE, atol=0):
            raise UserError(
                f"{layer} has {name}={list(found[name])}, {where} has {list(value)}: no backbone here computes that"
            )


def _of_stage(stage: nn.Module) -> dict[str, Any]:
    if isinstance(stage, nn.Conv2d):
        assert not isinstance(stage.padding, str)
        rows, columns = stage.padding
        return {"role": "conv", "stride": stage.stride, "pad": (rows, rows, columns, columns), "dilate": stage.dilation}
    if isinstance(stage, nn.MaxPool2d | EdgeMaxPool):
        size = stage.kernel_size if isinstance(stage, nn.MaxPool2d) else stage.size
        return {"role": "pool", "pool": (size,) * 2, "stride": (stage.stride,) * 2, "method": "max"}
    if isinstance(stage, ResponseNorm):
        return {"role": "norm", "param": (stage.size, stage.kappa, stage.alpha, stage.beta)}
    return {"role": "relu"}


def _of_layer(layer: Layer) -> dict[str, Any]:
    """The same of a layer; the pad of a pooling is in the backbone's name."""
    role = role_of(layer)
    if role == "conv":
        return {
            "role": role, "stride": two(layer, "stride", 1), "pad": four(layer, "pad", 0),
            "dilate": two(layer, "dilate", 1),
        }  # fmt: skip
    if role == "pool":
        method = str(layer.fields.get("method", "max"))
        return {
            "role": role, "pool": two(layer, "pool", 0), "stride": two(layer, "stride", 1), "method": method
        }  # fmt: skip
    if role == "norm":
        return {"role": role, "param": norm_numbers(layer)}
    if role == "relu" and numbers_of(layer, "leak", 0.0) != (0.0,):
        raise UserError(f"{layer} has leak={layer.fields['leak']}, wanted 0: no backbone here computes that")
    return {"role": role}
