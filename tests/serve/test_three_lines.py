"""The lines of Python in docs/serve.md."""

import re
from pathlib import Path

from asking import serving

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


def test_they_locate_an_image(shared_locator, images, tmp_path, monkeypatch, capsys):
    (lines,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "image.jpg").write_bytes(images[1][4].read_bytes())
    monkeypatch.chdir(tmp_path)
    with serving(shared_locator) as client:
        exec(lines.replace("8000", str(client.port)), {})
    assert "'name': 'a/4.png'" in capsys.readouterr().out
