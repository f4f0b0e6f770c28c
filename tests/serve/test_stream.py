"""examples/stream.py, as a robot would start it, and the client in docs/serve.md."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from asking import TOKEN

STREAM = Path(__file__).resolve().parents[2] / "examples" / "stream.py"
DOCS = STREAM.parents[1] / "docs" / "serve.md"


@pytest.fixture
def stream(tmp_path, monkeypatch, capsys):
    """Runs it on the images of a folder; gives the lines that it prints."""

    def run(client, *flags):
        monkeypatch.setattr(sys, "argv", ["stream.py", f"http://127.0.0.1:{client.port}", str(tmp_path), *flags])
        runpy.run_path(str(STREAM), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize(("flags", "sure"), [([], r"0\.\d\d"), (["--alone"], r"1\.00")])
def test_frames_are_located_one_after_the_other(token_client, images, tmp_path, monkeypatch, stream, flags, sure):
    """As frames of a session, where another place is less unlike, and each by itself."""
    steps = 3 if flags else 1
    for number in (1 + steps, 1):
        shutil.copy(images[1][number], tmp_path / f"frame_{number}.png")
    (tmp_path / "frame_9.png").write_bytes(b"no image")
    monkeypatch.setenv("VPR_TOKEN", TOKEN)
    first, second, third, last = stream(token_client, *flags)[-4:]
    places = [re.fullmatch(r"frame_\d.png: (40\.4392\d+|40\.4393\d+), (-79\.99\d+) \(confidence " + sure + r"\)", line)
              for line in (first, second)]  # fmt: skip
    assert float(places[1][2]) - float(places[0][2]) > 0.0003 * steps  # 30 m farther east each
    assert third == "frame_9.png: error 415: " + third.partition("415: ")[2] and len(third) > 40
    assert re.fullmatch(r"3 frames, [\d.]+ places per second", last)


@pytest.mark.parametrize(("near", "found"), [("-33.8,151.2,500", "not sure"), ("40.44,-79.99,90000", "40.43")])
def test_a_latitude_in_the_south_needs_no_equals_sign(client, images, tmp_path, stream, near, found):
    shutil.copy(images[1][4], tmp_path / "frame.png")
    assert stream(client, "--near", near)[-2].startswith(f"frame.png: {found}")


def test_the_lines_of_python_in_the_documentation_locate_an_image(client, images, tmp_path, monkeypatch, capsys):
    (lines,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "image.jpg").write_bytes(images[1][4].read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(lines.replace("8000", str(client.port)), {})
    assert "'name': 'a/4.png'" in capsys.readouterr().out
