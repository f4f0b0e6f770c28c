"""What a training found is not lost at its end: the test split is looked at first, and val stands in for it."""

import json

import numpy as np

import main
import vpr.training.validation
from vpr.common.errors import UserError
from vpr.runs.run import newest_run


def spec_of_a_test_split(root, write_spec):
    """A test split's spec: 12 database images and 5 queries in folders of their own."""
    database_names = [f"002/{index:06d}.jpg" for index in range(12)]
    query_names = [f"002/{index:06d}_query.jpg" for index in range(5)]
    positions = np.stack([20.0 * np.arange(12), np.zeros(12)], axis=1)
    write_spec(root / "datasets" / "pitts30k_test.mat", database_names, positions, query_names, positions[:5] + 3.0)
    return [*(root / name for name in database_names), *(root / "queries_real" / name for name in query_names)]


def copy_images(root, files):
    """Give a test split the images of train."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((root / str(file.relative_to(root)).replace("002/", "000/")).read_bytes())


def resume(root, run):
    return main.main(["--mode=train", f"--resume={run}", f"--root={root}", "--threads=0", "--device=cpu"])


def train(root, folder):
    call = [
        "--mode=train", f"--root={root}", "--arch=alexnet", "--fromscratch", "--pooling=avg", "--nNeg=5", "--margin=1",
        "--threads=0", "--device=cpu", f"--runsPath={folder}", "--nEpochs=1",
    ]  # fmt: skip
    return main.main(call)


def results(folder):
    return json.loads((newest_run(folder) / "results.json").read_text())


def test_a_test_split_that_is_whole_is_what_the_best_model_is_measured_on(tiny_places, tmp_path, write_spec):
    copy_images(tiny_places, spec_of_a_test_split(tiny_places, write_spec))
    assert train(tiny_places, tmp_path) == 0
    assert [(each["split"], each["spec"]) for each in results(tmp_path)] == [("test", "pitts30k_test")]


def test_a_test_split_without_images_is_noticed_before_training(tiny_places, tmp_path, write_spec, capsys):
    spec_of_a_test_split(tiny_places, write_spec)
    assert train(tiny_places, tmp_path) == 0
    printed = capsys.readouterr().out
    said = printed.index("no test split (17 of the 17 images of pitts30k_test are missing")
    assert said < printed.index("epoch 1") and "measured on val" in printed[said:].splitlines()[0]
    assert [(each["split"], each["spec"]) for each in results(tmp_path)] == [("val", "pitts30k_val")]


def test_a_test_image_that_cannot_be_decoded_leaves_val(tiny_places, tmp_path, write_spec, capsys):
    files = spec_of_a_test_split(tiny_places, write_spec)
    copy_images(tiny_places, files)
    files[5].write_bytes(b"no image")
    assert train(tiny_places, tmp_path) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "cannot be measured" in line]
    assert files[5].name in line and "measured on val" in line
    assert [each["split"] for each in results(tmp_path)] == ["val"]


def test_recalls_are_printed_though_they_cannot_be_recorded(tiny_places, tmp_path, capsys):
    assert train(tiny_places, tmp_path) == 0
    run = newest_run(tmp_path)
    wanted = results(tmp_path)[0]["recalls"]["5"]
    (run / "results.json").write_text("{damaged")
    capsys.readouterr()
    assert resume(tiny_places, run) == 2
    captured = capsys.readouterr()
    assert "best model (after epoch 1)" in captured.out and f"R@5: {100 * wanted:.1f}" in captured.out
    assert "results.json" in captured.err and "\n" not in captured.err.strip()


def test_a_measurement_that_fails_says_how_to_make_it_up(tiny_places, tmp_path, monkeypatch, capsys):
    """No split can be read when the training ends: the message names the command that measures it."""
    assert train(tiny_places, tmp_path) == 0
    run = newest_run(tmp_path)

    def unreadable(*_, **__):
        raise UserError("an image is gone")

    monkeypatch.setattr(vpr.training.validation, "describe_split", unreadable)
    capsys.readouterr()
    assert resume(tiny_places, run) == 2
    said = capsys.readouterr().err.strip()
    assert "an image is gone" in said and f"--mode=test --resume={run}" in said and "\n" not in said
