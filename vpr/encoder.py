"""The trunk: VGG16 or AlexNet, cut before its last ReLU and pooling, with its weights."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vpr.errors import UserError
from vpr.flags import LAYERS
from vpr.options import is_file
from vpr.provenance import check_torch


@dataclass(frozen=True)
class Trunk:
    """Where a torchvision network is cut.

    Attributes:
        layers: how many of `features` are kept: up to the last convolution, without its ReLU and pooling.
        dim: D, channels of a local descriptor.
        smallest_side: pixels a photo must have in height and width to leave one local descriptor.
    """

    layers: int
    dim: int
    smallest_side: int


TRUNKS = {
    "vgg16": Trunk(layers=29, dim=512, smallest_side=16),
    "alexnet": Trunk(layers=11, dim=256, smallest_side=31),
}


@dataclass(frozen=True)
class Normalization:
    """What a network expects of its input: (pixel - mean) / std per channel R, G, B, pixels 0 to 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def _of_unit_range(mean: tuple, std: tuple) -> Normalization:
    return Normalization(tuple(255 * value for value in mean), tuple(255 * value for value in std))


NORMALIZATIONS = {
    # torchvision's networks: of its documentation of the ImageNet transforms.
    "torchvision": _of_unit_range((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Oxford's networks as published: the mean colour of ImageNet, no scaling.
    "caffe": Normalization((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    # torchvision's VGG16_Weights.IMAGENET1K_FEATURES: Oxford's network with the mean as torchvision gives it.
    "features": _of_unit_range((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)),
    "unit": Normalization((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
}


def build_encoder(arch: str, channels: list[int] | None = None) -> nn.Sequential:
    """The trunk without weights worth having: layers are those of torchvision's `features`, same indices.

    Args:
        channels: filters of each convolution; None is the backbone's own.

    Raises:
        UserError: there are not as many numbers as convolutions.
    """
    import torchvision

    with torch.device("meta"):  # the classifier, most of the network, never takes memory
        encoder = getattr(torchvision.models, arch)(weights=None).features[: TRUNKS[arch].layers]
        places = [place for place, layer in enumerate(encoder) if isinstance(layer, nn.Conv2d)]
        if channels is not None and len(channels) != len(places):
            raise UserError(f"--channels: found {len(channels)} numbers, {arch} has {len(places)} convolutions")
        before = 3
        for place, count in zip(places, channels or (), strict=False):
            layer = encoder[place]
            encoder[place] = nn.Conv2d(before, count, layer.kernel_size, layer.stride, layer.padding)
            before = count
    return encoder.to_empty(device="cpu")


def layer_index(encoder: nn.Sequential, arch: str, layer: str) -> int:
    """Where in a trunk the convolution of that name is."""
    convolutions = [place for place, each in enumerate(encoder) if isinstance(each, nn.Conv2d)]
    return convolutions[LAYERS[arch].index(layer)]


def initialize_randomly(encoder: nn.Sequential, seed: int) -> None:
    """He initialisation (He et al., ICCV 2015), so that a trunk from scratch keeps its signal's size."""
    generator = torch.Generator().manual_seed(seed)
    for layer in encoder:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)


def load_pretrained(encoder: nn.Sequential, arch: str, weights: str) -> None:
    """Fill the trunk from a torchvision weight name or a state-dict file.

    Raises:
        UserError: the name is unknown, the file does not fit, or the download fails.
    """
    state = read_weights_file(Path(weights)) if is_file(weights) else _download(arch, weights)
    wanted = encoder.state_dict()
    found = {name: _find(state, name) for name in wanted}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise UserError(
            f"--weights={weights} has no features.{missing[0]} ({len(missing)} of {len(wanted)} entries of "
            f"{arch} are missing): choose weights of {arch}"
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"--weights={weights}: features.{name} is {tuple(value.shape)}, {arch} wants "
                f"{tuple(wanted[name].shape)}: choose weights of {arch}"
            )
    encoder.load_state_dict(found)


def read_weights_file(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict of tensors without running any code from it.

    Raises:
        UserError: missing, unreadable, or not a state dict.
    """
    if not path.is_file():
        raise UserError(f"--weights={path} does not exist: name a .pth state dict or a torchvision weight name")
    check_torch(path, "a state dict", "get the weights again")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything at all on a damaged or foreign file
        raise UserError(f"--weights={path} cannot be read ({type(error).__name__}): it is no state dict") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"--weights={path} holds no tensors by name: it is no state dict")
    return state


def torchvision_entry(arch: str, weights: str):
    """The torchvision weight entry of a name such as DEFAULT.

    Raises:
        UserError: this backbone has no such entry.
    """
    import torchvision

    entries = torchvision.models.get_model_weights(arch)
    name = weights.upper()
    if name not in entries.__members__:
        raise UserError(
            f"--weights={weights} is neither a file nor a name that {arch} has "
            f"({', '.join(entries.__members__)}) nor none"
        )
    return entries[name]


def normalization_of(arch: str, weights: str, named: str | None) -> tuple[str, Normalization]:
    """Name and values of the input normalisation that weights were trained with."""
    if weights == "none" or is_file(weights):
        name = named or "torchvision"
        return name, NORMALIZATIONS[name]
    mean_and_std = torchvision_entry(arch, weights).transforms()
    values = _of_unit_range(tuple(mean_and_std.mean), tuple(mean_and_std.std))
    name = next((name for name, known in NORMALIZATIONS.items() if known == values), "own")
    return name, values


def weights_label(arch: str, weights: str) -> str:
    """A short name of the weights for file names and result lines."""
    if weights == "none":
        return "scratch"
    return Path(weights).stem if is_file(weights) else torchvision_entry(arch, weights).name


def weights_hash(module: nn.Module) -> str:
    """A hash of a trunk's or a whole model's weights: equal exactly where they are, wherever they came from."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _find(state: dict, name: str) -> torch.Tensor | None:
    """An entry of the trunk under the names in use: torchvision's, a bare trunk's, this project's."""
    for prefix in ("features.", "", "encoder."):
        if isinstance(state.get(prefix + name), torch.Tensor):
            return state[prefix + name]
    return None


def _download(arch: str, weights: str) -> dict[str, torch.Tensor]:
    url = torchvision_entry(arch, weights).url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # no network, a proxy's page, a broken file, no room
        raise UserError(
            f"cannot fetch {weights} of {arch} ({type(error).__name__}: {error}): download {url} into {folder}, "
            "or give a state dict with --weights FILE, or start without with --fromscratch"
        ) from error
