"""Local descriptors as they are handed on while images are described."""

from pathlib import Path
from types import SimpleNamespace

import torch

from vpr.data.reader import SizeGroup
from vpr.descriptors import describe


def test_processes_hand_over_local_descriptors_batch_by_batch(monkeypatch):
    """So that process 0 holds no more than one batch of each process, whatever the number of images."""
    handed, written = [], []
    images = torch.zeros(6, 1, 1, 1)

    class Batches:
        files, size = [Path("image")] * 6, (1, 1)

        def batches(self, wanted):
            return [[SizeGroup(torch.arange(len(rows)), images[rows], (1, 1))] for rows in wanted]

    def gather(value):
        handed.append(len(value))
        return [value]

    sink = SimpleNamespace(write=lambda maps: written.append(len(maps)))
    model = SimpleNamespace(device=torch.device("cpu"), dim=2, dtype=torch.float32, eval=lambda: None)
    model.bytes_per_image = lambda *size: None
    model.with_local = lambda values, projection, frozen: (torch.ones(len(values), 2), torch.ones(len(values), 3, 1, 1))
    monkeypatch.setattr(describe.processes, "gather", gather)
    describe.describe(model, Batches(), range(6), 2, local=describe.LocalDescribing(None, sink))
    assert handed == written == [2, 2, 2]
