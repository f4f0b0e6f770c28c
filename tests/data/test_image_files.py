"""Which files of a folder are images, and what is said of the others."""

import io
import os
import re

import numpy as np
import pytest
from drawing import draw_image
from loading import load, refusal
from PIL import Image

import main
from vpr.data.image_files import ENDINGS, find_images
from vpr.data.images import FORMATS, decode
from vpr.data.layouts.folders import read_folder
from vpr.data.layouts.numbered import read_frames
from vpr.data.places import PlacesSpec, load_database
from vpr.database.folder import folder_to_add

WRITTEN = {
    "jpg": "JPEG", "JPG": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF",
    "TIFF": "TIFF", "bmp": "BMP", "gif": "GIF", "ppm": "PPM", "pgm": "PPM", "jp2": "JPEG2000", "mpo": "MPO",
}  # fmt: skip
CALLED = ["--arch=alexnet", "--fromscratch", "--pooling=max", "--nocuda", "--threads=0", "--panels=0"]


def grey(height=12, width=16, value=90):
    return Image.fromarray(np.full((height, width), value, np.uint8))


def as_file(path, kind, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    (image or grey()).save(content, kind)
    path.write_bytes(content.getvalue())
    return path


@pytest.fixture
def said(capsys):
    return lambda: capsys.readouterr().out


@pytest.mark.parametrize(("ending", "kind"), WRITTEN.items())
def test_every_format_is_found_and_read(tmp_path, ending, kind):
    file = as_file(tmp_path / f"a.{ending}", kind)
    assert find_images(tmp_path) == [file]
    assert np.abs(decode(file).astype(int) - 90).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "MPO"])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a", "@100.5@200.25@", "frame.0001"])
def test_the_content_says_the_format(tmp_path, kind, name):
    file = as_file(tmp_path / name, kind)
    assert find_images(tmp_path) == [file]
    assert decode(file).shape == (3, 12, 16)


def test_the_formats_of_a_folder_have_an_ending_each():
    assert {kind: kind in FORMATS for kind in WRITTEN.values()} == dict.fromkeys(WRITTEN.values(), True)
    assert len(ENDINGS) == sum(map(len, FORMATS.values()))


def test_what_is_left_out_is_counted_and_named_in_one_line(tmp_path, said):
    wanted = as_file(tmp_path / "a.jpg", "JPEG")
    for name in ("notes.txt", "b/c.json", "b/d.JSON", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    as_file(tmp_path / "small.thm", "JPEG")
    assert find_images(tmp_path) == [wanted]
    (line,) = said().splitlines()
    assert "left out 5 files" in line and "2 .json" in line and "1 .txt" in line and "1 without an ending" in line
    assert "1 .thm, images by their content" in line and f"first {tmp_path / 'README'}" in line


@pytest.mark.parametrize("name", ["._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "positions.csv", ".hidden/a.jpg"])
def test_what_systems_put_beside_images_is_not_worth_a_word(tmp_path, said, name):
    wanted = as_file(tmp_path / "a.jpg", "JPEG")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert find_images(tmp_path) == [wanted] and said() == ""


def test_empty_files_are_counted_before_anything_is_described(tmp_path, said):
    as_file(tmp_path / "a.jpg", "JPEG")
    (tmp_path / "b.jpg").touch()
    assert len(find_images(tmp_path)) == 2
    assert f"1 of the 2 images under {tmp_path} are empty (0 bytes), first {tmp_path / 'b.jpg'}" in said()
    text = refusal(decode, tmp_path / "b.jpg")
    assert "b.jpg (it is empty): get it again, or leave it out by --skipBroken" in text


def test_pipes_are_no_images_and_are_not_waited_for(tmp_path, said):
    for name in ("a.jpg", "b", "c.pipe"):
        os.mkfifo(tmp_path / name)
    assert find_images(tmp_path) == [] and "left out 3 files" in said()


@pytest.fixture
def half_there(tmp_path):
    """Six database images and six queries, of which three database images are links into a store that is away."""
    root = tmp_path / "half"
    for n in range(6):
        draw_image(root / f"test/queries/@{102 + 50 * n}@500@q.jpg", (48, 36), n)
        file = root / f"test/database/@{100 + 50 * n}@500@.jpg"
        draw_image(file, (48, 36), n)
        if n >= 3:
            file.unlink()
            file.symlink_to(f"/absent/store/{n}.jpg")
    return root


WAYS = {
    "test": lambda root, skip: read_folder(root, "test", skip),
    "index": lambda root, skip: load_database(PlacesSpec("folder", root, skip), "test"),
    "without splits": lambda root, skip: load_database(PlacesSpec("folder", root / "test" / "database", skip), "test"),
    "--add": lambda root, skip: folder_to_add(root / "test" / "database", root, skip),
}


@pytest.mark.parametrize("way", WAYS)
def test_links_to_nothing_are_counted_and_named(half_there, said, way):
    line = refusal(WAYS[way], half_there, False)
    assert re.search(r"3 of the 6 images under .* \(3 links to files that are not there\)", line)
    assert "@250@500@.jpg, a link to /absent/store/3.jpg" in line and "dvc pull" in line and "--skipBroken" in line
    WAYS[way](half_there, True)
    assert "3 of the 6 images" in said()


def test_links_to_nothing_are_refused_where_frames_are_counted(half_there):
    folder = half_there / "test"
    text = refusal(read_frames, half_there, folder / "database", folder / "queries", "film", 1, 1)
    assert "3 links to files that are not there" in text


def test_links_to_nothing_are_missing_images_of_a_spec(half_there, write_spec):
    folder, metres = half_there / "test", [[100.0 + 50 * n, 500.0] for n in range(6)]
    names = [f"database/@{100 + 50 * n}@500@.jpg" for n in range(6)]
    queries = [f"@{102 + 50 * n}@500@q.jpg" for n in range(6)]
    write_spec(folder / "datasets" / "pitts30k_val.mat", names, metres, queries, metres)
    text = refusal(load, folder, "pittsburgh", "val")
    assert re.search(r"3 of the 12 images of pitts30k_val are missing .*@250@500@", text)


def test_a_link_to_no_folder_is_counted(tmp_path, said):
    as_file(tmp_path / "a.jpg", "JPEG")
    (tmp_path / "disk").symlink_to("/absent/disk")
    assert len(find_images(tmp_path)) == 1
    assert "1 links to what is not there" in said()


@pytest.mark.parametrize("locked", ["file", "folder"])
def test_what_may_not_be_read_is_counted_and_named(tmp_path, monkeypatch, locked):
    """As if without the rights: root has all of them."""
    for name in ("a.jpg", "b/c.jpg"):
        as_file(tmp_path / name, "JPEG")
    access, scandir = os.access, os.scandir

    def refused(path):
        if str(path) == str(tmp_path / "b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    if locked == "file":
        monkeypatch.setattr(os, "access", lambda path, mode: os.path.basename(path) != "c.jpg" and access(path, mode))
    else:
        monkeypatch.setattr(os, "scandir", refused)
    assert re.search(r"1 of the 2 images .* \(1 not readable\), first .*/b.*chmod", refusal(find_images, tmp_path))
    assert find_images(tmp_path, skip_broken=True) == [tmp_path / "a.jpg"]


def test_locate_says_where_a_link_leads(tmp_path, capsys):
    (tmp_path / "q.jpg").symlink_to("/absent/q.jpg")
    as_file(tmp_path / "db" / "a.jpg", "JPEG")
    call = ["--mode=locate", "--dataset=folder", f"--root={tmp_path / 'db'}", f"--dataPath={tmp_path}", *CALLED]
    assert main.main([*call, str(tmp_path / "q.jpg")]) == 2
    assert "q.jpg is a link to /absent/q.jpg, which is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s12345--4d7a.jpg\n", "git annex get"),
        (b"<!DOCTYPE html>\n<html><title>404</title>", "not downloaded"),
        (b"what is this", "its content is of no format that is read here"),
    ],
)
def test_what_stands_in_the_place_of_an_image_is_named(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    assert re.search(rf"a\.jpg .*{reason}", refusal(decode, tmp_path / "a.jpg"))
