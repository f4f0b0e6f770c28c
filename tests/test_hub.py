"""The model as other people's code loads it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import draw_image
from PIL import Image

import main
from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec
from vpr.common.device import AUTO_VARIABLE
from vpr.common.errors import UserError
from vpr.data.images import decode
from vpr.models.place_model import build_model

REPOSITORY = str(Path(main.__file__).parent)


@pytest.fixture(scope="module")
def run(copy_toy_run, tmp_path_factory):
    copied = copy_toy_run(tmp_path_factory.mktemp("hub"))
    assert main.main([*copied.places, "--mode=whiten", f"--resume={copied.run}", "--pcaDim=8"]) == 0
    return copied.run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four images of two sizes, mixed."""
    folder = tmp_path_factory.mktemp("photos")
    return [draw_image(folder / f"{n}.png", ((96, 72), (80, 88))[n % 2], n) for n in range(4)]


def load(run, **arguments):
    return torch.hub.load(REPOSITORY, "netvlad", source="local", checkpoint=str(run), device="cpu", **arguments)


def by_hand(run, file, whitened):
    """The checkpoint's values through the model that its flags describe, one image at a time.

    This proves which values are taken, and the whitening in full; the model itself is tested in test_netvlad.py.
    """
    options = parse_options(["--mode=test", f"--resume={run}"])
    model = build_model(model_spec(options), pretrained=False).eval()
    stored = torch.load(run / "checkpoints" / "model_best.pth.tar", weights_only=True)
    model.load_state_dict(stored["state_dict"])
    with torch.no_grad():
        descriptor = model.float()(torch.from_numpy(decode(file))[None])[0]
    if not whitened:
        return descriptor.numpy()
    (file,) = (run / "checkpoints").glob("whitening_*.pth.tar")
    kept = torch.load(file, weights_only=True)
    projected = kept["projection"][: kept["dim"]] @ (descriptor - kept["mean"])
    return (projected / projected.norm()).numpy()


@pytest.mark.parametrize("whitened", [True, False])
def test_hub_describes_files_as_the_checkpoint_says(run, files, whitened, monkeypatch):
    """In float32: whitening magnifies what another number format rounds."""
    monkeypatch.setenv(AUTO_VARIABLE, "fp32")
    before = list(sys.path)
    model = load(run, whitened=whitened)
    assert sys.path == before
    found = model.describe_files([str(file) for file in files])
    assert found.dtype == np.float32 and found.shape == (4, model.dimension)
    assert model.dimension == (8 if whitened else 4 * 256) and "alexnet" in model.name
    for row, file in zip(found, files, strict=True):
        np.testing.assert_allclose(row, by_hand(run, file, whitened), atol=1e-3)
        np.testing.assert_allclose(model(torch.from_numpy(decode(file))[None])[0].numpy(), row, atol=1e-3)
    assert model.describe_files([]).shape == (0, model.dimension)


def test_hub_resizes_when_asked(run, files, tmp_path):
    with Image.open(files[0]) as image:
        image.resize((64, 48), Image.Resampling.BILINEAR).save(tmp_path / "small.png")
    model = load(run)
    resized = model.describe_files([files[0]], image_size=(48, 64))
    np.testing.assert_allclose(resized, model.describe_files([tmp_path / "small.png"]), atol=1e-3)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_hub_in_a_job_of_several_processes_describes_all_files_that_it_is_given(run, files, monkeypatch, rank):
    """torchrun's variables are the surrounding program's, whose processes each describe files of their own."""
    wanted = load(run).describe_files(files)
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    found = load(run).describe_files(files)
    assert (np.abs(np.linalg.norm(found, axis=1) - 1) < 1e-3).all()
    np.testing.assert_array_equal(found, wanted)


def test_hub_leaves_the_allocator_of_the_program_around_it_alone(run, monkeypatch):
    monkeypatch.setattr("vpr.common.memory.ctypes.CDLL", lambda *_: pytest.fail("the hub called mallopt"))
    assert load(run).dimension > 0


def test_hub_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        load(tmp_path)


@pytest.mark.parametrize(
    "images",
    [
        *(torch.zeros(1, 3, 64, 64, dtype=kind) for kind in (torch.float32, torch.float16, torch.int64)),
        *(torch.zeros(shape, dtype=torch.uint8) for shape in ((3, 64, 64), (1, 64, 64, 3))),
    ],
)
def test_hub_takes_images_as_bytes_alone(run, images):
    with pytest.raises(UserError) as caught:
        load(run)(images)
    for part in (str(images.dtype).removeprefix("torch."), str(list(images.shape)), "wanted uint8 [B, 3, H, W]"):
        assert part in str(caught.value)


def test_hub_takes_an_exported_file(run, files):
    pytest.importorskip("onnxscript", reason="onnxscript, an optional package, is not installed")
    for name, flags in (("plain", ["--noWhiten"]), ("white", [])):
        path = run / f"{name}.onnx"
        assert main.main(["--mode=export", f"--resume={run}", f"--out={path}", *flags]) == 0
    for whitened in (True, False):
        found = load(run / "plain.onnx", whitened=whitened).describe_files(files)
        np.testing.assert_allclose(found[0], by_hand(run, files[0], False), atol=2e-3)
    with pytest.raises(UserError, match="whitening inside"):
        load(run / "white.onnx", whitened=False)
