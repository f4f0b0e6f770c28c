"""Trainings on places of folders and of walks: they learn, go on to the bit, and refuse other images."""

import csv

import pytest
from drawing import draw_image
from PIL import Image
from test_place_batches import same, state_of

import main
import vpr.modes.train
import vpr.training.place_batches
from vpr.runs.run import newest_run

PLACES = {"one": 6, "two": 4}  # in each folder, of three images


@pytest.fixture
def train(tmp_path):
    """Trains AlexNet on 64x64 pictures, beside a validation split with positions; more words name what it learns of."""
    root = tmp_path / "set"
    for kind, count in (("database", 6), ("queries", 6)):
        for number in range(count):
            name = f"@{500000 + 60 * (number // 2) + number % 2}@4477000@{kind}@.jpg"
            draw_image(root / "val" / kind / name, (64, 64), [0, number // 2, number % 2])
    words = [
        "--mode=train", "--dataset=folder", f"--root={root}", "--arch=alexnet", "--fromscratch", "--pooling=gem",
        "--threads=0", "--imageSize", "64", "64", "--device=cpu", "--precision=fp32", "--loss=multi-similarity",
        "--batchSize=3", "--imagesPerPlace=3", "--optim=ADAMW", "--lr=0.001", f"--runsPath={tmp_path / 'runs'}",
    ]  # fmt: skip
    return lambda *more: [*words, *more]


@pytest.fixture
def folders(tmp_path):
    """Two folders of places, as words."""
    for number, (name, count) in enumerate(PLACES.items()):
        for place in range(count):
            for view in range(3):
                draw_image(tmp_path / name / f"place {place}" / f"{view}.png", (64, 64), [number, place, view])
    return ["--placeFolders", *(str(tmp_path / name) for name in PLACES)]


@pytest.fixture
def frame(tmp_path):
    """Draws a frame into the training split: a part of the picture of each five in a row, in some light."""

    def draw(name, number, light=1.0):
        picture = draw_image(tmp_path / "picture.png", (72, 64), [7, number // 5])
        path = tmp_path / "set" / "train" / "database" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shift = 2 * (number % 5)
        Image.open(picture).crop((shift, 0, shift + 64, 64)).point(lambda value: light * value).save(path)

    return draw


@pytest.fixture
def walk(frame):
    """Two walks of 35 frames without positions, of which the second comes by where the first did from frame 10 on, in
    another light; as a word. Of each ten frames the first five are a place."""
    for number in range(35):
        frame(f"day/{number}.png", number)
        frame(f"later/{number}.png", number + 10, light=0.98)
    return ["--walk=again"]


def newest(tmp_path):
    return newest_run(tmp_path / "runs")


def resume(run, *more):
    return main.main(["--mode=train", f"--resume={run}", "--threads=0", "--device=cpu", *more])


@pytest.mark.parametrize("source", ["folders", "walk"])
def test_it_learns(train, tmp_path, request, source):
    assert main.main(train(*request.getfixturevalue(source), "--nEpochs=6")) == 0
    with open(newest(tmp_path) / "metrics.csv", newline="", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 6 and losses[-1] < losses[0]


@pytest.mark.parametrize("source", ["folders", "walk"])
def test_clusters_are_of_the_database_that_there_is(train, tmp_path, request, capsys, source):
    """Of train, without positions, or else of val, whose six images have 54 local descriptors."""
    of_places = request.getfixturevalue(source)
    model = ["--pooling=netvlad", "--num_clusters=4", f"--dataPath={tmp_path / 'centroids'}"]
    words = train(*model, "--nEpochs=1")
    unread = ("--mode", "--loss", "--batchSize", "--imagesPerPlace", "--optim", "--lr", "--runsPath", "--nEpochs")
    assert main.main(["cluster", *(word for word in words if not word.startswith(unread))]) == 0
    count = 9 * (6 if source == "folders" else 70)
    assert f"4 centroids of {count} descriptors" in capsys.readouterr().out
    assert main.main([*words, *of_places]) == 0


@pytest.mark.parametrize("more", [[], ["--hardEvery=2", "--alike"]], ids=["random", "hard and alike"])
@pytest.mark.parametrize("source", ["folders", "walk"])
def test_a_stopped_training_goes_on_to_the_bit(train, tmp_path, request, monkeypatch, stopped_after, source, more):
    monkeypatch.setattr(vpr.training.place_batches, "STEPS", 1)
    words = train(*request.getfixturevalue(source), "--nEpochs=2", *more)
    assert main.main(words) == 0
    wanted = state_of(newest(tmp_path))
    stopped_after(words, 2)
    stopped = newest(tmp_path)
    assert not same(wanted, state_of(stopped))
    assert resume(stopped) == 0
    assert same(wanted, state_of(stopped))


def test_places_of_a_walk_that_comes_by_again_are_found_once_by_the_model_as_it_starts(
    train, walk, tmp_path, monkeypatch, capsys
):
    """Frames 10 to 34 are seen again as 35 to 59: of these 10 to 14, 20 to 24 and 30 to 34 are places."""
    assert main.main(train(*walk, "--nEpochs=1")) == 0
    assert "8 places of walks, 5 where they are seen again" in capsys.readouterr().out
    twice = [[*range(at, at + 5), *range(at + 25, at + 30)] for at in (10, 20, 30)]
    expected = [[*range(5)], *twice, [*range(65, 70)]]
    assert state_of(newest(tmp_path))["walk"] == expected
    monkeypatch.setattr(vpr.modes.train, "grow_by_model", None)  # the model has changed since
    assert resume(newest(tmp_path), "--nEpochs=2") == 0
    assert state_of(newest(tmp_path))["walk"] == expected


def test_a_walk_that_never_comes_by_again_has_its_places(train, frame, tmp_path):
    for number in range(45):
        frame(f"{number}.png", number)
    assert main.main(train("--walk=again", "--nEpochs=1")) == 0
    assert state_of(newest(tmp_path))["walk"] == [[*range(at, at + 5)] for at in range(0, 45, 10)]


def test_a_training_goes_on_with_moved_folders_and_refuses_others(train, folders, tmp_path, capsys):
    assert main.main(train(*folders, "--nEpochs=1")) == 0
    (tmp_path / "two").rename(tmp_path / "moved")
    moved, run = [*folders[:2], str(tmp_path / "moved")], newest(tmp_path)
    assert resume(run, *moved, "--nEpochs=2") == 0
    assert "from here on this run differs" in capsys.readouterr().out
    image = tmp_path / "moved" / "place 1" / "2.png"
    image.rename(image.with_name("3.png"))
    assert resume(run, *moved, "--nEpochs=3") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "as many with other names" in said and "--placeFolders" in said
