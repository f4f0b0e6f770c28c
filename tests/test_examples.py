"""The programs in examples/, as a reader would start them."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawing import draw_image
from PIL import Image

from vpr.data.frames import Frames
from vpr.search.rules import SequenceRule
from vpr.search.sequences import search_sequences

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(toy_run):
    return toy_run.run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three images of two sizes: the last is the first, a little brighter."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(5)
    coarse = random.integers(0, 200, (2, 6, 8, 3), dtype=np.uint8)
    paths = [folder / f"{name}.png" for name in ("first", "other", "brighter")]
    sizes = ((96, 72), (80, 88), (96, 72))
    for path, values, size in zip(paths, (coarse[0], coarse[1], coarse[0] + 10), sizes, strict=True):
        Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(path)
    return paths


@pytest.fixture
def started(monkeypatch, capsys):
    """Runs a program of examples/ with words of a command line, and gives what it printed."""

    def start(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return start


def local_descriptors(run, path):
    """[D, h, w] of the run's backbone."""
    model = torch.hub.load(str(ROOT), "netvlad", source="local", checkpoint=str(run), whitened=False, device="cpu")
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
    with torch.no_grad():
        return model.model.local_descriptors(pixels)[0].double().numpy()


def test_describe_writes_a_row_for_each_image_and_finds_the_brighter_copy(started, run, images, tmp_path):
    printed = started("describe.py", run, tmp_path / "found.npy", *images, "--device=cpu")
    found = np.load(tmp_path / "found.npy")
    assert found.shape == (3, 4 * 256) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)
    backwards = tmp_path / "backwards.npy"
    started("describe.py", run, backwards, *images[::-1], "--device=cpu")
    np.testing.assert_allclose(np.load(backwards)[::-1], found, atol=2e-3)  # rows belong to the images as named
    assert not np.allclose(found[0], found[1], atol=2e-3)
    assert f"{images[0]} looks most like {images[2]}" in printed
    assert f"{images[2]} looks most like {images[0]}" in printed


def test_own_pooling_is_made_of_the_backbones_map(started, run, images):
    printed = started("own_pooling.py", run, *images[:2])
    pooled = []
    for path in images[:2]:
        values = local_descriptors(run, path)
        mean = values.mean(axis=(1, 2))
        deviation = np.sqrt(np.mean((values - mean[:, None, None]) ** 2, axis=(1, 2)))
        descriptor = np.concatenate([mean, deviation])
        pooled.append(descriptor / np.linalg.norm(descriptor))
    dimensions, cosine = re.search(r"^(\d+) dimensions, cosine ([-\d.]+)$", printed, re.MULTILINE).groups()
    assert int(dimensions) == 2 * 256
    assert float(cosine) == pytest.approx(pooled[0] @ pooled[1], abs=2e-3)


def test_locate_names_the_image_itself_and_keeps_an_index(started, copy_toy_run, tiny_city, tmp_path):
    copied = copy_toy_run(tmp_path)
    image = next((tiny_city / "database").rglob("*.jpg"), None) or next(tiny_city.rglob("*.jpg"))
    for _ in range(2):
        printed = started("locate.py", copied.run, tiny_city, image, "--device=cpu")
        assert re.search(rf"^{image} looks like \S+, [\d.]+ E [\d.]+ N.*: confidence ", printed, re.MULTILINE), printed
    assert len(list(copied.run.rglob("database_*"))) >= 1


@pytest.fixture(scope="module")
def closure():
    """The program that looks for places seen before, imported."""
    spec = importlib.util.spec_from_file_location("loop_closure", ROOT / "examples" / "loop_closure.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        patch.setattr(sys, "path", list(sys.path))
        spec.loader.exec_module(module)
        yield module


def walk_of(count, dim=24, seed=0):
    """Noisy descriptors of a walk that begins anew after 30 frames, all moved alike, of length 1."""
    random = np.random.default_rng(seed)
    places = random.normal(size=(30, dim))
    values = places[np.arange(count) % 30] + 0.7 * random.normal(size=(count, dim)) + random.normal(size=dim)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


STEPS = [(False, False), (True, False), (True, True), (False, True)]


@pytest.mark.parametrize(("mean", "sequences"), STEPS)
def test_each_frame_is_searched_among_those_of_long_before_it(closure, mean, sequences):
    """Against a search of its own for each frame, with all frames so far centred anew."""
    frames, place = walk_of(300), closure.SeenBefore(mean, sequences)
    rule = SequenceRule(10, causal=True) if sequences else SequenceRule(0)
    for now, frame in enumerate(frames):
        found, old = place.add(frame, None), now - 20
        if old < 1:
            assert found is None
            continue
        values = frames[: now + 1].astype(np.float64)
        if mean:
            values = values - values.mean(axis=0)
            values /= np.linalg.norm(values, axis=1, keepdims=True)
        last = np.arange(max(0, now - 10), now + 1)
        orders = (Frames(np.zeros(len(each), np.int64), each.astype(float)) for each in (np.arange(old), last))
        values = values.astype(np.float32)
        hits, scores = search_sequences(values[:old], values[last], 1, tuple(orders), rule)
        assert found[0] == hits[-1, 0] and found[1] == pytest.approx(scores[-1, 0], abs=1e-5)


@pytest.mark.parametrize(("mean", "sequences"), STEPS)
def test_no_answer_changes_by_later_frames(closure, mean, sequences):
    frames = walk_of(90, seed=1)
    whole = closure.SeenBefore(mean, sequences)
    answers = [whole.add(frame, None) for frame in frames]
    turned = closure.SeenBefore(mean, sequences)
    other = [*frames[:50], *frames[:49:-1]]
    assert [turned.add(frame, None) for frame in other][:50] == answers[:50] != answers[-50:]


def test_of_five_frames_the_one_with_most_keypoints_that_agree_is_taken(closure, monkeypatch):
    frames, number = walk_of(70, seed=2), {}
    monkeypatch.setattr(closure, "verify", lambda one, other: SimpleNamespace(inliers=number[one, other]))
    random, place, plain = np.random.default_rng(0), closure.SeenBefore(verified=True), closure.SeenBefore()
    for now, frame in enumerate(frames):
        number |= {(now, before): int(random.integers(0, 40)) for before in range(now)}
        found, nearest = place.add(frame, now), plain.add(frame, None)
        if now < 21:
            assert found is nearest is None
            continue
        cosines = frames[: now - 20] @ frame
        hits = sorted(range(now - 20), key=lambda n: -cosines[n])[:5]
        assert hits[0] == nearest[0]
        best = max(hits, key=lambda n: number[now, n])
        assert found == (best, pytest.approx(number[now, best] + cosines[best], abs=1e-5))


def test_frames_that_are_all_alike_are_all_answered(closure):
    for mean, sequences in STEPS:
        place = closure.SeenBefore(mean, sequences)
        answers = [place.add(np.full(16, 0.25, np.float32), None) for _ in range(60)]
        assert answers[:21] == [None] * 21
        assert all(0 <= hit < n - 20 and abs(score) <= 1.001 for n, (hit, score) in enumerate(answers[21:], 21))


def test_recall_at_full_precision_by_hand(closure):
    """24 frames: places 0 to 20 for the first time, 0 and 1 again, and a new one. Two could have been known."""

    def said(answers, **changes):
        metres = np.array([*range(21), 0.2, 1, 99]) * 100.0
        for frame, value in changes.items():
            metres[int(frame[1:])] = value
        positions = np.stack([metres, np.zeros(24)], axis=1)
        images = SimpleNamespace(places=SimpleNamespace(database_positions=positions))
        return closure.worth([None] * 21 + answers, images)

    worth = "of 2 places seen before {}% found at 100% precision, {}% at {}%".format
    assert said([(0, 0.9), (1, 0.8), (3, 0.4)]) == worth("100.0", "100.0", "66.7")
    assert said([(0, 0.9), (1, 0.3), (3, 0.4)]) == worth("50.0", "100.0", "66.7")
    assert said([(0, 0.9), (0, 0.9), (3, 0.4)]) == worth("0.0", "50.0", "33.3"), "as sure as a wrong one is not surer"
    assert said([(0, 0.9), None, None]) == worth("50.0", "50.0", "100.0")
    assert said([None] * 3) == worth("0.0", "0.0", "0.0")
    assert said([(0, 0.9), (1, 0.8), (3, 0.4)], _22=2e4).startswith("of 1 places seen before 100.0%")
    near = said([(0, 0.9), (1, 0.8), (2, 0.7)], _23=1990.0)  # where frame 20 was, three frames ago
    assert near == worth("100.0", "100.0", "66.7")
    assert said([(0, 0.9), (1, 0.8), None], _5=np.nan) == "2 answers, unknown how many are right"


def test_a_walk_there_and_back_is_known_on_its_way_back(started, tmp_path):
    """30 places there and back, each looking the same both times: those seen over 20 frames before are 20."""
    rows = ["image,easting,northing"]
    for n in range(60):
        place = min(n, 59 - n)
        draw_image(tmp_path / "walk" / f"{n:03d}.png", (64, 48), [1, place])
        rows.append(f"{n:03d}.png,{1000 + 100 * place},2000")
    (tmp_path / "walk" / "positions.csv").write_text("\n".join(rows))
    model = ["--arch=alexnet", "--fromscratch", "--pooling=avg", "--channels", *[16] * 5]
    printed = started("loop_closure.py", tmp_path / "walk", *model, "--device=cpu", f"--dataPath={tmp_path / 'model'}",
                      f"--runsPath={tmp_path}")  # fmt: skip
    assert "60 frames, those of the last 20 not asked for" in printed and "search by sequences" not in printed
    for step in ("single frames", "their mean"):
        assert f"{step}: of 20 places seen before 100.0% found at 100% precision, 100.0% at 51.3%, " in printed, (
            "20 of 39"
        )
    assert (
        re.search(r"^sequences: of 20 places .* frames a second$", printed, re.MULTILINE) and "verified" not in printed
    )
