"""Another objective, optimiser or schedule is a line of a table, and an objective a class in a file of its own."""

import csv
import json

import pytest
import torch

import main
from vpr.runs.run import newest_run
from vpr.training.choices import OBJECTIVES, OPTIMIZERS, SCHEDULES

PLACES = '''
"""Batches of places: a query and a database image of each, told from those of the others by a softmax."""

import numpy as np
import torch

from vpr.training.objective import Block


class Places:
    def __init__(self, rules, training, source, batch_size=24):
        self.rules, self.training = rules, training

    def batches(self, state, epoch):
        order = np.random.default_rng([self.rules.seed, epoch]).permutation(self.training.usable)
        blocks = np.array_split(order, 2)
        for number in range(state.position.blocks_done, len(blocks)):
            chosen = np.array_split(blocks[number], 3)
            batches = [Batch(self.training, each) for each in chosen]
            yield Block(f"epoch {epoch}", batches, [len(each) for each in chosen], 2 * len(blocks[number]), "places")

    def loss(self, descriptors, batch):
        queries, database = descriptors.chunk(2)
        same = torch.arange(len(queries))
        return torch.nn.functional.cross_entropy(20 * queries @ database.T, same, reduction="sum"), len(queries)


class Batch:
    def __init__(self, training, queries):
        first = len(training.images.database_files)
        self.images = [*(first + queries).tolist(), *(int(training.positives[query][0]) for query in queries)]
'''  # fmt: skip


@pytest.fixture
def call(city_flags, tmp_path, monkeypatch):
    """The words of a training into a folder of a name, with a third line in each of the tables."""
    (tmp_path / "places_objective.py").write_text(PLACES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(OBJECTIVES, "places", "places_objective:Places")
    monkeypatch.setitem(OPTIMIZERS, "RPROP", lambda parameters, lr, *_: torch.optim.Rprop(parameters, lr=lr))
    monkeypatch.setitem(SCHEDULES, "linear", lambda epoch, lr, *_: int(epoch) * lr)

    return lambda name, *words: [*city_flags, f"--runsPath={tmp_path / name}", "--nEpochs=2", "--lr=0.01", *words]


def state_of(run):
    return torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True)


def equal(first, second):
    return all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())


def test_a_third_of_each_is_reached_by_its_flag_and_resumes_to_the_bit(call, stopped_after, tmp_path):
    words = ["--loss=places", "--optim=RPROP", "--schedule=linear"]
    assert main.main(call("whole", *words)) == 0
    run = newest_run(tmp_path / "whole")
    wanted = state_of(run)
    flags = json.loads((run / "flags.json").read_text())
    assert (flags["loss"], flags["optim"], flags["schedule"]) == ("places", "RPROP", "linear")
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["learning_rate"]) for row in rows] == [0.01, 0.02]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"]), "it learns"
    assert wanted["position"]["steps"] == 2 * 2 * 3 and "step_size" in wanted["optimizer"]["state"][0]

    stopped_after(call("stopped", *words), checkpoints=4)  # after the first block of the second epoch
    stopped = newest_run(tmp_path / "stopped")
    assert not equal(wanted, state_of(stopped))
    assert main.main(["--mode=train", f"--resume={stopped}", "--threads=0", "--device=cpu"]) == 0
    assert equal(wanted, state_of(stopped)) and state_of(stopped)["position"] == wanted["position"]


def test_defaults_are_the_papers(call, tmp_path):
    """Also of runs that were made before there were such flags."""
    assert main.main(call("defaults", "--nEpochs=1")) == 0
    run = newest_run(tmp_path / "defaults")
    flags = json.loads((run / "flags.json").read_text())
    assert (flags.pop("loss"), flags.pop("schedule"), flags["optim"]) == ("triplet", "step", "SGD")
    (run / "flags.json").write_text(json.dumps(flags))
    resuming = ["--mode=train", f"--resume={run}", "--threads=0", "--device=cpu", "--nEpochs=2"]
    assert main.main(resuming) == 0
    assert main.main([*resuming, "--loss=places"]) == 2


@pytest.mark.parametrize(("flag", "known"), [("loss", "triplet"), ("optim", "SGD"), ("schedule", "step")])
def test_what_no_table_has_is_refused(capsys, flag, known):
    assert main.main(["--mode=train", f"--{flag}=other"]) == 2
    said = capsys.readouterr().err
    assert f"--{flag}" in said and known in said and len(said.splitlines()) == 1
