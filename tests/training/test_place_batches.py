"""Training on batches of places: which images an epoch takes, one process against several, and a resumed training."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import main
import vpr.training.place_batches
import vpr.training.training_set
from campaigns.determinism import different
from pittsburgh import Places
from vpr.cli.options import parse_options
from vpr.cli.specs import places_spec
from vpr.common.errors import UserError
from vpr.data.places import PlaceImages
from vpr.runs.run import newest_run
from vpr.training.place_batches import PlaceBatches
from vpr.training.places.place_set import PlaceSet
from vpr.training.rules import TrainingRules
from vpr.training.state import Position
from vpr.training.training_set import load_training_set

PLACES, APART = 23, 100.0


def line_of_places(apart=APART):
    """Places along a line, place p with p % 4 + 2 images; the numbers of the images of a place follow each other."""
    ends = np.cumsum([place % 4 + 2 for place in range(PLACES)])
    images = [np.arange(end - place % 4 - 2, end) for place, end in enumerate(ends)]
    return PlaceSet("line", images, np.column_stack([apart * np.arange(PLACES), np.zeros(PLACES)]))


@pytest.fixture
def objective():
    """Makes the objective of a line of places by rules."""

    def make(apart=APART, **rules):
        images = SimpleNamespace(places=SimpleNamespace(positive_radius=25.0))
        training = SimpleNamespace(images=images, places=line_of_places(apart))
        return PlaceBatches(TrainingRules(loss="multi-similarity", batch_size=5, **rules), training, source=None)

    return make


def state(blocks_done=0):
    return SimpleNamespace(
        position=Position(blocks_done=blocks_done), hard_negative_cache=np.full((4, 10), -1), model=None
    )


def batches_of(objective, epoch, state=None, blocks_done=0):
    blocks = objective.batches(state or globals()["state"](blocks_done), epoch)
    return [[sorted(batch.images) for batch in block.batches] for block in blocks]


def places_in(batch, places):
    return sorted({place for place, own in enumerate(places.images) if set(own) & set(batch)})


def test_an_epoch_has_every_place_at_most_once_in_full_batches_of_its_images(objective):
    made = objective(images_per_place=4)
    for epoch in (1, 2, 3):
        (batches,) = batches_of(made, epoch)
        seen = [place for batch in batches for place in places_in(batch, made.places)]
        assert len(seen) == len(set(seen)) >= PLACES - 1  # a place that is left alone makes no batch
        assert [len(places_in(batch, made.places)) for batch in batches[:-1]] == [5] * (len(batches) - 1)
        for batch in batches:
            for place in places_in(batch, made.places):
                own = set(made.places.images[place])
                assert len(set(batch) & own) == min(4, len(own)) and len(batch) == len(set(batch))


def test_batches_differ_by_epoch_and_seed_alone(objective):
    first = batches_of(objective(), 1)
    assert first == batches_of(objective(), 1)
    assert first != batches_of(objective(), 2) and first != batches_of(objective(seed=124), 1)


def test_the_images_of_a_place_are_drawn_alike_often(objective):
    made, counts = objective(images_per_place=2), np.zeros(200)
    for epoch in range(1, 301):
        for batch in batches_of(made, epoch)[0]:
            counts[batch] += 1
    for own in made.places.images:
        assert np.abs(counts[own] - 2 * 300 / len(own)).max() < 60  # five deviations, and epochs without the place


def test_no_image_of_a_batch_is_a_hit_for_another_place(objective):
    """Centres of places that lie 20 m apart are 45 m apart in a batch: 25 m and two radii of 10."""
    made = objective(apart=20.0)
    for batch in batches_of(made, 1)[0]:
        assert np.diff(places_in(batch, made.places)).min() >= 3  # times 20 m


def test_blocks_go_on_where_they_were_left_and_share_the_epoch(objective, monkeypatch):
    monkeypatch.setattr(vpr.training.place_batches, "STEPS", 2)
    whole = batches_of(objective(), 1)
    assert [len(block) for block in whole] == [2, 2, 1]
    assert batches_of(objective(), 1, blocks_done=2) == whole[2:]
    shares = [block.share for block in objective().batches(state(), 1)]
    assert shares == [(0, 0.4), (0.4, 0.8), (0.8, 1)]
    assert [block.described for block in objective().batches(state(), 1)] == [
        sum(map(len, block)) for block in whole
    ]  # fmt: skip


def test_hard_batches_are_of_places_that_look_alike_when_they_were_described_last(objective, monkeypatch):
    """Places of three looks, each with its direction; described in epochs 1 and 4, kept in the state meanwhile."""
    made, described = objective(hard_every=3), []

    def describe(model, source, indices, *_):
        looks = [place % 3 for place in range(PLACES)]
        described.append(indices)
        assert [n in own for n, own in zip(indices, made.places.images, strict=True)] == [True] * PLACES
        return np.eye(3, dtype=np.float16)[looks], set()

    monkeypatch.setattr(vpr.training.place_batches, "describe", describe)
    monkeypatch.setattr(vpr.training.place_batches, "where_it_fits", lambda rows, _: rows)
    monkeypatch.setattr(vpr.training.place_batches.PlaceBatches, "places", made.places)
    going, kept, found = state(), state(), {}
    going.model = SimpleNamespace(device=None)
    for epoch in range(1, 5):
        found[epoch] = batches_of(made, epoch, going)
        if epoch == 1:  # as its checkpoint has it
            kept.hard_negative_cache = going.hard_negative_cache
        looks = [{place % 3 for place in places_in(batch, made.places)} for batch in found[epoch][0]]
        assert sum(len(each) == 1 for each in looks) >= 3, "8, 8 and 7 places of a look make a batch of 5 each"
        assert len(described) == 1 + (epoch > 3)
    assert found[1] != found[2] and described[0] != described[1]
    assert batches_of(made, 2, kept) == found[2] and len(described) == 2


def test_alike_images_of_a_place_are_those_that_show_the_same_from_elsewhere(objective, monkeypatch):
    """Twelve places of two panoramas, whose three images each look three ways: each is paired with that of its way."""
    spots = np.array([[100.0 * (n // 6) + n % 6 // 3, 0] for n in range(72)])
    ways = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 3)))[0].T

    def describe(model, source, indices, *_):
        # What a panorama's images share is more than what two panoramas show of a direction.
        light = np.eye(24)[[n // 3 for n in indices]]
        return np.hstack([1.2 * light, ways[[n % 3 for n in indices]]]).astype(np.float16), set()

    monkeypatch.setattr(vpr.training.place_batches, "describe", describe)
    monkeypatch.setattr(vpr.training.place_batches, "where_it_fits", lambda rows, _: rows)
    made, going, seen = objective(hard_every=2, alike=True), state(), set()
    made.training.images.places.database_positions, made.training.images.places.query_positions = spots[:50], spots[50:]
    made.training.places = PlaceSet("panoramas", list(np.arange(72).reshape(12, 6)), spots[::6])
    going.model = SimpleNamespace(device=None)
    for epoch in range(1, 31):
        for batch in batches_of(made, epoch, going)[0]:
            for first, second in np.reshape(batch, (-1, 2)):
                assert second - first == 3 and first // 6 == second // 6
                seen.add(first)
    assert len(seen) == 36, "each pair has its turn"


def test_views_of_an_image_come_alike_often_where_the_source_has_them(objective):
    """Three views of each image, one after the other; a source without any gives images themselves."""
    counts, plain = np.zeros(3), batches_of(objective(), 1)
    for sources, images in ((3, []), (1, [])):
        made = objective(views=("night", "blur"), cached_views=1)
        made.training.images.files, count = [None] * 80, 80 * sources
        object.__setattr__(made, "source", SimpleNamespace(files=[None] * count))
        for epoch in range(1, 31):
            (batches,) = batches_of(made, epoch)
            images.append([sorted(number // sources for number in batch) for batch in batches])
            if sources == 3:
                counts += np.bincount([number % 3 for batch in batches for number in batch], minlength=3)
        assert images[0] == plain[0]
    assert np.abs(counts / counts.sum() - 1 / 3).max() < 0.05


@pytest.mark.parametrize(("rules", "said"), [({"batch_size": 1}, "--batchSize"), ({"place_radius": 12.6}, "12.6 m")])
def test_places_that_make_no_batch_are_refused(street_flags, rules, said):
    with pytest.raises(UserError, match=said):
        load_training_set(places_spec(parse_options(street_flags)), TrainingRules(loss="multi-similarity", **rules))


@pytest.mark.parametrize("gap", [44.5, 45.5])
def test_places_too_near_for_any_batch_are_refused_before_a_run_is_made(monkeypatch, gap):
    where, files = np.array([[0.0, 0.0], [0.0, 0.0], [gap, 0.0], [gap, 0.0]]), [*map(Path, "abcd")]
    images = PlaceImages(Places("line", list("abcd"), [], where, np.empty((0, 2)), 25.0, 10.0), "train", files, [])
    monkeypatch.setattr(vpr.training.training_set, "load_places", lambda *_: images)
    refused = pytest.raises(UserError, match="of its 2 places lie 45 m apart")
    with refused if gap < 45 else contextlib.nullcontext():
        load_training_set(None, TrainingRules(loss="multi-similarity"))


@pytest.fixture
def call(street_flags, tmp_path):
    """The words of a training on batches of places, with a name for its folder."""
    words = [*street_flags, "--pooling=avg", "--nEpochs=3"]
    return lambda name, *more: [*words, f"--runsPath={tmp_path / name}", *more]


def state_of(run):
    return torch.load(run / "checkpoints" / "checkpoint.pth.tar", weights_only=True)


def resume(run):
    assert main.main(["--mode=train", f"--resume={run}", "--threads=0", "--device=cpu"]) == 0


def same(first, second):
    """Whether two checkpoints have equal weights, optimisers, memories and positions."""
    assert first.keys() == second.keys()
    parts = [
        [each["state_dict"], each.get("trained", {}), *each["optimizer"]["state"].values()] for each in (first, second)
    ]
    return (
        first["position"] == second["position"] and torch.equal(first["remembered"], second["remembered"])
        and len(parts[0]) == len(parts[1]) and not any(different(*pair) for pair in zip(*parts, strict=True))
    )  # fmt: skip


ADAMW = ["--optim=ADAMW", "--lr=0.001", "--schedule=cosine", "--warmup=4"]
ALL = [*ADAMW, "--hardEvery=2", "--ema=0.9", "--clip=0.5", "--backboneLr=0.5", "--gradientCache=5"]


VIEWED = ["--schedule=linear", "--hardEvery=2", "--alike", "--views", "colour", "erasing", "--cachedViews=1"]


@pytest.mark.parametrize("words", [[], ALL, VIEWED], ids=["plain", "all", "views of alike images"])
@pytest.mark.parametrize("checkpoints", [1, 2, 3])
def test_a_stopped_training_goes_on_to_the_bit(call, stopped_after, tmp_path, monkeypatch, words, checkpoints):
    monkeypatch.setattr(vpr.training.place_batches, "STEPS", 1)
    assert main.main(call("whole", *words)) == 0
    wanted = state_of(newest_run(tmp_path / "whole"))
    assert wanted["position"]["steps"] == 3 * 2 and wanted["position"]["epoch"] == 4
    stopped_after(call("stopped", *words), checkpoints)
    run = newest_run(tmp_path / "stopped")
    assert not same(wanted, state_of(run))
    resume(run)
    assert same(wanted, state_of(run))


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_bit(call, tmp_path):
    assert main.main(call("whole", *ALL)) == 0
    words = [sys.executable, str(Path(main.__file__)), *call("killed", *ALL)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    give_up = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("[0-9]*/metrics.csv")) and time.monotonic() < give_up:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had not ended by itself"
    run = newest_run(tmp_path / "killed")
    resume(run)
    assert same(state_of(newest_run(tmp_path / "whole")), state_of(run))


def test_it_learns_without_queries_and_says_what_is_mined(tmp_path, call, capsys):
    assert main.main(call("run", *ADAMW, "--nEpochs=6")) == 0
    assert "batch accuracy " in capsys.readouterr().out
    with open(newest_run(tmp_path / "run") / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows[0]["batch_accuracy"] < 1 and rows[0]["mined_share"] > 0 and rows[0]["violating_per_tuple"] > 0
    for row in rows:
        assert row["tuples"] == 24 and row["violating_per_tuple"] <= 8  # of 12 images in a step 8 show another place
        # An image with nothing mined takes all of its 11 pairs from the share, one with something 10 at most.
        assert row["mined_share"] <= 1 - row["batch_accuracy"] <= 11 * row["mined_share"] + 1e-4


def test_the_trunk_cache_holds_an_image_and_its_views(call, capsys):
    """24 images of the training split, each as it is and in three views by two names; val is as it is."""
    words = ["--trainFrom=pool", "--pooling=gem", "--trunkCache=memory", "--views", "blur", "rain", "--cachedViews=3"]
    assert main.main([*call("viewed", *words), "--nEpochs=1"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trunk cache: 0.")]
    assert [line.split(" of ")[1] for line in said] == [f"{24 * (1 + 2 * 3)} images, memory", "24 images, memory"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "words", "cached"),
    [
        (1, [], True), (2, [], False), (2, [], True),
        (3, ["--batchSize=2", "--imagesPerPlace=2"], False), (5, ["--batchSize=2", "--imagesPerPlace=2"], False),
    ],
)  # fmt: skip
def test_a_step_is_that_of_the_whole_batch(step, processes, words, cached):
    """By several processes, of which one may have no image, and by few images at a time, in float32."""
    wanted, found = step(1, *words), step(processes, *words, *(["--gradientCache=5"] if cached else []))
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-6) and found["loss"] > 0.1
    assert found["images"] == wanted["images"] and found["sums"] == pytest.approx(wanted["sums"], rel=1e-6)
    for name, value in wanted["gradient"].items():
        apart = found["gradient"][name] - value
        assert value.norm() > 0 and apart.abs().max() < 1e-6 and apart.norm() < 1e-5 * value.norm(), name
