"""examples/stream.py, as a robot would start it."""

import re
import runpy
import shutil
import sys
from pathlib import Path

from asking import serving

STREAM = Path(__file__).resolve().parents[2] / "examples" / "stream.py"


def test_frames_are_located_one_after_the_other(shared_locator, images, tmp_path, monkeypatch, capsys):
    for number in (4, 1):
        shutil.copy(images[1][number], tmp_path / f"frame_{number}.png")
    (tmp_path / "frame_9.png").write_bytes(b"no image")
    monkeypatch.setenv("VPR_TOKEN", "a long enough token")
    with serving(shared_locator, token="a long enough token") as client:
        monkeypatch.setattr(sys, "argv", ["stream.py", f"http://127.0.0.1:{client.port}", str(tmp_path)])
        runpy.run_path(str(STREAM), run_name="__main__")
    first, second, third, last = capsys.readouterr().out.splitlines()[-4:]
    places = [re.fullmatch(r"frame_\d.png: (40\.4392\d+|40\.4393\d+), (-79\.99\d+) \(confidence 1.00\)", line)
              for line in (first, second)]  # fmt: skip
    assert float(places[1][2]) - float(places[0][2]) > 0.0009  # 90 m farther east
    assert third == "frame_9.png: error 415: " + third.partition("415: ")[2] and len(third) > 40
    assert re.fullmatch(r"3 frames, [\d.]+ places per second", last)


def test_a_latitude_in_the_south_needs_no_equals_sign(shared_locator, images, tmp_path, monkeypatch, capsys):
    shutil.copy(images[1][4], tmp_path / "frame.png")
    with serving(shared_locator) as client:
        for near, found in (("-33.8,151.2,500", "not sure"), ("40.44,-79.99,90000", "40.43")):
            words = ["stream.py", f"http://127.0.0.1:{client.port}", str(tmp_path), "--near", near]
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(str(STREAM), run_name="__main__")
            assert capsys.readouterr().out.splitlines()[-2].startswith(f"frame.png: {found}")
