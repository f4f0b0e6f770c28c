"""A model is adapted to a folder of images: what is written, who takes it, what is refused, and what else lay there."""

import itertools
import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from drawing import draw_image
from own_images import FP32, MODEL, image_name
from PIL import Image

import main
import vpr
from vpr.cli.options import parse_options
from vpr.cli.specs import model_spec
from vpr.common.errors import UserError
from vpr.common.provenance import open_hdf5
from vpr.models.place_model import build_model
from vpr.models.whitening import load_whitening
from vpr.report.plots import draw_adaptation
from vpr.runs.stored import load_model
from vpr.training.adapting.adapt import VIEWS, adapt
from vpr.training.views.choices import styled

COUNT, DIM, SEED = 24, 256, 123
ANSWERS = "vpr.training.adapting.adapt.answers"


def draw_photos(folder, count=COUNT):
    for number in range(count):
        draw_image(folder / f"IMG_{number:02}.png", (96, 72), [7, number])
    return folder


@pytest.fixture
def photos(tmp_path):
    """Photos in a folder, none with a position."""
    return draw_photos(tmp_path / "photos")


@pytest.fixture
def locate(call_on, photos):
    """Asks for one of a folder's images; gives what was said."""

    def ask(*words, root=photos):
        call = call_on(root, "locate", "--panels=0", "--top=1", "--rerank=0", *words, root / "IMG_03.png", model=FP32)
        assert call.code == 0, call
        assert "IMG_03.png" in call.out.split("   1  ")[1].splitlines()[0]
        return call.out

    return ask


def all_at(place, asked):
    """Answers of which each is at a place, and the clearer the nearer."""
    return np.full(len(asked.images), place), np.full(len(asked.images), 1 / place)


def adapted_by(call_on, root, *words, model=FP32):
    """What is said of an adaptation that was written, since all is found by each trial, and nothing before."""
    with pytest.MonkeyPatch.context() as patch:
        calls = itertools.count()
        patch.setattr(ANSWERS, lambda _, asked, __: all_at(1 if next(calls) >= 2 else 2, asked))
        call = call_on(root, "adapt", *words, model=model)
    assert call.code == 0 and "test, index, locate and serve take it by themselves" in call.out, call
    return call.out


def whitenings(tmp_path):
    return sorted((tmp_path / "model").glob("whitening_*"))


def nothing_helps(monkeypatch):
    """All images are found as they are, whatever is removed."""
    monkeypatch.setattr(ANSWERS, lambda _, asked, __: all_at(1, asked))


def test_a_model_without_what_varies_is_written_and_taken(call_on, locate, photos, tmp_path):
    out = adapted_by(call_on, photos)
    assert "8 queries; the image itself among all, seen from another angle" in out
    assert f"next: python main.py locate --root={photos} IMAGE.jpg" in out
    (path,) = whitenings(tmp_path)
    stored = load_whitening(path)
    removed = stored.whitening.removed
    assert (stored.dim, stored.images, stored.recipe.dataset) == (DIM, COUNT, "photos")
    products = removed @ removed.T
    assert torch.allclose(products, products.diag().diag(), atol=1e-5) and products.diag().max() < 1
    assert f"--pcaDim={stored.whitening.dim} makes descriptors short" in out

    label = f"{COUNT} images of photos (own size), less of what varies within places, in {len(removed)} directions"
    said = locate()
    assert f"whitening: learnt on {label}" in said and f"256-D adapted to 256-D by {label}" in said
    assert f"256-D whitened to 20-D by {label}" in locate("--pcaDim=20")
    assert "whitening" not in (plain := locate("--noWhiten")) and "avg, 256-D, fp32" in plain
    assert (
        f"the whitening has {stored.whitening.dim} dimensions"
        in call_on(photos, "locate", "--pcaDim=100", photos / "IMG_03.png", model=FP32).last_error
    )


def test_what_is_reported_is_of_the_images_in_their_views(call_on, photos, tmp_path):
    """Against descriptors of each view of each image, one after the other."""
    out = call_on(photos, "adapt", model=FP32).out
    model = build_model(model_spec(parse_options(["index", f"--root={photos}", *FP32]))).eval()
    described = []
    for number in range(COUNT):
        image = np.asarray(Image.open(photos / f"IMG_{number:02}.png"))
        views = [image, *(styled(VIEWS, SEED)(image, number, at) for at in (1, 2, 3))]
        described.append([model.describe(view.transpose(2, 0, 1)[None])[0] for view in views])
    wanted = adapt(torch.from_numpy(np.array(described)).float(), np.full((COUNT, 2), np.nan), 25.0, SEED)
    figures = json.loads((tmp_path / "adapted_photos" / "adapted.json").read_text())
    assert figures["kept"] == wanted.best.removed
    assert [len(load_whitening(each).whitening.removed) for each in whitenings(tmp_path)] == [4 * figures["kept"]] * (
        wanted.whitening is not None
    )
    assert "8 queries" in figures["asked"] and "avg, 256-D, fp32" in figures["model"]
    for trial, found in zip((wanted.before, *wanted.trials), figures["trials"], strict=True):
        text = [f"R@1 {100 * each[1]:.1f}, R@5 {100 * each[5]:.1f}" for each in (trial.plain, trial.night)]
        kept = " <- kept\n" if 0 < trial.removed == figures["kept"] else "\n"
        changed = f"; {trial.won} won, {trial.lost} lost, {trial.clearer} of {trial.asked} clearer"
        kept = f"{changed}{kept}" if trial.removed else kept
        assert f"less of {trial.removed:2} directions: as they are {text[0]}; by night {text[1]}{kept}" in out
        recalls = {name: {str(n): recall for n, recall in getattr(trial, name).items()} for name in ("plain", "night")}
        assert found == asdict(trial) | recalls
    with Image.open(tmp_path / "adapted_photos" / "adapted.png") as picture:
        assert picture.format == "PNG" and min(picture.size) >= 300 and np.asarray(picture).std() > 5


def test_the_picture_has_a_line_of_recalls_for_each_kind_of_question(figures, tmp_path):
    curves = {"as they are": [0.9, 0.8, 0.7], "by night": [0.1, 0.4, 0.6]}
    draw_adaptation(tmp_path / "a.png", [0, 64, 128], curves, "of a town")
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["as it was", "64", "128"]
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert drawn.keys() == curves.keys() and axes.get_title() == "of a town"
    assert all(np.allclose(drawn[name], 100 * np.array(curves[name])) for name in curves)


def test_an_index_of_before_is_not_taken_for_the_adapted_model(call_on, locate, photos):
    assert f"{COUNT} described" in locate() and "described" not in locate()
    adapted_by(call_on, photos)
    said = locate()
    assert f"{COUNT} described" in said and "adapted to 256-D" in said
    assert "described" not in locate(), "kept beside the other"
    assert "described" not in locate("--noWhiten")


@pytest.mark.parametrize("model", [FP32, [*FP32, "--pooling=netvlad", "--num_clusters=4"]], ids=["mean", "clusters"])
def test_few_images_are_refused_before_anything_is_written(call_on, tmp_path, model):
    few = draw_photos(tmp_path / "few", 5)
    said = "error: found 5 images, wanted 20 at least to adapt a model: add images of the place\n"
    assert call_on(few, "adapt", model=model).error == said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few"] and len([*few.iterdir()]) == 5


def test_clusters_are_learnt_where_there_are_none(call_on, photos, tmp_path):
    model = [*FP32, "--pooling=netvlad", "--num_clusters=4"]
    call = call_on(photos, "adapt", model=model)
    assert call.code == 0 and "no clusters yet: learning 4 from 24 images of photos (once)" in call.out
    assert len([*(tmp_path / "model").glob("*.hdf5")]) == 1 and "1024-D" in call.out


def test_where_nothing_helps_the_model_stays(call_on, locate, photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        nothing_helps(patch)
        call = call_on(photos, "adapt", model=FP32)
        assert call.code == 0 and "the model stays as it was, nothing is written for it" in call.out
        assert not whitenings(tmp_path) and "<- kept" not in call.out
    assert json.loads((tmp_path / "adapted_photos" / "adapted.json").read_text())["kept"] == 0
    assert (tmp_path / "adapted_photos" / "adapted.png").is_file() and "whitening" not in locate()
    adapted_by(call_on, photos)
    (path,) = whitenings(tmp_path)
    content = path.read_bytes()
    nothing_helps(monkeypatch)
    assert f"the model stays as it was, with {path} of before" in call_on(photos, "adapt", model=FP32).out
    assert path.read_bytes() == content and "adapted to 256-D" in locate()


def test_equal_images_are_no_mistake(call_on, tmp_path):
    first = draw_image(tmp_path / "same" / "0.png", (64, 48), 0)
    for number in range(1, 20):
        shutil.copyfile(first, first.with_name(f"{number}.png"))
    call = call_on(first.parent, "adapt", model=FP32)
    assert call.code == 0 and ("the model stays" in call.out) == (not whitenings(tmp_path))


def test_an_adaptation_is_not_taken_for_another_place(call_on, locate, photos, tmp_path):
    """Without clusters the model is the same."""
    adapted_by(call_on, photos)
    said = locate(root=draw_photos(tmp_path / "others"))
    assert "is not used: one was learnt on photos, the training set is others" in said
    assert "adapted to" not in said and "adapted to" in locate()


def test_adaptations_in_two_number_formats_do_not_hide_each_other(call_on, locate, photos, tmp_path):
    adapted_by(call_on, photos)
    adapted_by(call_on, photos, model=[*FP32, "--precision=bf16"])
    assert len(whitenings(tmp_path)) == 2 and "adapted to 256-D" in locate()


# What a folder remembers


def test_a_folder_remembers_the_adapted_model(call_on, photos, tmp_path):
    """And what the mode does not read, but that a whitening was not wanted."""
    adapted_by(call_on, photos)
    file, weights, off = photos / ".netvlad.json", str(tmp_path / "xfeat.pt"), {"noWhiten": True}
    known = json.loads(file.read_text())
    assert known["arch"] == "alexnet" and known["pooling"] == "avg"
    machine = ["--device=cpu", "--threads=0", "--precision=fp32"]
    asked = ["--panels=0", photos / "IMG_03.png"]
    assert "adapted to 256-D" in call_on(photos, "locate", *asked, model=machine).out
    file.write_text(json.dumps({**known, "keypointWeights": weights, **off}))
    adapted_by(call_on, photos, model=machine)
    assert json.loads(file.read_text()) == {**known, "keypointWeights": weights}
    file.write_text(json.dumps({**known, "pcaDim": 20}))
    adapted_by(call_on, photos, model=machine)
    assert json.loads(file.read_text()) == {**known, "pcaDim": 20}
    assert "256-D whitened to 20-D" in call_on(photos, "locate", *asked, model=machine).out
    adapted_by(call_on, photos, model=[*FP32, "--pooling=max"])
    assert json.loads(file.read_text()) == {**known, "pooling": "max"}, "dimensions are of the model of before"


# Training splits, and whitening beside


@pytest.fixture
def split(tmp_path):
    """A folder whose training split has 20 database images and 8 queries, of places 100 m apart; and a val split."""
    root = tmp_path / "town"
    for n in range(20):
        draw_image(root / "train" / "database" / image_name(100 * (n // 4) + 5 * (n % 4), n), (96, 72), [3, n])
    for n in range(8):
        draw_image(root / "train" / "queries" / image_name(100 * (n // 4) + 7 * (n % 4), f"q{n}"), (96, 72), [4, n])
        for kind in ("database", "queries"):
            draw_image(root / "val" / kind / image_name(30 * n + 3, f"v{n}"), (96, 72), [5, n])
    return root


@pytest.fixture
def results(call_on, split, tmp_path):
    """The newest results of --mode=test."""

    def test(*words):
        call = call_on(split, "test", *words, model=FP32)
        assert call.code == 0, call
        return json.loads((tmp_path / "results.json").read_text())[-1]

    return test


def test_a_training_split_is_what_is_learnt_from(call_on, split, results, tmp_path):
    out = adapted_by(call_on, split)
    figures = json.loads((tmp_path / "adapted_town_train" / "adapted.json").read_text())
    assert "held-out images of town_train, " in figures["asked"] and "learnt from 0 pairs" not in out
    found = results()
    assert found["descriptor_dim"] == DIM and "by 28 images of town_train (own size)" in found["model"]
    assert (found["whitening"]["dataset"], found["whitening"]["photos"]) == ("town_train", 28)


def test_clusters_of_a_training_split_are_those_that_all_modes_take(call_on, split, tmp_path):
    """Adapted before `cluster`: the model is the one that is tested and located with, and that `cluster` makes."""
    model = [*FP32, "--pooling=netvlad", "--num_clusters=4"]
    assert "learning 4 from 20 images of town_train (once)" in adapted_by(call_on, split, model=model)
    (centroids,) = (tmp_path / "model").glob("*.hdf5")
    written = centroids.read_bytes()
    query = next((split / "val" / "queries").iterdir())
    for call in (call_on(split, "test", model=model), call_on(split, "locate", query, model=model)):
        assert call.code == 0 and "1024-D adapted to 1024-D by 28 images of town_train" in call.out
    assert [*(tmp_path / "model").glob("*.hdf5")] == [centroids] and centroids.read_bytes() == written
    with open_hdf5(centroids, "centroids", "") as file:
        learnt = file["centroids"][:]
    assert call_on(split, "cluster", model=model).code == 0
    with open_hdf5(centroids, "centroids", "") as file:
        np.testing.assert_allclose(file["centroids"][:], learnt, atol=1e-5)


def test_a_training_split_needs_no_positions(call_on, tmp_path):
    draw_photos(tmp_path / "town" / "train" / "database")
    out = adapted_by(call_on, tmp_path / "town")
    assert "learnt from 0 pairs" in out and "the image itself among all, seen from another angle" in out


def test_an_adaptation_is_not_taken_for_a_data_set_without_a_training_split(photos, call_on, tmp_path, capsys):
    """As St Lucia has none: nothing says that it is the place."""
    adapted_by(call_on, photos)
    for kind in ("database", "queries"):
        for n in range(6):
            name = image_name(30 * n, f"@@@@@{n}")
            draw_image(tmp_path / "stlucia" / "images" / "test" / kind / name, (96, 72), [5, n])
    flags = [f"--root={tmp_path / 'stlucia'}", f"--dataPath={tmp_path / 'model'}", f"--runsPath={tmp_path}"]
    assert main.main(["test", "--dataset=stlucia", "--split=test", *FP32, *flags, "--panels=0"]) == 0
    out = capsys.readouterr().out
    assert "is not used: one was learnt on photos" in out and "adapted to" not in out and "avg, 256-D" in out


def test_an_imported_run_that_is_adapted_stays_as_it_is_for_other_places(call_on, copy_toy_run, photos, tmp_path):
    """It does not say what it was trained on, as one of an earlier version."""
    copied = copy_toy_run(tmp_path / "toy")
    for file in (copied.run / "checkpoints").glob("*.pth.tar"):
        state = torch.load(file, weights_only=True)
        state.pop("splits", None)
        torch.save(state, file)
    named = [f"--resume={copied.run}", "--device=cpu", "--threads=0", "--precision=fp32"]
    adapted_by(call_on, photos, model=named)
    asked = ["--panels=0", photos / "IMG_03.png"]
    assert "adapted to 1024-D by 24 images of photos" in call_on(photos, "locate", *asked, model=named).out
    call = call_on(draw_photos(tmp_path / "others"), "locate", *asked, model=named)
    assert call.code == 0 and "adapted to" not in call.out


def test_what_adapting_gains_is_over_the_whitening_that_the_model_has(call_on, split, tmp_path):
    """The first row is of descriptors whitened to 5 dimensions; all others are of 256."""
    assert call_on(split, "adapt", model=FP32).code == 0
    figures = tmp_path / "adapted_town_train" / "adapted.json"
    plain = json.loads(figures.read_text())["trials"]
    for each in whitenings(tmp_path):
        each.unlink()
    assert call_on(split, "whiten", "--pcaDim=2", model=FP32).code == 0
    assert call_on(split, "adapt", model=FP32).code == 0
    whitened = json.loads(figures.read_text())["trials"]
    recalls = [[(each["plain"], each["night"]) for each in trials] for trials in (plain, whitened)]
    assert recalls[0][1:] == recalls[1][1:] and recalls[0][0] != recalls[1][0]


def test_the_later_of_whiten_and_adapt_is_what_the_model_has(call_on, split, results, tmp_path):
    assert call_on(split, "whiten", "--pcaDim=6", model=FP32).code == 0
    (path,) = whitenings(tmp_path)
    assert results()["descriptor_dim"] == 6
    assert f"{path}, of --mode=whiten or of images of before, is replaced" in adapted_by(call_on, split)
    assert whitenings(tmp_path) == [path] and "adapted to 256-D" in results()["model"]
    call = call_on(split, "whiten", "--pcaDim=5", model=FP32)
    assert call.code == 0 and f"{path}, of --mode=adapt, is replaced: adapt again to have it back" in call.out
    assert "it holds" not in call.out and load_whitening(path).whitening.dim == 5, "none of the adaptation's dimensions"
    assert load_whitening(path).whitening.removed is None and results()["descriptor_dim"] == 5
    assert "is replaced" not in call_on(split, "whiten", "--pcaDim=5", model=FP32).out


def test_a_run_is_adapted_to_a_folder_and_stays_as_it_is_for_other_images(call_on, copy_toy_run, photos, tmp_path):
    """Its own images, on which it was trained, are not those of the folder."""
    copied = copy_toy_run(tmp_path / "toy")
    named = [f"--resume={copied.run}", "--device=cpu", "--threads=0", "--precision=fp32"]
    said = adapted_by(call_on, photos, model=named)
    assert f"wrote {copied.run / 'adapted_photos' / 'adapted.png'}" in said
    assert len([*(copied.run / "checkpoints").glob("whitening_*")]) == 1
    asked = ["--panels=0", photos / "IMG_03.png"]
    assert "1024-D adapted to 1024-D by 24 images of photos" in call_on(photos, "locate", *asked, model=named).out
    elsewhere = draw_photos(tmp_path / "others")
    assert "is not used: one was learnt on photos" in call_on(elsewhere, "locate", *asked, model=named).out
    assert "adapted" not in load_model(copied.run).model.name


def test_a_data_set_without_its_training_split_is_refused_at_once(call_on, split, tmp_path):
    """Specs of validation alone: nothing could say later what was learnt from."""
    (tmp_path / "city" / "datasets").mkdir(parents=True)
    (tmp_path / "city" / "datasets" / "pitts30k_val.mat").touch()
    call = call_on(tmp_path / "city", "adapt", "--dataset=pittsburgh", model=FP32)
    assert "pitts30k_train.mat is missing" in call.error


# Images and models that cannot be taken


def test_images_that_cannot_be_decoded(call_on, photos, tmp_path):
    broken = photos / "IMG_99.png"
    broken.write_bytes(b"no image")
    assert str(broken) in call_on(photos, "adapt", model=FP32).last_error
    assert not whitenings(tmp_path) and not (tmp_path / "adapted_photos").exists()
    assert not (photos / ".netvlad.json").exists()
    adapted_by(call_on, photos, "--skipBroken")
    assert load_whitening(*whitenings(tmp_path)).images == COUNT


def test_models_that_hold_all_inside_are_refused(call_on, photos, tmp_path, onnx_packages):
    """Among them that of an adapted model, which is what the folder's is."""
    call = call_on(photos, "adapt", model=["--model=hub:owner/repository:entry", "--device=cpu"])
    assert "--model=hub:owner/repository:entry is for test, index, locate, serve" in call.error
    adapted_by(call_on, photos)
    file = tmp_path / "adapted.onnx"
    assert call_on(photos, "export", f"--out={file}", model=MODEL).code == 0
    assert call_on(photos, "adapt", f"--resume={file}", model=["--device=cpu"]).code == 2
    stored = load_whitening(*whitenings(tmp_path)).whitening
    model = build_model(model_spec(parse_options(["index", f"--root={photos}", *FP32]))).eval()
    asked = [photos / "IMG_05.png", photos / "IMG_06.png"]
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(each)).transpose(2, 0, 1) for each in asked]))
    with torch.no_grad():
        plain = model(pixels)
    wanted = plain - plain @ stored.removed.T @ stored.removed
    wanted /= wanted.norm(dim=1, keepdim=True)
    found = torch.from_numpy(vpr.load_describer(file, device="cpu").describe_files(asked))
    assert (found - wanted).abs().max() < 1e-4 < (found - plain).abs().max()
    with pytest.raises(UserError, match="holds its whitening inside"):
        vpr.load_describer(file, whitened=False)


def test_a_file_that_is_whitened_to_as_many_dimensions_holds_its_whitening_inside(call_on, tmp_path, onnx_packages):
    root, file = tmp_path / "town", tmp_path / "whitened.onnx"
    for n in range(DIM + 4):
        draw_image(root / "train" / "database" / image_name(9 * n, n), (96, 72), [3, n])
    assert call_on(root, "whiten", f"--pcaDim={DIM}", model=FP32).code == 0
    call = call_on(root, "export", f"--out={file}", model=MODEL)
    assert call.code == 0 and f"256-D whitened to {DIM}-D" in call.out
    with pytest.raises(UserError, match="holds its whitening inside"):
        vpr.load_describer(file, whitened=False)
