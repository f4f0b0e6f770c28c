"""The benchmark of a recipe: as many steps as asked for, and a killed training that ends as the other did."""

import pytest

from benchmarks.recipe_run import main


@pytest.mark.slow
def test_a_recipe_is_run_killed_and_resumed(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads sum in no fixed order
    words = ["--recipe=gsv", "--arch=alexnet", "--steps=4", "--epochs=2", "--places=8", "--device=cpu", "--apart=0"]
    assert main([*words, "--", "--precision=fp32", "--threads=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")][1:]
    assert [row[:2] for row in rows] == [
        ["left alone", "1"], ["left alone", "2"], ["killed, resumed", "1"], ["killed, resumed", "2"],
    ]  # fmt: skip
    losses, images = [float(row[2]) for row in rows], [int(row[3]) for row in rows]
    assert images == [2 * 8 * 4] * 4 and losses[:2] == losses[2:] and min(losses) > 0
    assert lines[-1] == "losses of both differ by 0 at most"
