"""Re-ranking by the command line: test, locate, index, compare and exported files order hits alike."""

import json
import re

import h5py
import numpy as np
import pytest
import torch
from own_images import FP32, a_query, draw_split, image_name, names_found
from PIL import Image

import main
import vpr.cli.locating
from vpr.data.images import decode
from vpr.descriptors.local_file import read_local
from vpr.descriptors.local_maps import SCALE
from vpr.models.pca import ProjectionLayer, learn_projection
from vpr.models.place_model import build_model
from vpr.models.spec import ModelSpec
from vpr.report.matches import DROP, PAIR
from vpr.report.panels import FRAME

DATABASE, QUERIES = 12, 5


@pytest.fixture
def own(tmp_path):
    """Database images of two sizes 30 m apart, and queries each 3 m beside one of them and drawn alike."""
    return draw_split(tmp_path / "own", DATABASE, QUERIES, sizes=((96, 80), (128, 80)), query_size=(128, 96))


@pytest.fixture
def run(own, call_on, monkeypatch):
    """Runs a mode on the folder, whose index keeps local descriptors where that is asked for."""
    monkeypatch.setattr(vpr.cli.locating, "FEW", 0)
    extra = {"locate": ["--json"]}
    model = [*FP32, "--localDim=8"]
    return lambda mode, *words: call_on(own, mode, *extra.get(mode, []), *words, model=model)


@pytest.fixture
def saved(run, tmp_path):
    """A file of descriptors with local ones beside it, and what was said of the test that wrote it."""
    path = tmp_path / "kept.h5"
    code, out, _ = run("test", "--rerank=5", f"--saveDescriptors={path}")
    assert code == 0
    return path, out


def test_locate_gives_the_order_that_test_counts(run, own, tmp_path):
    """Test's first hits, whether locate keeps local descriptors or computes those of the first hits anew."""
    code, out, err = run("test", "--rerank=6", "--recallValues", 1, 2, 3, f"--saveDescriptors={tmp_path / 'kept.h5'}")
    assert code == 0, err
    alone, after = re.findall(r"R@1: ([\d.]+), R@2: ([\d.]+), R@3: ([\d.]+)", out)[:2]
    assert "then a second look at the first 6 hits (head, 8-D local descriptors in 8 bits)" in out
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["search"].count("second look") for entry in results] == [0, 1]
    code, computed, said = run("locate", "--conditions=off", own / "val" / "queries", "--rerank=6", "--top=12")
    assert code == 0 and "wrote" in said
    assert run("index", "--localDescriptors").code == 0
    assert (tmp_path / "model" / "database_own_val.local").is_file() or list(tmp_path.rglob("database_*.local"))
    code, stored, _ = run("locate", "--conditions=off", own / "val" / "queries", "--rerank=6", "--top=12")
    assert code == 0 and names_found(computed) == names_found(stored)
    for n, recall in zip((1, 2, 3), after, strict=True):
        hits = [any(image_name(30 * q, q) in name for name in names[:n]) for q, names in enumerate(names_found(stored))]
        assert 100 * np.mean(hits) == pytest.approx(float(recall), abs=0.06)
    code, plain, _ = run("locate", "--conditions=off", own / "val" / "queries", "--rerank=0", "--top=12")
    plain = names_found(plain)
    assert [set(names[:6]) for names in plain] == [set(names[:6]) for names in names_found(stored)]
    assert [names[6:] for names in plain] == [names[6:] for names in names_found(stored)]
    hits = [image_name(30 * q, q) in names[0] for q, names in enumerate(plain)]
    assert 100 * np.mean(hits) == pytest.approx(float(alone[0]), abs=0.06)


@pytest.mark.parametrize("kept", [False, True])
def test_panels_of_locate_show_the_matches_of_the_first_hit(run, own, tmp_path, kept):
    """Below the row of hits, whether the database's local descriptors are kept or computed anew."""
    image, heights = a_query(own), {}
    if kept:
        assert run("index", "--localDescriptors").code == 0
    for depth in (0, 6):
        code, _, err = run("locate", image, f"--rerank={depth}", "--panels=1")
        assert code == 0, err
        newest = max(tmp_path.rglob("locate_*/1_*.jpg"), key=lambda path: path.stat().st_mtime_ns)
        with Image.open(newest) as picture:
            heights[depth] = picture.height
    assert heights[6] == heights[0] + PAIR[1] + DROP + 3 * FRAME


def test_an_index_without_local_descriptors_goes_on_without_re_ranking(run, own):
    image = a_query(own)
    assert run("index").code == 0
    code, out, said = run("locate", image, "--top=12")
    assert code == 0 and said.count("no local descriptors: no re-ranking") == 1
    assert names_found(out) == names_found(run("locate", image, "--top=12", "--rerank=0").out)
    assert run("index", "--localDescriptors").code == 0
    code, again, said = run("locate", image, "--top=12")  # with them it looks at 50 hits, here all
    assert code == 0 and "no re-ranking" not in said
    assert names_found(again) == names_found(run("locate", image, "--top=12", "--rerank=50").out)


def test_saved_local_descriptors_are_those_of_the_images(saved, own):
    path, _ = saved
    model = build_model(ModelSpec.from_flags({"arch": "alexnet", "weights": "none", "pooling": "avg"})).eval()
    with h5py.File(path) as file:
        maps, projection = read_local(file, path)
    assert projection.components.shape == (8, 256) and projection.learnt_on == "12 images of the database"
    assert len(maps.grids) == DATABASE + QUERIES and maps.checksums is not None
    image = decode(own / "val" / "queries" / image_name(3, "q0"), None)[None]
    local = model.describe_with_local(image, projection)[1][0]  # [8, h, w]
    number = DATABASE  # the first query
    assert tuple(maps.grids[number]) == tuple(local.shape[1:])
    np.testing.assert_allclose(maps.rows(number), (local * SCALE).reshape(8, -1).T, atol=0.5 + 1e-3)


def test_loaded_descriptors_are_re_ranked_again(run, saved, tmp_path):
    (path, out), bare = saved, tmp_path / "bare.h5"
    again, loaded, _ = run("test", "--rerank=5", f"--loadDescriptors={path}")
    assert again == 0 and re.findall(r"R@1.*", out) == re.findall(r"R@1.*", loaded)
    assert run("test", f"--saveDescriptors={bare}").code == 0
    assert "has no local descriptors" in run("test", "--rerank=5", f"--loadDescriptors={bare}").error


def test_a_damaged_file_of_local_descriptors_is_named(run, saved):
    path, _ = saved
    local = path.with_suffix(".local")
    content = bytearray(local.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (content, content[:-1], None):  # changed, short, missing
        if damaged is None:
            local.unlink()
        else:
            local.write_bytes(damaged)
        error = run("test", "--rerank=12", f"--loadDescriptors={path}").error
        assert "kept.local" in error and "make it again" in error


def test_compare_shows_models_without_and_with(toy_run, capsys, tmp_path):
    words = ["--mode=compare", str(toy_run.run), "--rerank=5", "--precision=fp32", f"--runsPath={tmp_path}"]
    assert main.main(words) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and "R@1" not in line]
    assert len(rows) == 2 and ", re-ranked |" in rows[1] and ", re-ranked |" not in rows[0]
    bytes_kept = [float(row.split("|")[-3]) for row in rows]
    assert bytes_kept[1] > bytes_kept[0]


def test_components_are_those_of_the_covariance():
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    values = torch.randn(4000, 6, generator=generator) * torch.tensor([8.0, 4, 2, 1, 0.5, 0.25]) @ axes.T + 3
    projection = learn_projection(values.numpy(), 3)
    lengths = np.linalg.norm(projection.components, axis=1)
    found = projection.components / lengths[:, None]
    np.testing.assert_allclose(np.abs(found @ axes[:, :3].numpy()), np.eye(3), atol=0.05)
    # each over the square root of its standard deviation
    np.testing.assert_allclose(lengths, 1 / np.sqrt([8, 4, 2]), rtol=0.05)
    maps = ProjectionLayer(projection)(torch.rand(2, 6, 3, 5))
    assert maps.shape == (2, 3, 3, 5)
    np.testing.assert_allclose(maps.norm(dim=1), 1, rtol=1e-5)


def test_a_training_re_ranks_each_validation_and_decides_nothing_by_it(copy_toy_run, tmp_path, capsys):
    weights = []
    for words in ([], ["--rerank=5", "--localDim=8"]):
        again = copy_toy_run(tmp_path / f"copy{len(words)}")
        capsys.readouterr()
        assert main.main([*again.places, "--mode=train", "--resume", "--nEpochs=2", *words]) == 0
        assert capsys.readouterr().out.count("then a second look at the first 5 hits") == (1 if words else 0)
        checkpoint = torch.load(again.run / "checkpoints" / "checkpoint.pth.tar", weights_only=True)
        weights.append(checkpoint["state_dict"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
