"""The programs in examples/, as a reader would start them."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
