"""Views of training images: what each changes and what it keeps, and the reader that gives them."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from drawing import draw_image
from scipy.ndimage import label

from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec
from vpr.common.errors import UserError
from vpr.data.reader import ImageReader
from vpr.descriptors.frozen_features import FrozenFeatures
from vpr.descriptors.trunk_cache import cached_source
from vpr.models.backbones.base import build_backbone
from vpr.models.place_model import build_model
from vpr.training.views.augmentations import boxes, warped
from vpr.training.views.choices import VIEWS, styled
from vpr.training.views.conditions import night
from vpr.training.views.reader import ViewedReader

SEEDS = range(12)
SIZES = [(64, 48), (64, 48), (80, 56), (48, 64)]  # width, height


@pytest.fixture(scope="module")
def street():
    """Sky over a wall with windows, a tree and a road, uint8 [96, 128, 3]."""
    image = np.empty((96, 128, 3), np.uint8)
    image[:30], image[30:70], image[70:] = (200, 215, 240), (150, 110, 90), (110, 110, 112)
    for left in range(6, 128, 16):
        image[38:56, left : left + 8] = (60, 70, 80)
    image[34:72, 100:124] = (60, 130, 50)
    noise = np.random.default_rng(0).integers(-8, 9, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def seen(name, image, seed):
    return styled([name], seed)(image, 0, 1)


def edges(image):
    """How strong the gradients of brightness are, within the frame."""
    down, right = np.gradient(image.mean(axis=2))
    return np.hypot(down, right)[2:-2, 2:-2].ravel()


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("shape", [(96, 128), (33, 20)])
def test_a_view_has_the_image_s_size_and_follows_from_the_seed_alone(name, shape, street):
    image = street[: shape[0], : shape[1]].copy()
    image.setflags(write=False)  # a view that wrote into it would fail
    made = [seen(name, image, seed) for seed in SEEDS]
    torch.manual_seed(0)
    np.random.seed(0)
    state = torch.get_rng_state()
    again = [seen(name, image, seed) for seed in SEEDS]
    assert torch.equal(torch.get_rng_state(), state)
    for first, second in zip(made, again, strict=True):
        assert first.shape == image.shape and first.dtype == np.uint8
        assert np.array_equal(first, second)
    assert len({one.tobytes() for one in made}) > len(SEEDS) // 2, "seeds make no difference"
    assert any(not np.array_equal(one, image) for one in made)


@pytest.mark.parametrize("name", VIEWS)
def test_what_is_in_a_view_stays_where_it_is_but_for_the_moved_one(name, street):
    if name != "homography":
        found = [np.corrcoef(edges(street), edges(seen(name, street, seed)))[0, 1] for seed in SEEDS]
        assert min(found) > 0.1, found  # of unlike images it is -0.1 to 0.05


def test_at_night_it_is_dark_and_the_light_is_warm_or_cold(street):
    made = [seen("night", street, seed) for seed in SEEDS]
    factors = [image.mean() / street.mean() for image in made]
    assert min(factors) > 0.1 and max(factors) < 0.75
    # Of grey light; lamps are warm, so that what makes it cold is the cast.
    greys = [seen("night", np.full((96, 128, 3), 120, np.uint8), seed).mean(axis=(0, 1)) for seed in SEEDS]
    assert min(red / blue for red, _, blue in greys) < 0.8 and max(red / blue for red, _, blue in greys) > 1.25


def test_the_night_in_grey_uses_all_greys(street):
    for seed in SEEDS:
        image = seen("night_grey", street, seed)
        assert (image == image[..., :1]).all()
        assert image.min() < 30 and image.max() > 225 and 90 < image.mean() < 165


def test_rain_takes_contrast_and_colour_and_adds_bright_streaks(street):
    for seed in SEEDS:
        image = seen("rain", street, seed)
        assert np.ptp(image, axis=2).mean() < 0.7 * np.ptp(street, axis=2).mean()
        assert np.percentile(image, 90) - np.percentile(image, 10) < np.ptp(np.percentile(street, [10, 90]))
        # On a plain surface all that differs are the streaks, which are brighter.
        plain = seen("rain", np.full((96, 128, 3), 90, np.uint8), seed).mean(axis=2)
        ground = np.median(plain)
        assert 0.005 < (plain > ground + 5).mean() < 0.3 and (plain < ground - 1).sum() == 0


def test_a_season_turns_green_brown_or_white_and_leaves_what_is_grey_above():
    image = np.full((96, 128, 3), 90, np.uint8)
    image[30:80, :60] = (60, 130, 50)
    winters = 0
    for seed in SEEDS:
        made = seen("season", image, seed)
        assert np.array_equal(made[:30], image[:30])
        red, green, blue = made[30:40, :60].reshape(-1, 3).mean(axis=0)
        assert 2 * green - red - blue < 0.6 * 150
        winters += (is_winter := bool(made[-1, -1, 0] > 110))
        assert is_winter or np.array_equal(made[:, 60:], image[:, 60:])
        assert (blue > 90) if is_winter else (red > green > blue)
    assert 0 < winters < len(SEEDS)


def test_colours_of_a_grey_surface_stay_grey_and_even():
    plain = np.full((40, 50, 3), 120, np.uint8)
    levels = [np.unique(seen("colour", plain, seed)) for seed in SEEDS]
    assert all(len(level) == 1 and 50 < level[0] < 200 for level in levels)
    assert len({int(level[0]) for level in levels}) > 6


def test_blur_keeps_the_mean_and_takes_what_is_sharp(street):
    for seed in SEEDS:
        made = seen("blur", street, seed)
        assert abs(made.mean() - street.mean()) < 1
        assert edges(made).std() < edges(street).std()


@pytest.mark.parametrize("shape", [(96, 128), (320, 320), (31, 17)])
def test_boxes_are_grey_and_leave_the_rest(shape):
    image = np.full((*shape, 3), (255, 0, 255), np.uint8)
    counts = set()
    for seed in SEEDS:
        made = seen("boxes", image, seed)
        changed = (made != image).any(axis=2)
        assert 0 < changed.mean() <= 0.3
        assert (made[changed] == made[changed][:, :1]).all()
        counts.add(label(changed)[1])
    assert counts <= {1, 2, 3} and len(counts) > 1


def test_erasing_puts_noise_into_one_box():
    image = np.full((96, 128, 3), (255, 0, 255), np.uint8)
    for seed in SEEDS:
        changed = (seen("erasing", image, seed) != image).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        inside = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert inside.mean() > 0.99 and inside.size <= 0.3 * changed.size


def test_corners_that_stay_change_nothing(street):
    assert np.array_equal(warped(street, np.zeros((4, 2))), street)


def test_corners_that_move_alike_shift_the_image_and_its_reflection(street):
    found = warped(street, np.tile([[4 / 128, -6 / 96]], (4, 1)))
    wanted = np.pad(street, ((6, 0), (0, 4), (0, 0)), mode="reflect")[:96, 4:]
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_a_homography_takes_corners_to_corners_and_diagonals_to_diagonals():
    """Where the diagonals cross follows from the corners alone; red counts pixels to the right, green down."""
    image = np.zeros((100, 200, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(200), np.arange(100)[:, None]
    shifts = np.array([[0.1, 0.05], [-0.02, 0.1], [-0.1, -0.03], [0.06, -0.08]])
    sources = (np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + shifts) * (200, 100)
    found = warped(image, shifts)[..., :2].astype(float) + 0.5  # a pixel's middle lies half a pixel from its edge
    corners = found[[0, 0, -1, -1], [0, -1, -1, 0]]
    assert np.abs(corners - sources).max() < 2
    (a, c), (b, d) = sources[[0, 2]], sources[[1, 3]]
    along = np.linalg.solve(np.stack([c - a, b - d], axis=1), b - a)[0]
    assert np.abs(found[49:51, 99:101].mean(axis=(0, 1)) - (a + along * (c - a))).max() < 1


def test_views_move_corners_by_a_tenth_at_most():
    image = np.zeros((100, 200, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(200), np.arange(100)[:, None]
    moves = []
    for seed in SEEDS:
        found = seen("homography", image, seed)[[0, 0, -1, -1], [0, -1, -1, 0], :2].astype(int)
        moves.append(np.abs(found - [[0, 0], [199, 0], [199, 99], [0, 99]]) / (200, 100))
    assert np.max(moves) <= 0.11 and np.max(moves) > 0.07


def test_the_table_waits_for_no_numpy():
    code = (
        "import sys, vpr.training.views.choices as table; "
        "print(len(table.VIEWS), {'numpy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == [str(len(VIEWS)), "set()\n"]


def test_seed_image_and_place_among_the_views_each_make_another_view(street):
    views = styled(["night", "night"], 1)
    made = [views(street, 0, 1), views(street, 0, 2), views(street, 1, 1), styled(["night"], 2)(street, 0, 1)]
    assert len({image.tobytes() for image in made}) == 4
    assert np.array_equal(views(street, 0, 0), street)


def test_a_view_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(UserError, match=r"no view 'fog' of images: choose from night, .*rain"):
        ViewedReader.of(ImageReader([], None, 0), ["night", "fog"], 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return [draw_image(folder / f"{number}.png", size, number) for number, size in enumerate(SIZES)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [None, (40, 56)])
def test_the_reader_gives_the_views_of_each_image_in_turn(files, size, workers):
    plain = ImageReader(files, size, workers, longest_sides={2: 60})
    reader = ViewedReader.of(plain, ["night", "boxes"], 7)
    wanted = []
    for number in range(len(files)):
        image = plain[number].transpose(1, 2, 0)
        wanted.append(image)
        wanted += [make(image, np.random.default_rng([7, number, at])) for at, make in ((1, night), (2, boxes))]
    assert len(reader) == len(wanted) == 12
    order = [11, 0, 5, 4, 7, 7, 2, 10, 1, 3, 8, 6, 9]
    found = {}
    for batch, groups in zip([order[:5], order[5:]], reader.batches([order[:5], order[5:]]), strict=True):
        for group in groups:
            for row, image in zip(group.rows.tolist(), group.values, strict=True):
                found[batch[row]] = image
                assert reader.image_size(batch[row]) == group.image_size == image.shape[1:]
    assert sorted(found) == list(range(12))
    for index, image in found.items():
        assert np.array_equal(image.transpose(1, 2, 0), wanted[index]), index
    # Processes that decode may be given it by pickle.
    assert np.array_equal(pickle.loads(pickle.dumps(reader))[4], reader[4])


def test_without_views_it_is_the_plain_reader(files):
    plain = ImageReader(files, None, 0, longest_sides={2: 60})
    reader = ViewedReader.of(plain, [], 7)
    assert list(reader.files) == files and reader.applied == plain.applied == {}
    for index in range(len(files)):
        assert np.array_equal(reader[index], plain[index])


def test_a_broken_image_is_named_whatever_its_view(files, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:200])
    reader = ViewedReader.of(ImageReader([files[0], broken], None, 0), ["rain"], 0)
    with pytest.raises(UserError, match=r"broken\.png"):
        list(reader.batches([[0, 1], [3]]))


@pytest.fixture
def model(tmp_path):
    """AlexNet in float32 whose lower layers are frozen, as those of pretrained weights are."""
    encoder = build_backbone("alexnet")
    encoder.initialize(0)
    weights = tmp_path / "lower.pth"
    torch.save({f"features.{name}": value for name, value in encoder.state_dict().items()}, weights)
    options = parse_options(["--mode=train", "--arch=alexnet", f"--weights={weights}", "--pooling=avg"])
    return build_model(model_spec(options)).to_device(torch.device("cpu"), "fp32").eval()


def test_cached_maps_of_views_are_those_of_each_image_alone(files, model):
    reader = ViewedReader.of(ImageReader(files, (64, 80), 0), ["night", "homography", "rain"], 3)
    source = cached_source(reader, "places", model, "memory", batch_size=5)
    assert isinstance(source, FrozenFeatures) and len(source.files) == 16
    mean, std = (torch.tensor(of)[:, None, None] for of in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))  # ImageNet's
    for index in range(16):
        image = torch.from_numpy(np.ascontiguousarray(reader[index]))[None]
        with torch.no_grad():
            wanted = model.backbone.frozen((image / 255 - mean) / std)[0].numpy()
        assert np.abs(source.features(index) - wanted).max() < 1e-3 * np.abs(wanted).max()
    first = source.features(0).astype(float)
    assert np.abs(source.features(1) - first).max() > 0.1 * np.abs(first).max(), "the views must differ"


def test_caches_on_disk_are_of_their_views_and_seed_alone(files, model, tmp_path, capsys):
    plain, made = ImageReader(files, (64, 80), 0), []
    asked = [(["night"], 0), (["night"], 0), (["rain"], 0), (["rain"], 1), (["rain"], 1)]
    for number, (views, seed) in enumerate(asked):
        reader = ViewedReader.of(plain, views, seed)
        made.append(np.array(cached_source(reader, "places", model, "disk", tmp_path / "cache").values))
        assert ("is used again" in capsys.readouterr().out) == (number in (1, 4))
    assert np.array_equal(made[0], made[1]) and np.array_equal(made[3], made[4])
    assert not np.array_equal(made[1], made[2]) and not np.array_equal(made[2], made[3])
