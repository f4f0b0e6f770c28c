"""The benchmark of a trunk's convolutions compares ways of computing the same."""

from unittest.mock import patch

import torch

from benchmarks import trunk as trunk_bench
from benchmarks.ceilings import Ceilings
from benchmarks.measure import Timing
from benchmarks.stages import Bench
from vpr.models.backbones.base import build_backbone

CPU = torch.device("cpu")


def test_every_way_of_a_trunk_gives_the_same_up_to_rounding(tmp_path):
    weights = tmp_path / "alexnet.pth"
    encoder = build_backbone("alexnet")
    encoder.initialize(0)
    torch.save(encoder.state_dict(), weights)
    ceilings = Ceilings(1, 1, 1)
    bench = Bench(CPU, ceilings, {"alexnet": str(weights)}, [], "toy", "", repeats=1)
    found = {}

    def run_each(works, *_, **__):
        found.update(enumerate(work().double() for work in works))
        return [Timing(1, 1, 1, 1) for _ in works]

    with patch.object(trunk_bench, "compare_all", run_each):
        rows = trunk_bench.trunk(bench, "alexnet", (180, 180), 2)
    names = [row.setting.partition(", ")[2] for row in rows]
    assert names[:4] == ["fp32, as chosen here", "bf16", "--precision=auto", "fp32, channels last"]
    largest = found[3].abs().max()
    for place, name in enumerate(names):
        apart = ((found[place] - found[3]).abs().max() / largest).item()
        # bf16 keeps 8 bits of each value.
        assert apart < (1e-4 if name.startswith("fp32") else 5e-2), name
