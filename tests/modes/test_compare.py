"""The table of several models, and what a model costs, against counts worked out by hand."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torchvision

import main
from vpr.cli.options import parse_options
from vpr.evaluation.comparison import Row, milliseconds_per_image, table
from vpr.evaluation.evaluate import Evaluation
from vpr.models.place_model import PlaceModel
from vpr.models.spec import ModelSpec
from vpr.models.whitening import Whitening
from vpr.modes.compare import labels, options_on_one_set


def gflop_of(height, width, whitened_to=None, **settings):
    model = PlaceModel(ModelSpec(weights="none", **settings))
    if whitened_to:
        model.whiten(Whitening(torch.zeros(model.pooled_dim), torch.zeros(whitened_to, model.pooled_dim)))
    return model.gflop(height, width)


def test_gflop_of_a_backbone_are_those_counted_by_hand():
    # AlexNet on 63x63 pixels: 11x11 stride 4 padding 2 gives 15x15, pooled 7x7, then 7x7, pooled 3x3 three times.
    first, second = 2 * 11 * 11 * 3 * 64 * 15 * 15, 2 * 5 * 5 * 64 * 192 * 7 * 7
    rest = 2 * 9 * 3 * 3 * (192 * 384 + 384 * 256 + 256 * 256)
    assert gflop_of(63, 63, arch="alexnet", pooling="max") == pytest.approx((first + second + rest) / 1e9, rel=1e-12)


def test_gflop_of_a_pruned_backbone_are_those_counted_by_hand():
    first, second = 2 * 11 * 11 * 3 * 8 * 15 * 15, 2 * 5 * 5 * 8 * 16 * 7 * 7
    rest = 2 * 9 * 3 * 3 * (16 * 24 + 24 * 32 + 32 * 40)
    found = gflop_of(63, 63, arch="alexnet", pooling="avg", channels=(8, 16, 24, 32, 40))
    assert found == pytest.approx((first + second + rest) / 1e9, rel=1e-12)


def test_gflop_of_vgg16_are_near_those_published():
    """torchvision states billions of multiplications with an addition for 224x224; 0.124 are the classifier's."""
    published = torchvision.models.VGG16_Weights.IMAGENET1K_V1.meta["_ops"]
    assert gflop_of(224, 224, pooling="max") / 2 == pytest.approx(published - 0.1236, rel=2e-3)


@pytest.mark.parametrize(("arch", "size", "wanted"), [("vgg16", (480, 640), 187.918), ("alexnet", (240, 320), None)])
def test_gflop_of_pooling_and_whitening_come_on_top(arch, size, wanted):
    """NetVLAD multiplies each of P local descriptors by K weights, and K shares by each of them: 2 x 2 P D K."""
    height, width = size
    alone = gflop_of(height, width, arch=arch, pooling="max")
    if wanted:
        assert alone == pytest.approx(wanted, abs=5e-4)
    dim, places = (512, 30 * 40) if arch == "vgg16" else (256, 14 * 19)
    with_clusters = gflop_of(height, width, arch=arch, clusters=64)
    assert with_clusters - alone == pytest.approx(4 * places * dim * 64 / 1e9, rel=1e-6)
    whitened = gflop_of(height, width, arch=arch, clusters=64, whitened_to=32)
    assert whitened - with_clusters == pytest.approx(2 * 64 * dim * 32 / 1e9, rel=1e-6)


def test_time_is_the_median_of_single_images_without_the_first_ones(monkeypatch):
    lengths, now = iter([0.2, 0.2, 0.2, 0.01, 0.03, 0.02, 0.01, 0.5]), [100.0]

    def work(_):
        now[0] += next(lengths)

    images = [torch.zeros(1)] * 5
    monkeypatch.setattr("vpr.evaluation.comparison.time.perf_counter", lambda: now[0])
    assert milliseconds_per_image(work, images) == pytest.approx(20)


@pytest.fixture(scope="module")
def run(copy_toy_run, tmp_path_factory):
    """Flags that name the places, a run, and the folder that it lies in."""
    copied = copy_toy_run(tmp_path_factory.mktemp("compare"))
    return copied.places, copied.run, copied.folder


def test_models_are_compared_in_one_table(run, exported_toy_run, capsys):
    places, trained, folder = run
    file = Path(shutil.copy(exported_toy_run, trained / "small.onnx"))
    assert main.main([*places, "--mode=test", f"--resume={trained}", "--split=test", "--panels=0"]) == 0
    capsys.readouterr()
    assert main.main([*places, "--mode=compare", "--split=test", str(trained), str(file)]) == 0
    printed = capsys.readouterr().out
    (made,) = (folder / "runs").glob("compare_test_*")
    names = {"comparison.md", "comparison.json", "comparison.png", "recall.png"}
    assert {path.name for path in made.iterdir()} == names
    rows = json.loads((made / "comparison.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [trained.name, "small.onnx"]
    assert [row["path"] for row in rows] == [str(trained), str(file)]
    assert [row["device"] for row in rows] == ["cpu", "cpu"]
    stored = json.loads((trained / "results.json").read_text())[-1]
    for row in rows:
        assert row["evaluation"]["recalls"] == stored["recalls"]
        assert row["milliseconds"] > 0
        # 2,469,696 weights and biases of AlexNet's trunk, 2 x 4 x 256 of the pooling.
        assert row["parameters"] == 2_469_696 + 2 * 4 * 256
        assert row["evaluation"]["bytes_per_image"] == 2 * 1024
    assert rows[0]["megabytes"] == pytest.approx(4 * rows[0]["parameters"] / 1e6)
    assert rows[1]["megabytes"] == pytest.approx(file.stat().st_size / 1e6)
    lines = (made / "comparison.md").read_text().strip().splitlines()
    assert lines[-1] in printed and len(lines) == 6
    assert {line.count("|") for line in lines[2:]} == {1 + 1 + 4 + 7}
    assert "12 queries" in lines[0] and "threads" in lines[0]


def test_what_cannot_be_compared_is_said_before_any_work(run, capsys):
    places, trained, folder = run
    for words, said in (
        ([*places, "--mode=compare"], "runs or exported files"),
        ([*places, "--mode=compare", str(trained), str(folder / "absent")], "absent"),
        (["--mode=test", "image.jpg"], "image.jpg"),  # other modes take no names
    ):
        assert main.main(words) == 2
        output = capsys.readouterr()
        assert said in output.err and "device" not in output.out


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["runs/A/best.onnx", "runs/B/best.onnx"], ["A/best.onnx", "B/best.onnx"]),
        (["x/1/run", "y/1/run", "x/2/run", "x/other"], ["x/1/run", "y/1/run", "2/run", "other"]),
        (["runs/a", "./runs/../runs/a", "runs/b"], ["a", "b"]),
    ],
)
def test_models_are_called_by_what_tells_their_paths_apart(paths, wanted):
    assert list(labels(paths).values()) == wanted


def test_files_of_one_name_keep_their_own_curve(run, monkeypatch, capsys):
    places, trained, folder = run
    copies = [folder / letter / "run" for letter in "AB"]
    for copy in copies:
        shutil.copytree(trained, copy)
    drawn = {}
    monkeypatch.setattr("vpr.modes.compare.draw_recall", lambda path, curves, title: drawn.update(curves))
    assert main.main([*places, "--mode=compare", *map(str, copies)]) == 0
    assert list(drawn) == ["A/run", "B/run"]
    assert "| A/run |" in capsys.readouterr().out


def stored_as_of(trained, folder, **flags):
    """A copy of a run that says that it was trained otherwise."""
    shutil.copytree(trained, folder)
    stored = json.loads((folder / "flags.json").read_text())
    (folder / "flags.json").write_text(json.dumps({**stored, **flags}))
    return folder


def without_places(places):
    return [flag for flag in places if not flag.startswith(("--dataset", "--root"))]


@pytest.mark.parametrize("named", ["--root", "--dataset"])
def test_recalls_of_other_images_are_not_put_into_one_table(run, tiny_city, tmp_path, capsys, named):
    places, trained, _ = run
    changed = {"root": str(tmp_path / "elsewhere")} if named == "--root" else {"dataset": "pittsburgh"}
    other = stored_as_of(trained, tmp_path / "other", **changed)
    assert main.main([*without_places(places), "--mode=compare", str(trained), str(other)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(trained) in line and str(other) in line and next(iter(changed.values())) in line and named in line


def test_typed_places_are_taken_for_all_models(run, tmp_path):
    places, trained, folder = run
    other = stored_as_of(trained, tmp_path / "other", root=str(tmp_path / "elsewhere"))
    before = set((folder / "runs").glob("compare_*"))
    assert main.main([*places, "--mode=compare", "--split=test", str(other), str(trained)]) == 0
    (made,) = set((folder / "runs").glob("compare_*")) - before
    first, second = json.loads((made / "comparison.json").read_text())["rows"]
    assert first["evaluation"] == second["evaluation"] and first["evaluation"]["spec"] == "toy_test"


def test_a_typed_dataset_is_looked_for_where_the_model_of_that_dataset_has_it(run, tmp_path):
    places, trained, _ = run
    elsewhere = stored_as_of(trained, tmp_path / "elsewhere", dataset="pittsburgh", root="/nowhere")
    typed = parse_options(["--mode=compare", "--dataset=toy", str(elsewhere), str(trained)])
    root = next(flag for flag in places if flag.startswith("--root"))[len("--root=") :]
    assert [(one.dataset, one.root) for one in options_on_one_set(typed, typed.inputs)] == [("toy", root)] * 2


def test_all_models_are_tested_without_broken_images_where_one_was_trained_so(run, tmp_path):
    _, trained, _ = run
    other = stored_as_of(trained, tmp_path / "other", skipBroken=True)
    typed = parse_options(["--mode=compare", str(trained), str(other)])
    assert [one.skipBroken for one in options_on_one_set(typed, typed.inputs)] == [True, True]


def test_the_table_says_on_which_device_a_model_ran():
    evaluation = Evaluation({1: 0.5}, "val", "toy_val", 12, 0, 48, "model", 8, "64x48", bytes_per_image=16)
    rows = [
        Row(name, evaluation, {1: 0.5}, 1, 2, 3, 4, device, name) for name, device in (("a", "cuda:0"), ("b", "cpu"))
    ]
    heading, _, *lines = table(rows).splitlines()
    column = heading.split("|").index(" runs on ")
    assert [line.split("|")[column].strip() for line in lines] == ["cuda:0", "cpu"]
