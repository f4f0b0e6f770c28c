"""Settings: a field of a frozen dataclass that is a flag of the command line, with all that is known of it.

    @dataclass(frozen=True)
    class TrainingRules:
        margin: float = flag(0.1, "margin of the triplet loss", type=number, modes=("train",), kept=TRAINING)

The parser, the help of a mode, the refusal of flags without effect, the checks of a stored flags.json, the cards of
exported files and what a resumed run gets back are read from such fields; `vpr.cli.flags` lists the dataclasses. An
instance of one, written out, is a recipe. Imports nothing heavy: `--help` reads this.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

MODES = {
    "cluster": "visual words (k-means centres) from which NetVLAD starts",
    "train": "train on triplets or on batches of places: a new run, or with --resume go on with one",
    "distill": "train a small model to find alike what a larger one does: train with --recipe=distill",
    "test": "Recall@N of a run, an exported file or the off-the-shelf model; pictures and a report",
    "whiten": "learn PCA whitening of a model's descriptors",
    "adapt": "fit a model to one's own place, in minutes",
    "prune": "a smaller run from a trained one, by dropping filters",
    "export": "write a model as one .onnx file",
    "compare": "several runs and exported files on one split, in one table",
    "spec": "write a folder's positions as .mat specs, or specs as a table",
    "index": "describe a database once, for locate",
    "locate": "where were these images taken?",
    "serve": "answer over HTTP where images were taken, with a page to look at",
    "import": "a run from a model of the MATLAB release of NetVLAD",
}
# What becomes of a flag that a run stores when the run is resumed. What the model is must stay so in every mode; what a
# training follows must stay so in a training; the others come back unless the user types something else: with the
# run, or where a training goes on.
MODEL, TRAINING, RUN, RESUMED = "model", "training", "run", "resumed"
KEY = "flag"  # of a field's metadata


@dataclass(frozen=True)
class Flag:
    """One flag."""

    name: str  # its spelling, without the two dashes
    default: Any  # where nobody types or stores it; None and False are not shown in the help
    help: str  # one line, with units
    group: str  # title under which the help lists it
    modes: tuple[str, ...]  # that read it; elsewhere it is refused, unless `tolerated`
    # Makes a value of a word, and raises a ValueError for a wrong one; None takes any text.
    type: Callable[[str], Any] | None = None
    # Takes the place of `type` for values in stored files, where that would import much.
    stored: Callable[[str], Any] | None = None
    # The values it may have, or the table whose keys they are, as MODULE:NAME where importing it would be a circle.
    choices: Collection[Any] | str | None = None
    # The next three as argparse has them.
    nargs: str | int | None = None
    metavar: str | tuple[str, ...] | None = None
    const: Any = None
    kept: str = ""  # MODEL, TRAINING, RUN or RESUMED, see there; empty: a resumed run's is not looked at
    on_card: bool = False  # whether an exported file keeps it, so as to be tested as its run is
    clusters: bool = False  # whether a centroids file depends on it
    added: bool = False  # whether there are runs that were stored before it was added; they have its default
    tolerated: bool = False  # part of pytorch-NetVlad's command line, which its users type in every mode
    common: bool = False  # listed by --help without a mode
    # Whether a resumed training that gets another value ends otherwise than one that never stopped.
    alters: bool = False

    @property
    def key(self) -> str:
        """Its name in options and in stored files."""
        return self.name.replace("-", "_")

    @property
    def allowed(self) -> Collection[Any] | None:
        """The values it may have; None: whatever `type` reads."""
        if not isinstance(self.choices, str):
            return self.choices
        module, _, table = self.choices.partition(":")
        return getattr(importlib.import_module(module), table)

    @property
    def switch(self) -> bool:
        """Whether it stands alone: typed it is true."""
        return self.default is False

    @property
    def wanted(self) -> str:
        """What its values are, for messages: in the words of `type` where it has one."""
        if self.switch:
            return "true or false"
        kind = "a text"
        if self.allowed is not None:
            kind = f"one of {', '.join(map(str, self.allowed))}"
        elif self.type is not None:
            try:
                self.type("")
            except ValueError as error:
                kind = str(error).partition("wanted ")[2]
        kind = kind if self.nargs in (None, "?") else f"several, each {kind}"
        return f"{kind}, or none" if self.default is None else kind

    def may_be(self, value: Any) -> bool:
        """Whether a stored value is one that somebody could have typed."""
        if value is None:
            return self.default is None
        if self.switch:
            return isinstance(value, bool)
        if self.nargs in (None, "?"):
            return self._may_be_one(value)
        right_length = isinstance(value, list | tuple) and len(value) > 0 and self.nargs in ("+", len(value))
        return right_length and all(map(self._may_be_one, value))

    def _may_be_one(self, value: Any) -> bool:
        if self.allowed is not None and value not in [*self.allowed]:  # values of JSON may have no hash
            return False
        if self.type is None:
            return isinstance(value, str)
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return False
        if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and value >= 2**63):
            return False
        try:
            return bool((self.stored or self.type)(str(value)) == value)
        except ValueError:
            return False


def flag(default: Any, help: str, *, name: str = "", typed: Any = MISSING, **about: Any) -> Any:
    """A field of a frozen dataclass that is a flag.

    Args:
        default: of the field; MISSING: whoever makes an instance has to say.
        name: the flag's spelling where it is not the field's.
        typed: the flag's default where it is not the field's.
        about: of `Flag`; `group` and `modes` must be there.
    """
    shown = default if typed is MISSING else typed
    return dataclasses.field(default=default, metadata={KEY: {"name": name, "default": shown, "help": help, **about}})


def flags_in(settings: type) -> Iterator[tuple[str, Flag]]:
    """The fields of a dataclass that are flags, by their names."""
    for field in dataclasses.fields(settings):
        if KEY in field.metadata:
            about = dict(field.metadata[KEY])
            yield field.name, Flag(**{**about, "name": about["name"] or field.name})


def values_of(settings: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are flags, of options or stored flags; lists as tuples, those that are missing not at all."""
    return {
        name: tuple(stored[one.key]) if isinstance(stored[one.key], list) else stored[one.key]
        for name, one in flags_in(settings)
        if one.key in stored
    }


def all_but(*modes: str) -> tuple[str, ...]:
    """All modes without some."""
    return tuple(mode for mode in MODES if mode not in modes)


def whole_number(at_least: int, at_most: int | None = None) -> Callable[[str], int]:
    """Reads a whole number that is not below `at_least`, nor above `at_most`."""
    bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < at_least or (at_most is not None and int(text) > at_most):
            raise ValueError(f"found {text!r}, wanted a whole number {bounds}")
        return int(text)

    return read


def number(fits: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """Reads a number that fits."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            raise ValueError(f"found {text!r}, wanted {wanted}")
        return value

    return read


def signed_number(text: str) -> int:
    """Reads a whole number, perhaps a negative one."""
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f"found {text!r}, wanted a whole number")
    return int(text)


count, whole = whole_number(1), whole_number(0)
quantity = number(lambda value: value >= 0, "a finite number of at least 0")
finite = number(lambda value: True, "a finite number")
probability = number(lambda value: 0 <= value <= 1, "a number from 0 to 1")
share = number(lambda value: 0 < value < 1, "a number between 0 and 1, neither of them")
