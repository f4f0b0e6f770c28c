"""The parser of all flags, what --help and --help-all print, and what the program calls itself."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any, NoReturn

from vpr.cli.examples import EXAMPLES
from vpr.cli.flags import MODES, all_flags, names
from vpr.common.errors import UserError
from vpr.common.settings import Flag

MANY = len(MODES)
MODES_WITH_INPUTS = ("compare", "locate", "import")


def program() -> str:
    """The name in a usage line: vpr where the command that pip installs was started, else main.py."""
    return "vpr" if Path(sys.argv[0]).stem == "vpr" else "main.py"


def command() -> str:
    """The words that start the program again."""
    return "vpr" if program() == "vpr" else "python main.py"


def parallel_command(processes: int) -> str:
    """The words that start so many processes of the program, which work together."""
    return f"torchrun --nproc_per_node={processes} {'--no-python vpr' if program() == 'vpr' else 'main.py'}"


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad command line as one line, like every other mistake; no flag begins with a minus and a digit."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, add_help=False, **settings)
        # A word such as -33.8,151.2,500 is a value. argparse itself has this pattern since Python 3.14.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        near = nearest(unknown.partition("=")[0], self._option_string_actions) if unknown != message else ""
        raise UserError(f"{message}{near}; see --help")


def nearest(word: str, known: Iterable[str]) -> str:
    """A question whether the word that is most like a mistyped one was meant; empty where none is like it."""
    found = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def with_mode(arguments: list[str] | None) -> list[str]:
    """The words of a command line, of which the first may be a mode: locate for --mode=locate."""
    words = sys.argv[1:] if arguments is None else arguments
    return [f"--mode={words[0]}", *words[1:]] if words and words[0] in MODES else list(words)


def build_parser(shown: Set[str] | None = None) -> argparse.ArgumentParser:
    """The parser of all flags. Its result holds those that were typed, and no defaults. Its help lists the flags, and
    inputs, whose names in options are `shown`; None lists all."""
    parser = OneLineParser(
        prog=program(),
        usage=f"{program()} MODE [flags] [INPUT ...]",
        description="NetVLAD for visual place recognition: run --mode=cluster, then train, then test.",
        argument_default=argparse.SUPPRESS,
    )

    def help_of(name: str, line: str) -> str:
        return line if shown is None or name in shown else argparse.SUPPRESS

    inputs = "compare: runs and exported files; locate: images and folders; import: a .mat file"
    parser.add_argument("inputs", nargs="*", metavar="INPUT", default=argparse.SUPPRESS, help=help_of("inputs", inputs))
    parser.add_argument("-h", "--help", action="help", help="the modes; with --mode=MODE, the flags that it reads")
    parser.add_argument("--help-all", action="help", help="all flags of all modes")
    # What few modes read is what they are about.
    titles = {flag.group: MANY for flag in all_flags().values()}
    for name, flag in all_flags().items():
        if shown is not None and name in shown:
            titles[flag.group] = min(titles[flag.group], len(flag.modes))
    titles = dict(sorted(titles.items(), key=lambda one: one[1]))
    groups = {title: parser.add_argument_group(title) for title in titles}
    for name, flag in all_flags().items():
        groups[flag.group].add_argument(f"--{flag.name}", help=help_of(name, _help_line(flag)), **_reading(flag))
    return parser


def _reading(flag: Flag) -> dict[str, Any]:
    """How argparse reads a flag."""
    if flag.switch:
        return {"action": "store_true"}

    def read(text: str) -> Any:
        try:
            return flag.type(text) if flag.type else text
        except ValueError as error:  # the one exception whose text argparse prints
            raise argparse.ArgumentTypeError(str(error)) from error

    return {"nargs": flag.nargs, "metavar": flag.metavar, "const": flag.const, "type": read, "choices": flag.allowed}


def _help_line(flag: Flag) -> str:
    if flag.default is None or flag.switch:
        return flag.help
    shown = " ".join(map(str, flag.default)) if isinstance(flag.default, tuple) else flag.default
    return f"{flag.help} (default: {shown})"


def wanted_help(arguments: list[str]) -> str | None:
    """The help that a command line asks for, or None if it asks for none.

    It lists all flags, those that a mode reads, or without a mode those that most modes read.
    Raises a UserError: it asks for the help of a mode that does not exist.
    """
    asked = OneLineParser()
    asked.add_argument("--mode", choices=MODES)
    asked.add_argument("-h", "--help", action="store_true")
    asked.add_argument("--help-all", action="store_true")
    found, _ = asked.parse_known_args(arguments)
    mode = found.mode
    if found.help_all:
        return build_parser().format_help()
    if not found.help:
        return None
    inputs = {"inputs"} if mode in MODES_WITH_INPUTS else set()
    parser = build_parser(inputs | {*names(lambda flag: mode in flag.modes if mode else flag.common)})
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if mode:
        parser.usage = f"{program()} {mode} [flags]{' INPUT ...' if inputs else ''}"
        parser.description = f"{mode}: {MODES[mode]}"
        parser.epilog = "\n".join(["examples:", *(f"  {line.format(command())}" for line in EXAMPLES[mode])])
    else:
        modes = "\n".join(f"  {each:<8} {line}" for each, line in MODES.items())
        parser.description = f"NetVLAD for visual place recognition. Modes:\n\n{modes}"
        parser.epilog = "--mode=MODE --help lists the flags of a mode, --help-all lists all."
    return parser.format_help()
