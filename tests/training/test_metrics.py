"""metrics.csv and training.png of a run."""

import csv
import resource

import numpy as np
import pytest
import torch
from PIL import Image

import main
from vpr.common.errors import UserError
from vpr.report.plots import draw_training
from vpr.training.log import COLUMNS, Board, Metrics

ROW = dict.fromkeys(COLUMNS, 1.0)


def rows_of(run):
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def resumed(copy_toy_run, tmp_path_factory):
    """The table after an epoch, the run after another, and the most memory held before that and after, in MB."""
    copied = copy_toy_run(tmp_path_factory.mktemp("metrics"))
    before, run = rows_of(copied.run), copied.run
    peaks = [peak_megabytes()]
    assert main.main([*copied.places, "--mode=train", f"--resume={run}", "--nEpochs=2", "--evalEvery=1"]) == 0
    return before, run, [*peaks, peak_megabytes()]


def peak_megabytes():
    """Linux counts in units of 1024 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def test_a_row_for_each_epoch_and_a_resumed_run_goes_on(resumed):
    before, run, peaks = resumed
    rows = rows_of(run)
    assert [row["epoch"] for row in rows] == ["1", "2"] and rows[:1] == before
    state = torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True)
    best = max(rows, key=lambda row: [float(row[f"recall_at_{n}"]) for n in (5, 1, 10)])
    np.testing.assert_allclose(
        state["position"]["best"], [float(best[f"recall_at_{n}"]) for n in (5, 1, 10)], rtol=1e-5
    )
    for row in rows:
        images = float(row["images_per_second"]) * float(row["seconds"])
        tuples = int(row["tuples"])
        assert 48 + 12 + 3 * tuples - 1 <= images <= 48 + 12 + 12 * tuples + 1  # a tuple is of 3 to 12 images
        assert float(row["learning_rate"]) == 0.001
    assert peaks[0] * (1 - 1e-5) <= float(rows[1]["memory_mb"]) <= peaks[1] * (1 + 1e-5)  # six digits are stored


def test_curves_show_the_rows(resumed, tmp_path, figures):
    """Those that a run's picture holds, and what is handed to the plot for given rows."""
    _, run, _ = resumed
    with Image.open(run / "training.png") as picture:
        assert picture.width > 1000 and picture.format == "PNG"
    rows = [
        {"epoch": 1, "loss": 0.5, "violating_per_tuple": 4.0, "recall_at_1": 0.25, "recall_at_5": 0.5},
        {"epoch": 2, "loss": 0.25, "violating_per_tuple": 3.0},  # not validated
        {"epoch": 3, "loss": 0.125, "violating_per_tuple": 1.0, "recall_at_1": 0.75, "recall_at_5": 1.0},
    ]
    draw_training(tmp_path / "training.png", rows)
    (figure,) = figures
    shown = [
        {line.get_label() if axes.get_legend() else "": line.get_xydata().tolist() for line in axes.get_lines()}
        for axes in figure.axes
    ]
    assert shown == [
        {"": [[1, 0.5], [2, 0.25], [3, 0.125]]},
        {"": [[1, 4], [2, 3], [3, 1]]},
        {"R@1": [[1, 25], [3, 75]], "R@5": [[1, 50], [3, 100]]},
    ]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("batch_accuracy", "batch accuracy"),
        ("cosines_apart", "teacher"),
        ("violating_per_tuple", "negatives in a tuple"),
    ],
)
def test_the_middle_curve_is_that_of_the_objective(tmp_path, figures, name, label):
    rows = [{"epoch": 1, "loss": 1.0, "violating_per_tuple": 9.0, name: 0.5, "recall_at_1": 0.25}]
    draw_training(tmp_path / "training.png", rows)
    ((_, middle, _),) = (figure.axes for figure in figures)
    assert middle.get_lines()[0].get_xydata().tolist() == [[1, 0.5]] and label in middle.get_ylabel()


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


def test_a_board_that_cannot_be_written_is_said_once_and_left_out(tmp_path, capsys):
    """The run's name is taken by a file."""
    (tmp_path / "run").write_text("a file")
    board = Board(tmp_path / "run", 1)
    for epoch in (1, 2):
        board.add("train/loss", 0.5, epoch)
        board.add_image("worst", Image.new("RGB", (8, 8)), epoch)
    assert capsys.readouterr().out.count("TensorBoard's scalars and pictures are given up") == 1
    assert (tmp_path / "run").read_text() == "a file"


def test_a_board_has_what_it_was_given_at_once(tmp_path):
    board = Board(tmp_path, 1)
    (file,) = tmp_path.glob("events.out.tfevents.*")
    sizes = [file.stat().st_size]
    board.add("train/loss", 0.5, 1)
    sizes.append(file.stat().st_size)
    board.add_image("worst", Image.effect_noise((64, 64), 80).convert("RGB"), 1)
    sizes.append(file.stat().st_size)
    assert sizes[0] > 0 and sizes[1] > sizes[0] and sizes[2] > sizes[1] + 1000
    assert b"train/loss" in file.read_bytes()
