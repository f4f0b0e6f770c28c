"""What --help and --help-all print: the modes and their common flags, one mode's flags, or all."""

import argparse

from vpr.cli.flags import MODES, OneLineParser, build_parser
from vpr.cli.mode_flags import COMMON_FLAGS, MODE_LINES, flags_of_mode
from vpr.cli.program import program

MODES_WITH_INPUTS = ("compare", "locate", "import")


def wanted_help(arguments: list[str] | None) -> str | None:
    """The help that a command line asks for, or None if it asks for none.

    Raises:
        UserError: it asks for the help of a mode that does not exist.
    """
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--help-all", action="store_true")
    found, _ = parser.parse_known_args(arguments)
    if found.help_all:
        return build_parser().format_help()
    if not found.help:
        return None
    return help_of_mode(found.mode) if found.mode else overview()


def overview() -> str:
    """The modes, and the flags that most of them read."""
    parser = build_parser(shown=set(COMMON_FLAGS))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    modes = "\n".join(f"  {mode:<8} {line}" for mode, line in MODE_LINES.items())
    parser.description = f"NetVLAD for visual place recognition. Modes:\n\n{modes}"
    parser.epilog = "--mode=MODE --help lists the flags of a mode, --help-all lists all."
    return parser.format_help()


def help_of_mode(mode: str) -> str:
    """The flags that a mode reads."""
    shown = flags_of_mode(mode) | ({"inputs"} if mode in MODES_WITH_INPUTS else set())
    parser = build_parser(shown=shown)
    parser.usage = f"{program()} --mode={mode} [flags]{' INPUT ...' if mode in MODES_WITH_INPUTS else ''}"
    parser.description = f"--mode={mode}: {MODE_LINES[mode]}"
    return parser.format_help()
