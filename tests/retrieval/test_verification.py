"""Keypoints: their matches against loops, two cameras that see the same space, images that move, and what is kept."""

import hashlib
import itertools
import os
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import engine_data
import numpy as np
import pytest
import torch
from cameras import sampson, two_views, unit_descriptors
from drawing import draw_image

from vpr.common.errors import UserError
from vpr.data.images import decode
from vpr.data.reader import Reading
from vpr.models.engines import CACHE_VARIABLE, ENGINES
from vpr.retrieval.ask import NotServed
from vpr.retrieval.verification import keypoints as module
from vpr.retrieval.verification.kept import KeptKeypoints, KeypointPairs, keypoints_file
from vpr.retrieval.verification.keypoints import DIM, MOST, RELEASED, SCALE, KeypointNetwork, Keypoints, load_network
from vpr.retrieval.verification.layers import by_engine
from vpr.retrieval.verification.pairs import LEAST_COSINE, mutual_neighbours, verify


@pytest.fixture(scope="module", autouse=True)
def tensors(xfeat_tensors):
    """Random ones; without the packages for them there is nothing to test."""
    return xfeat_tensors


@pytest.fixture(scope="module")
def network(tensors):
    return KeypointNetwork(tensors)


@pytest.fixture(scope="session")
def real(shared):
    """The network with the authors' weights."""
    file = shared / "weights" / "xfeat.pth"
    if not file.is_file():
        pytest.skip("the weights of XFeat are not beside the repository")
    return load_network(str(file))


def cut(keypoints, rows):
    return replace(keypoints, points=keypoints.points[rows], descriptors=keypoints.descriptors[rows])


def same(one, other):
    return (
        np.array_equal(one.points, other.points)
        and np.array_equal(one.descriptors, other.descriptors)
        and (one.width, one.height) == (other.width, other.height)
    )


# Matches. -------------------------------------------------------------------------------------------------------------


def mutual_by_loop(query, hit):
    products = [[int(np.dot(one.astype(int), other.astype(int))) for other in hit] for one in query]
    pairs = []
    for i, row in enumerate(products):
        j = max(range(len(hit)), key=row.__getitem__)
        back = [products[n][j] for n in range(len(query))]
        if max(range(len(query)), key=back.__getitem__) == i and row[j] / SCALE**2 > LEAST_COSINE:
            pairs.append([i, j])
    return pairs


def alike(count, random, noise):
    """Descriptors, and some of them again in another order, with noise."""
    own = unit_descriptors(count, random)
    return own, (own[random.permutation(count)] + random.normal(0, noise, own.shape)).round().clip(-127, 127).astype(
        np.int8
    )


@pytest.mark.parametrize("noise", [0, 15, 30])
def test_matches_are_each_others_nearest_by_brute_force(noise):
    random = np.random.default_rng(noise)
    query, hit = alike(40, random, noise)
    query, hit = query[:33], np.concatenate([hit, unit_descriptors(5, random)])
    found = mutual_neighbours(query, hit)
    assert found.dtype == np.int64 and found.tolist() == mutual_by_loop(query, hit)
    assert len(found) > 5 and (noise < 30 or len(found) < 33), "both kinds are tried"
    swapped = mutual_neighbours(hit, query)
    assert sorted(map(tuple, swapped[:, ::-1].tolist())) == sorted(map(tuple, found.tolist()))


def test_of_equal_descriptors_the_first_are_each_others():
    own = unit_descriptors(3, np.random.default_rng(0))
    query, hit = own[[0, 0, 1, 2, 1]], own[[1, 0, 0, 2, 1]]
    assert mutual_neighbours(query, hit).tolist() == mutual_by_loop(query, hit) == [[0, 1], [2, 0], [3, 3]]


def test_nothing_matches_nothing():
    own = unit_descriptors(3, np.random.default_rng(0))
    for query, hit in ((own[:0], own), (own, own[:0]), (own[:0], own[:0])):
        found = mutual_neighbours(query, hit)
        assert found.shape == (0, 2) and found.dtype == np.int64
    assert mutual_neighbours(own, -own).shape == (0, 2), "too unlike"


# Two cameras. ---------------------------------------------------------------------------------------------------------

VIEWS = [((640, 480), (1280, 720)), ((320, 240), (2000, 3000)), ((900, 1200), (600, 400))]


@pytest.mark.parametrize("sizes", VIEWS)
@pytest.mark.parametrize("outliers", [0, 40, 120])
def test_what_two_cameras_see_agrees_and_little_else(sizes, outliers):
    """Of images of other sizes: distances count in pixels of images whose longest side is 640 at most."""
    points = 100
    query, hit = two_views(points, outliers, seed=outliers, sizes=sizes, noise=0.3)
    found = verify(query, hit)
    assert found.matches == points + outliers and found.inliers == len(found.query_points) == len(found.hit_points)
    row_of = {tuple(point): row for row, point in enumerate(query.points.tolist())}
    rows = [row_of[tuple(point)] for point in found.query_points.tolist()]
    assert np.array_equal(hit.points[rows], found.hit_points) and rows == sorted(rows)
    right = sum(row < points for row in rows)
    assert right >= 0.95 * points and len(rows) - right <= 0.08 * outliers
    scales = [min(1, 640 / max(size)) for size in sizes]
    distances = sampson(found.fundamental, found.query_points * sizes[0], found.hit_points * sizes[1], scales)
    assert distances.max() <= 1.5 * 1.001
    others = sorted(set(range(points + outliers)) - set(rows))
    away = sampson(found.fundamental, query.points[others] * sizes[0], hit.points[others] * sizes[1], scales)
    assert (away > 1.4).all()
    ends = np.array([*found.query_points[:1] * sizes[0], *found.hit_points[:1] * sizes[1]])
    line = found.fundamental @ (*ends[0], 1)  # in the hit, in its own pixels
    assert abs(line @ (*ends[1], 1)) / np.hypot(*line[:2]) * scales[1] < 5
    assert np.linalg.svd(found.fundamental / np.abs(found.fundamental).max(), compute_uv=False)[2] < 1e-6


def test_the_epipole_is_the_other_camera():
    """Without noise: the line of every point goes through where the first camera stands, as the second sees it."""
    sizes = VIEWS[0]
    found = verify(*two_views(100, 0, sizes=sizes))
    turn = np.radians(8)
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    local = rotation @ -np.array([1, 0.1, 0.2])
    epipole = np.array([*(local[:2] / local[2] * 0.8 * sizes[1][0] + (sizes[1][0] / 2, sizes[1][1] / 2)), 1])
    lines = np.array([found.fundamental @ (*point, 1) for point in found.query_points * sizes[0]])
    away = np.abs(lines @ epipole) / np.hypot(lines[:, 0], lines[:, 1])
    assert away.max() < 0.01 * np.linalg.norm(epipole[:2])


def test_two_runs_give_the_same():
    views = two_views(60, 90, seed=3, noise=0.5)
    one, other = verify(*views), verify(*views)
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name))
    with_noise = KeypointPairs([views[0]], _Kept(views[1]), lambda row: (str(row), None))
    for pair in with_noise.of(0, np.arange(6)):  # by threads
        np.testing.assert_array_equal(pair.query_points, one.query_points)


class _Kept:
    def __init__(self, keypoints):
        self.of = lambda name, file: keypoints


@pytest.mark.parametrize("count", [0, 1, 7])
def test_few_matches_agree_with_nothing(count):
    views = [cut(view, slice(count)) for view in two_views(50, 0)]
    found = verify(*views)
    assert (found.inliers, found.matches, found.fundamental) == (0, count, None)
    assert found.query_points.shape == found.hit_points.shape == (0, 2)


def degenerate():
    random = np.random.default_rng(0)
    along = np.linspace(0.1, 0.9, 30)
    line, spread = np.stack([along, 0.2 + 0.5 * along], axis=1), random.uniform(0, 1, (30, 2))
    level, one = np.stack([along, np.full(30, 0.5)], axis=1), np.full((30, 2), 0.5)
    return {
        "one line": (line, line), "two lines": (line, level), "a line and anything": (level, spread),
        "anything and a line": (spread, level), "one point": (one, one), "a point and anything": (one, spread),
        "two points": (np.repeat(line[[0, 9]], 15, axis=0), spread),
    }  # fmt: skip


@pytest.mark.parametrize("kind", degenerate())
def test_points_that_tell_of_no_camera_agree_with_nothing(kind):
    """Points on a line agree with a fundamental matrix whatever they match."""
    descriptors = unit_descriptors(30, np.random.default_rng(1))
    views = [Keypoints(points.astype(np.float32), descriptors, 640, 480) for points in degenerate()[kind]]
    found = verify(*views)
    assert (found.inliers, found.matches, found.fundamental) == (0, 30, None)


def test_an_image_agrees_with_itself():
    view = two_views(80, 0)[0]
    found = verify(view, view)
    assert found.inliers == found.matches == 80 and np.array_equal(found.query_points, found.hit_points)


# Packed. --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 1024])
def test_keypoints_are_packed_and_unpacked(count):
    random = np.random.default_rng(count)
    points = random.uniform(0, 1, (count, 2)).astype(np.float32)
    points[:1] = (0, 1)  # the corners come back exactly
    keypoints = Keypoints(points, random.integers(-127, 128, (count, DIM)).astype(np.int8), 4032, 3024)
    packed = keypoints.pack()
    again = Keypoints.unpack(packed)
    assert len(packed) == 12 + 68 * count and again.points.dtype == np.float32
    assert np.array_equal(again.descriptors, keypoints.descriptors) and (again.width, again.height) == (4032, 3024)
    np.testing.assert_allclose(again.points, points, atol=0.5 / 65535 + 1e-7)
    assert np.array_equal(again.points[:1], points[:1]) and again.pack() == packed


def test_damaged_bytes_are_refused():
    packed = Keypoints(np.zeros((3, 2), np.float32), np.zeros((3, DIM), np.int8), 9, 9).pack()
    for damaged in (b"", packed[:5], packed[:-1], packed + b"x", b"\xff" * len(packed), packed[12:]):
        with pytest.raises(ValueError, match="keypoints"):
            Keypoints.unpack(damaged)


# Detection. -----------------------------------------------------------------------------------------------------------


def drawing(folder, size, seed=0):
    """An image of coarse noise under fine noise, uint8 [3, H, W]."""
    image = decode(draw_image(folder / f"{size}{seed}.png", size, seed), None).astype(int)
    return (image + np.random.default_rng(seed).integers(-60, 60, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(40, 33), (700, 20), (20, 700), (1500, 2000), (320, 240), (1, 1), (641, 480)])
def test_keypoints_lie_within_the_image(network, real_or_random, tmp_path, size):
    found = real_or_random.detect(drawing(tmp_path, size))
    assert (found.width, found.height) == size and len(found.points) == len(found.descriptors) <= MOST
    assert found.points.dtype == np.float32 and found.descriptors.dtype == np.int8
    assert found.points.shape[1:] == (2,) and found.descriptors.shape[1:] == (DIM,)
    assert ((found.points >= 0) & (found.points <= 1)).all()
    if size == (1, 1):
        return
    assert len(found.points) > 10 and (np.ptp(found.points, axis=0) > 0.3).all()
    lengths = np.linalg.norm(found.descriptors.astype(float), axis=1)
    assert (abs(lengths / SCALE - 1) < 0.02).mean() > 0.95, "but for those with a component over 1/2"


@pytest.fixture(params=["random", "real"])
def real_or_random(request):
    return request.getfixturevalue("network" if request.param == "random" else "real")


def test_an_image_of_one_colour_has_none(real, tmp_path):
    flat, other = real.detect(np.full((3, 100, 120), 90, np.uint8)), real.detect(drawing(tmp_path, (120, 100)))
    assert len(flat.points) == 0 and len(other.points) > 100
    for pair in ((flat, flat), (flat, other), (other, flat)):
        assert verify(*pair).matches == 0


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((160, 120), (320, 224)), ((100, 80), (192, 160)), ((320, 200), (320, 192)), ((500, 640), (480, 640)),
        ((1280, 960), (640, 480)), ((2000, 500), (640, 160)), ((20, 700), (32, 640)), ((10, 8), (32, 32)),
    ],
)  # fmt: skip
def test_small_images_are_enlarged_and_large_ones_shrunk(network, monkeypatch, size, seen):
    shapes = []
    detect = network._net.detectAndCompute
    monkeypatch.setattr(
        network._net, "detectAndCompute", lambda pixels: (shapes.append(pixels.shape), detect(pixels))[1]
    )
    network.detect(np.random.default_rng(0).integers(0, 256, (3, size[1], size[0]), dtype=np.uint8))
    assert shapes == [(1, 3, seen[1], seen[0])]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [(320, 240), (1000, 700), (90, 130)])
def test_an_engine_finds_what_pytorch_finds(tensors, monkeypatch, tmp_path, engine, size):
    pytest.importorskip(engine)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    plain, fast, image = KeypointNetwork(tensors), KeypointNetwork(tensors), drawing(tmp_path, size)
    by_engine(fast.layers, engine, 1)
    monkeypatch.setattr(type(plain._net.net.block1), "forward", None)  # of PyTorch: nothing goes through there
    found = fast.detect(image)
    assert fast.weights_hash == plain.weights_hash and list(tmp_path.rglob("xfeat-*.onnx"))
    monkeypatch.undo()
    wanted = plain.detect(image)
    row_of = {tuple(point): row for row, point in enumerate(wanted.points.tolist())}
    both = [(own, row_of[tuple(point)]) for own, point in enumerate(found.points.tolist()) if tuple(point) in row_of]
    assert len(both) >= 0.98 * max(len(wanted.points), len(found.points)) > 10
    own, other = np.array(both).T
    assert abs(found.descriptors[own].astype(int) - wanted.descriptors[other]).max() <= 1, "but for rounding"


def test_a_point_is_where_it_is_in_the_image(network, monkeypatch):
    """Half way across and a quarter down, whatever is done to the image before the network sees it."""
    answer = {"descriptors": torch.nn.functional.normalize(torch.ones(1, DIM), dim=1)}

    def detected(pixels):
        height, width = pixels.shape[2:]
        return [{**answer, "keypoints": torch.tensor([[width / 2, height / 4]])}]

    monkeypatch.setattr(network._net, "detectAndCompute", detected)
    for height, width in ((33, 40), (20, 700), (2000, 1500), (480, 640)):
        found = network.detect(np.zeros((3, height, width), np.uint8))
        np.testing.assert_allclose(found.points, [[0.5, 0.25]])
        assert (found.descriptors == round(SCALE / 8)).all()


def test_keypoints_move_with_the_image(real_or_random, tmp_path):
    """By 32 pixels, of which the network's steps are whole fractions; away from the borders it sees the same."""
    image, points = drawing(tmp_path, (480, 384)), []
    for offset in (0, 32):
        keypoints = real_or_random.detect(np.ascontiguousarray(image[:, 32:352, 32 + offset : 448 + offset]))
        points.append((keypoints.points * (416, 320)).round().astype(int))
    moved = {(x - 32, y) for x, y in points[0].tolist()}
    inner = [(x, y) for x, y in moved if 40 <= x < 340 and 40 <= y < 280]
    there = {(x, y) for x, y in points[1].tolist()}
    assert len(inner) > 50 and np.mean([point in there for point in inner]) > 0.7
    chance = np.mean([(x + 13, y + 5) in there for x, y in inner])
    assert chance < 0.3, "not everywhere is a keypoint"


def test_moved_images_agree_and_others_do_not(real, tmp_path):
    image = drawing(tmp_path, (480, 384))
    views = [real.detect(np.ascontiguousarray(image[:, 32:352, 32 + offset : 448 + offset])) for offset in (0, 20)]
    found, other = verify(*views), verify(views[0], real.detect(drawing(tmp_path, (416, 320), 1)))
    assert found.inliers > 100 and found.inliers > 5 * max(8, other.inliers)
    away = (found.query_points - found.hit_points) * (416, 320)
    assert np.median(np.abs(away - (20, 0)).max(axis=1)) <= 2


def test_more_light_changes_little(real, tmp_path):
    """The network subtracts an image's mean, and divides by its deviation."""
    image = drawing(tmp_path, (320, 320))
    found = verify(real.detect(image), real.detect((image * 0.8).astype(np.uint8)))
    assert found.inliers > 100


# Weights. -------------------------------------------------------------------------------------------------------------


def test_the_hash_is_of_the_tensors(tensors, network):
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    assert network.weights_hash == digest.hexdigest()[:16]
    name = next(iter(tensors))
    other = {**tensors, name: tensors[name] + 1}
    assert KeypointNetwork(other).weights_hash != network.weights_hash
    assert KeypointNetwork(dict(reversed(tensors.items()))).weights_hash == network.weights_hash


def test_the_authors_weights_are_the_release(real):
    assert real.weights_hash == RELEASED


def test_files_that_are_no_weights_are_refused_in_a_line(tensors, tmp_path):
    few = dict(itertools.islice(tensors.items(), 5))
    for number, content in enumerate([few, {}, [1, 2], torch.zeros(3), 5, {"a": "b"}, {**tensors, 5: torch.zeros(1)}]):
        file = tmp_path / f"{number}.pt"
        torch.save(content, file)
        with pytest.raises(UserError, match="keypoint") as caught:
            load_network(str(file))
        assert "\n" not in str(caught.value)
    (tmp_path / "text.pt").write_text("no weights")
    for file in (tmp_path / "text.pt", tmp_path / "missing.pt", tmp_path):
        with pytest.raises(UserError, match="--keypointWeights") as caught:
            load_network(str(file))
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_downloaded_weights_are_found_and_are_the_authors(tensors, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert module.downloaded() is None
    file = tmp_path / "hub" / "checkpoints" / "xfeat.pt"
    assert file == torch_path()
    file.parent.mkdir(parents=True)
    torch.save(tensors, file)
    assert module.downloaded() == file
    with pytest.raises(UserError, match=r"other weights than the authors' release.*delete it"):
        load_network("")
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert module._cached() == torch_path()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert module._cached() == torch_path()


def torch_path():
    """Where PyTorch says that it is."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "xfeat.pt"


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    def fails(address, timeout):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", fails)
    with pytest.raises(UserError, match=r"no network.*fetch https://.*--keypointWeights") as caught:
        load_network("")
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("package", ["kornia", "cv2"])
def test_a_missing_package_is_named_with_what_to_install(tensors, tmp_path, monkeypatch, package):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "xfeat.pt"
    file.parent.mkdir(parents=True)
    torch.save(tensors, file)
    monkeypatch.setitem(sys.modules, package, None)
    for make in (lambda: load_network(str(file)), lambda: load_network(""), lambda: KeypointNetwork(tensors)):
        with pytest.raises(UserError, match=f"{package}.*pip install kornia opencv-python-headless"):
            make()
    assert module.downloaded() is None, "who asks for nothing goes on without"


# Kept. ----------------------------------------------------------------------------------------------------------------


class Counting:
    """In place of a network: keypoints that tell images apart, and how many were made."""

    def __init__(self, weights_hash="0" * 16):
        self.weights_hash, self.made = weights_hash, 0

    def detect(self, image):
        self.made += 1
        return Keypoints(np.full((2, 2), image.mean() / 255, np.float32),
                         np.full((2, DIM), 3, np.int8), image.shape[2], image.shape[1])  # fmt: skip


@pytest.fixture
def files(tmp_path):
    return [draw_image(tmp_path / "images" / f"{n}.png", (40, 30), n) for n in range(4)]


def kept_in(path, weights_hash="0" * 16, read=None):
    counting = Counting(weights_hash)
    return KeptKeypoints(counting, read or Reading(), path), counting


def test_keypoints_are_made_once_and_found_again_by_name(files, tmp_path):
    path = keypoints_file(tmp_path / "new" / "database.sqlite")
    assert path == keypoints_file(tmp_path / "new" / "database.h5") == tmp_path / "new" / "database.keypoints.sqlite"
    kept, counting = kept_in(path)
    assert kept.bytes_per_image == 0
    first = [kept.of(file.name, file) for file in files]
    assert counting.made == 4 and kept.bytes_per_image == 12 + 2 * 68
    again, counting = kept_in(path)
    assert all(same(again.of(file.name, file), one) for file, one in zip(files, first, strict=True))
    assert counting.made == 0
    assert not same(first[0], first[1])
    memory, counting = kept_in(None)
    assert same(memory.of("a", files[0]), first[0]) and same(memory.of("a", files[0]), first[0]) and counting.made == 1


def test_an_image_that_changed_is_made_anew(files, tmp_path):
    path = tmp_path / "kept.sqlite"
    before = kept_in(path)[0].of("a", files[0])
    draw_image(files[0], (50, 30), 9)
    kept, counting = kept_in(path)
    after = kept.of("a", files[0])
    assert counting.made == 1 and after.width == 50 and not same(before, after)
    stamp = files[0].stat().st_mtime_ns
    os.utime(files[0], ns=(stamp, stamp + 1))
    kept.of("a", files[0])
    kept.of("a", files[0])
    assert counting.made == 2


def test_other_weights_or_sizes_are_made_anew(files, tmp_path):
    path = tmp_path / "kept.sqlite"
    kept_in(path)[0].of("a", files[0])
    for change in ({"weights_hash": "1" * 16}, {"read": Reading((20, 24))}, {"read": Reading((20,))}, {}):
        kept, counting = kept_in(path, **change)
        kept.of("a", files[0])
        kept.of("a", files[0])
        assert counting.made == 1
    # Of an image that is gone those of another network do not stand in.
    gone = files[0].rename(tmp_path / "elsewhere.png")
    kept, _ = kept_in(path)
    kept.of("a", files[0])
    with pytest.raises(NotServed):
        kept_in(path, "1" * 16)[0].of("a", files[0])
    assert gone.is_file()


def test_an_image_that_is_gone_is_served_where_its_keypoints_are_kept(files, tmp_path):
    kept, counting = kept_in(tmp_path / "kept.sqlite")
    before = kept.of("a", files[0])
    files[0].unlink()
    assert same(kept.of("a", files[0]), before) and counting.made == 1
    with pytest.raises(NotServed) as caught:
        kept.of("b", files[0])
    assert str(files[0]) in str(caught.value) and "\n" not in str(caught.value)
    files[1].write_bytes(b"no image")
    with pytest.raises(NotServed) as broken:
        kept.of("c", files[1])
    for told in (caught.value.told, broken.value.told):
        assert str(tmp_path) not in told and "/" not in told and ".png" not in told


def damage(path):
    """Page by page, but for the first."""
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


def test_a_damaged_file_is_refused_in_a_line(files, tmp_path):
    path = tmp_path / "kept.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"kept\.sqlite.*delete it, it is made again") as caught:
        kept_in(path)
    assert "\n" not in str(caught.value)
    path.unlink()
    kept, _ = kept_in(path)
    kept.of("a", files[0])
    kept._file.close()
    damage(path)
    kept, _ = kept_in(path)
    records = records_of(files)
    for use in (lambda: kept.of("a", files[0]), lambda: kept.prepare(records, tmp_path / "images")):
        with pytest.raises(NotServed, match=r"kept\.sqlite is damaged.*delete it") as caught:
            use()
        assert "\n" not in str(caught.value) and str(tmp_path) not in caught.value.told


@pytest.mark.parametrize("packed", [b"", b"short", b"\xff" * 148])
def test_damaged_keypoints_are_refused_in_a_line(files, tmp_path, packed):
    path = tmp_path / "kept.sqlite"
    kept, _ = kept_in(path)
    kept.of("a", files[0])
    with sqlite3.connect(path) as file:
        file.execute("update keypoints set packed = ?", [packed])
    with pytest.raises(NotServed, match=r"kept\.sqlite is damaged"):
        kept.of("a", files[0])


def test_a_folder_that_takes_no_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file of keypoints"):
        kept_in(tmp_path / "file" / "kept.sqlite")


def test_what_another_process_holds_is_made_and_not_kept(files, tmp_path):
    path = tmp_path / "kept.sqlite"
    kept, counting = kept_in(path)
    kept._file.execute("pragma busy_timeout = 1")
    holding = sqlite3.connect(path, isolation_level=None)
    holding.execute("begin immediate")
    assert len(kept.of("a", files[0]).points) == 2
    holding.execute("rollback")
    kept.of("a", files[0])
    kept.of("a", files[0])
    assert counting.made == 2


def records_of(files):
    return engine_data.images(len(files), names=[file.name for file in files])


def test_prepared_keypoints_are_those_of_all_images_and_what_changed(files, tmp_path, capsys):
    path, root = tmp_path / "kept.sqlite", files[0].parent
    kept, counting = kept_in(path)
    kept.of(files[2].name, files[2])
    kept.prepare(records_of(files), root)
    assert counting.made == 4 and "keypoints of 3 images, 148 bytes each" in capsys.readouterr().out
    kept.prepare(records_of(files), root)
    assert counting.made == 4 and not any(capsys.readouterr()), "where nothing is done nothing is said"
    draw_image(files[1], (40, 30), 77)
    files[3].unlink()
    kept.prepare(records_of(files), root)
    assert counting.made == 5, "that which is gone is kept"
    kept, counting = kept_in(path, "1" * 16)
    with pytest.raises(NotServed):
        kept.prepare(records_of(files), root)
    there = replace(records_of(files), names=[*(file.name for file in files[:3]), ""])  # the last was removed
    kept.prepare(there, root)
    assert counting.made == 3


# Pairs. ---------------------------------------------------------------------------------------------------------------


def test_compared_keypoints_are_the_inliers():
    query, hit = two_views(60, 30, seed=1)
    pairs = KeypointPairs([query], _Kept(hit), lambda row: (str(row), None))
    found, (verified,) = pairs.compared(0, 5), pairs.of(0, np.array([5]))
    assert np.array_equal(found.matches.query_points, verified.query_points)
    assert np.array_equal(found.matches.hit_points, verified.hit_points)
    assert (found.matches.weights == 1).all() and found.local_score == verified.inliers / 90
    np.testing.assert_array_equal(found.verification.fundamental, verified.fundamental)
    none = KeypointPairs([cut(query, slice(0))], _Kept(hit), lambda row: (str(row), None)).compared(0, 5)
    assert none.local_score == 0 and none.verification.fundamental is None and len(none.matches.weights) == 0
