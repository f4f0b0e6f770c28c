"""Pretrained weights: their names and hashes, and which tensors of a file are the values of a backbone.

Programs put a backbone into models of their own (`backbone.`, `encoder.`, `base_model.base.`), these into wrappers
(`module.`), and the state dict beside others into a checkpoint (`state_dict.`). So the beginning of names is not looked
up in a table: it is the one under which all names of the backbone are there, with its shapes.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from vpr.common.errors import UserError
from vpr.common.files import is_file
from vpr.common.progress import say
from vpr.models.backbones.base import Backbone, published
from vpr.models.weights_file import read_weights_file

State = dict[str, torch.Tensor]

# Layers that DataParallel, torch.compile and FSDP put around others.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module"}
CONTAINERS = ("state_dict.", "model_state_dict.", "model.")  # of the model in a checkpoint
UNUSED = "num_batches_tracked"  # a count of BatchNorm that older files lack
SHOWN = 3  # names in a message


def weights_label(arch: str, weights: str) -> str:
    """A short name of the weights for file names and result lines."""
    if weights == "none":
        return "scratch"
    return Path(weights).stem if is_file(weights) else published(arch, weights).name


def weights_hash(module: nn.Module) -> str:
    """A hash of the weights of a backbone or a whole model: equal exactly where they are, wherever they came from."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def load_pretrained(backbone: Backbone, arch: str, weights: str) -> None:
    """Fill a backbone from published weights by name, or from a file of tensors.

    Numbered layers of a network that was cut and put into an nn.Sequential are taken in order. Where several sets of
    values fit, a line says which was taken.
    Raises a UserError: the name is unknown, the download fails, or values are missing or of another shape.
    """
    state = read_weights_file(Path(weights)) if is_file(weights) else published(arch, weights).fetch()
    own, source = backbone.state_dict(), f"--weights={weights}"
    wanted = {
        backbone.name_in_file(name).removeprefix(backbone.prefixes[0]): value
        for name, value in own.items()
        if not name.endswith(UNUSED)
    }
    values = backbone.values_in(_under_one_prefix(state, wanted, backbone.prefixes, arch, source))
    found = {name: values[name] for name in own if name in values}
    missing = [name for name in own if name not in found]
    other = [name for name, value in found.items() if not _like(value, own[name])]
    if missing or other:
        first = (missing or other)[0]
        name, kind = backbone.name_in_file(first), _kind(own[first])
        reason = f"{len(missing)} of {len(own)} values are missing, such as {name} {kind}"
        if not missing:
            reason = f"{name} is {_kind(found[first])}, wanted {kind}"
        raise UserError(
            f"{source} does not fit {arch}: {reason}; the file has {', '.join(list(state)[:SHOWN])} and so on "
            f"({len(state)} names): give weights with the wanted names, or the --arch and --cut that these are of"
        )
    backbone.load_state_dict(found)


def _like(value: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a value of a file fits the backbone's: float16 may, an int8 that wants a scale may not."""
    return value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def _kind(value: torch.Tensor) -> str:
    return f"{tuple(value.shape)}" + ("" if value.is_floating_point() else f" of {value.dtype}")


def _under_one_prefix(state: State, wanted: State, preferred: tuple[str, ...], arch: str, source: str) -> State:
    """The values of a file under the prefix that fits; where none does, under a usual one or one with most names."""
    for view in _views(state, wanted):
        fitting = [prefix for prefix in _prefixes(view, wanted) if _fits(view, prefix, wanted)]
        if fitting:
            first, *others = sorted(fitting, key=lambda prefix: _rank(prefix, preferred))
            unlike = [
                prefix
                for prefix in others
                if not all(torch.equal(view[first + name], view[prefix + name]) for name in wanted)
            ]
            if unlike:
                times, left = 1 + len(unlike), ", ".join(unlike)
                say(f"{source}: values of {arch} stand in it {times} times: took {first}*, not {left}*")
            return _without(view, first)
    counts = _prefixes(state, wanted).most_common()
    most = [prefix for prefix, count in counts if 2 * count > len(wanted) or prefix in preferred]
    return _without(state, most[0] if most else _container(*state))


def _views(state: State, wanted: State) -> Iterator[State]:
    """The values of a file by its own names, by these without wrappers, and by position."""
    yield state
    bare = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in state}
    state = {short: state[name] for short, name in bare.items()}
    yield state
    yield _by_position(state, wanted)


def _prefixes(state: State, wanted: State) -> Counter[str]:
    """The prefixes of names that are wanted, each with how many names it has."""
    return Counter(prefix for name in state for prefix, rest in _divided(name) if rest in wanted)


def _divided(name: str) -> Iterator[tuple[str, str]]:
    """A name divided before each of its parts: a.b gives ('', a.b) and (a., b)."""
    parts = name.split(".")
    for start in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:start]), ".".join(parts[start:])


def _fits(state: State, prefix: str, wanted: State) -> bool:
    return all(prefix + name in state and _like(state[prefix + name], value) for name, value in wanted.items())


def _rank(prefix: str, preferred: tuple[str, ...]) -> tuple[int, int]:
    """Smaller for the model of a checkpoint than for copies of it, and for fewer words in front."""
    rest = prefix.removeprefix(_container(prefix))
    return (preferred.index(rest) if rest in preferred else len(preferred)), prefix.count(".")


def _container(*names: str) -> str:
    """The dictionary of the model with which names of a checkpoint begin; empty where there is none."""
    return next((each for each in CONTAINERS if any(name.startswith(each) for name in names)), "")


def _without(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _by_position(state: State, wanted: State) -> State:
    """Numbered layers under the names of the backbone's, in order, if each of these has its like.

    CosPlace and others cut a ResNet by nn.Sequential(*children[:-2]), which leaves `4.0.conv1.weight` for
    `layer1.0.conv1.weight`.
    """
    layers: defaultdict[str, State] = defaultdict(dict)
    for name, value in wanted.items():
        layer, _, rest = name.partition(".")
        layers[layer][rest] = value
    numbered: defaultdict[str, defaultdict[int, State]] = defaultdict(lambda: defaultdict(dict))
    for name, value in state.items():
        for prefix, ending in _divided(name):
            number, dot, rest = ending.partition(".")
            if number.isdecimal() and dot:
                numbered[prefix][int(number)][rest] = value
    renamed: State = {}
    for prefix, found in numbered.items():
        pairs = list(zip(layers.items(), (found[number] for number in sorted(found)), strict=False))
        if len(pairs) == len(layers) and all(_fits(theirs, "", ours) for (_, ours), theirs in pairs):
            renamed |= {f"{prefix}{name}.{rest}": theirs[rest] for (name, ours), theirs in pairs for rest in ours}
    return renamed
