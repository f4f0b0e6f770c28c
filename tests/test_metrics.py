"""metrics.csv and training.png of a run."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import main
from vpr.common.errors import UserError
from vpr.training.log import COLUMNS, Metrics

ROW = dict.fromkeys(COLUMNS, 1.0)


def rows_of(run):
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def resumed(train_toy_run, tmp_path_factory):
    """The table after an epoch, and the run after another."""
    places, run = train_toy_run(tmp_path_factory.mktemp("metrics"))
    before = rows_of(run)
    assert main.main([*places, "--mode=train", f"--resume={run}", "--nEpochs=2", "--evalEvery=1"]) == 0
    return before, run


def test_a_row_for_each_epoch_and_a_resumed_run_goes_on(resumed):
    before, run = resumed
    rows = rows_of(run)
    assert [row["epoch"] for row in rows] == ["1", "2"] and rows[:1] == before
    state = torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True)
    best = max(rows, key=lambda row: [float(row[f"recall_at_{n}"]) for n in (5, 1, 10)])
    np.testing.assert_allclose(
        state["position"]["best"], [float(best[f"recall_at_{n}"]) for n in (5, 1, 10)], rtol=1e-5
    )
    for row in rows:
        photos = float(row["images_per_second"]) * float(row["seconds"])
        tuples = int(row["tuples"])
        assert 48 + 12 + 3 * tuples - 1 <= photos <= 48 + 12 + 12 * tuples + 1  # a tuple is of 3 to 12 photos
        assert float(row["learning_rate"]) == 0.001 and float(row["memory_mb"]) > 100


def test_the_curves_are_drawn(resumed):
    _, run = resumed
    with Image.open(run / "training.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
        assert picture.width > 1000 and (0xB9, 0x2C, 0x2C) in colours


def test_rows_of_an_epoch_trained_again_are_replaced(tmp_path):
    first = Metrics(tmp_path, 1)
    for epoch in (1, 2, 3):
        first.add({**ROW, "epoch": epoch}, {5: 0.5} if epoch == 2 else {})
    again = Metrics(tmp_path, 3)
    again.add({**ROW, "epoch": 3, "loss": 0.25}, {1: 0.125, 20: 1.0, 5: 0.75})
    rows = rows_of(tmp_path)
    assert list(rows[0]) == [*COLUMNS, "recall_at_1", "recall_at_5", "recall_at_20"]
    assert [(row["epoch"], row["loss"], row["recall_at_5"]) for row in rows] == [
        ("1", "1", ""), ("2", "1", "0.5"), ("3", "0.25", "0.75"),
    ]  # fmt: skip


def test_a_table_that_was_edited_does_not_stop_a_training(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,loss\nthe first,good\n")
    Metrics(tmp_path, 2).add({**ROW, "epoch": 2}, {})
    assert [row["epoch"] for row in rows_of(tmp_path)] == ["2"]


def test_a_full_disk_is_said_once(tmp_path, monkeypatch, capsys):
    def full(_path):
        raise UserError("no room")

    monkeypatch.setattr("vpr.training.log.atomic_write", full)
    metrics = Metrics(tmp_path, 1)
    for epoch in (1, 2):
        metrics.add({**ROW, "epoch": epoch}, {1: 0.5})
    assert capsys.readouterr().out.count("no room") == 1 and not list(tmp_path.iterdir())
