"""One image file to RGB: exact pixels, colour modes, orientation, sizes, and files that are broken."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import draw_image, noise, save
from loading import refusal
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin

import main
from vpr.cli.options import parse_options
from vpr.cli.specs import reading
from vpr.data.images import decode, image_size, read_image, shrunk


def rgb(path):
    """The pixels as the program decodes them, uint8 [H, W, 3]."""
    return decode(path).transpose(1, 2, 0)


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_decode_gives_the_exact_pixels(tmp_path):
    pixels = noise(5, 7)
    image = decode(save(tmp_path / "image.png", pixels))
    assert image.dtype == np.uint8 and image.shape == (3, 5, 7)
    assert np.array_equal(image, pixels.transpose(2, 0, 1))


def test_grey_and_palettes_become_rgb(tmp_path):
    grey = noise(5, 7, 1)[:, :, 0]
    assert np.array_equal(rgb(save(tmp_path / "grey.png", grey)), np.stack([grey] * 3, axis=2))
    colours, numbers = noise(1, 4)[0], np.random.default_rng(0).integers(0, 4, (5, 7), dtype=np.uint8)
    image = Image.fromarray(numbers, mode="P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "palette.png")
    assert np.array_equal(rgb(tmp_path / "palette.png"), colours[numbers])


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (16, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    image.save(tmp_path / "cmyk.jpg", quality=100)
    image = decode(tmp_path / "cmyk.jpg")
    assert image.shape == (3, 8, 16)
    assert image[0].min() >= 250 and image[1:].max() <= 5


def test_resize_takes_height_then_width_and_keeps_the_picture(tmp_path):
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, 30:] = 200  # right half bright
    image = decode(save(tmp_path / "image.png", pixels), (10, 32))
    assert image.shape == (3, 10, 32)
    assert image[:, :, :14].max() == 0 and image[:, :, 18:].min() == 200


def test_resize_blends_neighbours(tmp_path):
    stripes = np.zeros((40, 60, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    image = decode(save(tmp_path / "stripes.png", stripes), (10, 15))
    assert image.min() > 80 and image.max() < 120


@pytest.fixture
def halved(monkeypatch):
    """The sizes, (height, width), that JPEGs are decoded at, of those that are not decoded whole."""
    sizes, draft = [], JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile,
        "draft",
        lambda image, mode, size: sizes.append(size[::-1]) or draft(image, mode, size),
    )
    return sizes


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("size", "at"),
    [((48, 80), (96, 160)), ((49, 80), None), ((24, 40), (48, 80)), ((9, 40), (48, 80)), ((12, 20), (24, 40)),
     (None, None)],
)  # fmt: skip
def test_a_jpeg_is_decoded_at_a_part_that_is_twice_what_is_wanted(tmp_path, halved, size, at, orientation):
    fine = Image.fromarray(noise(6, 10)).resize((320, 192), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation  # 6: to be turned by a quarter
    fine.save(tmp_path / "image.jpg", quality=95, exif=exif)
    turned = size[::-1] if size and orientation == 6 else size
    found = decode(tmp_path / "image.jpg", turned).transpose(1, 2, 0)
    assert halved == ([at] if at else [])
    whole = ImageOps.exif_transpose(Image.open(tmp_path / "image.jpg"))
    if turned:
        whole = whole.resize(turned[::-1], Image.Resampling.BILINEAR)
    difference = np.abs(found.astype(int) - np.asarray(whole).astype(int))
    assert difference.max() <= (8 if at else 0) and difference.mean() < 2, difference.max()


def test_a_jpeg_that_eight_does_not_divide_is_decoded_at_what_does(tmp_path, halved):
    for side, at in ((400, 8), (404, 4), (402, 2), (401, 1)):
        Image.new("RGB", (side, side)).save(tmp_path / "image.jpg")
        assert decode(tmp_path / "image.jpg", longest_side=20).shape == (3, 20, 20)
        assert halved == ([(side // at,) * 2] if at > 1 else [])
        halved.clear()


def test_a_file_that_is_damaged_missing_or_no_image_is_named(tmp_path, truncated):
    (tmp_path / "text.jpg").write_text("not an image")
    for path in (truncated, tmp_path / "text.jpg", tmp_path / "missing.jpg"):
        assert path.name in refusal(decode, path)


def test_damaged_exif_stands_in_no_images_way(tmp_path):
    exif = exif_of(6)
    exif[0x0100], exif[0x010F] = 16, "maker"  # width, maker
    path = save(tmp_path / "damaged.jpg", noise(8, 16), exif=exif)
    content = bytearray(path.read_bytes())
    content[43] = 1  # the type of the width: a number becomes bytes, which Pillow cannot write back upright
    path.write_bytes(content)
    with Image.open(path) as stored:
        wanted = np.rot90(np.array(stored), k=-1)  # the orientation is still legible
    assert np.array_equal(rgb(path), wanted) and image_size(path) == (16, 8)


def exif_bytes():
    exif = exif_of(1)
    exif[0x010F] = "maker"
    exif[0x8825] = {1: "N", 2: (40.0, 30.0, 1.0), 3: "E", 4: (8.0, 1.0, 2.0)}
    return exif.tobytes()


def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.filterwarnings(r"ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "MPO"])
def test_no_byte_of_the_metadata_decides_whether_an_image_is_read(tmp_path, kind):
    """Random bytes in EXIF and colour profile: an image of the same pixels, turned at most."""
    file, content, pixels = tmp_path / "image", io.BytesIO(), noise(16, 24)
    exif, icc = exif_bytes(), profile()  # which says when it was made
    more = {"save_all": True, "append_images": [Image.fromarray(pixels)]} if kind == "MPO" else {}
    Image.fromarray(pixels).save(content, kind, exif=exif, icc_profile=icc, **more)
    whole, chance = content.getvalue(), np.random.default_rng(1)
    file.write_bytes(whole)
    wanted = sorted(decode(file).ravel().tolist())
    # Of a PNG the profile is compressed.
    for part in (exif[6:], icc) if kind != "PNG" else (exif[6:],):
        at = whole.index(part)
        for _ in range(60):
            damaged = bytearray(whole)
            for offset in chance.integers(at, at + len(part), 4):
                damaged[offset] = chance.integers(256)
            file.write_bytes(damaged)
            assert sorted(decode(file).ravel().tolist()) == wanted
            assert set(image_size(file)) == {16, 24}


def png_with(chunks, behind=()):
    """A PNG with further chunks (name, content, whether the CRC is right) behind its header and before its end."""
    content = io.BytesIO()
    Image.fromarray(noise(6, 8)).save(content, "PNG")
    whole = content.getvalue()
    front, back = (
        b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) ^ (not sound))
            for name, body, sound in each
        )
        for each in (chunks, behind)
    )
    return whole[:33] + front + whole[33:-12] + back + whole[-12:], np.array(Image.open(content))


MUCH = zlib.compress(bytes(3 << 20))  # a bomb, were it not text alone


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"zTXt", b"Comment\0\0" + MUCH, True)], [(b"iTXt", b"Comment\0\1\0\0\0" + MUCH, True)],
        [(b"tEXt", b"Comment\0text", False)], [(b"iCCP", b"profile\0\0" + MUCH, True)], [(b"iCCP", b"nonsense", True)],
        [(b"tEXt", b"a\0" + bytes(1 << 20), True)] * 70, [(b"eXIf", b"nonsense", True)], [(b"eXIf", b"MM", False)],
        [(b"tIME", b"", True)], [(b"pHYs", b"1", True)], [(b"cHRM", b"1", True)], [(b"acTL", b"", True)],
    ],
)  # fmt: skip
@pytest.mark.parametrize("behind", [False, True])
def test_text_and_profiles_of_a_png_stand_in_no_images_way(tmp_path, chunks, behind):
    content, pixels = png_with(*(((), chunks) if behind else (chunks,)))
    (tmp_path / "image.png").write_bytes(content)
    assert np.array_equal(rgb(tmp_path / "image.png"), pixels) and image_size(tmp_path / "image.png") == (6, 8)


def test_a_png_of_damaged_pixels_is_still_refused_whatever_its_text(tmp_path):
    content, _ = png_with([(b"tEXt", b"Comment\0text", False)])
    at = content.index(b"IDAT")
    for damaged in (content[: at + 40], content[: at + 12] + b"\0\0\0" + content[at + 15 :]):
        (tmp_path / "image.png").write_bytes(damaged)
        assert f"cannot decode the image {tmp_path / 'image.png'}" in refusal(decode, tmp_path / "image.png")


def test_orientation_is_kept_where_text_is_left_out(tmp_path):
    content, pixels = png_with([(b"zTXt", b"Comment\0\0" + MUCH, True), (b"eXIf", exif_of(6).tobytes()[6:], True)])
    (tmp_path / "image.png").write_bytes(content)
    assert np.array_equal(rgb(tmp_path / "image.png"), np.rot90(pixels, k=-1))


@pytest.mark.parametrize("orientation", range(11))
@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WEBP"])
def test_each_format_is_set_upright_once(tmp_path, kind, orientation):
    """Pillow turns a TIFF by itself, and gives its size turned. Orientations 1 to 8 exist, of which 5 to 8 turn by a
    quarter; others leave an image as it is."""
    file = tmp_path / "image"
    Image.fromarray(noise(16, 24)).save(file, kind, exif=exif_of(orientation))
    with Image.open(file) as image:
        wanted = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(rgb(file), wanted)
    assert image_size(file) == wanted.shape[:2] == ((24, 16) if 5 <= orientation <= 8 else (16, 24))


def test_pixels_that_are_no_colours_are_refused(tmp_path):
    Image.fromarray(np.zeros((6, 8), np.float32)).save(tmp_path / "depth.tif")
    text = refusal(decode, tmp_path / "depth.tif")
    assert "depth.tif (its pixels are floating-point numbers, wanted 8 or 16 bits)" in text


def test_large_images_are_read_up_to_a_limit(tmp_path):
    """One that Pillow would warn of, and one that it would refuse; one beyond the limit is refused with its size."""
    for name, size in (("warned", (10_000, 9_500)), ("refused", (20_000, 9_000))):
        Image.new("1", size).save(tmp_path / f"{name}.png")
        assert image_size(tmp_path / f"{name}.png") == size[::-1]
    assert read_image(tmp_path / "warned.png").size == (10_000, 9_500)
    text = refusal(decode, tmp_path / "refused.png", (6, 8), None, 100_000_000)
    assert "20000 x 9000 pixels, 180 megapixels, at most 100 are read: raise --maxPixels" in text


def test_pillow_warns_of_nothing_among_the_lines(tmp_path):
    """In a process of its own: pytest shows and keeps warnings in its own way."""
    Image.new("1", (10_000, 9_500)).save(tmp_path / "large.png")
    exif = exif_bytes()
    for cut in (20, 40, 60, len(exif) - 8):
        Image.fromarray(noise(16, 24)).save(tmp_path / f"{cut}.jpg", exif=exif[:cut])
        Image.fromarray(noise(16, 24)).save(tmp_path / f"{cut}.webp", exif=exif[:cut])
    program = (
        "import sys; from pathlib import Path; from vpr.data.images import image_size, read_image\n"
        "for file in sorted(Path(sys.argv[1]).iterdir()): read_image(file), image_size(file)"
    )
    call = [sys.executable, "-W", "default", "-c", program, str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=Path(main.__file__).parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_limit_is_a_flag_of_all_modes_that_read_images(tmp_path, capsys):
    for role, width in (("database", 80), ("queries", 81)):
        draw_image(tmp_path / "own" / "test" / role / "@1@2@.png", (width, 60), width)
    call = [
        "--mode=test", "--dataset=folder", f"--root={tmp_path / 'own'}", "--split=test", "--arch=alexnet",
        "--fromscratch", "--pooling=max", "--nocuda", "--threads=0", "--panels=0", f"--runsPath={tmp_path}",
    ]  # fmt: skip
    assert main.main([*call, "--maxPixels=0.0048"]) == 2
    assert "81 x 60 pixels, 0.00486 megapixels, at most 0.0048 are read: raise --maxPixels" in capsys.readouterr().err
    assert main.main([*call, "--maxPixels=0.00486"]) == 0
    assert main.main([*call, "--maxPixels=0.0048", "--skipBroken"]) == 2  # no query is left
    said = capsys.readouterr()
    assert "1 of the 2 images of own_test cannot be decoded" in said.out and "has no queries" in said.err


def test_a_servers_limit_is_of_what_is_sent(tmp_path):
    """Its folder's own images may be as large as in other modes."""
    for words, wanted in (([], 5e8), (["--maxPixels=20"], 5e8), (["--maxPixels=900"], 9e8)):
        options = parse_options(["--mode=serve", "--dataset=folder", f"--root={tmp_path}", *words])
        assert reading(options, torch.device("cpu")).max_pixels == wanted
    options = parse_options(["--mode=test", "--dataset=folder", f"--root={tmp_path}", "--maxPixels=20"])
    assert reading(options, torch.device("cpu")).max_pixels == 2e7


@pytest.mark.parametrize(
    ("size", "longest_side", "wanted"),
    [
        ((960, 1280), 640, (480, 640)), ((1280, 960), 640, (640, 480)), ((480, 640), 640, (480, 640)),
        ((100, 50), 640, (100, 50)), ((1000, 3), 100, (100, 1)), ((101, 77), 50, (50, 38)), ((99, 99), None, (99, 99)),
    ],
)  # fmt: skip
def test_an_image_is_shrunk_and_keeps_its_shape(size, longest_side, wanted):
    assert shrunk(size, longest_side) == wanted
