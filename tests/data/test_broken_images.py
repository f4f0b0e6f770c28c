"""Images that cannot be decoded, and kinds of images that need care."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from drawing import draw_image
from PIL import Image

import main
from vpr.common.errors import UserError
from vpr.data.images import image_size, read_image
from vpr.data.reader import decodable

BROKEN = {"database": (0, 7), "queries": (2,)}
COUNTS = {"database": 10, "queries": 4}


def name_of(role, number):
    return f"{role}/@{500000 + 15 * number}@4477000@{role}@.jpg"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The same ten database images and four queries twice: some of them broken, and without those."""
    top = tmp_path_factory.mktemp("drawn")
    for role, count in COUNTS.items():
        for n in range(count):
            draw_image(top / "broken" / "own" / "val" / name_of(role, n), (96, 72), [count, n])
    shutil.copytree(top / "broken", top / "removed")
    for role, numbers in BROKEN.items():
        for n in numbers:
            (top / "removed" / "own" / "val" / name_of(role, n)).unlink()
            file = top / "broken" / "own" / "val" / name_of(role, n)
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if n else b"no image")
    return top


@pytest.fixture
def broken(drawn, tmp_path):
    """A copy of the broken ones, in which a test may do what it likes."""
    return shutil.copytree(drawn / "broken" / "own", tmp_path / "copy" / "own")


@pytest.fixture
def command(tmp_path):
    """A mode of an untrained network on a folder; gives its exit code."""

    def run(root, *flags, mode="test"):
        return main.main([
            f"--mode={mode}", "--dataset=folder", f"--root={root}", "--arch=alexnet", "--fromscratch", "--pooling=avg",
            "--threads=0", "--device=cpu", "--panels=0", f"--runsPath={tmp_path / 'runs'}",
            f"--dataPath={tmp_path / 'model'}", *flags,
        ])  # fmt: skip

    return run


def newest_result(tmp_path):
    result = json.loads((tmp_path / "runs" / "results.json").read_text())[-1]
    return {name: value for name, value in result.items() if name != "measured"}


def test_skip_broken_measures_what_is_left(drawn, command, tmp_path, capsys):
    assert command(drawn / "broken" / "own", "--skipBroken") == 0
    assert "3 of the 14 images of own_val cannot be decoded, first " in capsys.readouterr().out
    skipped = newest_result(tmp_path)
    assert command(drawn / "removed" / "own", "--skipBroken") == 0
    assert "cannot be decoded" not in capsys.readouterr().out
    assert command(drawn / "removed" / "own") == 0
    assert skipped == newest_result(tmp_path) and skipped["database_photos"] == 8 and skipped["queries"] == 3


def test_without_the_flag_the_first_broken_image_is_named(drawn, command, capsys):
    assert command(drawn / "broken" / "own") == 2
    said = capsys.readouterr().err
    assert "@500000@4477000@database@.jpg" in said and "--skipBroken" in said and said.count("\n") == 1


def test_a_database_of_broken_images_is_refused(broken, command, capsys):
    for file in (broken / "val" / "database").iterdir():
        file.write_bytes(b"")
    assert command(broken, "--skipBroken") == 2
    assert "no database image" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_decodable_are_found(drawn, workers):
    files = sorted((drawn / "broken" / "own" / "val" / "database").iterdir())
    assert decodable(files, workers, "ten") == [n for n in range(10) if n not in BROKEN["database"]]


def test_what_is_no_image_needs_no_position(broken, command, tmp_path, capsys):
    """A text file with an image's ending has no position either; an image without one still ends the test."""
    (broken / "val" / "queries" / "notes.jpg").write_text("no image")
    assert command(broken) == 2 and "notes.jpg" in capsys.readouterr().err
    assert command(broken, "--skipBroken") == 0
    assert newest_result(tmp_path)["queries"] == 3 and "1 of the 1 images" in capsys.readouterr().out
    Image.new("RGB", (96, 72)).save(broken / "val" / "queries" / "nowhere.jpg")
    assert command(broken, "--skipBroken") == 2
    said = capsys.readouterr().err
    assert "1 of 15 images have no position" in said and "nowhere.jpg" in said


def test_locate_goes_on_without_broken_images(drawn, command, capsys):
    folder = drawn / "broken" / "own" / "val"
    call = [folder.parent, "--json", "--skipBroken"]
    assert command(*call, str(folder / "queries"), mode="locate") == 0
    captured = capsys.readouterr()
    located = [f"queries/{Path(image['photo']).name}" for image in json.loads(captured.out)]
    assert located == [name_of("queries", n) for n in range(4) if n not in BROKEN["queries"]]
    assert "1 of the 4 images of --mode=locate cannot be decoded" in captured.err
    assert command(*call, str(folder / name_of("queries", 2)), mode="locate") == 2
    assert "no image that was named" in capsys.readouterr().err


def test_grey_of_16_bits_becomes_grey_of_8(tmp_path):
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 0, 257, ... 65535 are 0, 1, ... 255
    Image.fromarray(levels).save(tmp_path / "grey.png")
    pixels = np.asarray(read_image(tmp_path / "grey.png"))
    np.testing.assert_array_equal(pixels, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


def test_heic_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    for name in ("image.HEIC", "image.jpg"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
        with pytest.raises(UserError, match=rf"{name} \(it is HEIC\): .*pip install pillow-heif"):
            read_image(tmp_path / name)


def test_heic_with_its_reader_is_read(tmp_path, pillow_heif):
    pillow_heif.register_heif_opener()
    Image.new("RGB", (64, 48), (200, 40, 90)).save(tmp_path / "image.heic")
    shutil.copy(tmp_path / "image.heic", tmp_path / "phone.jpg")
    for name in ("image.heic", "phone.jpg"):
        pixels = np.asarray(read_image(tmp_path / name)).astype(int)
        assert pixels.shape == (48, 64, 3) and np.abs(pixels - (200, 40, 90)).max() < 12
        assert image_size(tmp_path / name) == (48, 64)
