"""The UTM zone of an index: what is added, named or changed never gives other images another place."""

import json

import pytest
from drawing import draw_image, gps
from own_images import FP32

EAST = 735_000  # metres of zone 17N at 40.4 degrees north: 20 km west of the border to 18N, which is 78 degrees west


@pytest.fixture
def own(tmp_path):
    """Three images without a zone."""
    return images(tmp_path / "own", [f"@{EAST + 20 * n}@4477000@{n}@.png" for n in range(3)])


def images(folder, names, exif=None):
    for number, name in enumerate(names):
        draw_image(folder / name, (96, 72), [len(str(folder)), number], exif)
    return folder


def replaced(folder, names, exif=None):
    for file in folder.iterdir():
        file.unlink()
    images(folder, names, exif)


def renamed(folder, part, other):
    for file in [*folder.iterdir()]:
        file.rename(folder / file.name.replace(part, other))


@pytest.fixture
def run(own, call_on):
    """Runs a mode on the folder."""
    extra = {"locate": ["--json", "--top=1"]}
    return lambda mode, *words: call_on(own, mode, *extra.get(mode, []), *words, model=FP32)


def place_of(run, image, *words):
    """Zone, latitude and longitude of the best match, which is the image itself."""
    code, out, err = run("locate", image, *words)
    assert code == 0, err
    (match,) = json.loads(out)[0]["matches"]
    assert match["distance"] < 1e-3
    return match["zone"], match["latitude"], match["longitude"]


def test_an_unknown_zone_is_not_that_of_an_image_that_is_added(run, own, tmp_path):
    far = images(tmp_path / "far", ["a.jpg"], gps(48.1, 11.5))  # zone 32N
    near = images(tmp_path / "near", ["b.jpg"], gps(40.44, -77.99))  # zone 18N
    run("index")
    err = run("index", f"--add={far}").error
    assert "zone 32N" in err and "is unknown" in err
    first = min(own.glob("*.*g"))
    assert place_of(run, first) == (None, None, None)
    zone, latitude, longitude = place_of(run, first, "--utmZone=17N")
    assert zone == "17N" and latitude == pytest.approx(40.41, abs=0.01) and longitude == pytest.approx(-78.23, abs=0.01)
    err = run("index", f"--add={far}", "--utmZone=17N").last_error
    assert "32N" in err and "1,000 km apart" in err
    # A zone beside is converted; from then on the index knows its own.
    code, out, err = run("index", f"--add={near}", "--utmZone=17N")
    assert code == 0 and "zone 18N" in out and "become those of 17N" in out
    zone, latitude, longitude = place_of(run, near / "b.jpg")
    assert zone == "17N" and (latitude, longitude) == pytest.approx((40.44, -77.99), abs=1e-5)
    assert place_of(run, first)[1:] == pytest.approx((40.41, -78.23), abs=0.01)
    err = run("locate", first, "--utmZone=18N").last_error
    assert "--utmZone=18N" in err and "zone 17N" in err
    local = images(tmp_path / "local", ["@10@20@.png"])
    assert "local metres, such as 10 20" in run("index", f"--add={local}").last_error


def test_a_zone_that_contradicts_what_is_known_is_an_error(run, own):
    first = min(own.glob("*.*g"))
    assert run("index", "--utmZone=17N").code == 0 and place_of(run, first)[0] == "17N"
    assert place_of(run, first, "--utmZone=17N")[0] == "17N"
    err = run("locate", first, "--utmZone=32N").last_error
    assert "has metres of zone 17N" in err and "plain --mode=index" in err
    assert run("index", "--utmZone=18N").code == 0 and place_of(run, first)[0] == "18N", "as it is told"
    renamed(own, "@4477000@", "@4477000@17@T@")
    assert "lie in zone 17N; drop --utmZone" in run("index", "--utmZone=18N").last_error
    assert run("index").code == 0 and place_of(run, min(own.glob("*.*g")))[0] == "17N"


def test_local_metres_are_in_no_zone(run, own):
    renamed(own, f"@{EAST}", "@1")
    assert run("index").code == 0
    replaced(own, ["@10@20@.png", "@30@20@.png"])
    assert "no place there, such as 10 20" in run("index", "--utmZone=17N").last_error


def test_metres_that_became_local_lose_their_degrees(run, own):
    assert run("index", "--utmZone=17N").code == 0
    replaced(own, ["@10@20@.png", "@30@20@.png"])
    err = run("locate", min(own.glob("*.*g"))).last_error
    assert "zone 17N" in err and "local" in err and ".sqlite" in err


def test_a_folder_whose_zone_changes_takes_what_was_added_with_it_or_keeps_its_zone(run, own, tmp_path):
    """The folder's images move across the border; the added one stays where it was taken."""
    renamed(own, "@4477000@", "@4477000@17@T@")
    more = images(tmp_path / "more", ["b.jpg"], gps(40.44, -78.01))
    assert run("index", f"--add={more}").code == 0
    before = place_of(run, more / "b.jpg")
    replaced(own, ["c.jpg", "d.jpg"], gps(40.44, -77.98))
    code, out, err = run("index")
    assert code == 0 and "zone 18N" in out, err
    assert place_of(run, more / "b.jpg") == before and before[1:] == pytest.approx((40.44, -78.01), abs=1e-5)
    assert place_of(run, own / "c.jpg")[1:] == pytest.approx((40.44, -77.98), abs=1e-5)
    assert "unchanged" in run("index").out and "bringing it up to date" not in run("locate", own / "c.jpg").err
