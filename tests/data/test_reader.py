"""Many image files to batches: order, sizes, what is decoded ahead, and what happens to broken ones."""

from pathlib import Path

import pytest
import torch
from drawing import plain_image

from vpr.common.errors import UserError
from vpr.data import reader as reader_module
from vpr.data.places import PlaceImages
from vpr.data.reader import ImageReader, in_batches
from vpr.descriptors.describe import describe, describe_batch


@pytest.fixture(
    params=[
        {"workers": 0},
        {"workers": 2},
        pytest.param(
            {"workers": 2, "device": torch.device("cuda")}, marks=pytest.mark.filterwarnings("ignore:'pin_memory'")
        ),
    ],
    ids=["caller", "threads", "processes beside a GPU"],
)
def decoders(request):
    """Who decodes. Processes need no GPU for it: they pin memory only where there is one."""
    return request.param


def test_truncated_image_in_a_batch_is_named_in_one_line(tmp_path, truncated, decoders):
    good = plain_image(tmp_path / "good.png", 1)
    seen = []
    with pytest.raises(UserError) as caught:
        for batch in ImageReader([good, truncated], None, **decoders).batches([[0], [0, 1]]):
            seen.append(batch)
    assert len(seen) == 1
    text = str(caught.value)
    assert str(truncated) in text and "\n" not in text and "Traceback" not in text


def test_batches_keep_order_and_group_mixed_sizes(tmp_path, decoders):
    sizes = [(6, 8), (8, 6), (6, 8), (8, 6), (5, 5), (6, 8)]
    files = [plain_image(tmp_path / f"{number}.png", number, *size) for number, size in enumerate(sizes)]
    wanted = [[3, 0, 2, 4, 1], [5], [2, 5, 0]]
    loaded = list(ImageReader(files, None, **decoders).batches(wanted))
    assert [len(groups) for groups in loaded] == [3, 1, 1]
    for groups, numbers in zip(loaded, wanted, strict=True):
        places = torch.cat([group.rows for group in groups]).tolist()
        assert sorted(places) == list(range(len(numbers)))
        for group in groups:
            for row, image in zip(group.rows.tolist(), group.values, strict=True):
                number = numbers[row]
                assert image.shape == (3, *sizes[number]) and group.image_size == sizes[number]
                assert image[:, 0, 0].tolist() == [number, 2 * number, 100 + number]


def test_batches_of_resized_images_are_one_group(tmp_path):
    files = [plain_image(tmp_path / f"{number}.png", number, 6 + number, 8) for number in range(3)]
    ((places, images, size, _),) = next(ImageReader(files, [4, 5], 0).batches([[2, 0, 1]]))
    assert places.tolist() == [0, 1, 2] and images.shape == (3, 3, 4, 5) and size == (4, 5)
    assert images[:, 0, 0, 0].tolist() == [2, 0, 1]


def test_loading_images_leaves_the_random_state_alone(tmp_path, decoders):
    file = plain_image(tmp_path / "image.png", 1)
    before = torch.get_rng_state()
    list(ImageReader([file], None, **decoders).batches([[0], [0]]))
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_decode_some_batches_ahead_and_stop_with_the_caller(monkeypatch):
    """Memory is bounded by what is decoded ahead; a caller who has seen enough waits for no more."""
    decoded = []

    def read(path, size, longest_side, max_pixels):
        decoded.append(path)
        return torch.zeros(3, 4, 4, dtype=torch.uint8)

    monkeypatch.setattr(reader_module, "decode", read)
    monkeypatch.setattr(
        reader_module.torch.cuda, "is_available", lambda: True
    )  # of no matter: the device in use is the CPU
    batches = ImageReader(range(100), (4, 4), 3).batches([[n, n + 1] for n in range(0, 100, 2)])
    for seen in range(1, 6):
        next(batches)
        assert 2 * seen <= len(decoded) <= 2 * (seen + reader_module.BATCHES_AHEAD)
    batches.close()
    assert len(decoded) <= 2 * (5 + reader_module.BATCHES_AHEAD) and len(set(decoded)) == len(decoded)


@pytest.mark.parametrize(("room", "wanted"), [(1 << 40, 4), (3 * 72 * 2, 3), (72 * 2, 1), (1, 1)])
@pytest.mark.parametrize("size", [None, (4, 6)])
def test_fewer_bytes_are_decoded_ahead_where_memory_is_short(tmp_path, monkeypatch, room, wanted, size):
    """An image of 4x6 pixels has 72 bytes. The largest of a batch counts, and a broken one is left to its decoder."""
    files = [plain_image(tmp_path / f"{number}.png", number, 4, 6) for number in range(20)]
    plain_image(files[2], 2, 2, 2)
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
    monkeypatch.setattr(reader_module, "DataLoader", lambda *_, **settings: used.update(settings) or [])
    monkeypatch.setattr(reader_module, "available_bytes", lambda: 4 * room)
    list(ImageReader(range(20), (4, 6), 3, torch.device("cuda")).batches([[n, n + 1] for n in range(0, 20, 2)]))
    assert (used["num_workers"], used["prefetch_factor"], used["pin_memory"]) == (workers, prefetch, True)


def pinned_as_by_pytorch_2_8(data):
    """What that version's torch.utils.data makes of a batch that it pins: of a plain tuple a list."""
    if isinstance(data, list) or type(data) is tuple:
        return [pinned_as_by_pytorch_2_8(each) for each in data]
    return type(data)(*map(pinned_as_by_pytorch_2_8, data)) if isinstance(data, tuple) else data


def test_sizes_of_images_are_tuples_though_pytorch_makes_lists_of_what_it_pins(tmp_path, monkeypatch):
    class Pinning(reader_module.DataLoader):
        def __iter__(self):
            return map(pinned_as_by_pytorch_2_8, super().__iter__())

    monkeypatch.setattr(reader_module, "DataLoader", Pinning)
    files = [plain_image(tmp_path / f"{n}.png", n, *size) for n, size in enumerate([(6, 8), (8, 6)])]
    batches = list(ImageReader(files, None, 0).batches([[0, 1], [1]]))
    assert [[group.image_size for group in batch] for batch in batches] == [[(6, 8), (8, 6)], [(8, 6)]]
    descriptors, sizes = describe(MeanColour(), ImageReader(files, None, 0), [0, 1], 2)
    assert sizes == {(6, 8), (8, 6)} and len(descriptors) == 2


@pytest.mark.parametrize(
    "said",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "DataLoader worker (pid(s) 7, 8) exited unexpectedly",
        "Too many open files. Communication with the workers is no longer possible. Please increase the limit",
    ],
)
def test_a_process_that_decodes_and_is_lost_is_one_line(monkeypatch, said):
    """As in a container, which has 64 MB of shared memory unless told otherwise."""

    def lost(*_, **__):
        yield []
        raise RuntimeError(said)

    monkeypatch.setattr(reader_module, "DataLoader", lost)
    with pytest.raises(UserError, match=r"was lost .*--shm-size.*--threads=0"):
        list(ImageReader(range(2), (4, 6), 3, torch.device("cuda")).batches([[0], [1]]))


def test_other_errors_of_a_loader_stay_what_they_are(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
        yield

    monkeypatch.setattr(reader_module, "DataLoader", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(ImageReader(range(2), (4, 6), 3, torch.device("cuda")).batches([[0], [1]]))


def test_in_batches_covers_all_indices_in_order():
    assert [list(batch) for batch in in_batches(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert in_batches(0, 3) == []


class MeanColour(torch.nn.Module):
    """A model whose descriptor is the mean of each channel."""

    device, dim = torch.device("cpu"), 3

    def forward(self, images):
        return images.float().mean(dim=(2, 3))

    def bytes_per_image(self, height, width):
        return 1


def test_descriptors_of_mixed_sizes_come_in_batch_order(tmp_path):
    sizes = [(6, 8), (8, 6), (5, 5), (6, 8), (8, 6), (6, 8)]
    files = [plain_image(tmp_path / f"{number}.png", number, *size) for number, size in enumerate(sizes)]
    order = [4, 3, 2, 5, 1, 0]
    (batch,) = ImageReader(files, None, 0).batches([order])
    descriptors = describe_batch(MeanColour(), batch)
    assert descriptors.tolist() == [[number, 2 * number, 100 + number] for number in order]


def test_files_of_a_split_are_the_database_then_the_queries():
    images = PlaceImages(None, "train", [Path("d0"), Path("d1")], [Path("q0")])
    assert images.files == [Path("d0"), Path("d1"), Path("q0")]
