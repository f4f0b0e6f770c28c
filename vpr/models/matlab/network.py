"""The layers of a MATLAB NetVLAD model (Arandjelovic et al.) -> a model of this program.

    convolutions, ReLUs, poolings, LRN  ->  preL2  ->  vlad:core  ->  vlad:intranorm  ->  postL2  ->  WPCA  ->  finalL2
    a backbone                              \\______________ NetVLAD ______________________/           \\_ whitening _/

or max:core or avg:core instead of NetVLAD. Each layer is checked against the one that the model wants there.

As the release stores them: a convolution is S x S x IN x OUT, not flipped; the centres of NetVLAD have the other sign;
a descriptor has the cluster as its fast index (k + K d), here it has the dimension (k D + d).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vpr.common.errors import UserError
from vpr.models.backbones.base import Backbone, build_backbone
from vpr.models.backbones.caffe import EdgeMaxPool, ResponseNorm
from vpr.models.matlab.file import Layer, read_network
from vpr.models.place_model import PlaceModel, build_model
from vpr.models.poolings.netvlad_pooling import NetVLADPooling
from vpr.models.spec import ModelSpec
from vpr.models.whitening import Whitening, whitening_of_affine

Fields = dict[str, tuple[Any, ...]]  # of a layer: numbers by name
POOLINGS = ("vlad", "vladv2", "max", "avg")
# Backbones by the number of their convolutions: poolings with full windows alone, and with incomplete ones.
ARCHS = {13: ("vgg16", "vgg16_ceil"), 5: ("alexnet_caffe", "alexnet_caffe_ceil")}
PADS = ((0, 0, 0, 0), (0, 1, 0, 1))  # of these poolings: above, below, left, right
TOLERANCE = 1e-5  # relative, of numbers that are stored in float32
SMALLEST_KAPPA = 1e-6  # of a normalisation to length 1; the release has 1e-12


@torch.no_grad()
def import_network(path: Path) -> tuple[PlaceModel, Whitening | None]:
    """The model of a MATLAB file, without its whitening, and that, if the file has one. Raises a UserError as of
    `read_network`; a layer is missing, superfluous, or other than the backbone or the pooling has it."""
    layers, colour = read_network(path)
    poolings = [number for number, layer in enumerate(layers) if layer.role in POOLINGS]
    if len(poolings) != 1:
        raise UserError(
            f"{path} has {len(poolings)} layers that pool to one descriptor, wanted one of vlad:core, max:core, "
            "avg:core: it is no model of the NetVLAD release; name another file"
        )
    trunk, core, head = layers[: poolings[0]], layers[poolings[0]], layers[poolings[0] + 1 :]
    is_vlad = core.role.startswith("vlad")
    clusters = core.weights()[0].shape[3] if is_vlad else ModelSpec.clusters
    if clusters < 2:
        raise UserError(f"{core.where} has {clusters} cluster, wanted 2 or more")
    arch, channels = _backbone_of(trunk, path)
    spec = ModelSpec(
        arch=arch,
        weights=path.with_suffix(".mat").name,
        normalization=",".join(map(repr, colour)),
        channels=channels,
        pooling="netvlad" if is_vlad else core.role,
        clusters=clusters,
        vladv2=core.role == "vladv2",
    )
    model = build_model(spec, pretrained=False)
    whitens = any(layer.role == "conv" for layer in head)
    _require_layers([*_relu_first(trunk), core, *head], _wanted_layers(model, core.role, whitens), path)
    for layer in [trunk[-1], head[0]] * is_vlad:
        _require_unit_norm(layer, model.backbone.dim)
    convolutions = [layer for layer in layers if layer.role == "conv"]
    for layer, stage in zip(convolutions, _convolutions_of(model.backbone), strict=False):  # WPCA is not among these
        out, before, rows, columns = stage.weight.shape
        weights, bias = _affine(layer, layer.weights()[:2], (rows, columns, before, out))
        assert stage.bias is not None
        stage.weight.copy_(weights.permute(3, 2, 0, 1))
        stage.bias.copy_(bias)
    if isinstance(model.pool, NetVLADPooling):
        _fill_netvlad(model.pool, core)
    return model, _whitening_of(convolutions[-1], model, path.name) if whitens else None


def _backbone_of(layers: list[Layer], path: Path) -> tuple[str, tuple[int, ...] | None]:
    """The backbone's name in the table, and its channels if they are not the table's."""
    convolutions = [layer for layer in layers if layer.role == "conv"]
    if len(convolutions) not in ARCHS:
        known = ", ".join(f"{count} ({names[0]})" for count, names in ARCHS.items())
        raise UserError(
            f"{path} has {len(convolutions)} convolutions before its pooling, wanted {known}: no backbone here has so "
            "many; name another file"
        )
    pads = {layer.numbers("pad", 4) for layer in layers if layer.role == "pool"}
    if len(pads) != 1 or not pads <= {*PADS}:
        found = " and ".join(str(list(pad)) for pad in sorted(pads)) or "none"
        raise UserError(f"{path} has poolings with pad {found}, wanted [0, 0, 0, 0] or [0, 1, 0, 1] in all")
    arch = ARCHS[len(convolutions)][PADS.index(pads.pop())]
    channels = tuple(layer.weights()[0].shape[3] for layer in convolutions)
    own = tuple(stage.out_channels for stage in _convolutions_of(build_backbone(arch)))
    return arch, None if channels == own else channels


def _convolutions_of(backbone: Backbone) -> list[nn.Conv2d]:
    return [stage for stage in backbone if isinstance(stage, nn.Conv2d)]


def _relu_first(layers: list[Layer]) -> list[Layer]:
    """A ReLU that follows a maximum pooling before it, as backbones here have it: the values are the same."""
    ordered = list(layers)
    for number in range(len(ordered) - 1):
        if [layer.role for layer in ordered[number : number + 2]] == ["pool", "relu"]:
            ordered[number : number + 2] = reversed(ordered[number : number + 2])
    return ordered


def _wanted_layers(model: PlaceModel, pooling: str, whitens: bool) -> list[tuple[str, str, Fields]]:
    """Name, role and fields of each layer that the file of a model has. The pad of a pooling is in its backbone."""
    vlad = isinstance(model.pool, NetVLADPooling)
    return [
        *((f"{model.spec.arch}'s layer {name}", *_as_layer(stage)) for name, stage in model.backbone.named_children()),
        *[("preL2", "norm", {})] * vlad,
        (f"{'vlad' if vlad else pooling}:core", pooling, {}),
        *[("vlad:intranorm", "norm", {})] * vlad,
        ("postL2", "l2", {}),
        *[("WPCA", "conv", {"stride": (1, 1), "pad": (0, 0, 0, 0)}), ("finalL2", "l2", {})] * whitens,
    ]


def _as_layer(stage: nn.Module) -> tuple[str, Fields]:
    """Role and fields of the layer that does what a stage of a backbone does."""
    match stage:
        case nn.Conv2d(padding=(rows, columns)):
            return "conv", {"stride": stage.stride, "pad": (rows, rows, columns, columns), "dilate": stage.dilation}
        case nn.MaxPool2d(kernel_size=size, stride=stride) | EdgeMaxPool(size=size, stride=stride):
            return "pool", {"pool": (size, size), "stride": (stride, stride)}
        case ResponseNorm():
            return "norm", {"param": (stage.size, stage.kappa, stage.alpha, stage.beta)}
    return "relu", {"leak": (0.0,)}


def _require_layers(layers: list[Layer], wanted: list[tuple[str, str, Fields]], path: Path) -> None:
    """Raise a UserError unless the layers, in their order, are those wanted."""
    for layer, (where, role, fields) in zip(layers, wanted, strict=False):
        if layer.role != role:
            raise UserError(
                f"{layer.where} is {layer.role}, wanted {role}: {where} should be there; name a file of the release"
            )
        method = layer.fields.get("method", "max")
        if role == "pool" and method != "max":
            raise UserError(f"{layer.where} has method={method}, {where} has max: no backbone here computes that")
        for name, numbers in fields.items():
            found = layer.numbers(name, len(numbers))
            if not np.allclose(found, numbers, rtol=TOLERANCE, atol=0):
                raise UserError(
                    f"{layer.where} has {name}={list(found)}, {where} has {list(numbers)}: nothing here computes that"
                )
    if len(layers) < len(wanted):
        raise UserError(f"{path}: nothing is where {wanted[len(layers)][0]} should be: name a file of the release")
    if len(layers) > len(wanted):
        raise UserError(f"{layers[len(wanted)].where} is one too many, wanted {wanted[-1][0]} as the last layer")


def _require_unit_norm(layer: Layer, dim: int) -> None:
    """Raise a UserError unless a normalisation divides by the length: over a window of all D channels."""
    window, kappa, alpha, beta = layer.numbers("param", 4)
    if window < 2 * dim - 1 or kappa > SMALLEST_KAPPA or (alpha, beta) != (1.0, 0.5):
        raise UserError(
            f"{layer.where} has param {[window, kappa, alpha, beta]}, wanted [{2 * dim - 1} or more, 1e-12, 1, 0.5], "
            "which divides by the length: only such models can be imported"
        )


def _affine(layer: Layer, cells: list[np.ndarray], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights S x S x IN x OUT and a bias [OUT], zeros if there is none, after their shapes were found right."""
    weights, bias = [*cells, np.empty(0)][:2]
    if weights.shape != shape or bias.size not in (0, shape[-1]):
        found, wanted = ("x".join(map(str, sides)) for sides in (weights.shape, shape))
        raise UserError(
            f"{layer.where} has weights {found} and {bias.size} biases, wanted {wanted} and {shape[-1]} after the "
            "layers before it: name another file"
        )
    return torch.from_numpy(weights), torch.from_numpy(bias.ravel()) if bias.size else torch.zeros(shape[-1])


def _fill_netvlad(pool: NetVLADPooling, layer: Layer) -> None:
    """Weights of vlad:core: [1, 1, D, K] is the assignment, [1, 1, D, K] the centres with the other sign; in version 2
    the bias of the assignment lies between them."""
    *assignment, minus_centres = cells = layer.weights()
    if len(cells) != 2 + pool.vladv2:
        raise UserError(f"{layer.where} has {len(cells)} arrays of weights, wanted {2 + pool.vladv2}: get it again")
    shape = (1, 1, pool.dim, pool.num_clusters)
    weights, bias = _affine(layer, assignment, shape)
    centres, _ = _affine(layer, [minus_centres], shape)
    pool.conv.weight.copy_(weights[0, 0].T[:, :, None, None])
    pool.centroids.copy_(-centres[0, 0].T)
    if pool.conv.bias is not None:
        pool.conv.bias.copy_(bias)


def _whitening_of(layer: Layer, model: PlaceModel, file: str) -> Whitening:
    """The whitening of a 1x1 convolution, its columns in this program's order of a descriptor."""
    cells = layer.weights()[:2]
    dim = cells[0].shape[3]
    weights, bias = _affine(layer, cells, (1, 1, model.pooled_dim, dim))
    matrix = weights[0, 0].T  # [dim, length]
    if isinstance(model.pool, NetVLADPooling):
        matrix = matrix.reshape(dim, model.pool.dim, model.pool.num_clusters).transpose(1, 2)  # [dim, K, D]
    return whitening_of_affine(matrix.reshape(dim, -1).contiguous(), bias, f"the set of {file}")
