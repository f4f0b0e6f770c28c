"""Images to descriptors: number formats, batch sizes, and where memory ends."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawing import draw_image
from PIL import Image

from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec
from vpr.common import device as precision
from vpr.common import memory, processes
from vpr.common.errors import UserError
from vpr.data.images import image_size
from vpr.data.reader import ImageReader, SizeGroup
from vpr.descriptors import batches as descriptors
from vpr.descriptors.batches import automatic_batch_size
from vpr.descriptors.describe import LocalDescribing, describe
from vpr.models.place_model import build_model

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path):
    return [draw_image(tmp_path / f"{number}.png", (96, 64), number) for number in range(6)]


def make(*flags):
    options = parse_options(["--mode=test", "--arch=alexnet", "--fromscratch", "--pooling=avg", *flags])
    return build_model(model_spec(options)).to_device(CPU, options.precision), options


def described_by(model, options, images):
    return describe(model, ImageReader(images, None, 0), range(len(images)), options.cacheBatchSize, "test")


def described(images, *flags):
    """Descriptors in float32 of a model with some flags."""
    rows, sizes = described_by(*make(*flags), images)
    assert sizes == {(64, 96)}
    return torch.from_numpy(rows).float()


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_descriptors(images, name):
    wanted, found = described(images, "--precision=fp32"), described(images, f"--precision={name}")
    assert 0 < (found - wanted).norm(dim=1).max() < torch.pdist(wanted).min() / 5


def test_weights_and_pooling_stay_in_float32():
    model, _ = make("--precision=bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    features = model.local_descriptors(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert features.dtype == torch.float32
    assert torch.equal(features, features.bfloat16().float()), "the trunk computes in bf16"


def test_frozen_features_are_told_from_images_by_what_is_asked_not_by_their_type():
    """Features that happen to be bytes are features all the same."""
    model, _ = make("--precision=fp32")
    model.backbone.first_trained = 10
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.frozen_features(images)
        torch.testing.assert_close(model.finish_features(features), model.local_descriptors(images))
        torch.testing.assert_close(model(features, frozen=True), model(images))
        rounded = (10 * features).clamp(0, 255).to(torch.uint8)
        torch.testing.assert_close(model.finish_features(rounded), model.finish_features(rounded.float()))


def test_labels_say_the_precision():
    for name in ("fp32", "bf16", "fp16"):
        assert make(f"--precision={name}")[0].name.endswith(f", {name} by PyTorch")


@pytest.mark.parametrize(
    ("device", "able", "wanted"),
    [
        ("cpu", {"avx2"}, "float32"), ("cpu", {"avx512_bf16", "avx2"}, "bfloat16"), ("cpu", {"amx_bf16"}, "bfloat16"),
        ("cuda", (7, 5), "float32"), ("cuda", (8, 0), "bfloat16"),
    ],
)  # fmt: skip
def test_auto_is_bf16_only_where_the_processor_or_the_gpu_multiplies_it(monkeypatch, device, able, wanted):
    monkeypatch.delenv(precision.AUTO_VARIABLE, raising=False)
    monkeypatch.setattr(precision, "processor_flags", lambda: able)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: able)
    assert precision.compute_dtype("auto", torch.device(device)) == getattr(torch, wanted)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
@pytest.mark.parametrize("flags", [{"avx2"}, {"avx512_bf16"}])
def test_a_variable_says_what_auto_means_whatever_the_processor(monkeypatch, name, flags):
    monkeypatch.setenv(precision.AUTO_VARIABLE, name)
    monkeypatch.setattr(precision, "processor_flags", lambda: flags)
    assert make()[0].dtype == getattr(torch, precision.DTYPES[name])
    assert make("--precision=fp16")[0].dtype == torch.float16


@pytest.mark.parametrize("name", ["fp32", "bf16"])
@pytest.mark.parametrize("batch_size", [1, 4, 6, 100, 0])
def test_the_batch_size_changes_nothing(images, batch_size, name):
    found = described(images, f"--cacheBatchSize={batch_size}", f"--precision={name}")
    wanted = described(images, "--cacheBatchSize=2", f"--precision={name}")
    assert torch.pdist(wanted).min() > 1e-2, "the images must differ"
    # float32: other orders of summation, then the rounding of a stored number below 1 to float16.
    assert (found - wanted).abs().max() <= (2**-11 if name == "fp32" else 0)


@pytest.mark.parametrize(("name", "bytes_each"), [("fp32", 4), ("bf16", 2)])
def test_bytes_of_an_image_are_those_of_the_largest_layer(name, bytes_each):
    model, _ = make(f"--precision={name}")
    # AlexNet's first layer: 3 channels of 64x96 in, 64 of 15x23 out; the output's ReLU reads and writes 64.
    # The image itself is normalised in float32.
    largest = max(4 * 3 * 64 * 96, bytes_each * (3 * 64 * 96 + 64 * 15 * 23), bytes_each * 2 * 64 * 15 * 23)
    assert model.bytes_per_image(64, 96) == largest


def test_the_automatic_batch_is_as_large_as_memory_allows(images, monkeypatch):
    model, _ = make()
    reader = ImageReader(images, None, 0)
    each = model.bytes_per_image(64, 96)
    for available, wanted in ((4 * 10 * each, 10), (1, 1), (1 << 60, min(256, (1 << 30) // each))):
        monkeypatch.setattr(descriptors, "available_bytes", lambda available=available: available)
        assert automatic_batch_size(model, reader) == wanted


def gpu_memory(monkeypatch, free, reserved=0, allocated=0):
    """Stands in for a GPU's memory, in bytes: free for all, held by PyTorch, and of that taken by tensors."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 1 << 40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated)


# A model on a GPU that takes 1,000 bytes for an image.
ON_GPU = SimpleNamespace(device=torch.device("cuda", 0), bytes_per_image=lambda height, width: 1000)


def test_the_automatic_batch_on_a_gpu_is_the_same_once_pytorch_holds_memory(images, monkeypatch, capsys):
    """What it holds for later tensors is room as well; a little more or less of it changes nothing and is not said."""
    reader = ImageReader(images, (64, 96), 0)
    descriptors.say_of_batch.cache_clear()
    for free, reserved, allocated in ((100_000, 0, 0), (10_000, 90_000, 0), (0, 150_000, 51_000), (103_000, 0, 0)):
        gpu_memory(monkeypatch, free, reserved, allocated)
        assert automatic_batch_size(ON_GPU, reader) == 48
    assert capsys.readouterr().out == "48 images at once\n"
    for free, wanted in ((10_000, 5), (1000, 1), (1 << 40, 256)):
        gpu_memory(monkeypatch, free)
        assert automatic_batch_size(ON_GPU, reader) == wanted


@pytest.mark.parametrize(
    ("free", "held", "moved"), [((1 << 30) + 4097, 0, True), ((1 << 30) + 4096, 0, False), (0, (1 << 30) + 4097, True)]
)
def test_descriptors_go_to_a_gpu_where_they_fit_twice_and_a_gigabyte_is_left(monkeypatch, free, held, moved):
    gpu_memory(monkeypatch, free, held)
    values = torch.zeros(1024, dtype=torch.float16)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: ("on", device))
    device = torch.device("cuda", 1)
    found = memory.where_it_fits(values, device)
    assert found == ("on", device) if moved else found is values
    assert memory.where_it_fits(values, CPU) is values


def test_a_batch_is_cut_to_what_memory_holds_and_says_so_once(images, monkeypatch, capsys):
    model, options = make("--cacheBatchSize=5")
    wanted = described(images, "--cacheBatchSize=2")
    seen, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda values, frozen: seen.append(len(values)) or forward(values, frozen))
    each = model.bytes_per_image(64, 96)
    monkeypatch.setattr(descriptors, "available_bytes", lambda: 2 * 2 * each + each)  # half of it: 2 images
    found, _ = described_by(model, options, images)
    assert seen == [2, 2, 1, 1]
    assert (torch.from_numpy(found) - wanted).abs().max() <= 2**-11
    said = [line for line in capsys.readouterr().out.splitlines() if "memory holds" in line]
    assert len(said) == 1 and "2 images of 96x64 pixels at once, not 5" in said[0] and "--imageSize" in said[0]


def test_an_image_for_which_memory_has_no_room_is_one_line_before_it_is_described(images, monkeypatch):
    model, options = make()
    each = model.bytes_per_image(64, 96)
    monkeypatch.setattr(descriptors, "available_bytes", lambda: each - 1)
    monkeypatch.setattr(model, "forward", lambda *_: pytest.fail("the kernel would have killed us here"))
    with pytest.raises(UserError, match=r"96x64 pixels .* GB of memory are free: .*--imageSize"):
        described_by(model, options, images)


@pytest.mark.parametrize("flag", ["--cacheBatchSize=0", "--cacheBatchSize=24"])
def test_an_image_too_small_for_the_trunk_is_one_line(tmp_path, flag):
    small = draw_image(tmp_path / "small.png", (20, 20), 0)
    with pytest.raises(UserError, match="20x20 pixels, the backbone needs at least"):
        described_by(*make(flag), [small])


def no_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda layer: torch.nn.init.constant_(layer.weight, math.nan), "not finite"),
        (lambda layer: layer.register_forward_pre_hook(no_memory), "--cacheBatchSize"),
    ],
    ids=["not numbers", "no memory"],
)
def test_what_fails_in_the_model_is_one_line(images, spoil, said):
    model, options = make("--cacheBatchSize=24")
    spoil(model.encoder[0])
    with pytest.raises(UserError, match=said):
        described_by(model, options, images)


def test_available_memory_is_within_the_machines():
    total = memory.os.sysconf("SC_PAGE_SIZE") * memory.os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.available_bytes() <= total


def test_sizes_of_images_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "straight.jpg")
    assert image_size(tmp_path / "turned.jpg") == (30, 20)
    assert image_size(tmp_path / "straight.jpg") == (20, 30)


def test_processes_hand_over_local_descriptors_batch_by_batch(monkeypatch):
    """So that process 0 holds no more than one batch of each process, whatever the number of images."""
    handed, written = [], []

    class Batches:
        files, size = [Path("image")] * 6, (1, 1)

        def batches(self, wanted):
            return [[SizeGroup(np.arange(len(rows)), np.zeros((len(rows), 1, 1, 1)), (1, 1))] for rows in wanted]

    def gather(value):
        handed.append(len(value))
        return [value]

    model = SimpleNamespace(
        device=CPU, dim=2, eval=lambda: None, bytes_per_image=lambda *size: None,
        describe_with_local=lambda values, *_: (np.ones((len(values), 2)), np.ones((len(values), 3, 1, 1))),
    )  # fmt: skip
    monkeypatch.setattr(processes, "gather", gather)
    sink = SimpleNamespace(write=lambda maps: written.append(len(maps)))
    describe(model, Batches(), range(6), 2, local=LocalDescribing(None, sink))
    assert handed == written == [2, 2, 2]
