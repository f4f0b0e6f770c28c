"""What the commands that kill trainings share: the signal, and what counts as the same bits."""

import subprocess
import sys

import torch

from campaigns.killing import different, final_state, killed_after, newest_checkpoint, run_exists


def process_of(code):
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_process_is_killed_unless_it_has_ended():
    sleeping = process_of("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)")
    assert killed_after(sleeping, 0.01) and sleeping.poll() is not None
    assert not killed_after(process_of("pass"), 60)


def test_tensors_differ_in_one_bit_in_shape_or_by_missing():
    first = {"a": torch.zeros(3), "b": torch.ones(2), "c": torch.ones(1)}
    assert different(first, {name: value.clone() for name, value in first.items()}) == []
    one_bit = torch.tensor([1.0, 1 + 2**-23])  # the next float32 after 1
    assert different(first, {"a": torch.zeros(3, 1), "b": one_bit, "d": torch.ones(1)}) == ["a", "b", "c", "d"]


def test_the_state_of_a_run_is_its_weights_and_the_optimisers_tensors(tmp_path):
    assert not run_exists(tmp_path)
    folder = tmp_path / "2026_run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder.parent / "flags.json").write_text("{}")
    weights, momentum = torch.arange(4.0), torch.ones(4)
    optimizer = {"state": {0: {"momentum_buffer": momentum, "step": 3}}, "param_groups": []}
    saved = {"state_dict": {"weight": weights}, "optimizer": optimizer, "position": {"blocks_done": 2}}
    torch.save(saved, folder / "checkpoint.pth.tar")
    assert run_exists(tmp_path) and newest_checkpoint(tmp_path)["position"] == {"blocks_done": 2}
    found = final_state(tmp_path)
    assert not different(found, {"weight": weights, "optimizer 0 momentum_buffer": momentum})
