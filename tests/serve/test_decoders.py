"""Processes that decode: what hangs or dies is replaced."""

import asyncio
import contextlib
import io
import math
import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from asking import as_bytes, decoders
from drawing import draw_image, gps
from moods import two_moods
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vpr.serve.decoders import Decoder, Decoders
from vpr.serve.decoding import HEADER, Refused, Wanted, decode_bytes, format_of, receive
from vpr.serve.problems import Problem
from vpr.serve.service import Service
from vpr.serve.settings import Settings, limits_for


def asked(decoders, *all_data):
    """What becomes of images that are decoded at the same time."""

    async def ask():
        return await asyncio.gather(*(decoders.decode(data, Wanted()) for data in all_data), return_exceptions=True)

    return asyncio.run(ask())


def test_a_program_that_fails_does_not_wait_for_its_decoders():
    """They heed none of the signals by which processes are ended at its end."""
    program = """
from vpr.serve.decoders import Decoder
from vpr.serve.decoding import decode_for
if __name__ == "__main__":
    kept = Decoder(decode_for)
    kept.get_ready()
    raise ValueError("failed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.endswith("ValueError: failed\n")


def test_one_that_hangs_or_dies_is_replaced_and_holds_up_nobody(monkeypatch):
    """Who is served next waits for no process to begin."""
    ready, get_ready = [], Decoder.get_ready
    monkeypatch.setattr(Decoder, "get_ready", lambda decoder: (ready.append(decoder), get_ready(decoder)))
    number = lambda found: int(found.values.view(np.int64)[0])  # noqa: E731
    with contextlib.closing(Decoders(0, 0.3, two_moods)) as one:  # one process, which takes no large images
        first, again = asked(one, b"fine", b"fine")
        assert number(first) == number(again)
        hung, after = asked(one, b"hang", b"fine")
        assert isinstance(hung, Problem) and hung.status == 422 and "0.3 s" in hung.text
        assert number(after) != number(first)
        with pytest.raises(ProcessLookupError):
            os.kill(number(first), 0)
        died, last = asked(one, b"die", b"fine")
        assert isinstance(died, Problem) and died.status == 422 and number(last) not in (number(first), number(after))
        asked(one, b"die")
        assert len(set(ready)) == 4, "the last is ready before it is given out"
    with pytest.raises(ProcessLookupError):
        os.kill(number(last), 0)


def refusal(data, **wanted):
    with pytest.raises(Refused) as found:
        decode_bytes(data, Wanted(**wanted))
    return found.value.status


def picture(height=6, width=8):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def thumbnail(data):
    return Image.open(io.BytesIO(decode_bytes(data, Wanted(thumbnail=40)).values.tobytes()))


def text_of_megabytes():
    text = PngInfo()
    text.add_text("Comment", "a" * (3 << 20), zip=True)
    return text


@pytest.mark.parametrize(
    ("kind", "settings"), [("PNG", {}), ("WEBP", {"lossless": True}), ("PNG", {"pnginfo": text_of_megabytes()})]
)
def test_pixels_are_those_of_the_image(kind, settings):
    found = decode_bytes(as_bytes(picture(), kind, **settings), Wanted())
    np.testing.assert_array_equal(found.values, np.array(picture()))
    assert found.format == kind and found.degrees is None


def test_exif_turns_the_image_and_tells_its_position_but_in_a_thumbnail():
    exif = gps(-33.51, 18.25)
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    found = decode_bytes(as_bytes(picture(), "PNG", exif=exif), Wanted())
    np.testing.assert_array_equal(found.values, np.rot90(np.array(picture()), -1))
    assert found.degrees == pytest.approx((-33.51, 18.25))
    small = thumbnail(as_bytes(picture(60, 80), "JPEG", exif=exif))
    assert small.size == (30, 40) and not dict(small.getexif())


def test_the_model_gets_the_size_that_it_wants():
    data = as_bytes(picture(60, 80))
    assert decode_bytes(data, Wanted(size=(30, 20))).values.shape == (30, 20, 3)
    assert decode_bytes(data, Wanted(longest_side=40)).values.shape == (30, 40, 3)


def test_formats_are_told_by_content():
    taken = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WEBP", "BMP": None, "GIF": None, "TIFF": None}
    assert {kind: format_of(as_bytes(picture(), kind)) for kind in taken} == taken
    for data in (b"", b"<svg/>", b"GIF89a", as_bytes(picture(), "BMP"), b"%!PS-Adobe-3.0"):
        assert refusal(data) == 415


def test_heic_is_read_where_its_plugin_is(pillow_heif):
    pillow_heif.register_heif_opener()
    found = decode_bytes(as_bytes(Image.fromarray(np.full((64, 96, 3), 90, np.uint8)), "HEIF"), Wanted())
    assert found.format == "HEIF" and found.values.shape == (64, 96, 3)
    assert abs(found.values.astype(int) - 90).max() <= 3


def test_what_is_damaged_or_too_large_is_refused():
    data = as_bytes(picture(60, 80), "JPEG")
    assert [refusal(data[:cut]) for cut in (4, 30, len(data) // 2)] == [422, 422, 422]
    assert refusal(data, max_pixels=60 * 80 - 1) == 413
    assert decode_bytes(data, Wanted(max_pixels=60 * 80)).values.shape == (60, 80, 3)


def test_images_are_shrunk_to_what_the_database_has(tmp_path):
    small = [draw_image(tmp_path / f"{n}.png", (80, 64), n) for n in range(3)]
    assert limits_for(small) == limits_for([]) == {"longest_side": 1280, "large_pixels": 200_000}
    large = draw_image(tmp_path / "large.png", (300, 1500), 9)
    assert limits_for([*small, large]) == {"longest_side": 1500, "large_pixels": 4 * 300 * 1500}


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "MPO", "PNG"])
def test_a_database_image_of_any_format_is_shown(kind):
    """Its own files may have more formats than what strangers send."""
    small = thumbnail(as_bytes(picture(60, 80), kind))
    assert small.format == "JPEG" and small.size == (40, 30)


def answer_of(*messages):
    """What becomes of messages that a decoder sends, which an image has taken over."""
    ours, theirs = multiprocessing.Pipe()
    for message in messages:
        theirs.send_bytes(message)
    theirs.close()
    with ours:
        return receive(ours, 1000)


def header(status=0, kind=0, shape=(2, 3, 3), degrees=(math.nan, math.nan)):
    return HEADER.pack(status, kind, *shape, *degrees)


def test_what_a_decoder_answers_is_bytes_of_a_fixed_form():
    found = answer_of(header(kind=1, degrees=(1.0, 2.0)), bytes(range(18)))
    assert found.values.shape == (2, 3, 3) and found.values.ravel().tolist() == list(range(18))
    assert (found.format, found.degrees) == ("PNG", (1.0, 2.0)) and answer_of(header(), bytes(18)).degrees is None
    assert answer_of(header(shape=(5, 0, 0)), b"12345").values.tobytes() == b"12345"
    assert answer_of(header(degrees=(91.0, 0.0)), bytes(18)).degrees is None
    with pytest.raises(Refused, match="too large") as refused:
        answer_of(header(413), b"too large")
    assert refused.value.status == 413


@pytest.mark.parametrize(
    "messages",
    [
        [pickle.dumps(os.getpid)], [header()[:9]], [header() + b"x", bytes(18)], [header(), bytes(17)],
        [header(), bytes(19)], [header(kind=9), bytes(18)], [header(shape=(2**31, 2**31, 3)), b""],
        [header(shape=(2, 3, 4)), bytes(24)], [header(shape=(0, 0, 0)), b""], [header(500), b"x"],
        [header(413), b"x" * 5000], [header()], [],
    ],
)  # fmt: skip
def test_any_other_answer_is_none(messages):
    with pytest.raises((OSError, EOFError)):
        answer_of(*messages)


def test_large_images_wait_for_each_other_and_not_small_ones_for_them():
    seen = []

    async def one(several, name, data):
        found = await several.decode(data, Wanted())
        seen.append(name)
        return found.values.shape

    async def ask(several):
        large, small = as_bytes(Image.new("RGB", (3000, 2000))), as_bytes(picture(60, 80))
        await one(several, "first", small)  # the processes have begun
        works = [asyncio.create_task(one(several, "large", large)) for _ in range(4)]
        await asyncio.sleep(0)
        shapes = await asyncio.gather(*works, *(one(several, "small", small) for _ in range(4)))
        assert shapes == [(2000, 3000, 3)] * 4 + [(60, 80, 3)] * 4

    with contextlib.closing(Decoders(1, 20)) as several:
        asyncio.run(ask(several))
    assert seen[-1] == "large" and seen.index("small") < 3


def test_thumbnails_are_read_when_it_is_their_turn(shared_locator, monkeypatch):
    """Of 30 that are asked for at once no more are in memory than are decoded."""
    monkeypatch.setattr("vpr.serve.service.Decoders", lambda *_: decoders())
    service, now, most = Service(shared_locator, Settings(decoders=2)), 0, 0
    image = as_bytes(picture(60, 80))

    def read():
        nonlocal now, most
        now += 1
        most = max(most, now)
        return image

    async def one():
        nonlocal now
        assert (await service.thumbnail(read, 40))[:2] == b"\xff\xd8"
        now -= 1

    async def ask():
        service.start()
        try:
            await asyncio.gather(*(one() for _ in range(30)))
        finally:
            await asyncio.to_thread(service.stop)

    asyncio.run(ask())
    assert 1 <= most <= 4 and now == 0
