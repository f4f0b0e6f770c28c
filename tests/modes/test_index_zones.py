"""The UTM zone of an index: what is added, named or changed never gives other images another place."""

import json

import pytest
from drawing import draw_image, gps

import main

MODEL = ["--arch=alexnet", "--fromscratch", "--pooling=max", "--threads=0", "--device=cpu", "--precision=fp32"]
EAST = 735_000  # metres of zone 17N at 40.4 degrees north: 20 km west of the border to 18N, which is 78 degrees west


@pytest.fixture
def own(tmp_path):
    """Three images without a zone."""
    return images(tmp_path / "own", [f"@{EAST + 20 * n}@4477000@{n}@.png" for n in range(3)])


def images(folder, names, exif=None):
    for number, name in enumerate(names):
        draw_image(folder / name, (96, 72), [len(str(folder)), number], exif)
    return folder


@pytest.fixture
def run(tmp_path, own, capsys):
    """Runs a mode on the folder; gives exit code, standard output and what else was said."""

    def call(mode, *words):
        places = ["--dataset=folder", f"--root={own}", f"--dataPath={tmp_path / 'model'}"]
        extra = ["--panels=0", "--json", "--top=1"] if mode == "locate" else []
        code = main.main([f"--mode={mode}", *MODEL, *places, *extra, *map(str, words)])
        out, err = capsys.readouterr()
        assert code in (0, 2) and (code == 0 or err.splitlines()[-1].startswith("error: "))
        return code, out, err

    return call


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
    code, out, err = run("index", f"--add={far}")
    assert code == 2 and "zone 32N" in err and "is unknown" in err and err.count("\n") == 1
    first = next(own.iterdir())
    assert place_of(run, first) == (None, None, None)
    zone, latitude, longitude = place_of(run, first, "--utmZone=17N")
    assert zone == "17N" and latitude == pytest.approx(40.41, abs=0.01) and longitude == pytest.approx(-78.23, abs=0.01)
    code, out, err = run("index", f"--add={far}", "--utmZone=17N")
    assert code == 2 and "32N" in err and "1,000 km apart" in err
    # A zone beside is converted; from then on the index knows its own.
    code, out, err = run("index", f"--add={near}", "--utmZone=17N")
    assert code == 0 and "zone 18N" in out and "become those of 17N" in out
    zone, latitude, longitude = place_of(run, near / "b.jpg")
    assert zone == "17N" and (latitude, longitude) == pytest.approx((40.44, -77.99), abs=1e-5)
    assert place_of(run, first)[1:] == pytest.approx((40.41, -78.23), abs=0.01)
    code, out, err = run("locate", first, "--utmZone=18N")
    assert code == 2 and "--utmZone=18N" in err and "zone 17N" in err
    local = images(tmp_path / "local", ["@10@20@.png"])
    code, out, err = run("index", f"--add={local}")
    assert code == 2 and "local metres, such as 10 20" in err


def test_a_zone_that_contradicts_what_is_known_is_an_error(run, own):
    first = next(own.iterdir())
    assert run("index", "--utmZone=17N")[0] == 0 and place_of(run, first)[0] == "17N"
    assert place_of(run, first, "--utmZone=17N")[0] == "17N"
    code, _, err = run("locate", first, "--utmZone=32N")
    assert code == 2 and "has metres of zone 17N" in err and "plain --mode=index" in err
    assert run("index", "--utmZone=18N")[0] == 0 and place_of(run, first)[0] == "18N", "as it is told"
    for file in own.iterdir():
        file.rename(own / file.name.replace("@4477000@", "@4477000@17@T@"))
    code, _, err = run("index", "--utmZone=18N")
    assert code == 2 and "lie in zone 17N; drop --utmZone" in err
    assert run("index")[0] == 0 and place_of(run, next(own.iterdir()))[0] == "17N"


def test_local_metres_are_in_no_zone(run, own):
    for file in own.iterdir():
        file.rename(own / file.name.replace(f"@{EAST}", "@1"))
    assert run("index")[0] == 0
    for file in own.iterdir():
        file.unlink()
    images(own, ["@10@20@.png", "@30@20@.png"])
    code, _, err = run("index", "--utmZone=17N")
    assert code == 2 and "no place there, such as 10 20" in err


def test_metres_that_became_local_lose_their_degrees(run, own):
    assert run("index", "--utmZone=17N")[0] == 0
    for file in own.iterdir():
        file.unlink()
    images(own, ["@10@20@.png", "@30@20@.png"])
    code, _, err = run("locate", next(own.iterdir()))
    assert code == 2 and "zone 17N" in err and "local" in err and ".sqlite" in err


def test_a_folder_whose_zone_changes_takes_what_was_added_with_it_or_keeps_its_zone(run, own, tmp_path):
    """The folder's images move across the border; the added one stays where it was taken."""
    for file in own.iterdir():
        file.rename(own / file.name.replace("@4477000@", "@4477000@17@T@"))
    more = images(tmp_path / "more", ["b.jpg"], gps(40.44, -78.01))
    assert run("index", f"--add={more}")[0] == 0
    before = place_of(run, more / "b.jpg")
    for file in own.iterdir():
        file.unlink()
    images(own, ["c.jpg", "d.jpg"], gps(40.44, -77.98))
    code, out, err = run("index")
    assert code == 0 and "zone 18N" in out, err
    assert place_of(run, more / "b.jpg") == before and before[1:] == pytest.approx((40.44, -78.01), abs=1e-5)
    assert place_of(run, own / "c.jpg")[1:] == pytest.approx((40.44, -77.98), abs=1e-5)
    assert "unchanged" in run("index")[1] and "bringing it up to date" not in run("locate", own / "c.jpg")[2]
