"""The dataclasses whose fields are flags, and what is derived of these: names, defaults, what is refused."""

from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from vpr.cli.settings import Command
from vpr.common.errors import UserError
from vpr.common.settings import MODES as MODES
from vpr.common.settings import Flag, flags_in
from vpr.data.settings import PlacesSpec
from vpr.models.spec import ModelSpec
from vpr.retrieval.rules import Reranking
from vpr.runs.stored import name_of_flags, stored_flags
from vpr.search.rules import RecentFrames, SequenceRule
from vpr.serve.settings import Settings
from vpr.training.choices import BY_TEACHER
from vpr.training.rules import TrainingRules

# A further flag is a field of one of these, or of a dataclass that is added here; a recipe, an instance of some.
SETTINGS: tuple[type, ...] = (
    Command, PlacesSpec, ModelSpec, TrainingRules, Reranking, SequenceRule, RecentFrames, Settings
)  # fmt: skip
PARALLEL_MODES = ("cluster", "train", "test", "whiten", "index")  # the others run in one process
INSTEAD = {"pcaDim": "noWhiten", "noWhiten": "pcaDim", "imageSize": "longSide", "longSide": "imageSize"}
AUTO_PRECISION = "auto_precision"  # beside the flags of a run: what --precision=auto meant when it began


def all_flags() -> dict[str, Flag]:
    """Every flag of the program, by its name in options."""
    return {flag.key: flag for settings in SETTINGS for _, flag in flags_in(settings)}


def defaults() -> dict[str, Any]:
    """What every flag is that nobody types, by its name in options."""
    untyped = {name: flag.default for name, flag in all_flags().items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in untyped.items()}


def names(fits: Callable[[Flag], bool]) -> tuple[str, ...]:
    """Names, in options, of the flags that fit."""
    return tuple(name for name, flag in all_flags().items() if fits(flag))


CARD_FLAGS = names(lambda flag: flag.on_card)
CLUSTER_FLAGS = names(lambda flag: flag.clusters)  # besides --arch and --dataset, which every command names


def check_typed(mode: str, typed: Set[str]) -> list[str]:
    """Refuse typed flags, by their names in options, that a mode does not read.

    Those of pytorch-NetVlad are accepted, whose users type them in every mode: a line says that they have no effect.
    Raises a UserError: another flag has no effect; names the modes that read it.
    """
    idle = [flag for name, flag in all_flags().items() if name in typed and mode not in flag.modes]
    for flag in idle:
        if not flag.tolerated:
            raise UserError(
                f"--{flag.name} has no effect in --mode={mode}, only in {', '.join(flag.modes)}: drop it, or see "
                f"--mode={mode} --help"
            )
    return [f"without effect in --mode={mode}: {', '.join(f'--{flag.name}' for flag in idle)}"] if idle else []


def as_train(typed: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """What is typed, of --mode=distill as the training that it is; and in words what has no effect there."""
    if typed.get("mode") != BY_TEACHER:
        return typed, []
    notes, read = check_typed(BY_TEACHER, typed.keys()), names(lambda flag: BY_TEACHER in flag.modes)
    kept = {name: value for name, value in typed.items() if name in (*read, "inputs")}
    return {**kept, "mode": "train", "recipe": BY_TEACHER}, notes


def checked_flags(path: Path) -> dict[str, Any]:
    """The flags that a run or an exported file stores. Raises a UserError: missing, damaged, or a flag is nonsense."""
    flags = stored_flags(path)
    check_flags(flags, name_of_flags(path))
    return flags


def check_flags(flags: Mapping[str, Any], where: str) -> None:
    """Check stored flags as typed ones are checked: users may edit them, but not into nonsense.
    Raises a UserError: a flag is unknown, or its value is of another kind or not among its choices."""
    known = all_flags()
    known[AUTO_PRECISION] = known["precision"]
    for name, value in flags.items():
        if name not in known:
            raise UserError(f"{where} has {name[:40]!r}, which is no flag of this program: restore or remove it")
        flag = known[name]
        unprintable = flag.type is None and isinstance(value, str) and not value.isprintable()
        as_earlier_versions = name == "cachePath" and value is None
        if unprintable or not (flag.may_be(value) or as_earlier_versions):
            found = repr(value)[:60]
            raise UserError(f"{where} has {name}={found}, which --{flag.name} cannot be: restore it (see --help)")
