"""The program: reads the command line and calls the mode. `main.py` and the command `vpr` both begin here."""

import importlib
import sys

from vpr.cli.options import parse_options
from vpr.common import processes
from vpr.common.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one mode.

    Args:
        arguments: words of the command line; None takes those the program was started with.

    Returns:
        the exit code: 0, 2 after a mistake the user can mend, or 130 after Ctrl-C.
    """
    options = None
    try:
        options = parse_options(arguments)
        # Imported here, not above: torch and FAISS take seconds, `--help` must not.
        mode = importlib.import_module(f"vpr.modes.{options.mode}")
        with processes.joined():
            mode.run(options)
    except UserError as error:
        who = f" in process {processes.rank()}" if processes.rank() else ""
        print(f"error{who}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        resume = ": --mode=train --resume goes on with the newest run" if options and options.mode == "train" else ""
        print(f"interrupted{resume}", file=sys.stderr)
        return 130
    return 0
