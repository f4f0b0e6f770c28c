"""Which of the tensors of a file are the values of a backbone, whatever stands before their names.

Programs put a backbone into models of their own (`backbone.`, `encoder.`, `base_model.base.`), these into wrappers
(`module.`), and the state dict beside others into a checkpoint (`state_dict.`). So the beginning of names is not looked
up in a table: it is the one under which all names of the backbone are there, with its shapes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.models.backbones.base import Backbone

State = dict[str, torch.Tensor]

# Layers that DataParallel, torch.compile and FSDP put around others.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module"}
CONTAINERS = ("state_dict.", "model_state_dict.", "model.")  # of the model in a checkpoint
UNUSED = "num_batches_tracked"  # a count of BatchNorm that older files lack
SHOWN = 3  # names in a message


def values_for(backbone: Backbone, arch: str, state: State, source: str) -> State:
    """The values of a backbone among those of a file, by the names that the backbone has.

    Numbered layers of a network that was cut and put into an nn.Sequential are taken in order. Where several sets of
    values fit, a line says which was taken.

    Args:
        source: of the file, for messages.

    Raises:
        UserError: values are missing or of another shape.
    """
    wanted = {
        backbone.name_in_file(name).removeprefix(backbone.prefixes[0]): value
        for name, value in backbone.state_dict().items()
        if not name.endswith(UNUSED)
    }
    values = backbone.values_in(_under_one_prefix(state, wanted, backbone.prefixes, arch, source))
    own = backbone.state_dict()
    found = {name: values[name] for name in own if name in values}
    missing = [name for name in own if name not in found]
    other = [name for name, value in found.items() if not _like(value, own[name])]
    if missing or other:
        first = (missing or other)[0]
        wanted_kind = _kind(own[first])
        reason = (
            f"{len(missing)} of {len(own)} values are missing, such as {backbone.name_in_file(first)} {wanted_kind}"
            if missing
            else f"{backbone.name_in_file(first)} is {_kind(found[first])}, wanted {wanted_kind}"
        )
        names = ", ".join(list(state)[:SHOWN])
        raise UserError(
            f"{source} does not fit {arch}: {reason}; the file has {names} and so on ({len(state)} names): give "
            "weights with the wanted names, or the --arch and --cut that these are of"
        )
    return found


def _under_one_prefix(state: State, wanted: State, preferred: tuple[str, ...], arch: str, source: str) -> State:
    """The values of a file under the prefix that fits; where none does, under a usual one or one with most names."""
    for view in _views(state, wanted):
        fitting = [prefix for prefix in _prefixes(view, wanted) if _fits(view, prefix, wanted)]
        if fitting:
            fitting.sort(key=lambda prefix: _rank(prefix, preferred))
            _say_of_others(view, wanted, fitting, arch, source)
            return _without(view, fitting[0])
    counts = _prefixes(state, wanted).most_common()
    most = [prefix for prefix, count in counts if 2 * count > len(wanted) or prefix in preferred]
    return _without(state, most[0] if most else _container(state))


def _views(state: State, wanted: State) -> Iterator[State]:
    """The values of a file by its own names, by these without wrappers, and by position."""
    yield state
    bare = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in state}
    state = {short: state[name] for short, name in bare.items()}
    yield state
    yield _by_position(state, wanted)


def _prefixes(state: State, wanted: State) -> Counter[str]:
    """What stands before names that are wanted, with how many are found behind it."""
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    return counts


def _fits(state: State, prefix: str, wanted: State) -> bool:
    return all(prefix + name in state and _like(state[prefix + name], value) for name, value in wanted.items())


def _like(value: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a value of a file can stand for one of the backbone: float16 may, an int8 that wants a scale may not."""
    return value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def _kind(value: torch.Tensor) -> str:
    return f"{tuple(value.shape)}" + ("" if value.is_floating_point() else f" of {value.dtype}")


def _rank(prefix: str, preferred: tuple[str, ...]) -> tuple[int, int]:
    """Smaller for the model of a checkpoint than for copies of it, and for fewer words in front."""
    rest = prefix.removeprefix(_container([prefix]))
    return (preferred.index(rest) if rest in preferred else len(preferred)), prefix.count(".")


def _container(names: Iterable[str]) -> str:
    """The dictionary of the model with which names of a checkpoint begin; empty where there is none."""
    return next((each for each in CONTAINERS if any(name.startswith(each) for name in names)), "")


def _without(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _say_of_others(state: State, wanted: State, fitting: list[str], arch: str, source: str) -> None:
    """A line where other values of the file than those of the first prefix would fit as well."""
    first, *others = fitting
    unlike = [
        prefix
        for prefix in others
        if not all(torch.equal(state[first + name], state[prefix + name]) for name in wanted)
    ]
    if unlike:
        say(f"{source}: values of {arch} stand in it {1 + len(unlike)} times: took {first}*, not {', '.join(unlike)}*")


def _by_position(state: State, wanted: State) -> State:
    """Numbered layers under the names of the backbone's, in order, if each of these has its like.

    CosPlace and others cut a ResNet by nn.Sequential(*children[:-2]), which leaves `4.0.conv1.weight` for
    `layer1.0.conv1.weight`.
    """
    layers = _grouped((name.partition(".")[::2], value) for name, value in wanted.items())
    numbered: defaultdict[str, list] = defaultdict(list)
    for name, value in state.items():
        parts = name.split(".")
        for depth, part in enumerate(parts[:-1]):
            if part.isdecimal():
                prefix = "".join(f"{one}." for one in parts[:depth])
                numbered[prefix].append(((int(part), ".".join(parts[depth + 1 :])), value))
    renamed: State = {}
    for prefix, content in numbered.items():
        found = _grouped(content)
        pairs = list(zip(layers.items(), (found[number] for number in sorted(found)), strict=False))
        if len(pairs) == len(layers) and all(_fits(theirs, "", ours) for (_, ours), theirs in pairs):
            renamed |= {f"{prefix}{name}.{rest}": theirs[rest] for (name, ours), theirs in pairs for rest in ours}
    return renamed


def _grouped(values: Iterable[tuple[tuple[Any, str], torch.Tensor]]) -> dict[Any, State]:
    """Values by layer and, in it, by the rest of their names."""
    layers: dict[Any, State] = {}
    for (layer, rest), value in values:
        layers.setdefault(layer, {})[rest] = value
    return layers
