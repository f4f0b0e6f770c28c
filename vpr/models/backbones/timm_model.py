"""Backbones of timm: any of its networks by name, cut where the map of local descriptors is taken.

`timm_cuts.py` says which stages a network has, `vit_stages.py` what those of a vision transformer compute. Weights are
found by the names that timm has for them; files of other programs go through timm's own conversion.
"""

import contextlib
import functools
import logging
import ssl
import sys
from collections.abc import Sequence
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch
from torch import nn

from vpr.common.device import Device
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.models.backbones import Entry
from vpr.models.backbones.base import IMAGENET, Backbone, Published
from vpr.models.backbones.convolutions import protect_strided
from vpr.models.backbones.timm_cuts import Plan, plan_of
from vpr.models.backbones.timm_names import configuration, require_known, split_tag, tags_of, timm_library

State = dict[str, torch.Tensor]  # values by their names
FILES = ("model.safetensors", "pytorch_model.bin")  # of weights in a repository of Hugging Face


class TimmBackbone(Backbone):
    """A network of timm up to its cut. Its stages compute in PyTorch alone, in the layout that suits the network."""

    def __init__(self, arch: str, plan: Plan) -> None:
        """The network of timm by its name there, and the plan of its stages."""
        from timm.layers import DropPath

        super().__init__(plan.stages, plan.dim, plan.stride, plan.smallest_side, dict(plan.layers))
        self.arch, self.plan, self.multiple = arch, plan, plan.multiple
        self.convolutional, self.unused_parameters = plan.channels_last, plan.unused_parameters
        protect_strided(self)
        for layer in self.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0  # mining and training see the same function
            elif isinstance(layer, DropPath):
                layer.drop_prob = 0.0

    def initialize(self, seed: int) -> None:
        """Random weights as timm draws them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = _network(self.arch, "cpu").state_dict()
        self.load_state_dict({name: drawn[self.name_in_file(name)] for name in self.state_dict()})

    def set_up(self, device: Device, dtype: torch.dtype) -> None:
        """Lay the weights out in memory as the network wants them."""
        for stage in self:
            stage.to(memory_format=self.layout)

    @property
    def layout(self) -> torch.memory_format:
        """Channels last for networks of convolutions."""
        return torch.channels_last if self.plan.channels_last else torch.contiguous_format

    def name_in_file(self, name: str) -> str:
        """timm's name of a value."""
        for ours, theirs in self.plan.paths.items():
            if name.startswith(f"{ours}."):
                rest = name.removeprefix(f"{ours}.")
                return f"{theirs}.{rest}" if theirs else rest
        return name

    def values_in(self, state: State) -> State:
        """The values of a file by their names here; of another program's file by timm's conversion.

        What lies above the cut is ignored.
        """
        own = self.state_dict()
        wanted = {self.name_in_file(name): value for name, value in own.items()}
        if not wanted.keys() <= state.keys() or "mask_token" in state:
            state = _converted(state, self.arch)
        elif other := _of_other_shapes(state, wanted):
            state = self._resized(state, wanted, other)
        else:
            self._say_of_more_layers(state, wanted)
        # Counts are not used, and older files lack them.
        counts = {name: torch.zeros_like(value) for name, value in own.items() if name.endswith("num_batches_tracked")}
        return counts | {name: state[theirs] for name in own if (theirs := self.name_in_file(name)) in state}

    def _say_of_more_layers(self, state: State, wanted: State) -> None:
        """A line where a file has layers that this network lacks: one of a deeper network fits by its names."""
        whole, stages = _network(self.arch, "meta").state_dict(), {name.partition(".")[0] for name in wanted}
        if more := [name for name in state if name.partition(".")[0] in stages and name not in whole]:
            say(
                f"the weights have {len(more)} values that {self.arch} lacks, such as {more[0]}: they are ignored; "
                "are they of a larger network?"
            )

    def _resized(self, state: State, wanted: State, other: list[str]) -> State:
        """A file's values for images of another size (of positions, of windows) as timm resizes them; says so.

        Those of another network stay as they are: its layers are of other shapes, whatever the images.
        """
        convolutions = [name for name, layer in self.named_modules() if isinstance(layer, nn.Conv2d)]
        if not {self.name_in_file(f"{name}.weight") for name in convolutions}.isdisjoint(other):
            return state
        converted = _converted(state, self.arch)
        if _of_other_shapes(converted, wanted):
            return state
        shapes = tuple(state[other[0]].shape), tuple(converted[other[0]].shape)
        say(f"the weights are for images of another size: timm resizes {other[0]}: {shapes[0]} to {shapes[1]}")
        return converted


def _of_other_shapes(state: State, wanted: State) -> list[str]:
    """The names of values that are not of the shapes that are wanted."""
    return [name for name, value in wanted.items() if name in state and state[name].shape != value.shape]


@functools.lru_cache(maxsize=32)
def entry(arch: str, cut: int | None, facet: str | None) -> Entry:
    """What is known of a network of timm without its weights; see `entry_of`."""
    name, tag = split_tag(arch)
    require_known(name)
    if tag is not None:
        raise UserError(f"--arch={arch} holds a tag: give --arch={name} --weights={tag}")
    plan = plan_of(_network(arch, "meta"), arch, cut, facet, False)
    weights = next(iter(tags_of(arch)), "default")
    return Entry("timm_model", weights, plan.dim, tuple(plan.layers), plan.train_from, plan.cut, plan.facet)


def build(
    arch: str, channels: Sequence[int] | None, cut: int | None, facet: str | None, class_token: bool
) -> TimmBackbone:
    """A network of timm whose weights are yet to be filled in; see `build_backbone`.

    What lies above the cut never takes memory.
    """
    if channels is not None:
        raise UserError(f"--channels: filters of {arch} cannot be dropped, only those of vgg16 and alexnet")
    backbone = TimmBackbone(arch, plan_of(_network(arch, "meta"), arch, cut, facet, class_token))
    device = torch.empty(0).device  # meta, where the caller asks for a network without values
    if device.type != "meta" and not _fills_its_buffers(backbone):
        return TimmBackbone(arch, plan_of(_network(arch, "cpu"), arch, cut, facet, class_token))
    backbone.to_empty(device=device)
    for layer in backbone.modules():
        fill: Any = getattr(layer, "init_non_persistent_buffers", None)
        if device.type != "meta" and fill is not None:
            fill()
    return backbone


def published(arch: str, weights: str | None) -> Published:
    """Weights that timm knows, by their tag, else a UserError; without one what is expected of files of weights."""
    require_known(arch)
    tags = tags_of(arch)
    if weights is not None and weights not in tags:
        have = ", ".join(tags) or "no weights"
        raise UserError(f"--weights={weights} is neither a file nor a tag that timm has for {arch} ({have}) nor none")
    found = configuration(arch, weights)
    mean, std = (tuple(found.get(name) or default) for name, default in zip(("mean", "std"), IMAGENET, strict=True))
    licence = str(found.get("license") or "not stated by timm")
    return Published(weights or "file", mean, std, lambda: _download(arch, str(weights), found), licence)


def _download(arch: str, tag: str, found: dict[str, Any]) -> State:
    source, repository = found.get("url"), found.get("hf_hub_id")
    logging.disable(logging.WARNING)  # the one line of the error says all
    try:
        if repository:
            from huggingface_hub.constants import ENDPOINT

            source = f"{ENDPOINT}/{repository}/resolve/main/{FILES[0]}"
            _require_answer(repository, source)
        return timm_library().create_model(f"{arch}.{tag}", pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # no network, a proxy's page, a broken file, no room
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"cannot fetch {tag} of {arch} ({type(error).__name__}: {reason}): download {source} elsewhere and "
            "give the file with --weights FILE; --fromscratch starts from random weights"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def _require_answer(repository: str, address: str) -> None:
    """Raise an OSError at once where nobody answers; the library asks for most of a minute before it gives up."""
    from huggingface_hub import try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in FILES):
        return
    try:
        urlopen(Request(address, method="HEAD"), timeout=10).close()
    except URLError as error:  # whose reason is a text where there was an answer; the library knows more certificates
        if isinstance(error.reason, OSError) and not isinstance(error.reason, ssl.SSLError):
            raise


def _network(arch: str, device: str) -> Any:
    """A network of timm without a classifier, for images of any size where it can be had so."""
    for more in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        with torch.device(device), torch.random.fork_rng(devices=[]) if device == "meta" else contextlib.nullcontext():
            try:
                return timm_library().create_model(arch, pretrained=False, num_classes=0, **more)
            except TypeError:  # this network has no such argument
                if not more:
                    raise
    raise AssertionError("the last of the three returns or raises")


def _fills_its_buffers(backbone: nn.Module) -> bool:
    """Whether all values that are not stored can be computed again by the layers that have them."""
    layers = [layer for layer in backbone.modules() if layer._non_persistent_buffers_set]
    return all(hasattr(layer, "init_non_persistent_buffers") for layer in layers)


def _converted(state: State, arch: str) -> State:
    """A file's values as timm itself would load them, by the conversion of the network's family, if it has one."""
    network = _network(arch, "meta")
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return convert(dict(state), network)
    except Exception:  # a foreign file: what it lacks is named by the caller
        return state
