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

BROKEN_DATABASE, BROKEN_QUERIES = (0, 7), (2,)


def run_test(root, tmp_path, *flags):
    """Exit code and the newest results of an off-the-shelf test of images in the folder `root`."""
    code = main.main([
        "--mode=test", "--dataset=folder", f"--root={root}", "--arch=alexnet", "--fromscratch", "--pooling=avg",
        "--threads=0", "--device=cpu", "--panels=0", f"--runsPath={tmp_path / 'runs'}", "--recallValues", "1", "2",
        *flags,
    ])  # fmt: skip
    return code, json.loads((tmp_path / "runs" / "results.json").read_text())[-1] if code == 0 else None


@pytest.fixture
def folders(tmp_path):
    """The same ten database images and four queries twice: some of them broken, and without those."""
    broken = tmp_path / "broken" / "own"
    for role, count in (("database", 10), ("queries", 4)):
        for n in range(count):
            draw_image(broken / "val" / role / f"@{500000 + 15 * n}@4477000@{role}@.jpg", (96, 72), [count, n])
    removed = tmp_path / "removed" / "own"
    shutil.copytree(broken, removed)
    for role, numbers in (("database", BROKEN_DATABASE), ("queries", BROKEN_QUERIES)):
        for n in numbers:
            name = f"@{500000 + 15 * n}@4477000@{role}@.jpg"
            whole = (broken / "val" / role / name).read_bytes()
            (broken / "val" / role / name).write_bytes(whole[: len(whole) // 2] if n else b"no image")
            (removed / "val" / role / name).unlink()
    return broken, removed


def test_skip_broken_measures_what_is_left(folders, tmp_path, capsys):
    broken, removed = folders
    code, skipped = run_test(broken, tmp_path, "--skipBroken")
    said = capsys.readouterr().out
    assert code == 0 and "3 of the 14 images of own_val cannot be decoded, first " in said
    _, wanted = run_test(removed, tmp_path)
    for result in (skipped, wanted):
        result.pop("measured")
    assert skipped == wanted and skipped["database_photos"] == 8 and skipped["queries"] == 3


def test_without_the_flag_the_first_broken_image_is_named(folders, tmp_path, capsys):
    code, _ = run_test(folders[0], tmp_path)
    said = capsys.readouterr().err
    assert code == 2 and "@500000@4477000@database@.jpg" in said and "--skipBroken" in said and said.count("\n") == 1


def test_where_nothing_is_broken_nothing_is_said(folders, tmp_path, capsys):
    assert run_test(folders[1], tmp_path, "--skipBroken")[0] == 0
    assert "cannot be decoded" not in capsys.readouterr().out


def test_a_database_of_broken_images_is_refused(folders, tmp_path, capsys):
    for file in (folders[0] / "val" / "database").iterdir():
        file.write_bytes(b"")
    assert run_test(folders[0], tmp_path, "--skipBroken")[0] == 2
    assert "no database image" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_decodable_are_found(folders, workers):
    files = sorted((folders[0] / "val" / "database").iterdir())
    assert decodable(files, workers, "ten") == [n for n in range(10) if n not in BROKEN_DATABASE]


def test_what_is_no_image_needs_no_position(folders, tmp_path, capsys):
    """A text file with an image's ending has no position either; an image without one still ends the test."""
    broken, _ = folders
    (broken / "val" / "queries" / "notes.jpg").write_text("no image")
    assert run_test(broken, tmp_path)[0] == 2 and "notes.jpg" in capsys.readouterr().err
    code, result = run_test(broken, tmp_path, "--skipBroken")
    assert code == 0 and result["queries"] == 3 and "1 of the 1 images" in capsys.readouterr().out
    Image.new("RGB", (96, 72)).save(broken / "val" / "queries" / "nowhere.jpg")
    assert run_test(broken, tmp_path, "--skipBroken")[0] == 2
    said = capsys.readouterr().err
    assert "1 of 15 images have no position" in said and "nowhere.jpg" in said


def test_locate_goes_on_without_broken_images(folders, tmp_path, capsys):
    broken, _ = folders
    call = [
        "--mode=locate", "--dataset=folder", f"--root={broken}", "--arch=alexnet", "--fromscratch", "--pooling=avg",
        "--threads=0", "--device=cpu", "--panels=0", f"--runsPath={tmp_path / 'runs'}", "--json", "--skipBroken",
    ]  # fmt: skip
    assert main.main([*call, str(broken / "val" / "queries")]) == 0
    captured = capsys.readouterr()
    located = [Path(image["photo"]).name for image in json.loads(captured.out)]
    assert located == [f"@{500000 + 15 * n}@4477000@queries@.jpg" for n in range(4) if n not in BROKEN_QUERIES]
    assert "1 of the 4 images of --mode=locate cannot be decoded" in captured.err
    only = next((broken / "val" / "queries").glob(f"@{500000 + 15 * BROKEN_QUERIES[0]}*"))
    assert main.main([*call, str(only)]) == 2 and "no image that was named" in capsys.readouterr().err


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
    (tmp_path / "phone.jpg").write_bytes((tmp_path / "image.heic").read_bytes())
    for name in ("image.heic", "phone.jpg"):
        pixels = np.asarray(read_image(tmp_path / name)).astype(int)
        assert pixels.shape == (48, 64, 3) and np.abs(pixels - (200, 40, 90)).max() < 12
        assert image_size(tmp_path / name) == (48, 64)
