"""Photos to tensors, tensors to descriptors and centroids, files that are whole, and the trunk's cut."""

import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.data import photos as photos_module
from vpr.data import reader as images
from vpr.data.photos import decode
from vpr.data.reader import PhotoReader, in_batches
from vpr.descriptors.describe import describe_batch
from vpr.descriptors.vocabulary import cluster, sample_places
from vpr.models.backbones.base import build_backbone
from vpr.models.normalization import NORMALIZATIONS, normalization_of

RANDOM = np.random.default_rng(0)


def noise(height, width, channels=3):
    return RANDOM.integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path, pixels, **settings):
    Image.fromarray(pixels).save(path, **settings)
    return path


def plain_photo(path, number, height=6, width=8):
    """One colour, which tells which photo it is."""
    return save(path, np.full((height, width, 3), (number, 2 * number, 100 + number), dtype=np.uint8))


@pytest.fixture
def truncated(tmp_path):
    path = save(tmp_path / "half.jpg", noise(96, 128))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_decode_gives_the_exact_pixels(tmp_path):
    pixels = noise(5, 7)
    photo = decode(save(tmp_path / "photo.png", pixels))
    assert photo.dtype == torch.uint8 and photo.shape == (3, 5, 7)
    assert np.array_equal(photo.numpy(), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation_is_obeyed(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = save(tmp_path / f"turned.{suffix}", noise(16, 24), exif=exif)
    stored = np.array(Image.open(path))
    assert stored.shape == (16, 24, 3)
    upright = np.rot90(stored, k=-1)
    assert np.array_equal(decode(path).permute(1, 2, 0).numpy(), upright)


def test_grey_becomes_rgb(tmp_path):
    grey = noise(5, 7, 1)[:, :, 0]
    photo = decode(save(tmp_path / "grey.png", grey))
    assert np.array_equal(photo.numpy(), np.stack([grey] * 3))


def test_palette_becomes_rgb(tmp_path):
    colours, places = noise(1, 4)[0], RANDOM.integers(0, 4, (5, 7), dtype=np.uint8)
    image = Image.fromarray(places, mode="P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "palette.png")
    assert np.array_equal(decode(tmp_path / "palette.png").numpy(), colours[places].transpose(2, 0, 1))


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (16, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    image.save(tmp_path / "cmyk.jpg", quality=100)
    photo = decode(tmp_path / "cmyk.jpg")
    assert photo.shape == (3, 8, 16)
    assert photo[0].min() >= 250 and photo[1:].max() <= 5


def test_resize_takes_height_then_width_and_keeps_the_picture(tmp_path):
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, 30:] = 200  # right half bright
    photo = decode(save(tmp_path / "photo.png", pixels), (10, 32))
    assert photo.shape == (3, 10, 32)
    assert photo[:, :, :14].max() == 0 and photo[:, :, 18:].min() == 200


def test_resize_blends_neighbours(tmp_path):
    stripes = np.zeros((40, 60, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    photo = decode(save(tmp_path / "stripes.png", stripes), (10, 15))
    assert photo.min() > 80 and photo.max() < 120


def test_truncated_photo_is_named(truncated):
    with pytest.raises(UserError, match=r"half\.jpg"):
        decode(truncated)


def test_file_that_is_missing_or_no_photo_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not a photo")
    for name in ("text.jpg", "missing.jpg"):
        with pytest.raises(UserError, match=name):
            decode(tmp_path / name)


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


def test_truncated_photo_in_a_batch_is_named_in_one_line(tmp_path, truncated, decoders):
    good = plain_photo(tmp_path / "good.png", 1)
    seen = []
    with pytest.raises(UserError) as caught:
        for batch in PhotoReader([good, truncated], None, **decoders).batches([[0], [0, 1]]):
            seen.append(batch)
    assert len(seen) == 1
    text = str(caught.value)
    assert str(truncated) in text and "\n" not in text and "Traceback" not in text


def test_batches_keep_order_and_group_mixed_sizes(tmp_path, decoders):
    sizes = [(6, 8), (8, 6), (6, 8), (8, 6), (5, 5), (6, 8)]
    files = [plain_photo(tmp_path / f"{number}.png", number, *size) for number, size in enumerate(sizes)]
    wanted = [[3, 0, 2, 4, 1], [5], [2, 5, 0]]
    loaded = list(PhotoReader(files, None, **decoders).batches(wanted))
    assert [len(groups) for groups in loaded] == [3, 1, 1]
    for groups, numbers in zip(loaded, wanted, strict=True):
        places = torch.cat([group.places for group in groups]).tolist()
        assert sorted(places) == list(range(len(numbers)))
        for group in groups:
            for place, photo in zip(group.places.tolist(), group.values, strict=True):
                number = numbers[place]
                assert photo.shape == (3, *sizes[number]) and group.photo_size == sizes[number]
                assert photo[:, 0, 0].tolist() == [number, 2 * number, 100 + number]


def test_batches_of_resized_photos_are_one_group(tmp_path):
    files = [plain_photo(tmp_path / f"{number}.png", number, 6 + number, 8) for number in range(3)]
    ((places, photos, size, _),) = next(PhotoReader(files, [4, 5], 0).batches([[2, 0, 1]]))
    assert places.tolist() == [0, 1, 2] and photos.shape == (3, 3, 4, 5) and size == (4, 5)
    assert photos[:, 0, 0, 0].tolist() == [2, 0, 1]


def test_loading_photos_leaves_the_random_state_alone(tmp_path, decoders):
    file = plain_photo(tmp_path / "photo.png", 1)
    before = torch.get_rng_state()
    list(PhotoReader([file], None, **decoders).batches([[0], [0]]))
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_decode_some_batches_ahead_and_stop_with_the_caller(monkeypatch):
    """Memory is bounded by what is decoded ahead; a caller who has seen enough waits for no more."""
    decoded = []

    def read(path, size, longest_side):
        decoded.append(path)
        return torch.zeros(3, 4, 4, dtype=torch.uint8)

    monkeypatch.setattr(images, "decode", read)
    monkeypatch.setattr(images.torch.cuda, "is_available", lambda: True)  # of no matter: the device in use is the CPU
    batches = PhotoReader(range(100), (4, 4), 3).batches([[n, n + 1] for n in range(0, 100, 2)])
    for seen in range(1, 6):
        next(batches)
        assert 2 * seen <= len(decoded) <= 2 * (seen + images.BATCHES_AHEAD)
    batches.close()
    assert len(decoded) <= 2 * (5 + images.BATCHES_AHEAD) and len(set(decoded)) == len(decoded)


@pytest.mark.parametrize(("room", "wanted"), [(1 << 40, 4), (3 * 72 * 2, 3), (72 * 2, 1), (1, 1)])
@pytest.mark.parametrize("size", [None, (4, 6)])
def test_fewer_bytes_are_decoded_ahead_where_memory_is_short(tmp_path, monkeypatch, room, wanted, size):
    """A photo of 4x6 pixels has 72 bytes. The largest of a batch counts, and a broken one is left to who decodes it."""
    files = [plain_photo(tmp_path / f"{number}.png", number, 4, 6) for number in range(20)]
    plain_photo(files[2], 2, 2, 2)
    files[3].write_text("not a photo")
    started, decoding = [], images.decode
    monkeypatch.setattr(images, "decode", lambda path, *how: started.append(path) or decoding(path, *how))
    monkeypatch.setattr(images, "available_bytes", lambda: 4 * room)
    batches = PhotoReader(files, size, 1).batches([[n, n + 1] for n in (0, 4, 6, 8, 10, 12, 14, 16)])
    for seen in range(1, 4):
        next(batches)
        assert 2 * seen <= len(started) <= 2 * (seen + wanted)
    batches.close()


@pytest.mark.parametrize(("room", "workers", "prefetch"), [(1 << 40, 3, 4), (7 * 144, 3, 2), (2 * 144, 2, 1)])
def test_processes_beside_a_gpu_decode_no_more_ahead_than_memory_holds(monkeypatch, room, workers, prefetch):
    used = {}
    monkeypatch.setattr(images, "DataLoader", lambda *_, **settings: used.update(settings) or [])
    monkeypatch.setattr(images, "available_bytes", lambda: 4 * room)
    list(PhotoReader(range(20), (4, 6), 3, torch.device("cuda")).batches([[n, n + 1] for n in range(0, 20, 2)]))
    assert (used["num_workers"], used["prefetch_factor"], used["pin_memory"]) == (workers, prefetch, True)


def test_in_batches_covers_all_indices_in_order():
    assert [list(batch) for batch in in_batches(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert in_batches(0, 3) == []


class MeanColour(torch.nn.Module):
    """A model whose descriptor is the mean of each channel."""

    device = torch.device("cpu")

    def forward(self, photos):
        return photos.float().mean(dim=(2, 3))


def test_descriptors_of_mixed_sizes_come_in_batch_order(tmp_path):
    sizes = [(6, 8), (8, 6), (5, 5), (6, 8), (8, 6), (6, 8)]
    files = [plain_photo(tmp_path / f"{number}.png", number, *size) for number, size in enumerate(sizes)]
    order = [4, 3, 2, 5, 1, 0]
    (batch,) = PhotoReader(files, None, 0).batches([order])
    descriptors = describe_batch(MeanColour(), batch)
    assert descriptors.tolist() == [[number, 2 * number, 100 + number] for number in order]


@pytest.mark.parametrize(("height", "width", "count"), [(15, 17, 100), (10, 10, 100), (3, 4, 12)])
def test_sampled_places_are_distinct_places_of_length_1(height, width, count):
    feature = torch.from_numpy(RANDOM.normal(size=(6, height, width)).astype(np.float32)) * 5
    sample = sample_places(feature, seed=[123, 4])
    assert sample.shape == (count, 6)
    assert np.abs(np.linalg.norm(sample.astype(np.float64), axis=1) - 1).max() < 1e-6
    rows = [feature[:, y, x].double().numpy() for y in range(height) for x in range(width)]
    normalised = np.stack([row / np.linalg.norm(row) for row in rows])
    distance = np.linalg.norm(sample[:, None] - normalised[None], axis=2)
    assert distance.min(axis=1).max() < 1e-6
    assert len(set(distance.argmin(axis=1).tolist())) == count


def test_sampled_places_depend_on_the_seed():
    feature = torch.from_numpy(RANDOM.normal(size=(4, 20, 20)).astype(np.float32))
    first, again, other = (sample_places(feature, seed=[123, photo]) for photo in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_centroids_are_the_means_of_all_points_assigned_to_them():
    sizes, dim = [2500, 900, 500, 300], 5
    middles = 10 * np.eye(4, dim)
    points = np.concatenate(
        [middle + RANDOM.normal(0, 0.5, (size, dim)) for middle, size in zip(middles, sizes, strict=True)]
    ).astype(np.float32)
    assert len(points) > 256 * 4
    centroids = cluster(points[RANDOM.permutation(len(points))], 4, seed=123)
    assert centroids.shape == (4, dim)
    nearest = ((points[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)
    for index, centroid in enumerate(centroids):
        own = points[nearest == index].astype(np.float64)
        assert len(own) > 0
        assert np.abs(own.mean(axis=0) - centroid).max() < 1e-3


def test_centroids_depend_on_the_seed():
    points = RANDOM.uniform(size=(500, 6)).astype(np.float32)
    first, again, other = (cluster(points, 8, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and np.abs(first - other).max() > 1e-2


def test_clusters_can_be_as_many_as_points():
    points = 10 * np.eye(6, dtype=np.float32)
    centroids = cluster(points, 6, seed=1)
    distance = np.linalg.norm(centroids[:, None] - points[None], axis=2)
    assert sorted(distance.argmin(axis=1).tolist()) == list(range(6)) and distance.min(axis=1).max() < 1e-5


@pytest.mark.parametrize("error", [OSError("No space left on device"), RuntimeError("unexpected pos")])
def test_failed_write_leaves_the_old_file_and_no_part(tmp_path, error):
    path = tmp_path / "state.bin"
    path.write_text("old")
    with pytest.raises(UserError, match=r"state\.bin"), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise error
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["state.bin"]


def test_failed_first_write_leaves_nothing(tmp_path):
    with pytest.raises(UserError), atomic_write(tmp_path / "state.bin") as temporary:
        temporary.write_text("half")
        raise OSError("No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_finished_write_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "state.bin"
    for text in ("first", "second"):
        with atomic_write(path) as temporary:
            assert temporary != path
            temporary.write_text(text)
        assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["state.bin"]


def test_reader_of_the_old_file_never_sees_the_new_one(tmp_path):
    path = tmp_path / "state.bin"
    path.write_text("old and long")
    with path.open() as reader:
        with atomic_write(path) as temporary:
            temporary.write_text("new")
        assert reader.read() == "old and long"


def test_interrupted_write_stays_an_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "state.bin"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arch", "layers"), [("vgg16", 29), ("alexnet", 11)])
def test_trunk_ends_with_the_last_convolution(arch, layers):
    encoder = build_backbone(arch)
    assert len(encoder) == layers
    assert isinstance(encoder[-1], nn.Conv2d)
    with torch.device("meta"):
        whole = getattr(torchvision.models, arch)(weights=None).features
    assert [str(layer) for layer in encoder] == [str(layer) for layer in whole[:layers]]
    assert [type(layer) for layer in whole[layers:]] == [nn.ReLU, nn.MaxPool2d]


@pytest.mark.parametrize(
    ("name", "arch", "entry"),
    [
        ("features", "vgg16", torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES),
        ("torchvision", "alexnet", torchvision.models.AlexNet_Weights.IMAGENET1K_V1),
        ("torchvision", "vgg16", torchvision.models.VGG16_Weights.IMAGENET1K_V1),
    ],
)
def test_normalization_does_what_torchvision_does(name, arch, entry):
    pixels = noise(32, 32)
    wanted = entry.transforms(crop_size=32, resize_size=32)(Image.fromarray(pixels)).permute(1, 2, 0).numpy()
    found, values = normalization_of(arch, entry.name, None)
    assert found == name and values == NORMALIZATIONS[name]
    assert np.abs((pixels - np.array(values.mean)) / np.array(values.std) - wanted).max() < 1e-4


def test_a_photo_with_damaged_exif_is_named(tmp_path):
    path = tmp_path / "damaged.jpg"
    exif = Image.Exif()
    exif[0x0100], exif[0x010F], exif[0x0112] = 16, "maker", 6  # width, maker, orientation
    Image.new("RGB", (16, 8)).save(path, exif=exif)
    content = bytearray(path.read_bytes())
    content[43] = 1  # the type of the width: a number becomes bytes, which Pillow cannot write back upright
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        decode(path)


@pytest.mark.parametrize("orientation", range(11))
def test_the_size_in_the_header_is_that_of_the_decoded_photo(tmp_path, orientation):
    """Orientations 1 to 8 exist, of which 5 to 8 turn by a quarter; others leave a photo as it is."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "photo.jpg", noise(16, 24), exif=exif)
    size = (24, 16) if orientation in (5, 6, 7, 8) else (16, 24)
    assert photos_module.photo_size(path) == size == tuple(decode(path).shape[1:])


@pytest.mark.parametrize(
    ("size", "longest_side", "wanted"),
    [
        ((960, 1280), 640, (480, 640)), ((1280, 960), 640, (640, 480)), ((480, 640), 640, (480, 640)),
        ((100, 50), 640, (100, 50)), ((1000, 3), 100, (100, 1)), ((101, 77), 50, (50, 38)), ((99, 99), None, (99, 99)),
    ],
)  # fmt: skip
def test_a_photo_is_shrunk_and_keeps_its_shape(size, longest_side, wanted):
    assert photos_module.shrunk(size, longest_side) == wanted
