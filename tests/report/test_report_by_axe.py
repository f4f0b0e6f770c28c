"""What axe-core says of the report: that it can be read and used by those who see little or use no mouse."""

import numpy as np
import pytest
from frames import framed, posted
from PIL import Image
from report_page import DATABASE, figures_with, images_of, names_of, outcomes_of_chance, panels_in, reranked_by_chance

from pittsburgh import Places
from vpr.report.html import write_report
from vpr.report.interactive import curve_data, map_data

JUDGE = """
const wait = setInterval(async () => {
  if (drawn.length < 2 || !map || map.plot.inner_width < 100) return;
  clearInterval(wait);
  for (const each of document.querySelectorAll("details")) each.open = true;
  const told = { violations: await violations(), rows: document.querySelectorAll("tr.details").length };
  parent.postMessage({ ...told, width: innerWidth, scheme: document.documentElement.dataset.scheme }, "*");
}, 10);"""
VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]


@pytest.mark.slow
def test_nothing_is_in_anybodys_way(browse, axe, tmp_path):
    """All rows open, beside map, curve, a picture and a panel; light and dark, narrow and wide."""
    Image.new("L", (200, 50)).save(tmp_path / "plot.png")
    outcomes = reranked_by_chance(outcomes_of_chance(20))
    positions = np.random.default_rng(0).uniform(0, 500, (60, 2))
    places = Places("toy_test", DATABASE, names_of(20), positions[:40], positions[40:], 25, 10)
    figures = figures_with(
        lines=["a line"], settings={"arch": "alexnet"}, pictures=[("a plot", tmp_path / "plot.png")],
        panels=panels_in(tmp_path / "panels", [0, 1]), recalls_before={1: 0.4}, map=map_data(places, outcomes),
        curve=curve_data({"before": {1: 0.2, 2: 0.4}, "after": {1: 0.4, 2: 0.6}}),
    )  # fmt: skip
    path = tmp_path / "report.html"
    write_report(path, outcomes, images_of(names_of(20)), figures)
    judging = f"<script>{axe}{JUDGE}</script></body>"
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", judging), encoding="utf-8")
    pages = [(f"report.html#open=all&scheme={scheme}", width) for width, scheme in VIEWS]
    (tmp_path / "frames.html").write_text(framed(pages))
    seen = posted(browse((tmp_path / "frames.html").as_uri(), seconds=30))
    assert {(each["width"], each["scheme"]) for each in seen} == {*VIEWS} and {each["rows"] for each in seen} == {20}
    for each in seen:
        assert each["violations"] == [], (each["width"], each["scheme"])
