"""One image file -> RGB: decoding, EXIF orientation, resizing."""

import contextlib
import functools
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vpr.common.errors import UserError
from vpr.data.names import shown
from vpr.data.settings import MAX_PIXELS

# By Pillow's name of a format, how its files end. Left out are formats that no camera or scanner writes, and those that
# start other programs (EPS); a camera's raw files are TIFF by content, of which Pillow would read a small preview.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (".mpo",), "PNG": (".png",), "WEBP": (".webp",),
    "HEIF": (".heic", ".heif", ".hif"), "AVIF": (".avif",), "TIFF": (".tif", ".tiff"), "BMP": (".bmp",),
    "GIF": (".gif",), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "JPEG2000": (".jp2", ".j2k", ".jpx", ".j2c", ".jpc"),
}  # fmt: skip
Result = TypeVar("Result")
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What stands in the place of an image, by its first bytes.
STAND_INS = {
    b"version https://git-lfs": ("a pointer of git-lfs", "fetch the image itself: git lfs pull"),
    b"/annex/objects/": ("a pointer of git-annex", "fetch the image itself: git annex get"),
    b"<": ("a page of HTML or XML", "the image was not downloaded: get it again"),
}
# How EXIF's orientations are set upright: Exif 2.32, 4.6.4, tag 274.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def read_image(path: Path, max_pixels: int | None = None) -> Image.Image:
    """An image as RGB, upright by its EXIF; UserError where it cannot be decoded or has over `max_pixels` pixels."""
    return with_image(path, upright, max_pixels)


def with_image(path: Path, use: Callable[[Image.Image], Result], max_pixels: int | None = None) -> Result:
    """What `use` makes of the image in a file; whatever goes wrong becomes one line that names the file."""

    def checked(image: Image.Image) -> Result:
        megapixels = image.width * image.height / 1e6
        if max_pixels is not None and megapixels > max_pixels / 1e6:
            raise UserError(
                f"{shown(path)} has {image.width} x {image.height} pixels, {megapixels:g} megapixels, at most "
                f"{max_pixels / 1e6:g} are read: raise --maxPixels, shrink the image, or leave it out by --skipBroken"
            )
        return use(image)

    try:
        with open(path, "rb") as file:
            return from_image(file, checked)
    except UserError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds of errors on damaged files
        reason, advice = _explained(path, error)
        raise UserError(f"cannot decode the image {shown(path)} ({reason}): {advice}") from error


def from_image(file: IO[bytes], use: Callable[[Image.Image], Result], formats: list[str] | None = None) -> Result:
    """What `use` makes of the image in a file, which is opened for it and not decoded yet.

    Metadata never stand in the way: a PNG that fails with all its chunks is tried with those alone that pixels need.
    `formats`: by Pillow's names, that it may have; None: all that are read.
    """
    known = _known_formats(file)
    formats = formats or known
    try:
        with Image.open(file, formats=formats) as image:
            return use(image)
    except Exception:  # Pillow raises a dozen kinds of errors on damaged files
        file.seek(0)
        bare = _bare_png(file) if "PNG" in formats else None
        if bare is None:
            raise
    with Image.open(bare, formats=["PNG"]) as image:
        return use(image)


def _known_formats(file: IO[bytes]) -> list[str]:
    """Which of FORMATS this Pillow reads; HEIC's plugin is loaded for a file that needs it."""
    _prepare_pillow()
    front = file.read(12)
    file.seek(0)
    if _is_heic(front):
        reads_heic()
    return [name for name in FORMATS if name in Image.OPEN]


@functools.cache
def _prepare_pillow() -> None:
    """Load Pillow's formats, and switch off its limit of pixels, which ours replaces, and its warnings of metadata."""
    Image.init()
    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _is_heic(front: bytes) -> bool:
    """Whether a file that begins so is of ISO's base media format and has one of HEIC's brands."""
    return front[4:8] == b"ftyp" and front[8:12] in HEIC_BRANDS


def _bare_png(file: IO[bytes]) -> io.BytesIO | None:
    """A PNG with those chunks alone that its pixels need, and sound EXIF; None where there are no others, or no PNG.

    Chunks are length, name, content, CRC; a small first letter: pixels do without (PNG specification, 5.3 and 5.4).
    """
    if file.read(8) != PNG_SIGNATURE:
        return None
    bare, left_out = io.BytesIO(), False
    bare.write(PNG_SIGNATURE)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        content = file.read(length + 4)
        sound = content[-4:] == struct.pack(">I", zlib.crc32(name + content[:-4]))
        if name[:1].isupper() or (sound and name in (b"tRNS", b"eXIf")):
            bare.write(head + content)
        else:
            left_out = True
    bare.seek(0)
    return bare if left_out else None


def is_image(path: Path) -> bool:
    """Whether a file begins as an image does that is read here."""
    try:
        return path.is_file() and with_image(path, lambda image: True)  # a pipe may never end
    except (OSError, UserError):
        return False


def upright(image: Image.Image) -> Image.Image:
    """An opened image decoded as RGB, turned as its EXIF orientation says."""
    image.load()  # before its EXIF is read: of a TIFF, Pillow turns it itself
    turn = TURNS.get(_orientation(image))
    image = in_eight_bits(image if turn is None else image.transpose(turn))
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _orientation(image: Image.Image) -> int:
    """An opened image's EXIF orientation, 1 to 8; 1 where it has none, or one that cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(found) if found in TURNS else 1
    except Exception:  # damaged EXIF
        return 1


def in_eight_bits(image: Image.Image) -> Image.Image:
    """An image with 16 bits of grey in 8: Pillow by itself would make white of all but the darkest.
    Raises a ValueError where its pixels are floating-point numbers, whose white nothing tells."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, wanted 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray(np.rint(np.asarray(image, np.float64) / 257).clip(0, 255).astype(np.uint8))


def _explained(path: Path, error: Exception) -> tuple[str, str]:
    """Why an image cannot be decoded, and what to do."""
    front = b""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        front = file.read(64)
        if _is_heic(front) and not reads_heic():
            return "it is HEIC", "Pillow reads it after: python -m pip install pillow-heif"
    for start, explained in STAND_INS.items():
        if front.lstrip().startswith(start):
            return explained
    if isinstance(error, UnidentifiedImageError):
        reason = "its content is of no format that is read here" if front else "it is empty"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = str(error) or type(error).__name__
    return reason, "get it again, or leave it out by --skipBroken"


def reads_heic() -> bool:
    """Whether Pillow has its optional plugin for HEIC, which is registered here."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def image_size(path: Path, max_pixels: int | None = None) -> tuple[int, int]:
    """(height, width) in pixels of an image once upright, by its header alone; UserError as of `read_image`."""

    def size(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        if tags := getattr(image, "tag_v2", None):  # of a TIFF, Pillow gives the size once upright, or not: by version
            width, height = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
        return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)

    return with_image(path, size, max_pixels)


def shrunk(size: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
    """(height, width) in pixels of an image whose longest side may have `longest_side` pixels, of the same shape."""
    longest = max(size)
    if longest_side is None or longest <= longest_side:
        return size
    height, width = (max(1, round(side * longest_side / longest)) for side in size)
    return height, width


def decode(
    path: Path, size: Sequence[int] | None = None, longest_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """An image, uint8 [3, H, W], channels last in memory; arguments and errors as of `sized_pixels`, `read_image`."""
    return with_image(path, lambda image: sized_pixels(image, size, longest_side), max_pixels).transpose(2, 0, 1)


def sized_pixels(image: Image.Image, size: Sequence[int] | None = None, longest_side: int | None = None) -> np.ndarray:
    """The pixels of an opened image once upright, uint8 [H, W, 3].
    `size`: (height, width) in pixels to resize to, or (longest side,) to which a larger image is shrunk; None keeps the
    image's own. `longest_side`: of (longest side,), where there is no `size`."""
    if size is not None and len(size) == 1:
        longest_side, size = size[0], None
    if image.format in ("JPEG", "MPO"):
        _decode_in_part(image, size, longest_side)
    image = upright(image)
    height, width = size or shrunk((image.height, image.width), longest_side)
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image)


def _decode_in_part(image: Image.Image, size: Sequence[int] | None, longest_side: int | None) -> None:
    """Have a large JPEG decoded at a half, a quarter or an eighth, the smallest that is twice what is wanted.

    The decoder then averages pixels as resizing would, in less than half the time; values differ by 3 of 255 at most
    where a photo's were compared. What a part does not divide evenly is left to the next larger one.
    """
    whole = (image.width, image.height) if _orientation(image) in (5, 6, 7, 8) else (image.height, image.width)
    wanted = size or shrunk(whole, longest_side)
    for part in (8, 4, 2):
        if all(side % part == 0 and side // part >= 2 * least for side, least in zip(whole, wanted, strict=True)):
            image.draft(None, (image.width // part, image.height // part))
            return
