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

from vpr.retrieval.conditions.session import Earlier

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


@pytest.mark.parametrize("length", [0, 20])
def test_of_five_frames_keypoints_that_agree_choose(closure, monkeypatch, length):
    """The one with the most; of sequences the greatest product of their score and the logarithm."""
    frames, number = walk_of(70, seed=2), {}
    monkeypatch.setattr(closure, "verify", lambda one, other: SimpleNamespace(inliers=number[one, other]))
    random, earlier = np.random.default_rng(0), Earlier(length=length)
    place = closure.SeenBefore(closure.Way("", length=length, verified=True))
    plain = closure.SeenBefore(closure.Way("", length=length))
    chosen = []
    for now, frame in enumerate(frames):
        number |= {(now, before): int(random.integers(0, 40)) for before in range(now)}
        found, nearest, scores = place.add(frame, now), plain.add(frame, None), earlier.add(frame)
        if now < 21:
            assert found is nearest is None
            continue
        hits = sorted(range(now - 20), key=lambda n: -scores[n])[:5]
        assert nearest == (hits[0], pytest.approx(scores[hits[0]]))
        worth = {n: scores[n] * np.log(1 + number[now, n]) if length else number[now, n] + scores[n] for n in hits}
        best = max(hits, key=worth.get)
        assert found == (best, pytest.approx(worth[best], abs=1e-5))
        chosen.append(best != hits[0])
    assert any(chosen)


def test_recall_at_a_precision_by_hand(closure):
    """24 frames: places 0 to 20 for the first time, 0 and 1 again, and a new one. Two could have been known."""

    def said(answers, **changes):
        metres = np.array([*range(21), 0.2, 1, 99]) * 100.0
        for frame, value in changes.items():
            metres[int(frame[1:])] = value
        positions = np.stack([metres, np.zeros(24)], axis=1)
        images = SimpleNamespace(places=SimpleNamespace(database_positions=positions))
        return closure.worth([None] * 21 + answers, images)

    worth = "of 2 frames of places seen before {0}/{0}/{0}% found, {1}% right of all {2}".format
    assert said([(0, 0.9), (1, 0.8), (3, 0.4)]) == worth("100.0", "100.0", 3)
    assert said([(0, 0.9), (1, 0.3), (3, 0.4)]) == worth("50.0", "100.0", 3), "a new place that is answered is wrong"
    assert said([(0, 0.9), (0, 0.9), (3, 0.4)]) == worth("0.0", "50.0", 3), "as sure as a wrong one is not surer"
    assert said([(0, 0.9), None, None]) == worth("50.0", "50.0", 1)
    assert said([None] * 3) == worth("0.0", "0.0", 0)
    assert said([(0, 0.9), (1, 0.8), (3, 0.4)], _22=2e4).startswith("of 1 frames of places seen before 100.0/")
    near = said([(0, 0.9), (1, 0.8), (2, 0.7)], _23=1990.0)  # where frame 20 was, three frames ago
    assert near == worth("100.0", "100.0", 3)
    assert said([(0, 0.9), (1, 0.8), None], _5=np.nan) == "2 answers, unknown how many are right"


def test_fewer_may_be_found_where_none_may_be_wrong(closure):
    """The second of 40 answers is wrong: 1 right before it, 39 of 40 at the end, which is more than 95% of them."""
    positions = np.array([[100.0 * (n % 40), 0] for n in range(80)])
    images = SimpleNamespace(places=SimpleNamespace(database_positions=positions))
    answers = [None] * 40 + [(n if n != 1 else 7, 1 - 0.01 * n) for n in range(40)]
    assert closure.worth(answers, images) == (
        "of 40 frames of places seen before 2.5/2.5/97.5% found, 97.5% right of all 40"
    )


def test_frames_of_the_toy_city_follow_a_path_in_one_direction_after_the_other(closure, tmp_path):
    """By hand: three stations on a line, two directions at right angles and one between them."""
    names = [f"000/{n:06d}_pitch1_yaw{yaw}.jpg" for n in range(3) for yaw in (1, 2, 3)]
    positions = np.array([[x, 0.0] for x in (0, 20, 10) for _ in range(3)] + [[19.0, 0], [1, 0], [9, 0]])
    (tmp_path / "toy_city.json").write_text('{"query_headings": {"val": [2.0, 92.0, 44.0]}}')
    places = SimpleNamespace(database_names=names)
    images = SimpleNamespace(places=places, split="val", database_files=names)
    order, moved = closure.along_streets(images, positions, tmp_path)
    assert order.tolist() == [0, 6, 3, 2, 8, 5, 9, 10], (
        "looking north, then east; then the queries: 44 degrees is between"
    )
    apart = np.linalg.norm(moved[:, None] - moved, axis=2)
    assert apart[0, 6] == 10 and apart[0, 2] > 1000 and apart[3, 9] == 1


def test_clusters_of_a_set_are_those_of_its_database_alone(closure, tiny_city, monkeypatch):
    """Other modes take the same file of clusters, and are asked for the queries."""
    asked = []

    def learnt(options, device, database):
        asked.extend(database.database_files)
        raise KeyboardInterrupt

    monkeypatch.setattr(closure, "model_of", learnt)
    monkeypatch.setattr(sys, "argv", ["", str(tiny_city), "--dataset=toy", "--split=val", "--model=small"])
    with pytest.raises(KeyboardInterrupt):
        closure.main()
    assert asked and not any("queries_real" in file.parts for file in asked)


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
    found = "of 20 frames of places seen before 100.0/100.0/100.0% found, 100.0% right of all 39, "  # 60 - 21
    assert f"single frames: {found}" in printed and "verified" not in printed
    assert re.search(r"^sequences of 20 without them: of 20 .* frames a second$", printed, re.MULTILINE)
