"""How networks of timm are cut into stages: what lies above the cut is left out."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vpr.common.errors import UserError
from vpr.models.backbones import FACETS, vit_stages
from vpr.models.backbones.base import no_class_token
from vpr.models.backbones.convolutions import pad_as_tensorflow
from vpr.models.backbones.whole import Whole

DEFAULT_STRIDE = 16
TRAINED_BLOCKS = 4  # of a vision transformer, the last ones, with the norm after them, by default


@dataclass(frozen=True)
class Plan:
    """The stages of a network up to its cut."""

    stages: OrderedDict[str, nn.Module]  # in order, by the names that they have as children of the backbone
    paths: dict[str, str]  # the beginnings of the names of values: as they are here -> as they are in the network
    layers: dict[str, int]  # names that --trainFrom takes -> numbers of the stages that they begin
    train_from: str  # the first layer that is trained when training starts from pretrained weights
    # The others as of `Backbone`, cut and facet as of `vpr.models.backbones.Entry`.
    dim: int
    stride: int
    smallest_side: int
    cut: int
    multiple: int = 1
    facet: str | None = None
    channels_last: bool = True  # whether maps lie so in memory
    unused_parameters: bool = False


def plan_of(network: Any, arch: str, cut: int | None, facet: str | None, class_token: bool) -> Plan:
    """The stages of a network of timm; UserError where it has no such cut or facet, or no class token."""
    from timm.models import convnext, efficientnet, eva, mobilenetv3, resnet, swin_transformer, vision_transformer

    if type(network) in (vision_transformer.VisionTransformer, eva.Eva) and _is_plain(network):
        return _transformer(network, arch, cut, facet, class_token)
    if facet is not None:
        raise UserError(f"--facet={facet} wants a vision transformer, {arch} is none: drop --facet")
    if class_token:
        raise no_class_token(arch)
    index = _index_of(network, arch, cut)
    families: list[tuple[type | tuple[type, ...], Callable]] = [
        (resnet.ResNet, _resnet),
        ((efficientnet.EfficientNet, mobilenetv3.MobileNetV3), _efficientnet),
        (convnext.ConvNeXt, _convnext),
        (swin_transformer.SwinTransformer, _swin),
    ]
    for kinds, stages_of in families:
        if isinstance(network, kinds):
            return stages_of(network, index)
    return _whole(network, arch, index)


def _index_of(network: Any, arch: str, cut: int | None) -> int:
    """Which of the maps of `feature_info` the cut means: the last one of that stride, or a block's."""
    strides = [int(each["reduction"]) for each in getattr(network, "feature_info", [])]
    if not strides or not hasattr(network, "forward_intermediates"):
        raise UserError(f"--arch={arch} of timm gives no maps of local descriptors: choose another")
    if len(set(strides)) == 1:
        return _block_number(arch, cut, len(strides))
    wanted = DEFAULT_STRIDE if cut is None else cut
    if wanted not in strides:
        raise UserError(
            f"--cut={wanted}: {arch} has no map of this stride, only of {', '.join(map(str, sorted(set(strides))))}: "
            "give one of them"
        )
    return len(strides) - 1 - strides[::-1].index(wanted)


def _block_number(arch: str, cut: int | None, blocks: int) -> int:
    number = -1 if cut is None else cut
    if not -blocks <= number < blocks:
        raise UserError(
            f"--cut={cut}: {arch} has {blocks} blocks: give 0 to {blocks - 1}, or -{blocks} to -1 from the end"
        )
    return number % blocks


def _cnn(network: Any, index: int, stages: dict[str, nn.Module], paths: dict[str, str], **more: Any) -> Plan:
    """A plan whose stages are layers in a row; those with weights may be named by --trainFrom."""
    info = network.feature_info[index]
    numbers = {
        paths.get(name) or name: number
        for number, (name, stage) in enumerate(stages.items())
        if any(True for _ in stage.parameters())
    }
    train_from = more.pop("train_from", None)
    stride = int(info["reduction"])
    return Plan(
        OrderedDict(stages), paths, numbers, train_from if train_from in numbers else [*numbers][-1],
        int(info["num_chs"]), stride, stride, stride, **more,
    )  # fmt: skip


def _resnet(network: Any, index: int) -> Plan:
    """ResNet: a map of `feature_info` is the stem's or a layer's. Norms and activations belong to the stage before."""
    names = ["conv1", "bn1", "act1", *(["maxpool"] if index else []), *(f"layer{n}" for n in range(1, index + 1))]
    plan = _cnn(network, index, {name: getattr(network, name) for name in names}, {}, train_from="layer3")
    plan.layers.pop("bn1")
    return plan


def _efficientnet(network: Any, index: int) -> Plan:
    """EfficientNet and its like: the stem, then groups of blocks of one width."""
    pad_as_tensorflow(network)
    stem = nn.Sequential(OrderedDict(conv_stem=network.conv_stem, bn1=network.bn1))
    module = network.feature_info[index]["module"]
    last = int(module.split(".")[1]) if module.startswith("blocks.") else -1
    blocks = {f"blocks{n}": network.blocks[n] for n in range(last + 1)}
    paths = {"stem": "", **{name: name.replace("blocks", "blocks.") for name in blocks}}
    return _cnn(network, index, {"stem": stem, **blocks}, paths)


def _convnext(network: Any, index: int) -> Plan:
    """ConvNeXt: the stem, then stages."""
    stages = {f"stages{n}": network.stages[n] for n in range(index + 1)}
    paths = {name: name.replace("stages", "stages.") for name in stages}
    return _cnn(network, index, {"stem": network.stem, **stages}, paths)


def _swin(network: Any, index: int) -> Plan:
    """Swin transformer: its maps lie with channels last, [B, h, w, C], up to the end."""
    patch = int(network.patch_embed.patch_size[0])
    layers = {f"layers{n}": network.layers[n] for n in range(index + 1)}
    embed = vit_stages.PatchedImages(network.patch_embed, patch)
    stages = {"embed": embed, **layers, "map": vit_stages.ChannelsFirst()}
    paths = {"embed": "", **{name: name.replace("layers", "layers.") for name in layers}}
    return _cnn(network, index, stages, paths, multiple=patch, channels_last=False)


def _whole(network: Any, arch: str, index: int) -> Plan:
    """Two stages: the network, and nothing more, so that all of it or none can be trained."""
    info, blocks = network.feature_info[index], len({each["reduction"] for each in network.feature_info}) == 1
    stride = int(info["reduction"])
    try:
        whole = Whole(network, index, stride)
    except Exception as error:  # timm's networks raise kinds of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"--arch={arch} of timm cannot take images of any size ({reason}): choose another") from error
    return Plan(
        OrderedDict(network=whole, map=nn.Identity()), {"network.network": ""}, {"network": 0}, "network",
        whole.dim, stride, whole.smallest_side, index if blocks else stride, whole.multiple,
        channels_last=not blocks, unused_parameters=whole.unused_parameters,
    )  # fmt: skip


def _is_plain(network: Any) -> bool:
    """Whether a vision transformer is of patches, tokens ahead and blocks alone, as `vit_stages.py` computes it."""
    from timm.layers import PatchEmbed

    rope = getattr(network, "rope", None)
    return (
        type(network.patch_embed) is PatchEmbed
        and getattr(network, "dynamic_img_size", False)
        and not network.patch_embed.dynamic_img_pad
        and not getattr(network, "rope_mixed", False)
        and (rope is None or not rope.state_dict())
    )


def _transformer(network: Any, arch: str, cut: int | None, facet: str | None, class_token: bool) -> Plan:
    """A vision transformer: the embedding, one stage a block, the norm after the last block, the map."""
    last = _block_number(arch, cut, len(network.blocks))
    facet = facet or FACETS[0]
    _require_facet(network.blocks[last], arch, facet)
    if class_token and (network.cls_token is None or facet != FACETS[0]):
        raise UserError(
            f"--pooling=cls wants the class token, and {arch} has none: give another --pooling" if facet == FACETS[0]
            else f"--pooling=cls and --facet={facet} contradict each other: give one"
        )  # fmt: skip
    patch, ahead = int(network.patch_embed.patch_size[0]), int(network.num_prefix_tokens)
    rope = _rope_of(network)
    as_dinov2 = "_dinov2" in arch and network.reg_token is None
    stages: OrderedDict[str, nn.Module] = OrderedDict(embed=vit_stages.Embedding(network, patch, as_dinov2))
    paths, layers = {"embed": ""}, {"embed": 0}
    for number, block in enumerate(network.blocks[: last + 1]):
        name, path = f"blocks{number}", f"blocks.{number}"
        layers[path] = len(stages)
        if number == last and facet != FACETS[0]:
            stages[name] = vit_stages.Facet(block, facet)
            paths |= {f"{name}.norm1": f"{path}.norm1", f"{name}.qkv": f"{path}.attn.qkv"}
        else:
            stages[name] = vit_stages.Block(block, ahead, rope)
            paths[f"{name}.block"] = path
    at_the_end = last == len(network.blocks) - 1 and facet == FACETS[0]
    if (at_the_end or class_token) and any(True for _ in network.norm.parameters()):
        layers["norm"] = len(stages)
        stages["norm"] = network.norm
    stages["map"] = vit_stages.ClassToken() if class_token else vit_stages.Map(ahead)
    first_trained = f"blocks.{max(0, last + 1 - TRAINED_BLOCKS)}"
    return Plan(stages, paths, layers, first_trained, int(network.embed_dim), patch, patch, last, patch, facet, False)


def _rope_of(network: Any) -> Any:
    """The rotary position embeddings of a network, of DINOv3 in a form that can be exported; None without."""
    from timm.layers import RotaryEmbeddingDinoV3

    rope: Any = getattr(network, "rope", None)
    plain = type(rope) is RotaryEmbeddingDinoV3 and not rope.aug_active and not rope.grid_offset
    if plain and (rope.normalize_coords, rope.grid_indexing) == ("separate", "ij"):
        return vit_stages.Rotary(rope)
    return rope


def _require_facet(block: Any, arch: str, facet: str) -> None:
    if facet not in FACETS:
        raise UserError(f"--facet={facet!r} is unknown: give one of {', '.join(FACETS)}")
    attention = getattr(block, "attn", None)
    one_layer = isinstance(getattr(attention, "qkv", None), nn.Linear) and getattr(attention, "q_bias", None) is None
    if facet != FACETS[0] and not (one_layer and hasattr(block, "norm1")):
        raise UserError(f"--facet={facet}: queries, keys and values of {arch} are not of one layer: drop --facet")
