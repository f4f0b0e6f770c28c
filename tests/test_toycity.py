"""The toy city: geometry against the pinhole's closed forms, layout against the disk, all or nothing."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from toycity import SEED, is_current, make_toy_city, writer
from toycity.camera import GROUND, LAYERS, Camera, cast_rays, visible_layers
from toycity.city import SPLITS, Walls, build_quarter, generator
from toycity.conditions import Difficulty
from toycity.facades import TEXELS_PER_METRE, Canvas
from toycity.light import shadow_height, survey_light
from toycity.streets import draw_street_plan
from vpr.common.errors import UserError
from vpr.data import places

SIZE = (160, 120)  # of the city that all tests share, and its counts in each quarter
PANORAMAS, QUERIES, HEADINGS = 6, 12, 8
SMALLEST = {"panoramas": 1, "queries": 1, "size": (64, 48)}


@pytest.fixture(scope="module")
def quarter():
    return build_quarter(SEED, 0)


@pytest.fixture
def specs(tiny_city):
    """The dbStruct of each split."""
    return [loadmat(tiny_city / "datasets" / f"toy_{split}.mat")["dbStruct"][0, 0] for split in SPLITS]


def facing_walls(*walls):
    """Walls (distance, left, right, height) across the view of a camera at the origin that looks north."""
    distances, left, right, heights = np.array(walls, np.float32).T
    starts, ends = (np.stack([x, distances], axis=1) for x in (left, right))
    return Walls(starts, ends, heights, np.zeros(len(walls), int))


def camera_at_origin(**changes):
    # 90 degrees over 200 pixels: the focal length is 100 pixels exactly.
    plain = Camera(np.zeros(2), height=2.0, heading=0.0, field_of_view=np.pi / 2, width=200, rows=300)
    return replace(plain, **changes)


@pytest.mark.parametrize(("distance", "height", "horizon"), [(20.0, 10.0, 0.0), (40.0, 22.0, 0.1), (8.0, 6.0, -0.1)])
def test_wall_covers_the_rows_of_the_pinhole_formula(distance, height, horizon):
    walls, camera = facing_walls((distance, -100, 100, height)), camera_at_origin(horizon=horizon)
    layer = visible_layers(cast_rays(walls, camera), walls, camera)
    horizon_row = 300 * (0.5 + horizon)
    top = horizon_row - 100 * (height - 2) / distance
    bottom = horizon_row + 100 * 2 / distance
    centres = np.arange(300) + 0.5
    expected = np.where(centres < top, LAYERS, np.where(centres < bottom, 0, GROUND))
    np.testing.assert_array_equal(layer, np.repeat(expected[:, None], 200, axis=1))


@pytest.mark.parametrize("heading", [0.0, 30.0, -20.0])
def test_vertical_edge_lands_in_the_column_of_its_bearing(heading):
    # The wall's right end lies at bearing 11.3 degrees east of north.
    walls, camera = facing_walls((20, -60, 4, 9)), camera_at_origin(heading=np.deg2rad(heading))
    hit = np.isfinite(cast_rays(walls, camera).depths[0])
    edge = 100 + 100 * np.tan(np.arctan2(4.0, 20.0) - np.deg2rad(heading))
    last = np.flatnonzero(hit).max()
    assert last + 0.5 < edge < last + 1.5


def test_left_end_of_a_wall_is_its_texture_start():
    walls, camera = facing_walls((20, -10, 10, 9)), camera_at_origin()
    hits = cast_rays(walls, camera)
    columns = np.array([60, 100, 139])
    expected = ((columns + 0.5 - 100) / 100 * 20.0 + 10.0) / 20.0
    np.testing.assert_allclose(hits.along[0, columns], expected, atol=1e-5)


def test_roof_behind_a_lower_roof_shows_above_it():
    walls, camera = facing_walls((10, -50, 50, 6), (30, -50, 50, 26)), camera_at_origin()
    layer = visible_layers(cast_rays(walls, camera), walls, camera)[:, 100]
    near_top, far_top, bottom = 150 - 100 * 4 / 10, 150 - 100 * 24 / 30, 150 + 100 * 2 / 10
    centres = np.arange(300) + 0.5
    expected = np.select([centres < far_top, centres < near_top, centres < bottom], [LAYERS, 1, 0], GROUND)
    np.testing.assert_array_equal(layer, expected)


def test_wall_seen_from_behind_is_not_there():
    wall = facing_walls((20, -10, 10, 9))
    behind = Walls(wall.ends, wall.starts, wall.heights, wall.textures)
    assert not np.isfinite(cast_rays(behind, camera_at_origin()).depths).any()


def test_projection_of_a_known_point():
    camera = camera_at_origin(heading=np.deg2rad(90.0))  # looks east
    column, row, depth = camera.project(np.array([25.0, -5.0]), height=7.0)
    assert (column, row, depth) == pytest.approx((100 + 100 * 5 / 25, 150 - 100 * 5 / 25, 25.0))


def test_plan_bend_inverts_exactly():
    plan = draw_street_plan(np.random.default_rng(3))
    lattice = np.random.default_rng(4).uniform(-60, 180, [500, 2])
    local = plan.to_local(lattice)
    assert np.abs(local - lattice).max() > 5.0  # it does bend and turn
    np.testing.assert_allclose(plan.to_lattice(local), lattice, atol=1e-3)


def test_shadow_falls_away_from_the_sun_as_long_as_the_sun_is_low(quarter):
    light = replace(survey_light(), azimuth=np.deg2rad(90.0), elevation=np.deg2rad(45.0))
    block = np.array([[[0, 0], [20, 0], [20, 20], [0, 20]]], float)
    alone = replace(quarter, footprints=block, house_heights=np.array([15.0]), shadow_maps={})
    # 15 m house, sun in the east at 45 degrees: 15 m of shadow to the west, none to the east.
    far_west, near_west, east = np.array([[-4.9, 10.0], [-3.0, 10.0], [24.0, 10.0]], np.float32)[:, None]
    assert shadow_height(alone, light, near_west)[0] == pytest.approx(12.0, abs=0.75)
    assert shadow_height(alone, light, far_west)[0] == pytest.approx(10.1, abs=0.75)
    assert shadow_height(alone, light, east)[0] == 0.0


def test_canvas_is_addressed_in_metres_from_the_street_up():
    canvas = Canvas(4.0, 3.0, (0, 0, 0))
    canvas.fill(1.0, 2.0, 3.0, 3.0, (9, 8, 7), 6)
    rows, columns = np.nonzero(canvas.texels[..., 0] == 9)
    found = np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1])
    assert (found == TEXELS_PER_METRE * np.array([2, 3, 1, 3])).all()


def test_spec_has_pittsburghs_structure(specs):
    images = PANORAMAS * HEADINGS
    for split, spec in zip(SPLITS, specs, strict=True):
        assert spec.dtype.names == (
            "whichSet", "dbImageFns", "utmDb", "qImageFns", "utmQ",
            "numImages", "numQueries", "posDistThr", "posDistSqThr", "nonTrivPosDistSqThr",
        )  # fmt: skip
        assert spec["whichSet"].tolist() == [split]
        assert spec["dbImageFns"].shape == (images, 1) and spec["qImageFns"].shape == (QUERIES, 1)
        assert spec["utmDb"].shape == (2, images) and spec["utmQ"].shape == (2, QUERIES)
        assert spec["utmDb"].dtype == spec["utmQ"].dtype == np.float64
        scalars = [spec[name] for name in spec.dtype.names[5:]]
        assert [int(value[0, 0]) for value in scalars] == [images, QUERIES, 25, 625, 100]
        assert [str(value.dtype) for value in scalars[2:]] == ["uint8", "uint16", "uint8"]


def test_spec_names_exactly_the_files_on_disk_and_queries_are_shuffled(tiny_city, specs):
    named = set()
    for spec in specs:
        queries = [name[0] for name in spec["qImageFns"][:, 0]]
        assert queries != sorted(queries)
        named |= {name[0] for name in spec["dbImageFns"][:, 0]} | {f"queries_real/{name}" for name in queries}
    found = {str(path.relative_to(tiny_city)) for path in tiny_city.rglob("*.jpg")}
    assert found == named and len(found) == 3 * (PANORAMAS * HEADINGS + QUERIES)
    assert {Image.open(tiny_city / name).size for name in found} == {SIZE}


def distances(some, others):
    return np.hypot(*(some[:, None] - others[None]).transpose(2, 0, 1))  # [M, N]


def test_every_query_has_an_image_further_than_1_m_and_within_10_m(specs):
    for spec in specs:
        metres = distances(spec["utmQ"].T, spec["utmDb"].T)
        assert ((metres > 1.0) & (metres <= 10.0)).any(axis=1).all()


def test_quarters_lie_kilometres_apart_and_stations_about_10_m(specs):
    positions = [spec["utmDb"].T for spec in specs]
    assert all(distances(one, other).min() > 1000.0 for one, other in itertools.combinations(positions, 2))
    steps = np.hypot(*np.diff(positions[0][::HEADINGS], axis=0).T)
    assert (steps > 8.0).all() and (steps < 12.0).all()


def test_one_picture_is_redrawn_from_the_seed_alone(tiny_city, tmp_path):
    painter = writer.Painter(tmp_path, SEED, 0, PANORAMAS, SIZE, Difficulty())
    drawn = {
        "000/000004_pitch1_yaw3.jpg": painter.database_picture(4, 3),
        "queries_real/000/000005_query.jpg": painter.query_picture(5),
    }
    for name, (picture, conditions, *_) in drawn.items():
        picture.save(tmp_path / "again.jpg", quality=conditions.quality)
        assert (tmp_path / "again.jpg").read_bytes() == (tiny_city / name).read_bytes()


def test_another_seed_draws_another_city():
    assert not np.allclose(generator(1, 0, "plan").random(4), generator(2, 0, "plan").random(4))
    one, other = (draw_street_plan(generator(seed, 0, "plan")).avenues for seed in (1, 2))
    assert not np.allclose(one, other)


def test_current_means_this_version_and_seed(tiny_city, monkeypatch):
    assert json.loads((tiny_city / "toy_city.json").read_text())["seed"] == SEED
    assert is_current(tiny_city) and not is_current(tiny_city, 8) and not is_current(tiny_city / "nowhere")
    monkeypatch.setattr(writer, "VERSION", writer.VERSION + 1)
    assert not is_current(tiny_city)


def test_failure_in_the_middle_leaves_nothing_behind(tmp_path, monkeypatch):
    calls, real = [], writer.render

    def render_then_fail(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise OSError("disk full")
        return real(*arguments)

    monkeypatch.setattr(writer, "render", render_then_fail)
    with pytest.raises(OSError, match="disk full"):
        make_toy_city(tmp_path / "city", **SMALLEST)
    assert list(tmp_path.iterdir()) == []


def test_folder_with_other_files_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a toy city"):
        make_toy_city(tmp_path, **SMALLEST)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_older_city_is_replaced_by_as_many_processes_as_there_are_cores_to_use(tmp_path, monkeypatch):
    """A container or a scheduler may leave this process fewer cores than the machine has. Each picture is counted."""
    (tmp_path / "city").mkdir()
    (tmp_path / "city" / "toy_city.json").write_text('{"version": 0, "seed": 2016}')
    (tmp_path / "city" / "old.jpg").write_text("old")
    asked, seen, pool = [], [], writer.multiprocessing.Pool
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {5})
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    monkeypatch.setattr(writer.multiprocessing, "Pool", lambda count, *rest: asked.append(count) or pool(1, *rest))

    def progress(items, total, description):
        for item in items:
            seen.append(total)
            yield item

    make_toy_city(tmp_path / "city", progress=progress, **SMALLEST)
    assert asked == [1, 1, 1] and seen == [6] * 6
    assert is_current(tmp_path / "city") and not (tmp_path / "city" / "old.jpg").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["city"]


@pytest.mark.parametrize(
    ("main", "local_rank", "shared", "draws"),
    [(True, 0, False, 1), (False, 0, False, 1), (False, 0, True, 0), (False, 1, False, 0)],
)
def test_the_first_process_of_each_machine_draws_unless_its_folder_is_shared(
    tmp_path, monkeypatch, main, local_rank, shared, draws
):
    """With a shared folder the city is there when process 0 has drawn it, which all wait for."""
    drawn, there = [], []
    monkeypatch.setattr(places.processes, "is_main", lambda: main)
    monkeypatch.setattr(places.processes, "local_rank", lambda: local_rank)
    monkeypatch.setattr(places.processes, "barrier", lambda: there.append(shared))
    monkeypatch.setattr("toycity.is_current", lambda *_: bool(drawn) or any(there))
    monkeypatch.setattr("toycity.make_toy_city", lambda root, **_: drawn.append(root))
    places.draw_toy_city(tmp_path)
    assert drawn == [tmp_path] * draws and len(there) == 2
