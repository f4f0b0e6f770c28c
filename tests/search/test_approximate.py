"""Approximate search by a FAISS index, and descriptors that are stored and used again."""

import json
import os
from pathlib import Path

import faiss
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import main
from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.common.files import read_json
from vpr.data.places import PlaceImages
from vpr.evaluation.evaluate import Evaluation, measure_index
from vpr.runs.descriptors_file import SplitDescriptors
from vpr.search.approximate import (
    IndexSearch,
    build_index,
    index_name,
    looks_at_all,
    measures_descriptors,
    stored_bytes,
)
from vpr.search.exact import nearest
from vpr.search.limited import search_index

DIM = 16


def rows(count, seed):
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, DIM))
    return torch.from_numpy(values / np.linalg.norm(values, axis=1, keepdims=True)).half()


@pytest.fixture
def run_test_mode(tiny_places, tmp_path):
    """Runs --mode=test with global pooling on the tiny places and gives the results that it wrote."""

    def run(*flags):
        model = ["--arch=alexnet", "--fromscratch", "--pooling=avg", "--threads=0", "--device=cpu"]
        places = [f"--root={tiny_places}", f"--runsPath={tmp_path / 'runs'}", "--panels=0"]
        code = main.main(["--mode=test", *model, *places, *flags])
        return read_json(tmp_path / "runs" / "results.json") if code == 0 else code

    return run


def test_a_flat_index_finds_what_the_exact_search_finds():
    database, queries = rows(200, 0), rows(30, 1)
    found = IndexSearch(build_index("Flat", database, 0))(queries, 7)
    np.testing.assert_array_equal(found, nearest(database, queries, 7))


def test_bit_strings_are_a_first_stage_of_ten_times_as_many_hits():
    """The nearest by their descriptors, of the 50 whose signs differ least; of equal differences FAISS takes any."""
    database, queries = rows(400, 0), rows(30, 1)
    found = IndexSearch(build_index("LSH", database, 0), database)(queries, 5)
    assert found.shape == (30, 5)
    true = np.linalg.norm(database.double().numpy()[None] - queries.double().numpy()[:, None], axis=2)
    differing = ((database.numpy()[None] >= 0) != (queries.numpy()[:, None] >= 0)).sum(axis=2)  # [30, 400]
    for hits, apart, bits in zip(found, true, differing, strict=True):
        assert (np.diff(apart[hits]) >= 0).all()
        last = np.sort(bits)[49]  # of the 50th
        sure = np.flatnonzero(bits < last)
        assert (bits[hits] <= last).all()
        nearest_sure = sure[np.argsort(apart[sure])][:5]
        assert set(nearest_sure[apart[nearest_sure] < apart[hits[-1]]]) <= set(hits)


@pytest.mark.slow
@pytest.mark.parametrize(("factory", "per_image"), [("Flat", 4 * DIM), ("SQfp16", 2 * DIM), ("SQ8", DIM), ("PQ4x4", 2)])
def test_stored_bytes_are_those_of_the_codes_and_a_constant(factory, per_image):
    small, large = (stored_bytes(build_index(factory, rows(count, 0), 0)) for count in (300, 1300))
    assert large - small == 1000 * per_image


def test_an_index_is_trained_on_rows_of_the_whole_database(monkeypatch):
    """Half of the images are of one kind, half of another: means of both must be among the cluster centres."""
    monkeypatch.setattr("vpr.search.approximate.TRAINING_BYTES", 4 * DIM * 100)
    database = torch.cat([rows(300, 0).abs(), -rows(300, 1).abs()])
    index = build_index("IVF2,Flat", database, 0)
    centres = faiss.downcast_index(index.quantizer).reconstruct_n(0, 2)
    assert sorted(np.sign(centres.mean(axis=1)).tolist()) == [-1, 1]


def test_an_inverted_file_that_looks_through_all_its_lists_finds_what_the_exact_search_finds():
    database, queries = rows(400, 0), rows(30, 1)
    exact = nearest(database, queries, 5)
    whole, part = (build_index("IVF8,Flat", database, 0, nprobe) for nprobe in (8, 1))
    np.testing.assert_array_equal(IndexSearch(whole)(queries, 5), exact)
    assert (IndexSearch(part)(queries, 5) != exact).any()
    assert index_name("IVF8,Flat", part) == "IVF8,Flat (1 of 8 lists looked through)"


@pytest.mark.parametrize("factory", ["Nonsense", "IVF100000,Flat", "PQ5"])
def test_what_faiss_cannot_build_is_an_error_that_quotes_it(factory):
    with pytest.raises(UserError) as caught:
        build_index(factory, rows(300, 0), 0)
    text = str(caught.value)
    assert factory in text and "FAISS says" in text and "\n" not in text
    with pytest.raises(RuntimeError) as raised:
        faiss.index_factory(DIM, factory).train(rows(300, 0).float().numpy())
    quoted = text.split("FAISS says: ")[1].strip()
    assert len(quoted) > 10 and quoted in " ".join(str(raised.value).split())


def test_an_index_that_faiss_builds_but_cannot_search_is_refused_when_it_is_built():
    """Product quantisers of 2 dimensions and 2 bits: FAISS has no tables of distances for so few centroids."""
    with pytest.raises(UserError, match=r"^--index=PQ4x2 cannot be .* of 300 descriptors, 8-D; FAISS says: .*$"):
        build_index("PQ4x2", rows(300, 0)[:, :8], 0)


@pytest.mark.slow
def test_test_mode_prints_what_an_index_loses_and_takes(run_test_mode, capsys):
    exact, approximate = run_test_mode("--index=PQ4x3", "--recallValues", "1", "5")
    printed = capsys.readouterr().out.strip().splitlines()
    assert exact["search"] == "exact" and approximate["search"] == "by index PQ4x3"
    assert exact["bytes_per_image"] == 2 * 256  # float16
    lost = [100 * (exact["recalls"][n] - approximate["recalls"][n]) for n in ("1", "5")]
    assert printed[-2] == f"lost against exact search: R@1: {lost[0]:.1f}, R@5: {lost[1]:.1f}"
    assert "bytes per image" in printed[-5]


def test_test_mode_refuses_an_unknown_index(run_test_mode, capsys):
    assert run_test_mode("--index=Nonsense") == 2
    assert "FAISS says" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stored_descriptors_give_the_same_recalls_without_the_images_pixels(
    run_test_mode, tiny_places, tmp_path, precision
):
    file, flag = tmp_path / "descriptors.h5", f"--precision={precision}"
    (first,) = run_test_mode(f"--saveDescriptors={file}", flag)
    assert json.dumps(first) and first["search"] == "exact" and first["model"].endswith(f", {precision} by PyTorch")
    with h5py.File(file) as stored:
        assert stored["database"].shape == (12, 256) and stored["database"].dtype == np.float16
        assert stored["queries"].shape == (5, 256) and stored.attrs["arch"] == "alexnet"
    for image in tiny_places.rglob("*.jpg"):
        status = image.stat()
        Image.new("RGB", (64, 48)).save(image)
        image.write_bytes(image.read_bytes().ljust(status.st_size, b"\0"))  # JPEG readers stop at its end mark
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    _, second = run_test_mode(f"--loadDescriptors={file}", flag)
    assert {**second, "measured": 0} == {**first, "measured": 0}
    run_test_mode(f"--saveDescriptors={tmp_path / 'anew.h5'}", flag)
    with h5py.File(file) as stored, h5py.File(tmp_path / "anew.h5") as anew:
        assert np.abs(anew["database"][:] - stored["database"][:]).max() > 0.05, "the images did matter"


@pytest.mark.parametrize(
    ("flags", "word"),
    [(["--seed=7"], "weights_hash"), (["--imageSize", "40", "50"], "image_size"), (["--pooling=max"], "pooling"),
     (["--split=train"], "spec"), (["--normalization=unit"], "normalization"),
     (["--precision=bf16"], "precision")],
)  # fmt: skip
def test_descriptors_of_something_else_are_refused(run_test_mode, tmp_path, capsys, flags, word):
    file = tmp_path / "descriptors.h5"
    run_test_mode(f"--saveDescriptors={file}", "--precision=fp32")
    assert run_test_mode(f"--loadDescriptors={file}", "--precision=fp32", *flags) == 2
    error = capsys.readouterr().err
    assert word in error and str(file) in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("content", [None, b"not HDF5", "foreign"])
def test_a_file_without_descriptors_is_refused(run_test_mode, tmp_path, capsys, content):
    file = tmp_path / "descriptors.h5"
    if content == "foreign":
        with h5py.File(file, "w") as foreign:
            foreign["database"] = np.zeros(3)
    elif content:
        file.write_bytes(content)
    assert run_test_mode(f"--loadDescriptors={file}") == 2
    assert str(file) in capsys.readouterr().err


def test_results_say_how_many_hits_were_asked_for_where_not_all_count():
    """Of Tokyo Time Machine: query 0 is nearest to images of its own month, so that 4 are asked for instead of 2."""
    names = [f"{n}.jpg" for n in range(8)]
    positions = np.stack([100.0 * np.arange(8), np.zeros(8)], axis=1)
    database = torch.arange(8.0)[:, None]
    descriptors = SplitDescriptors(database, database[:1], {(48, 64)})
    index = build_index("Flat", database, 0)
    for times, searched, recalls in (
        (np.array([1, 1, 2, 2, 2, 2, 2, 2]), "by index Flat, up to 4 hits asked for", {1: 1.0, 2: 1.0}),
        (None, "by index Flat", {1: 0.0, 2: 0.0}),
    ):
        own, protocol = ((times, times[:1]), "other_time") if times is not None else ((None, None), "plain")
        places = Places("set", names, names[:1], positions, positions[:1], 25.0, 10.0, *own, protocol)
        images = PlaceImages(places, "val", [Path(name) for name in names], [Path(names[0])])
        exact = Evaluation({1: 0.0, 2: 0.0}, "val", places.name, 1, 0, 8, "model", 1, "64x48")
        found = measure_index(descriptors, images, exact, [np.array([2])], "Flat", index)
        assert (found.search, found.recalls) == (searched, recalls)


@pytest.mark.parametrize(
    ("factory", "measures", "finds_all"),
    [
        ("Flat", True, True), ("L2norm,Flat", True, True), ("RR16,Flat", True, True), ("IVF4,Flat", True, False),
        ("HNSW8", True, False), ("PQ4x2,RFlat", True, False), ("PQ4x2,Refine(Flat)", True, False),
        ("PQ4x2", True, False), ("SQ4", True, False), ("RR16,PQ4x2", True, False), ("LSH", False, False),
        ("PCA4,Flat", False, False),
    ],
)  # fmt: skip
def test_which_indexes_measure_descriptor_distances_and_which_find_all(factory, measures, finds_all):
    """Against an exact search and the distances themselves; who looks at one list of four may miss some."""
    generator = torch.Generator().manual_seed(0)
    values = torch.nn.functional.normalize(torch.randn(120, 16, generator=generator), dim=1)
    database, queries = values[:100], values[100:]
    index = build_index(factory, database, 123, 1)
    found = search_index(index, queries, 5, None)
    assert (measures_descriptors(index), looks_at_all(index)) == (measures, finds_all)
    squared, _ = index.search(queries.numpy(), 5)
    true = (database[found] - queries[:, None]).norm(dim=2).numpy()
    if finds_all:
        np.testing.assert_array_equal(found, nearest(database, queries, 5))
        np.testing.assert_allclose(np.sqrt(np.maximum(squared, 0)), true, atol=1e-3)
