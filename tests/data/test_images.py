"""One image file to RGB: exact pixels, colour modes, orientation, sizes, and files that are broken."""

import re

import numpy as np
import pytest
import torch
from drawing import noise, save
from PIL import Image

from vpr.common.errors import UserError
from vpr.data import images as images_module
from vpr.data.images import decode


def test_decode_gives_the_exact_pixels(tmp_path):
    pixels = noise(5, 7)
    image = decode(save(tmp_path / "image.png", pixels))
    assert image.dtype == torch.uint8 and image.shape == (3, 5, 7)
    assert np.array_equal(image.numpy(), pixels.transpose(2, 0, 1))


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
    image = decode(save(tmp_path / "grey.png", grey))
    assert np.array_equal(image.numpy(), np.stack([grey] * 3))


def test_palette_becomes_rgb(tmp_path):
    colours, places = noise(1, 4)[0], np.random.default_rng(0).integers(0, 4, (5, 7), dtype=np.uint8)
    image = Image.fromarray(places, mode="P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "palette.png")
    assert np.array_equal(decode(tmp_path / "palette.png").numpy(), colours[places].transpose(2, 0, 1))


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


def test_truncated_image_is_named(truncated):
    with pytest.raises(UserError, match=r"half\.jpg"):
        decode(truncated)


def test_file_that_is_missing_or_no_image_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    for name in ("text.jpg", "missing.jpg"):
        with pytest.raises(UserError, match=name):
            decode(tmp_path / name)


def test_an_image_with_damaged_exif_is_named(tmp_path):
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
def test_the_size_in_the_header_is_that_of_the_decoded_image(tmp_path, orientation):
    """Orientations 1 to 8 exist, of which 5 to 8 turn by a quarter; others leave an image as it is."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "image.jpg", noise(16, 24), exif=exif)
    size = (24, 16) if orientation in (5, 6, 7, 8) else (16, 24)
    assert images_module.image_size(path) == size == tuple(decode(path).shape[1:])


@pytest.mark.parametrize(
    ("size", "longest_side", "wanted"),
    [
        ((960, 1280), 640, (480, 640)), ((1280, 960), 640, (640, 480)), ((480, 640), 640, (480, 640)),
        ((100, 50), 640, (100, 50)), ((1000, 3), 100, (100, 1)), ((101, 77), 50, (50, 38)), ((99, 99), None, (99, 99)),
    ],
)  # fmt: skip
def test_an_image_is_shrunk_and_keeps_its_shape(size, longest_side, wanted):
    assert images_module.shrunk(size, longest_side) == wanted
