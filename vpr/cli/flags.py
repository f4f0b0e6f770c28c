"""The dataclasses whose fields are flags, and what is derived of these: sets of names, and what a mode refuses.

A flag that is typed for a mode that does not read it is refused, except those of pytorch-NetVlad's own command line:
its users type the same flags in every mode, so these are accepted with a line that says they have no effect.
"""

from collections.abc import Callable, Set
from typing import Any

from vpr.cli.settings import Command
from vpr.common.errors import UserError
from vpr.common.settings import MODES as MODES
from vpr.common.settings import Flag, flags_in
from vpr.data.settings import PlacesSpec
from vpr.models.spec import ModelSpec
from vpr.retrieval.rules import Reranking
from vpr.search.rules import RecentFrames, SequenceRule
from vpr.serve.settings import Settings
from vpr.training.rules import TrainingRules

# A further flag is a field of one of these, or of a dataclass that is added here; a recipe, an instance of some.
SETTINGS: tuple[type, ...] = (
    Command, PlacesSpec, ModelSpec, TrainingRules, Reranking, SequenceRule, RecentFrames, Settings
)  # fmt: skip
PARALLEL_MODES = ("cluster", "train", "test", "whiten", "index")  # the others run in one process
AUTO_PRECISION = "auto_precision"  # beside the flags of a run: what --precision=auto meant when it began


def all_flags() -> list[Flag]:
    """Every flag of the program."""
    return [flag for settings in SETTINGS for _, flag in flags_in(settings)]


def defaults() -> dict[str, Any]:
    """What every flag is that nobody types, by its name in options."""
    return {flag.key: list(flag.default) if isinstance(flag.default, tuple) else flag.default for flag in all_flags()}


def names(fits: Callable[[Flag], bool]) -> tuple[str, ...]:
    """Names, in options, of the flags that fit."""
    return tuple(flag.key for flag in all_flags() if fits(flag))


def spelled(name: str) -> str:
    """How a flag is typed, by its name in options."""
    return next(f"--{flag.name}" for flag in all_flags() if flag.key == name)


CARD_FLAGS = names(lambda flag: flag.on_card)
# Besides --arch and --dataset, which every command names.
CLUSTER_FLAGS = names(lambda flag: flag.clusters)


def check_typed(mode: str, typed: Set[str]) -> list[str]:
    """Refuse typed flags that a mode does not read.

    Args:
        typed: their names in options.

    Returns:
        lines to print, of flags that are accepted though they have no effect.

    Raises:
        UserError: a flag has no effect and is none of pytorch-NetVlad's; names the modes that read it.
    """
    idle = [flag for flag in all_flags() if flag.key in typed and mode not in flag.modes]
    for flag in idle:
        if not flag.tolerated:
            raise UserError(
                f"--{flag.name} has no effect in --mode={mode}, only in {', '.join(flag.modes)}: drop it, or see "
                f"--mode={mode} --help"
            )
    return [f"without effect in --mode={mode}: {', '.join(f'--{flag.name}' for flag in idle)}"] if idle else []
