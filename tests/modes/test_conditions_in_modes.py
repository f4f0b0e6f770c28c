"""Condition means in modes: learnt by index, used by locate, a second line of test."""

import json
import re

import pytest
from drawing import draw_image
from own_images import FP32, draw_split

import main
from vpr.retrieval.conditions.centring import LEAST


@pytest.fixture
def call(tmp_path, capsys):
    def run(root, mode, *words):
        flags = [f"--dataPath={tmp_path / 'model'}", f"--runsPath={tmp_path / 'runs'}", f"--root={root}", *FP32]
        code = main.main([f"--mode={mode}", "--dataset=folder", *flags, *map(str, words)])
        return code, *capsys.readouterr()

    return run


def test_modes_learn_a_condition_and_subtract_it(call, tmp_path):
    root = draw_split(tmp_path / "own", 10, 6)
    for n in range(LEAST):
        draw_image(tmp_path / "night" / f"{n}.png", (96, 72), [3, n])
    code, out, _ = call(root, "test", "--conditions=session", "--panels=0")
    recalls = [line for line in out.splitlines() if line.startswith("R@1")]
    assert code == 0 and len(recalls) == 2 and "search exact, conditions: the queries' own mean," in out
    assert call(root, "index")[0] == 0
    code, out, _ = call(root, "index", "--condition=night", f"--add={tmp_path / 'night'}")
    assert code == 0 and "night of 5 images" in out
    image = next((tmp_path / "night").iterdir())
    plain, learnt = (
        json.loads(call(root, "locate", image, "--json", "--panels=0", f"--conditions={how}")[1])[0]["matches"]
        for how in ("off", "stored")
    )
    assert plain[0]["distance"] != learnt[0]["distance"]
    for mode, asked, count in (("locate", [tmp_path / "night"], 5), ("test", [], 6)):
        out = call(root, mode, *asked, "--panels=0", "--conditions=stored")[1]
        said = re.findall(rf"^conditions: nearest to the map's mean: (\d+), night: (\d+) of {count} images$", out, re.M)
        assert len(said) == 1 and sum(map(int, said[0])) == count
    assert "nearest to the map" not in call(root, "test", "--panels=0", "--conditions=session")[1]
    code, _, err = call(root, "index", "--condition=dusk")
    assert code == 2 and "found 0 images, wanted 5 at least" in err


def test_locate_subtracts_the_mean_of_a_folder_unless_only_plain_answers_are_calibrated(call, tmp_path):
    root = draw_split(tmp_path / "own", 12, 60, step=30)
    asked = root / "val" / "queries"
    _, out, _ = call(root, "locate", asked, "--panels=0", "--top=1")
    plain = call(root, "locate", asked, "--panels=0", "--top=1", "--conditions=off")[1]
    assert [line for line in out.splitlines() if " distance " in line] != [
        line for line in plain.splitlines() if " distance " in line
    ]
    told = "conditions: the queries' own mean; --conditions=off takes each image by itself"
    assert out.count(told) == 1 and "conditions: " not in plain
    alone = call(root, "locate", next(asked.iterdir()), "--panels=0")[1]
    assert "conditions: " not in alone, "a single image has no mean of its own"
    assert call(root, "test", "--calibrate", "--panels=0")[0] == 0
    _, out, _ = call(root, "locate", asked, "--panels=0", "--top=1", "--rerank=0")
    assert "only such answers are calibrated" in out and "calibrated on own_val" in out
