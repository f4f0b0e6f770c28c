"""What a flag of the command line is."""

from dataclasses import dataclass, field
from typing import Any

from vpr.cli.argument_types import quantity, whole_number


@dataclass(frozen=True)
class Flag:
    """One flag: its name, default, help line, and what argparse needs to read it."""

    name: str
    default: Any
    help: str
    reading: dict = field(default_factory=dict)


ON = {"action": "store_true"}
COUNT, WHOLE, NUMBER = {"type": whole_number(1)}, {"type": whole_number(0)}, {"type": quantity}
