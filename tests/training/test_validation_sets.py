"""--valSets and --bestBy: other folders measured at each validation, and whose recall chooses the best epoch."""

import csv
import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import draw_image

import main
import vpr.training.trainer
from campaigns.determinism import different
from vpr.data.reader import ImageReader
from vpr.runs.run import newest_run
from vpr.runs.stored import load_model

pytestmark = pytest.mark.slow
# R@5 after each epoch; the mean is 0.40, 0.45, 0.50, 0.60.
RECALLS = {"val": [0.9, 0.3, 0.5, 0.6], "north": [0.1, 0.9, 0.3, 0.6], "south": [0.2, 0.15, 0.7, 0.6]}
BEST = {"val": 1, "north": 2, "south": 3, "all": 4}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two folders with a val split of twelve database images, three places 60 m apart, and six queries."""
    folder = tmp_path_factory.mktemp("sets")
    for seed, name in enumerate(("north", "south")):
        for kind, count in (("database", 12), ("queries", 6)):
            for number in range(count):
                place = number * 3 // count
                file = f"@{500000 + 60 * place + number % 2}@4477000@{number}@.jpg"
                draw_image(folder / name / "val" / kind / file, (80, 64), [seed, count, number])
    return [str(folder / "north"), str(folder / "south")]


def rows_of(run):
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def state_of(run, which="checkpoint"):
    return torch.load(run / "checkpoints" / f"{which}.pth.tar", weights_only=True)


@pytest.fixture
def trained(street_flags, tmp_path, monkeypatch):
    """Trains four epochs by flags, in which the recalls of each set are those above; gives the run."""
    numbers = itertools.count()

    def train(*words):
        calls, measure = {}, vpr.training.trainer.measure_split

        def measured(*given):
            name = given[6] or "val"
            epoch = calls[name] = calls.get(name, -1) + 1
            evaluation, outcomes = measure(*given)
            return replace(evaluation, recalls=dict.fromkeys((1, 5, 10, 20), RECALLS[name][epoch])), outcomes

        runs = tmp_path / str(next(numbers))
        with monkeypatch.context() as patch:
            patch.setattr(vpr.training.trainer, "measure_split", measured)
            call = [*street_flags, "--pooling=gem", "--nEpochs=4", f"--runsPath={runs}"]
            assert main.main([*call, *words]) == 0
        return newest_run(runs)

    return train


def test_the_set_that_is_named_chooses_the_best_epoch_and_changes_no_step(trained, sets, capsys):
    plain = trained()
    for name, epoch in BEST.items():
        capsys.readouterr()
        run = trained("--valSets", *sets, f"--bestBy={name}")
        assert state_of(run, "model_best")["position"]["best_epoch"] == epoch
        assert state_of(run, "model_best")["position"]["epoch"] == epoch + 1
        found, wanted = state_of(run), state_of(plain)
        assert different(found["state_dict"], wanted["state_dict"]) == []
        assert torch.equal(found["random_state"], wanted["random_state"])
        said = re.findall(r"epoch (\d) validation(?: of (\w+))?: (?:.*\n){3}.*best so far", capsys.readouterr().out)
        assert max(int(number) for number, _ in said) == epoch
        assert {of or "val" for _, of in said} == ({*RECALLS} if name == "all" else {name})


@pytest.mark.parametrize(("name", "epochs"), [("val", 2), ("north", 3), ("south", 2), ("all", 4)])
def test_patience_counts_by_the_set_that_is_named(trained, sets, name, epochs):
    run = trained("--valSets", *sets, f"--bestBy={name}", "--patience=1")
    assert state_of(run)["position"]["epoch"] == epochs + 1


def test_recalls_of_each_set_are_columns_and_scalars_of_its_name(trained, sets):
    run = trained("--valSets", *sets)
    rows = rows_of(run)
    for name, values in RECALLS.items():
        column = "recall_at_5" if name == "val" else f"{name}_recall_at_5"
        assert [float(row[column]) for row in rows] == values
    (events,) = run.glob("events.out.tfevents.*")
    for tag in ("validation/", "validation_of_north/", "validation_of_south/"):
        assert events.read_bytes().count(f"{tag}recall_at_5".encode()) == 4


def test_a_set_is_measured_as_by_hand_re_ranked_and_as_one_session(street_flags, sets, tiny_places, tmp_path, capsys):
    """R@1 and R@5 of all queries by NumPy; a folder in Pittsburgh's form beside a run on a folder of own images."""
    call = [*street_flags, "--pooling=avg", "--nEpochs=1", "--rerank=3", f"--runsPath={tmp_path}"]
    capsys.readouterr()
    assert main.main([*call, "--valSets", sets[0], str(tiny_places)]) == 0
    printed, run = capsys.readouterr().out, newest_run(tmp_path)
    for name in ("north", "places"):
        blocks = re.findall(rf"^{name}: split val.*\n(.*\n).*\n(R@1.*)", printed, re.MULTILINE)
        assert [("second look" in text, "own mean" in text) for text, _ in blocks] == [(True, False), (False, True)]
    assert "validation of places: split val (pitts30k_val): 5 queries" in printed
    files = [sorted((Path(sets[0]) / "val" / kind).iterdir()) for kind in ("database", "queries")]
    model, descriptors = load_model(run, "latest", whitened=False).model.eval(), []
    for each in files:
        ((group,),) = ImageReader(each, (48, 64), 0).batches([range(len(each))])
        descriptors.append(model.describe(group.values).astype(np.float32))
    database, queries = (np.array([float(file.name.split("@")[1]) for file in each]) for each in files)
    right = np.abs(queries[:, None] - database) <= 25
    order = np.argsort(-descriptors[1] @ descriptors[0].T, axis=1)
    (row,) = rows_of(run)
    for n in (1, 5):
        recall = np.take_along_axis(right, order[:, :n], axis=1).any(axis=1).mean()
        assert float(row[f"north_recall_at_{n}"]) == pytest.approx(recall, abs=1e-5)


def test_a_stopped_training_with_sets_ends_with_the_same_bits(street_flags, sets, tmp_path, stopped_after):
    words = [*street_flags, "--pooling=gem", "--nEpochs=2", "--valSets", *sets, "--bestBy=all"]
    assert main.main([*words, f"--runsPath={tmp_path / 'whole'}"]) == 0
    stopped_after([*words, f"--runsPath={tmp_path / 'again'}"], 2)
    whole, again = newest_run(tmp_path / "whole"), newest_run(tmp_path / "again")
    assert len(rows_of(again)) == 1
    assert main.main(["--mode=train", f"--resume={again}", "--threads=0", "--device=cpu"]) == 0
    for which in ("checkpoint", "model_best"):
        wanted, found = state_of(whole, which), state_of(again, which)
        assert different(wanted["state_dict"], found["state_dict"]) == [] and wanted["position"] == found["position"]
    names = [name for name in rows_of(whole)[0] if "recall_at" in name]
    assert len(names) == 12 and [[row[n] for n in names] for row in rows_of(whole)] == [
        [row[n] for n in names] for row in rows_of(again)
    ]


def one_line(capsys):
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_what_cannot_be_measured_is_one_line_before_anything_trains(street_flags, sets, tmp_path, capsys):
    for number in range(2):
        draw_image(tmp_path / "no_queries" / "val" / "database" / f"@5@{number}@.jpg", (80, 64), number)
        draw_image(tmp_path / "no_val" / "train" / "database" / f"@5@{number}@.jpg", (80, 64), number)
    for name in ("north", "all"):
        for kind in ("database", "queries"):
            draw_image(tmp_path / "copies" / name / "val" / kind / "@5@1@.jpg", (80, 64), 1)
    copies = tmp_path / "copies"
    for words, said in (
        (["--valSets", str(tmp_path / "no_val")], "no_val: no val"),
        (["--valSets", str(tmp_path / "nowhere")], "nowhere: no val"),
        (["--valSets", str(tmp_path / "no_queries")], "has no queries"),
        (["--valSets", sets[0], str(copies / "north")], "a set of the name north already"),
        (["--valSets", str(copies / "all")], "a set of the name all already"),
        (["--valSets", *sets, "--bestBy=east"], "--bestBy=east: wanted val, all, north, south"),
        (["--bestBy=north"], "--bestBy=north: wanted val, all:"),
    ):
        capsys.readouterr()
        assert main.main([*street_flags, "--pooling=gem", f"--runsPath={tmp_path / 'runs'}", *words]) == 2
        assert said in one_line(capsys)
    assert not (tmp_path / "runs").exists()


def test_a_run_keeps_its_sets_and_refuses_other_images_in_them(street_flags, tmp_path, capsys):
    for kind in ("database", "queries"):
        draw_image(tmp_path / "east" / "val" / kind / "@5@1@.jpg", (80, 64), 1)
    call = [*street_flags, "--pooling=gem", "--nEpochs=1", f"--runsPath={tmp_path / 'runs'}"]
    assert main.main([*call, "--valSets", str(tmp_path / "east"), "--bestBy=east"]) == 0
    resume = ["--mode=train", f"--resume={newest_run(tmp_path / 'runs')}", "--threads=0", "--device=cpu"]
    capsys.readouterr()
    assert main.main([*resume, "--nEpochs=2", "--bestBy=val"]) == 2
    assert "--bestBy=val contradicts" in one_line(capsys)
    assert main.main([*resume, "--nEpochs=2"]) == 0
    assert [row["east_recall_at_1"] for row in rows_of(newest_run(tmp_path / "runs"))] == ["1", "1"]
    draw_image(tmp_path / "east" / "val" / "database" / "@5@2@.jpg", (80, 64), 2)
    capsys.readouterr()
    assert main.main([*resume, "--nEpochs=3"]) == 2
    said = one_line(capsys)
    assert "1 database images and 1 queries in its east/val split" in said and "--valSets" in said
