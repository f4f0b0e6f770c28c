"""Photos to descriptors: number formats, batch sizes, and where memory ends."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import main
from vpr import descriptors, memory, precision
from vpr.descriptors import automatic_batch_size, bytes_per_photo, describe
from vpr.errors import UserError
from vpr.images import PhotoReader
from vpr.model import build_model, describe_model

CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path):
    random, paths = np.random.default_rng(0), []
    for number in range(6):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        paths.append(tmp_path / f"{number}.png")
        coarse.resize((96, 64), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def make(*flags):
    options = main.parse_options(["--mode=test", "--arch=alexnet", "--fromscratch", "--pooling=avg", *flags])
    return build_model(options).place(CPU, options.precision), options


def described(photos, *flags):
    model, options = make(*flags)
    return describe(model, PhotoReader(photos, None, 0), range(len(photos)), options, CPU, "test")


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_descriptors(photos, name):
    wanted, sizes = described(photos, "--precision=fp32")
    found, _ = described(photos, f"--precision={name}")
    between_photos = torch.pdist(wanted.float()).min()
    apart = (found.float() - wanted.float()).norm(dim=1).max()
    assert 0 < apart < between_photos / 5
    assert sizes == {(64, 96)}


def test_weights_and_pooling_stay_in_float32():
    model, _ = make("--precision=bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    features = model.local_descriptors(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert features.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float()), "the trunk computes in bf16"


def test_frozen_features_are_told_from_photos_by_what_is_asked_not_by_their_type():
    """Features that happen to be bytes are features all the same."""
    model, _ = make("--precision=fp32")
    model.first_trained = 10
    photos = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.frozen_features(photos)
        torch.testing.assert_close(model.finish_features(features), model.local_descriptors(photos))
        torch.testing.assert_close(model.describe_features(features), model(photos))
        rounded = (10 * features).clamp(0, 255).to(torch.uint8)
        torch.testing.assert_close(model.finish_features(rounded), model.finish_features(rounded.float()))


def test_labels_say_the_precision():
    for name in ("fp32", "bf16", "fp16"):
        model, options = make(f"--precision={name}")
        assert describe_model(options, model).endswith(f", {name}")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [({"avx2"}, torch.float32), ({"avx512_bf16", "avx2"}, torch.bfloat16), ({"amx_bf16"}, torch.bfloat16)],
)
def test_auto_is_bf16_only_where_the_processor_multiplies_it(monkeypatch, flags, wanted):
    monkeypatch.setattr(precision, "processor_flags", lambda: flags)
    assert precision.compute_dtype("auto", CPU) == wanted


@pytest.mark.parametrize(("capability", "wanted"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_is_bf16_only_where_the_gpu_multiplies_it(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert precision.compute_dtype("auto", torch.device("cuda")) == wanted


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100, 0])
def test_the_batch_size_changes_nothing(photos, batch_size):
    found, _ = described(photos, f"--cacheBatchSize={batch_size}")
    wanted, _ = described(photos, "--cacheBatchSize=2")
    assert (found.float() - wanted.float()).abs().max() < 1e-3


def test_the_automatic_batch_is_as_large_as_memory_allows(photos, monkeypatch):
    model, _ = make()
    reader = PhotoReader(photos, None, 0)
    each = bytes_per_photo(model, (64, 96))
    # AlexNet's first layer: 3 channels of 64x96 in, 64 of 15x23 out; the output's ReLU reads and writes 64.
    largest = max(4 * 3 * 64 * 96, 4 * (3 * 64 * 96 + 64 * 15 * 23), 4 * 2 * 64 * 15 * 23)
    assert each == largest
    for available, wanted in ((4 * 10 * each, 10), (1, 1), (1 << 60, min(256, (1 << 30) // each))):
        monkeypatch.setattr(descriptors, "available_bytes", lambda available=available: available)
        assert automatic_batch_size(model, reader, CPU) == wanted


def test_descriptors_that_are_not_numbers_are_an_error(photos, monkeypatch):
    model, options = make()
    torch.nn.init.constant_(model.encoder[0].weight, math.nan)
    with pytest.raises(UserError, match="not finite"):
        describe(model, PhotoReader(photos, None, 0), range(2), options, CPU, "test")


def test_running_out_of_memory_says_what_to_lower(photos):
    model, options = make()

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    model.encoder[0].register_forward_pre_hook(no_memory)
    with pytest.raises(UserError, match="--cacheBatchSize"):
        describe(model, PhotoReader(photos, None, 0), range(2), options, CPU, "test")


def test_available_memory_is_within_the_machines():
    total = memory.os.sysconf("SC_PAGE_SIZE") * memory.os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.available_bytes() <= total


def test_sizes_of_photos_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "straight.jpg")
    assert descriptors.photo_size(tmp_path / "turned.jpg") == (30, 20)
    assert descriptors.photo_size(tmp_path / "straight.jpg") == (20, 30)
