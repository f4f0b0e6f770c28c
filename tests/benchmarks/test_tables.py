"""The program of the tables with a fake main.py: what it plans, skips and makes again, and that it survives SIGKILL."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tables import __main__ as program
from benchmarks.tables.estimate import LARGE, MANY, SMALL, settings_for, size_for
from benchmarks.tables.models import NETWORKS, ROWS, model_flags
from vpr.cli.options import parse_options
from vpr.common.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 4 + 2 + 1 + 2 * 13  # clusters, trainings, pruning, exports and measurements
TRAIN_VGG16 = 5
FAKE = [sys.executable, "-IS", str(Path(__file__).with_name("fake_main.py"))]
# The program as it is below, in a process of its own.
ALONE = """
import sys
from benchmarks.tables import __main__ as program
program.MAIN, program.estimate.seconds_per_image = {fake}, lambda *_: 0.001
sys.exit(program.main(sys.argv[1:]))
"""


@pytest.fixture
def called(tiny_places, tmp_path, monkeypatch, capsys):
    """Runs the program; gives its exit code, what it said, and the commands that it ran, of which one may kill it."""
    monkeypatch.setattr(program, "MAIN", FAKE)
    monkeypatch.setattr(program.estimate, "seconds_per_image", lambda *_: 0.001)
    calls, said = tmp_path / "calls", tmp_path / "said"
    monkeypatch.setenv("CALLS", str(calls))

    def call(*flags, out="out", breaks_at=None, alone=False):
        calls.write_text("")
        monkeypatch.setenv("BREAKS_AT", json.dumps(breaks_at))
        words = [f"--root={tiny_places}", f"--out={tmp_path / out}", *flags]
        if alone:
            command = [sys.executable, "-c", ALONE.format(fake=FAKE), *words]
            with open(said, "w", encoding="utf-8") as file:  # no pipe, which an orphan would hold open
                code = subprocess.run(command, cwd=REPOSITORY, stdout=file, stderr=file).returncode
        else:
            code = program.main(words)
            said.write_text("".join(capsys.readouterr()), encoding="utf-8")
        return code, said.read_text(encoding="utf-8"), [json.loads(line) for line in calls.read_text().splitlines()]

    return call


def tables_in(folder):
    return [(folder / name).read_bytes() for name in ("tables.md", "tables.png")]


def modes_of(ran):
    return [words[0].removeprefix("--mode=") for words in ran]


def test_all_commands_run_once_and_give_two_tables_and_a_picture(called, tmp_path):
    code, said, ran = called()
    assert code == 0 and len(ran) == STEPS, said
    assert re.search(rf"^{STEPS} of {STEPS} steps are left: about \d+ minutes", said, re.M)
    text, picture = tables_in(tmp_path / "out")
    text = text.decode()
    assert text in said and picture.startswith(b"\x89PNG")
    assert text.count("\n| VGG16") == 2 + 4 and text.count("\n| EfficientNet") == 6 and text.count("\n| AlexNet") == 2
    cells = {tuple(line.split(" | ")[:2]): line.strip("| ").split(" | ")[2:] for line in text.splitlines()}
    recall = len("vgg16_pruned_int8")
    costs = ["3.2", "1.50", "12.0", "12.5", "8", "9"]
    assert cells["| VGG16, trained, pruned", "int8"] == [
        "4,096",
        *4 * [f"{recall}.0"],
        *4 * [f"{recall + 50}.0"],
        *costs,
    ]
    assert cells["| AlexNet, trained", "4,096"] == 4 * ["20.0"]
    for words in (
        "split val; 7 queries. ",
        "2 epochs",
        "distilled on 256",
        "places: split val",
        "Images 9x9",
        "threads; torch",
    ):
        assert words in text


def test_what_is_done_is_not_done_again(called, tmp_path):
    called()
    before = tables_in(tmp_path / "out")
    code, said, ran = called()
    assert code == 0 and ran == [] and said.count("done before") == STEPS and "steps are left" not in said
    assert tables_in(tmp_path / "out") == before


@pytest.mark.parametrize("at", [TRAIN_VGG16, STEPS])
def test_killed_it_goes_on_and_ends_with_the_same_tables(called, tmp_path, at):
    """Its command lives on for a while: nobody else works in the folder until that has ended."""
    called(out="alone")
    code, _, ran = called(breaks_at=[at, "kill"], alone=True)
    assert code < 0 and len(ran) == at and not (tmp_path / "out" / "tables.md").exists()
    code, said, ran = called(alone=True)
    assert code == 0 and len(ran) == STEPS - at + 1, said
    assert (tmp_path / "ended").exists() and "waiting for the end" in said
    assert tables_in(tmp_path / "out") == tables_in(tmp_path / "alone")
    if at == TRAIN_VGG16:
        assert ran[0] == ["--mode=train", f"--resume={tmp_path / 'out/steps/train_vgg16/1_vgg16_netvlad'}"]


def test_a_command_that_fails_is_named_and_tried_again(called, tmp_path):
    code, said, ran = called(breaks_at=[7, "fail"])
    assert code == 2 and len(ran) == 7
    assert "error: prune_vgg16 ended with exit code 2" in said and "said by prune" in said and "--mode=prune" in said
    code, _, again = called()
    assert code == 0 and again[0] == ran[6] and len(again) == STEPS - 6


def test_other_flags_make_again_only_what_they_change(called):
    called()
    _, _, ran = called("--epochs=3")
    modes = modes_of(ran)
    assert modes == ["train", "train", "prune", *5 * ["export", "compare"]]
    assert "--nEpochs=3" in ran[0] and "--resume" not in " ".join(ran[0])


def test_every_command_is_one_that_main_py_takes(called, tmp_path, monkeypatch):
    """But for files that other commands write: flags are known, and of the mode."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("vgg16_features_oxford.pth", "alexnet-owt.pth", "tf_efficientnet_lite0.pth"):
        (weights / name).write_text("")
    _, _, ran = called(f"--weights={weights}")
    monkeypatch.chdir(tmp_path)
    for words in ran:
        plain = [word for word in words if not word.startswith(("--resume", "--weights", "--normalization"))]
        parse_options([word for word in plain if not word.endswith(".onnx") or word.startswith("--out")])
    assert set(modes_of(ran)) == {"cluster", "train", "prune", "export", "compare"}
    assert {"--imageSize", "48", "64", "--normalization=features"} <= {*ran[0]}
    assert f"--weights={weights}/vgg16_features_oxford.pth" in ran[0]


def test_weights_are_found_by_their_names(tmp_path):
    for name in ("vgg16-397923af.pth", "alexnet.safetensors", "vgg16_oxford.txt"):
        (tmp_path / name).write_text("")
    assert model_flags("vgg16", tmp_path) == ("--arch=vgg16", f"--weights={tmp_path / 'vgg16-397923af.pth'}")
    assert model_flags("alexnet", tmp_path)[-1].endswith("alexnet.safetensors")
    assert all(model_flags(network, None) == NETWORKS[network].flags for network in NETWORKS)
    with pytest.raises(UserError, match=r"found no file like \*efficientnet_lite0\*.pth"):
        model_flags("lite0_8", tmp_path)


def test_images_are_shrunk_and_never_enlarged(tiny_places):
    image = next(tiny_places.rglob("*.jpg"))
    assert size_for(image, 32) == (24, 32) and size_for(image, 128) == (48, 64)
    assert settings_for(MANY - 1) is SMALL and settings_for(MANY) is LARGE
    assert len({row.key for row in ROWS}) == len(ROWS) == 13


def test_no_such_places(called, tmp_path):
    code, said, ran = called("--root", str(tmp_path / "nowhere"))
    assert code == 2 and ran == [] and said.count("\n") == 1 and said.startswith("error: ")
