"""The model as other people's code loads it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from vpr.errors import UserError
from vpr.images import decode
from vpr.model import build_model
from vpr.options import parse_options

REPOSITORY = str(Path(main.__file__).parent)


@pytest.fixture(scope="module")
def run(train_toy_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    places, trained = train_toy_run(folder)
    assert main.main([*places, "--mode=whiten", f"--resume={trained}", "--pcaDim=8"]) == 0
    return trained


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four photos of two sizes, mixed."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [folder / f"{n}.png" for n in range(4)]
    for n, path in enumerate(paths):
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(((96, 72), (80, 88))[n % 2], Image.Resampling.BICUBIC).save(path)
    return paths


def load(run, **arguments):
    return torch.hub.load(REPOSITORY, "netvlad", source="local", checkpoint=str(run), device="cpu", **arguments)


def by_hand(run, file, whitened):
    """The checkpoint's values through the model that its flags describe, one photo at a time."""
    options = parse_options(["--mode=test", f"--resume={run}"])
    model = build_model(options, pretrained=False).eval()
    stored = torch.load(run / "checkpoints" / "model_best.pth.tar", weights_only=True)
    model.load_state_dict(stored["state_dict"])
    with torch.no_grad():
        descriptor = model.float()(decode(file)[None])[0]
    if not whitened:
        return descriptor.numpy()
    kept = torch.load(next((run / "checkpoints").glob("whitening_*")), weights_only=True)
    projected = kept["projection"] @ (descriptor - kept["mean"])
    return (projected / projected.norm()).numpy()


@pytest.mark.parametrize("whitened", [True, False])
def test_hub_describes_files_as_the_checkpoint_says(run, files, whitened):
    before = list(sys.path)
    model = load(run, whitened=whitened)
    assert sys.path == before
    found = model.describe_files([str(file) for file in files])
    assert found.dtype == np.float32 and found.shape == (4, model.dimension)
    assert model.dimension == (8 if whitened else 4 * 256) and "alexnet" in model.name
    for row, file in zip(found, files, strict=True):
        np.testing.assert_allclose(row, by_hand(run, file, whitened), atol=2e-3)
        np.testing.assert_allclose(model(decode(file)[None])[0].numpy(), row, atol=1e-3)
    assert model.describe_files([]).shape == (0, model.dimension)


def test_hub_resizes_when_asked(run, files, tmp_path):
    with Image.open(files[0]) as photo:
        photo.resize((64, 48), Image.Resampling.BILINEAR).save(tmp_path / "small.png")
    model = load(run)
    resized, small = (
        model.describe_files([files[0]], image_size=(48, 64)),
        model.describe_files([tmp_path / "small.png"]),
    )
    np.testing.assert_allclose(resized, small, atol=1e-3)


def test_hub_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        load(tmp_path)
