"""Many image files to batches: order, sizes, what is decoded ahead, and what happens to broken ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import plain_image
from loading import refusal

from vpr.common.device import CPU
from vpr.common.errors import UserError
from vpr.data import reader as reader_module
from vpr.data.places import PlaceImages
from vpr.data.reader import BATCHES_AHEAD, ImageReader, in_batches
from vpr.descriptors.describe import describe, describe_batch

CUDA = torch.device("cuda")  # need not be there: processes pin memory only where it is
SIZES = [(6, 8), (8, 6), (5, 5), (6, 8), (8, 6), (6, 8)]
LOST = r"was lost .*--shm-size.*--threads=0"
PAIRS = [[n, n + 1] for n in range(0, 100, 2)]


@pytest.fixture(
    params=[
        {"workers": 0},
        {"workers": 2},
        pytest.param({"workers": 2, "device": CUDA}, marks=pytest.mark.filterwarnings("ignore:'pin_memory'")),
    ],
    ids=["caller", "threads", "processes beside a GPU"],
)
def decoders(request):
    """Who decodes."""
    return request.param


@pytest.fixture
def images_of(tmp_path):
    """Makes images of one colour each, which tells their numbers, of some sizes."""
    return lambda *sizes: [plain_image(tmp_path / f"{n}.png", n, *size) for n, size in enumerate(sizes)]


def test_truncated_image_in_a_batch_is_named_in_one_line(images_of, truncated, decoders):
    seen = []

    def read():
        for batch in ImageReader([*images_of((6, 8)), truncated], None, **decoders).batches([[0], [0, 1]]):
            seen.append(batch)

    text = refusal(read)
    assert len(seen) == 1 and str(truncated) in text and "Traceback" not in text


def test_batches_keep_order_and_group_mixed_sizes(images_of, decoders):
    wanted = [[3, 1, 2, 4, 0], [5], [2, 5, 0]]
    loaded = list(ImageReader(images_of(*SIZES), None, **decoders).batches(wanted))
    assert [len(groups) for groups in loaded] == [3, 1, 2]
    for groups, numbers in zip(loaded, wanted, strict=True):
        assert sorted(np.concatenate([group.rows for group in groups]).tolist()) == list(range(len(numbers)))
        for group in groups:
            for row, image in zip(group.rows.tolist(), group.values, strict=True):
                number = numbers[row]
                assert image.shape == (3, *SIZES[number]) and group.image_size == SIZES[number]
                assert image[:, 0, 0].tolist() == [number, 2 * number, 100 + number]


def test_batches_of_resized_images_are_one_group(images_of):
    reader = ImageReader(images_of((6, 8), (7, 8), (8, 8)), [4, 5], 0)
    ((rows, images, size, _),) = next(reader.batches([[2, 0, 1]]))
    assert rows.tolist() == [0, 1, 2] and images.shape == (3, 3, 4, 5) and size == (4, 5)
    assert images[:, 0, 0, 0].tolist() == [2, 0, 1]


def test_loading_images_leaves_the_random_state_alone(images_of, decoders):
    files, before = images_of((6, 8)), torch.get_rng_state()
    list(ImageReader(files, None, **decoders).batches([[0], [0]]))
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_decode_some_batches_ahead_and_stop_with_the_caller(monkeypatch):
    """Memory is bounded by what is decoded ahead; a caller who has seen enough waits for no more."""
    decoded = []

    def read(path, size, longest_side, max_pixels):
        decoded.append(path)
        return np.zeros((3, 4, 4), np.uint8)

    monkeypatch.setattr(reader_module, "decode", read)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # of no matter: the device in use is the CPU
    batches = ImageReader(range(100), (4, 4), 3).batches(PAIRS)
    for seen in range(1, 6):
        next(batches)
        assert 2 * seen <= len(decoded) <= 2 * (seen + BATCHES_AHEAD)
    batches.close()
    assert len(decoded) <= 2 * (5 + BATCHES_AHEAD) and len(set(decoded)) == len(decoded)


@pytest.mark.parametrize(("room", "wanted"), [(1 << 40, 4), (3 * 72 * 2, 3), (72 * 2, 1), (1, 1)])
@pytest.mark.parametrize("size", [None, (4, 6)])
def test_fewer_bytes_are_decoded_ahead_where_memory_is_short(images_of, monkeypatch, room, wanted, size):
    """An image of 4x6 pixels has 72 bytes. The largest of a batch counts, and a broken one is left to its decoder."""
    files = images_of(*[(4, 6)] * 2, (2, 2), *[(4, 6)] * 17)
    files[3].write_text("not an image")
    started, decoding = [], reader_module.decode
    monkeypatch.setattr(reader_module, "decode", lambda path, *how: started.append(path) or decoding(path, *how))
    monkeypatch.setattr(reader_module, "available_bytes", lambda: 4 * room)
    batches = ImageReader(files, size, 1).batches([[n, n + 1] for n in (0, 4, 6, 8, 10, 12, 14, 16)])
    for seen in range(1, 4):
        next(batches)
        assert 2 * seen <= len(started) <= 2 * (seen + wanted)
    batches.close()


@pytest.mark.parametrize(("room", "workers", "prefetch"), [(1 << 40, 3, 4), (7 * 144, 3, 2), (2 * 144, 2, 1)])
def test_processes_beside_a_gpu_decode_no_more_ahead_than_memory_holds(monkeypatch, room, workers, prefetch):
    used = {}
    monkeypatch.setattr(torch.utils.data, "DataLoader", lambda *_, **settings: used.update(settings) or [])
    monkeypatch.setattr(reader_module, "available_bytes", lambda: 4 * room)
    list(ImageReader(range(20), (4, 6), 3, CUDA).batches(PAIRS[:10]))
    assert (used["num_workers"], used["prefetch_factor"], used["pin_memory"]) == (workers, prefetch, True)


def pinned_as_by_pytorch_2_8(data):
    """What that version's torch.utils.data makes of a batch that it pins: of a plain tuple a list."""
    if isinstance(data, list) or type(data) is tuple:
        return [pinned_as_by_pytorch_2_8(each) for each in data]
    return type(data)(*map(pinned_as_by_pytorch_2_8, data)) if isinstance(data, tuple) else data


@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_sizes_of_images_are_tuples_though_pytorch_makes_lists_of_what_it_pins(images_of, monkeypatch):
    class Pinning(torch.utils.data.DataLoader):
        def __iter__(self):
            return map(pinned_as_by_pytorch_2_8, super().__iter__())

    monkeypatch.setattr(torch.utils.data, "DataLoader", Pinning)
    reader = ImageReader(images_of((6, 8), (8, 6)), None, 0, CUDA)
    sizes = [[group.image_size for group in batch] for batch in reader.batches([[0, 1], [1]])]
    assert sizes == [[(6, 8), (8, 6)], [(8, 6)]]
    descriptors, sizes = describe(MeanColour(), reader, [0, 1], 2)
    assert sizes == {(6, 8), (8, 6)} and len(descriptors) == 2


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out "
         "of shared memory. Please try to raise your shared memory limit.", UserError, LOST),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", UserError, LOST),
        ("Too many open files. Communication with the workers is no longer possible. Please increase the limit",
         UserError, LOST),
        ("CUDA error: an illegal memory access was encountered", RuntimeError, "illegal memory access"),
    ],
    ids=["killed", "exited", "files", "another error"],
)  # fmt: skip
def test_a_process_that_decodes_and_is_lost_is_one_line(monkeypatch, said, error, words):
    """As in a container, which has 64 MB of shared memory unless told otherwise."""

    def lost(*_, **__):
        yield []
        raise RuntimeError(said)

    monkeypatch.setattr(torch.utils.data, "DataLoader", lost)
    with pytest.raises(error, match=words):
        list(ImageReader(range(2), (4, 6), 3, CUDA).batches([[0], [1]]))


def test_in_batches_covers_all_indices_in_order():
    assert [list(batch) for batch in in_batches(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert in_batches(0, 3) == []


class MeanColour:
    """A model whose descriptor is the mean of each channel."""

    device, dim = CPU, 3

    def eval(self):
        return self

    def describe(self, images, frozen):
        return images.astype(np.float16).mean(axis=(2, 3))

    def bytes_per_image(self, height, width):
        return 1


def test_descriptors_of_mixed_sizes_come_in_batch_order(images_of):
    order = [4, 3, 2, 5, 1, 0]
    (batch,) = ImageReader(images_of(*SIZES), None, 0).batches([order])
    assert describe_batch(MeanColour(), batch).tolist() == [[n, 2 * n, 100 + n] for n in order]


def test_files_of_a_split_are_the_database_then_the_queries():
    images = PlaceImages(None, "train", [Path("d0"), Path("d1")], [Path("q0")])
    assert images.files == [Path("d0"), Path("d1"), Path("q0")]
