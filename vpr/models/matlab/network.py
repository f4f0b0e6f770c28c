"""The layers of a MATLAB NetVLAD model (Arandjelovic et al.) -> a model of this program.

    convolutions, ReLUs, poolings, LRN  ->  preL2  ->  vlad:core  ->  vlad:intranorm  ->  postL2  ->  WPCA  ->  finalL2
    a backbone                              \\______________ NetVLAD ______________________/           \\_ whitening _/

or max:core or avg:core in place of NetVLAD. Layers are found by what they do, and checked against the layer of the
backbone that they become.

As the release stores them: a convolution is S x S x IN x OUT, not flipped; the centres of NetVLAD have the other sign;
a descriptor has the cluster as its fast index (k + K d), here it has the dimension (k D + d).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vpr.common.errors import UserError
from vpr.models.backbones.base import Backbone, build_backbone
from vpr.models.backbones.caffe import EdgeMaxPool, ResponseNorm
from vpr.models.matlab.file import CLASSES, Layer, MatNetwork
from vpr.models.place_model import PlaceModel, build_model
from vpr.models.poolings.netvlad_pooling import NetVLADPooling
from vpr.models.spec import ModelSpec
from vpr.models.whitening import Whitening, whitening_of_affine

POOLINGS = ("vlad", "vladv2", "max", "avg")
KINDS = {"conv": "conv", "relu": "relu", "pool": "pool", "normalize": "norm", "lrn": "norm"}
DEFAULTS = {"stride": 1, "dilate": 1}  # of fields that a layer lacks; of others 0
# Backbones by the number of their convolutions: poolings with full windows alone, and with incomplete ones.
ARCHS = {13: ("vgg16", "vgg16_ceil"), 5: ("alexnet_caffe", "alexnet_caffe_ceil")}
PADS = ((0, 0, 0, 0), (0, 1, 0, 1))  # of these poolings: above, below, left, right
TOLERANCE = 1e-5  # relative, of numbers that are stored in float32
SMALLEST_KAPPA = 1e-6  # of a normalisation to length 1; the release has 1e-12


@dataclass(frozen=True)
class Imported:
    """A model of a file without its whitening, and the whitening; None where the file has none."""

    model: PlaceModel
    whitening: Whitening | None


def import_network(network: MatNetwork) -> Imported:
    """The model of a MATLAB network.

    Raises:
        UserError: a layer is missing, superfluous, or other than the backbone or the pooling has it.
    """
    poolings = [number for number, layer in enumerate(network.layers) if role_of(layer) in POOLINGS]
    if len(poolings) != 1:
        raise UserError(
            f"{network.path} has {len(poolings)} layers that pool to one descriptor, wanted one of vlad:core, "
            "max:core, avg:core: it is no model of the NetVLAD release; name another file"
        )
    before, layer, behind = (
        network.layers[: poolings[0]],
        network.layers[poolings[0]],
        network.layers[poolings[0] + 1 :],
    )
    role, clusters = role_of(layer), ModelSpec.clusters
    if role.startswith("vlad"):
        dim, clusters = _weights(layer, 2)[0].shape[2:]
        if not before or role_of(before[-1]) != "norm" or _numbers(before[-1], "param", 4)[0] < 2 * dim - 1:
            raise UserError(f"{layer} has no preL2 before it: only models with it can be imported")
        _require_unit_norm(before.pop(), dim)
        if clusters < 2:
            raise UserError(f"{layer} has {clusters} cluster, wanted 2 or more")
    backbone, arch, channels = read_backbone(before, network)
    spec = ModelSpec(
        arch=arch,
        weights=network.path.with_suffix(".mat").name,
        normalization=",".join(map(repr, network.average)),
        channels=channels,
        pooling="netvlad" if role.startswith("vlad") else role,
        clusters=clusters,
        vladv2=role == "vladv2",
    )
    model = build_model(spec, pretrained=False)
    model.backbone.load_state_dict(backbone.state_dict())
    if isinstance(model.pool, NetVLADPooling):
        _fill_netvlad(model.pool, layer)
    return Imported(model, _read_whitening(behind, model, network))


def role_of(layer: Layer) -> str:
    """What a layer does: conv, relu, pool, norm, one of POOLINGS, or l2.

    A struct that was an object has lost its class: NetVLAD is told by how many weights it has, others by their names.

    Raises:
        UserError: it is none of these.
    """
    if layer.class_name in CLASSES:
        return CLASSES[layer.class_name]
    if layer.kind == "custom":
        weights = layer.fields.get("weights")
        if isinstance(weights, list) and len(weights) in (2, 3):
            return "vlad" if len(weights) == 2 else "vladv2"
        named = [role for role in ("l2", "max", "avg") if role in layer.name.lower()]
        if named:
            return named[0]
    if layer.kind not in KINDS:
        raise UserError(f"{layer} is of the type {layer.kind or 'none'!r}, which no model of the NetVLAD release has")
    return KINDS[layer.kind]


def read_backbone(layers: list[Layer], network: MatNetwork) -> tuple[Backbone, str, tuple[int, ...] | None]:
    """A backbone with the weights of layers, its name in the table, and its channels if they are not the table's."""
    convolutions = [layer for layer in layers if role_of(layer) == "conv"]
    if len(convolutions) not in ARCHS:
        known = ", ".join(f"{count} ({names[0]})" for count, names in ARCHS.items())
        raise UserError(
            f"{network.path} has {len(convolutions)} convolutions before its pooling, wanted {known}: no backbone here "
            "has so many; name another file"
        )
    pads = {_numbers(layer, "pad", 4) for layer in layers if role_of(layer) == "pool"}
    if len(pads) != 1 or not pads <= {*PADS}:
        found = " and ".join(str(list(pad)) for pad in sorted(pads)) or "none"
        raise UserError(f"{network.path} has poolings with pad {found}, wanted [0, 0, 0, 0] or [0, 1, 0, 1] in all")
    arch = ARCHS[len(convolutions)][PADS.index(pads.pop())]
    channels = tuple(_weights(layer, 2)[0].shape[3] for layer in convolutions)
    whole = build_backbone(arch)
    is_whole = channels == tuple(stage.out_channels for stage in whole if isinstance(stage, nn.Conv2d))
    backbone = whole if is_whole else build_backbone(arch, channels)
    ordered, stages = _relu_first(layers), dict(backbone.named_children())
    if len(ordered) != len(stages):
        raise UserError(
            f"{network.path} has {len(ordered)} layers before its pooling, {arch} has {len(stages)} up to its last "
            "convolution: name a file of the NetVLAD release"
        )
    for layer, (name, stage) in zip(ordered, stages.items(), strict=True):
        _require_same(layer, stage, f"{arch}'s layer {name}")
        if isinstance(stage, nn.Conv2d):
            _fill_convolution(stage, layer)
    return backbone, arch, None if is_whole else channels


def _relu_first(layers: list[Layer]) -> list[Layer]:
    """A ReLU that follows a maximum pooling before it, as backbones here have it: the values are the same."""
    ordered = list(layers)
    for number in range(len(ordered) - 1):
        if [role_of(layer) for layer in ordered[number : number + 2]] == ["pool", "relu"]:
            ordered[number], ordered[number + 1] = ordered[number + 1], ordered[number]
    return ordered


def _require_same(layer: Layer, stage: nn.Module, where: str) -> None:
    """Raise a UserError unless a layer does what a stage does. The pad of a pooling is in the backbone's name."""
    role, fields = "relu", dict[str, tuple[Any, ...]](leak=(0.0,))
    if isinstance(stage, nn.Conv2d):
        assert not isinstance(stage.padding, str)
        rows, columns = stage.padding
        role = "conv"
        fields = {"stride": stage.stride, "pad": (rows, rows, columns, columns), "dilate": stage.dilation}
    elif isinstance(stage, nn.MaxPool2d | EdgeMaxPool):
        size = stage.kernel_size if isinstance(stage, nn.MaxPool2d) else stage.size
        role, fields = "pool", {"pool": (size,) * 2, "stride": (stage.stride,) * 2}
    elif isinstance(stage, ResponseNorm):
        role, fields = "norm", {"param": (stage.size, stage.kappa, stage.alpha, stage.beta)}
    if role_of(layer) != role:
        raise UserError(f"{layer} is {role_of(layer)}, {where} is {role}: the file is no model of the NetVLAD release")
    if role == "pool" and layer.fields.get("method", "max") != "max":
        raise UserError(f"{layer} has method={layer.fields['method']}, {where} has max: no backbone here computes that")
    for name, wanted in fields.items():
        found = _numbers(layer, name, len(wanted))
        if not np.allclose(found, wanted, rtol=TOLERANCE, atol=0):
            raise UserError(
                f"{layer} has {name}={list(found)}, {where} has {list(wanted)}: no backbone here computes that"
            )


@torch.no_grad()
def _fill_convolution(stage: nn.Conv2d, layer: Layer) -> None:
    """Weights S x S x IN x OUT of a layer into [OUT, IN, S, S]."""
    weights, bias = _weights(layer, 2)
    out, before, *sides = stage.weight.shape
    if weights.shape != (*sides, before, out) or bias.size not in (0, out):
        raise UserError(
            f"{layer} has weights {_shape(weights)} and {bias.size} biases, wanted "
            f"{sides[0]}x{sides[1]}x{before}x{out} and {out}: name another file"
        )
    assert stage.bias is not None
    stage.weight.copy_(torch.from_numpy(weights.transpose(3, 2, 0, 1).copy()))
    stage.bias.copy_(torch.from_numpy(bias.reshape(-1).copy()) if bias.size else torch.zeros(out))


@torch.no_grad()
def _fill_netvlad(pool: NetVLADPooling, layer: Layer) -> None:
    """Weights of vlad:core: [1, 1, D, K] is the assignment, [1, 1, D, K] the centres with the other sign; in version 2
    the bias of the assignment lies between them."""
    assignment, *bias, centres = cells = _weights(layer, 2)
    if len(cells) != 2 + pool.vladv2:
        raise UserError(f"{layer} has {len(cells)} arrays of weights, wanted {2 + pool.vladv2}: get the file again")
    clusters, dim = pool.num_clusters, pool.dim
    for cell in (assignment, centres):
        if cell.shape != (1, 1, dim, clusters):
            raise UserError(f"{layer} has weights {_shape(cell)}, wanted 1x1x{dim}x{clusters} after this backbone")
    pool.conv.weight.copy_(torch.from_numpy(assignment[0, 0].T.copy())[:, :, None, None])
    pool.centroids.copy_(torch.from_numpy(-centres[0, 0].T))
    if pool.conv.bias is not None:
        if bias[0].size != clusters:
            raise UserError(f"{layer} has {bias[0].size} biases, wanted {clusters}, one for each cluster")
        pool.conv.bias.copy_(torch.from_numpy(bias[0].reshape(-1).copy()))


def _read_whitening(layers: list[Layer], model: PlaceModel, network: MatNetwork) -> Whitening | None:
    """The layers behind the pooling, checked, and the whitening if there is one."""
    with_vlad, whitens = isinstance(model.pool, NetVLADPooling), any(role_of(layer) == "conv" for layer in layers)
    expected = [("norm", "vlad:intranorm")] * with_vlad + [("l2", "postL2")]
    expected += [("conv", "WPCA"), ("l2", "finalL2")] * whitens
    for number, (role, name) in enumerate(expected):
        found = layers[number] if number < len(layers) else None
        if found is None or role_of(found) != role:
            raise UserError(
                f"{found or f'{network.path}: nothing'} is where {name} should be: only such models can be imported"
            )
    if len(layers) > len(expected):
        raise UserError(f"{layers[len(expected)]} is one too many, wanted {expected[-1][1]} as the last layer")
    if isinstance(model.pool, NetVLADPooling):
        _require_unit_norm(layers[0], model.pool.dim)
    return _whitening_of(layers[-2], model, network.path.name) if whitens else None


def _whitening_of(layer: Layer, model: PlaceModel, file: str) -> Whitening:
    """The whitening of a 1x1 convolution, its columns in this program's order of a descriptor."""
    weights, bias = _weights(layer, 2)
    length, dim = weights.shape[2:]
    if weights.shape[:2] != (1, 1) or length != model.pooled_dim or bias.size not in (0, dim):
        raise UserError(
            f"{layer} has weights {_shape(weights)} and {bias.size} biases, wanted 1x1x{model.pooled_dim}xN and N: "
            "the whitening is of another descriptor"
        )
    if (_numbers(layer, "stride", 2), _numbers(layer, "pad", 4)) != ((1, 1), (0, 0, 0, 0)):
        raise UserError(f"{layer} has a stride or a pad, a whitening has none: name another file")
    matrix = torch.from_numpy(weights[0, 0].T.copy())  # [dim, length]
    if isinstance(model.pool, NetVLADPooling):
        by_cluster = matrix.view(dim, model.pool.dim, model.pool.num_clusters).transpose(1, 2)  # [dim, K, D]
        matrix = by_cluster.reshape(dim, length)
    shift = torch.from_numpy(bias.reshape(-1).copy()) if bias.size else torch.zeros(dim)
    return whitening_of_affine(matrix, shift, f"the set of {file}")


def _require_unit_norm(layer: Layer, dim: int) -> None:
    """Raise a UserError unless a normalisation divides by the length: over a window of all D channels."""
    window, kappa, alpha, beta = _numbers(layer, "param", 4)
    if window < 2 * dim - 1 or kappa > SMALLEST_KAPPA or (alpha, beta) != (1.0, 0.5):
        raise UserError(
            f"{layer} has param {[window, kappa, alpha, beta]}, wanted [{2 * dim - 1} or more, 1e-12, 1, 0.5], which "
            "divides by the length: only such models can be imported"
        )


def _weights(layer: Layer, least: int) -> list[np.ndarray]:
    """The weights of a layer in float32, of four dimensions each; in files of the first version filters and biases.

    Raises:
        UserError: there are fewer than `least`, or they are no finite numbers.
    """
    cells = layer.fields.get("weights")
    if cells is None and "filters" in layer.fields:
        cells = [layer.fields["filters"], layer.fields.get("biases", np.empty(0))]
    if not isinstance(cells, list) or len(cells) < least:
        found = len(cells) if isinstance(cells, list) else 0
        raise UserError(
            f"{layer} has {found} arrays of weights, wanted {least}: if it was stored where MATLAB did not know its "
            "class, it is empty; store it again with netvlad, relja_matlab and matconvnet on MATLAB's path"
        )
    if not all(isinstance(cell, np.ndarray) and cell.dtype.kind in "fiu" and np.isfinite(cell).all() for cell in cells):
        raise UserError(f"{layer} has weights that are no finite numbers: get the file again")
    # MATLAB drops dimensions of 1 at the end.
    return [cell.astype(np.float32).reshape(cell.shape + (1,) * (4 - cell.ndim)) for cell in cells]


def _numbers(layer: Layer, name: str, count: int) -> tuple[float, ...]:
    """So many numbers of a field; where it has one, that is all of them. Of rows and columns, or of four sides."""
    found = layer.fields.get(name)
    if found is None or (isinstance(found, np.ndarray) and found.size == 0):
        found = np.array(DEFAULTS.get(name, 0), float)
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub":
        raise UserError(f"{layer} has {name}={str(found)[:40]!r}, wanted numbers")
    numbers = tuple(float(str(one)) if one.dtype.kind == "f" else float(one) for one in found.ravel())
    if len(numbers) not in (1, count):
        raise UserError(f"{layer} has {len(numbers)} numbers as {name}, wanted 1 or {count}")
    return numbers if len(numbers) == count else numbers * count


def _shape(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape))
