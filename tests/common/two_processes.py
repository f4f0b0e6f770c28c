"""A program for torchrun with two processes: which devices they take of GPUs that `mock_gpus` stands in for.

    torchrun --nproc_per_node=2 two_processes.py SITUATIONS RESULT

SITUATIONS is JSON: for each a name as of --device, the indices in GPUS that each process sees, and whether the
processes are of two machines. RESULT gets what came of each in either process, and what was printed; of some steps of a
network with a parameter that takes no part the gradients; and the first process of each one's machine.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mock_gpus import A100, ANOTHER_A100, V100, Machine

from vpr.common import processes
from vpr.common.device import choose_device, compute_dtype, device_line, precision_name
from vpr.common.errors import UserError

GPUS = {"a": A100, "b": ANOTHER_A100, "v": V100}


def outcome(name: str, seen: list[str], two_machines: bool, rank: int) -> dict:
    machine, printed = Machine([GPUS[letter] for letter in seen[rank]]).install(), io.StringIO()
    os.environ["LOCAL_RANK"] = "0" if two_machines else str(rank)
    taken, line = "", ""
    with contextlib.redirect_stdout(printed):
        try:
            device = choose_device(name)
            taken, line = str(device), device_line(device)
            formats = [precision_name(compute_dtype(each, device)) for each in ("auto", "fp16")]
        except UserError as error:
            return {"error": str(error)}
    return {"device": taken, "formats": formats, "set": machine.set, "printed": printed.getvalue(), "line": line}


class Partly(nn.Module):
    """A network with a weight that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.used * value


def gradients(rank: int) -> list:
    """Of three passes with the value 1 in process 0 and 10 in process 1; after the second there is no way back."""
    network, found = Partly(), []
    parallel = processes.in_parallel(network, unused_parameters=True)
    for step in range(3):
        network.zero_grad()
        loss = parallel(torch.tensor(10.0 if rank else 1.0))
        if step != 1:
            loss.backward()
            found.append([None if value.grad is None else value.grad.item() for value in network.parameters()])
    return found


def of_machine(rank: int, two_machines: bool) -> int:
    """The number of the first process of this one's machine."""
    os.environ["LOCAL_RANK"] = "0" if two_machines else str(rank)
    return processes.of_machine(rank)


def gathered(rank: int) -> list:
    """The rows in process 0 of which each process has filled some, with numbers that show whose they are."""
    rows, owners = np.zeros((4, 3), np.float16), [(slice(0, 1), 0), (slice(1, 3), 1), (slice(3, 4), 0)]
    for block, owner in owners:
        rows[block] = 10 * owner + np.arange(3) if owner == rank else 0
    processes.gather_rows(rows, owners)
    return rows.tolist()


def main(situations: str, result: str) -> None:
    with processes.process_group():
        rank = processes.rank()
        own = {
            "outcomes": [outcome(*situation, rank) for situation in json.loads(situations)],
            "gradients": gradients(rank),
            "gathered": gathered(rank),
            "of_machine": [of_machine(rank, two) for two in (False, True)],
        }
        found = processes.gather_everywhere(own)
        if rank == 0:
            Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
