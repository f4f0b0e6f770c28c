"""What the program is called where it was started: `python main.py`, or the command `vpr` that pip installs."""

import sys
from pathlib import Path


def program() -> str:
    """The name in a usage line: vpr where that command was started, else main.py."""
    return "vpr" if Path(sys.argv[0]).stem == "vpr" else "main.py"


def command() -> str:
    """The words that start the program again."""
    return "vpr" if program() == "vpr" else "python main.py"


def parallel_command(processes: int) -> str:
    """The words that start so many processes of the program, which work together."""
    return f"torchrun --nproc_per_node={processes} {'--no-python vpr' if program() == 'vpr' else 'main.py'}"
