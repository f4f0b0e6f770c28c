"""The layers of a MATLAB NetVLAD model (Arandjelovic et al.) -> a model of this program.

    convolutions, ReLUs, poolings, LRN  ->  preL2  ->  vlad:core  ->  vlad:intranorm  ->  postL2  ->  WPCA  ->  finalL2
    a backbone                              \\______________ NetVLAD ______________________/           \\_ whitening _/

or max:core or avg:core in place of NetVLAD. Layers are found by what they are and checked against the layer of the
backbone that they become; where they stand in the list says nothing but their order.

As the release stores them: a convolution is S x S x IN x OUT, not flipped; the centres of NetVLAD have the other sign;
a descriptor has the cluster as its fast index (k + K d), here it has the dimension (k D + d).
"""

from dataclasses import dataclass

import torch

from vpr.common.errors import UserError
from vpr.models.matlab.backbone import read_backbone
from vpr.models.matlab.file import Layer, MatNetwork
from vpr.models.matlab.layers import POOLINGS, four, norm_numbers, role_of, shape_text, two, weights_of
from vpr.models.place_model import PlaceModel, build_model
from vpr.models.poolings.netvlad_pooling import NetVLADPooling
from vpr.models.spec import ModelSpec
from vpr.models.whitening import Whitening, whitening_of_affine

SMALLEST_KAPPA = 1e-6  # of a normalisation to length 1; the release has 1e-12


@dataclass(frozen=True)
class Imported:
    """A model as its file has it.

    Attributes:
        model: without its whitening.
        whitening: None where the file has none.
    """

    model: PlaceModel
    whitening: Whitening | None


def import_network(network: MatNetwork) -> Imported:
    """The model of a MATLAB network.

    Raises:
        UserError: a layer is missing, superfluous, or other than the backbone or the pooling has it.
    """
    roles = [role_of(layer) for layer in network.layers]
    poolings = [number for number, role in enumerate(roles) if role in POOLINGS]
    if len(poolings) != 1:
        raise UserError(
            f"{network.path} has {len(poolings)} layers that pool to one descriptor, wanted one of vlad:core, "
            "max:core, avg:core: it is no model of the NetVLAD release; name another file"
        )
    core = poolings[0]
    role, layer, before = roles[core], network.layers[core], network.layers[:core]
    with_vlad = role.startswith("vlad")
    if with_vlad:
        wide = 2 * weights_of(layer, 2)[0].shape[2] - 1
        if not before or role_of(before[-1]) != "norm" or norm_numbers(before[-1])[0] < wide:
            raise UserError(f"{layer} has no preL2 before it: only models with it can be imported")
        _require_unit_norm(before.pop(), wide)
    backbone, arch, channels = read_backbone(before, network)
    spec = ModelSpec(
        arch=arch,
        weights=network.path.with_suffix(".mat").name,
        normalization=",".join(map(repr, network.average)),
        channels=channels,
        pooling="netvlad" if with_vlad else role,
        clusters=_clusters(layer) if with_vlad else ModelSpec.clusters,
        vladv2=role == "vladv2",
    )
    model = build_model(spec, pretrained=False)
    model.backbone.load_state_dict(backbone.state_dict())
    if isinstance(model.pool, NetVLADPooling):
        fill_netvlad(model.pool, layer)
    return Imported(model, read_whitening(network, core + 1, model))


@torch.no_grad()
def fill_netvlad(pool: NetVLADPooling, layer: Layer) -> None:
    """Weights of vlad:core: [1, 1, D, K] is the assignment, [1, 1, D, K] the centres with the other sign; in version 2
    the bias of the assignment lies between them."""
    cells, count = weights_of(layer, 2), 3 if pool.vladv2 else 2
    if len(cells) != count:
        raise UserError(f"{layer} has {len(cells)} arrays of weights, wanted {count}: get the file again")
    clusters, dim = pool.num_clusters, pool.dim
    for cell in (cells[0], cells[-1]):
        if cell.shape != (1, 1, dim, clusters):
            raise UserError(f"{layer} has weights {shape_text(cell)}, wanted 1x1x{dim}x{clusters} after this backbone")
    pool.conv.weight.copy_(torch.from_numpy(cells[0][0, 0].T.copy())[:, :, None, None])
    pool.centroids.copy_(torch.from_numpy(-cells[-1][0, 0].T))
    if pool.conv.bias is not None:
        if cells[1].size != clusters:
            raise UserError(f"{layer} has {cells[1].size} biases, wanted {clusters}, one for each cluster")
        pool.conv.bias.copy_(torch.from_numpy(cells[1].reshape(-1).copy()))


def read_whitening(network: MatNetwork, first: int, model: PlaceModel) -> Whitening | None:
    """What follows the pooling, from layer `first` (from 0) on: checked, and the whitening if there is one."""
    rest = network.layers[first:]
    expected = [("norm", "vlad:intranorm")] if isinstance(model.pool, NetVLADPooling) else []
    expected += [("l2", "postL2")]
    if any(role_of(layer) == "conv" for layer in rest):
        expected += [("conv", "WPCA"), ("l2", "finalL2")]
    for number, (role, name) in enumerate(expected):
        found = rest[number] if number < len(rest) else None
        if found is None or role_of(found) != role:
            raise UserError(
                f"{found or f'{network.path}: nothing'} is where {name} should be: only such models can be imported"
            )
    if len(rest) > len(expected):
        raise UserError(f"{rest[len(expected)]} is one too many, wanted {expected[-1][1]} as the last layer")
    if isinstance(model.pool, NetVLADPooling):
        _require_unit_norm(rest[0], 2 * model.pool.dim - 1)
    convolutions = [layer for layer in rest if role_of(layer) == "conv"]
    return whitening_of_layer(convolutions[0], model, network.path.name) if convolutions else None


def whitening_of_layer(layer: Layer, model: PlaceModel, file: str) -> Whitening:
    """The whitening of a 1x1 convolution, its columns in this program's order of a descriptor."""
    weights, bias = weights_of(layer, 2)
    _, _, length, dim = weights.shape
    if weights.shape[:2] != (1, 1) or length != model.pooled_dim or bias.size not in (0, dim):
        raise UserError(
            f"{layer} has weights {shape_text(weights)} and {bias.size} biases, wanted 1x1x{model.pooled_dim}xN and N: "
            "the whitening is of another descriptor"
        )
    if (two(layer, "stride", 1), four(layer, "pad", 0)) != ((1, 1), (0, 0, 0, 0)):
        raise UserError(f"{layer} has a stride or a pad, a whitening has none: name another file")
    matrix = torch.from_numpy(weights[0, 0].T.copy())  # [dim, length]
    if isinstance(model.pool, NetVLADPooling):
        by_cluster = matrix.view(dim, model.pool.dim, model.pool.num_clusters).transpose(1, 2)  # [dim, K, D]
        matrix = by_cluster.reshape(dim, length)
    shift = torch.from_numpy(bias.reshape(-1).copy()) if bias.size else torch.zeros(dim)
    return whitening_of_affine(matrix, shift, f"the set of {file}")


def _require_unit_norm(layer: Layer, wide: int) -> None:
    """Raise a UserError unless a normalisation divides by the length: over a window of all D channels."""
    window, kappa, alpha, beta = norm_numbers(layer)
    if window < wide or kappa > SMALLEST_KAPPA or (alpha, beta) != (1.0, 0.5):
        raise UserError(
            f"{layer} has param {[window, kappa, alpha, beta]}, wanted [{wide} or more, 1e-12, 1, 0.5], which divides "
            "by the length: only such models can be imported"
        )


def _clusters(layer: Layer) -> int:
    clusters = weights_of(layer, 2)[0].shape[3]
    if clusters < 2:
        raise UserError(f"{layer} has {clusters} cluster, wanted 2 or more")
    return clusters
