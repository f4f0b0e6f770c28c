"""Calibrations as files: what is written is read, what does not fit is not used, what is damaged is refused."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.common.provenance import write_hdf5
from vpr.data.places import PlaceImages
from vpr.retrieval.calibration import Calibration
from vpr.retrieval.calibration_file import (
    LearntOn,
    StoredCalibration,
    calibration_file,
    data_set,
    find_calibration,
    learnt_on,
    load_calibration,
    save_calibration,
)
from vpr.retrieval.ranking import Ranking

RECIPE = {
    "arch": "alexnet", "pooling": "netvlad", "dimension": "16384", "weights_hash": "0123456789ab",
    "normalization": "torchvision", "precision": "fp32", "image_size": "180 320", "order": "none",
}  # fmt: skip
LEARNT = Calibration(
    ("lead", "spread"), np.array([0.1, -2.0]), np.array([0.05, 0.7]), np.array([1.5, 0.9]), -0.3, 26.5
)  # fmt: skip


def stored(dataset="pittsburgh", **recipe):
    of = LearntOn(dataset, "val", f"{dataset}_val", "abc", "def", 260, "within 25 m")
    return StoredCalibration(LEARNT, {**RECIPE, **recipe}, of)


def test_what_is_written_is_read(tmp_path):
    path = save_calibration(tmp_path, stored())
    found = load_calibration(path, list(RECIPE))
    assert found.recipe == RECIPE and found.learnt_on == stored().learnt_on
    for name, value in vars(LEARNT).items():
        np.testing.assert_array_equal(getattr(found.calibration, name), value)


def test_the_label_says_what_is_probable_and_where_that_was_learnt():
    assert stored().label == (
        "probability that the first hit lies within 25 m, calibrated on pittsburgh_val (split val, 260 queries)"
    )
    pairs = dataclasses.replace(stored().learnt_on, right="the image of the same pair")
    assert "the first hit is the image of the same pair, " in dataclasses.replace(stored(), learnt_on=pairs).label


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", "own"), ("order", "spatial of 50"), ("dimension", "512"), ("pooling", "max")]
)
def test_a_calibration_of_other_answers_is_not_used_and_a_line_says_so(tmp_path, capsys, name, value):
    save_calibration(tmp_path, stored())
    assert find_calibration(tmp_path, {**RECIPE, name: value}, "pittsburgh") is None
    said = capsys.readouterr().out
    assert f"{name}={RECIPE[name]}, not {value}" in said and said.count("\n") == 1


@pytest.mark.parametrize("steps", [(), ("spatial of 50",)])
def test_a_calibration_serves_the_index_that_it_was_learnt_with_alone(tmp_path, capsys, steps):
    """Also of one engine; and an earlier version's of some approximate index serves none."""
    indexes = ["", "milvus IVF_SQ8", "milvus HNSW", "faiss PQ8", "faiss IVF64,PQ8 (16 of 64 lists looked through)",
               "faiss IVF64,PQ8 (32 of 64 lists looked through)"]  # fmt: skip
    orders = [Ranking(None, None, steps=steps, approximate=index).order for index in indexes]
    assert orders[0] == (*steps, "none")[0], "as it was before other indexes had one"
    for number, order in enumerate([*orders, "none; distances of an approximate index"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_calibration(folder, stored(order=order))
        found = [find_calibration(folder, {**RECIPE, "order": other}, "pittsburgh") is not None for other in orders]
        assert found == [other == order for other in orders]
        assert f"order={order}, not" in capsys.readouterr().out
        assert len({calibration_file(folder, {**RECIPE, "order": other}, "p") for other in orders}) == len(orders)


def test_the_number_format_may_differ_and_other_weights_have_none(tmp_path, capsys):
    save_calibration(tmp_path, stored())
    assert find_calibration(tmp_path, {**RECIPE, "precision": "bf16"}, "pittsburgh") is not None
    assert find_calibration(tmp_path, {**RECIPE, "weights_hash": "ffffffffffff"}, "pittsburgh") is None
    assert capsys.readouterr().out == "", "there is none of this model: nothing to say"


def test_that_of_the_data_set_is_taken_or_the_only_one(tmp_path, capsys):
    save_calibration(tmp_path, stored("toy"))
    assert find_calibration(tmp_path, RECIPE, "folder").learnt_on.dataset == "toy"
    save_calibration(tmp_path, stored("pittsburgh"))
    assert find_calibration(tmp_path, RECIPE, "pittsburgh").learnt_on.dataset == "pittsburgh"
    assert capsys.readouterr().out == ""
    assert find_calibration(tmp_path, RECIPE, "folder") is None
    assert "none of folder" in capsys.readouterr().out


def test_searches_have_a_file_each_and_a_new_calibration_takes_the_place_of_the_old(tmp_path):
    paths = [save_calibration(tmp_path, stored(**recipe)) for recipe in ({}, {"order": "spatial of 50"}, {})]
    assert paths[0] == paths[2] != paths[1] and len(list(tmp_path.iterdir())) == 2
    assert paths[0] == calibration_file(tmp_path, {**RECIPE, "precision": "bf16"}, "pittsburgh")


def refused(path):
    with pytest.raises(UserError) as error:
        load_calibration(path, list(RECIPE))
    assert str(path) in str(error.value) and "\n" not in str(error.value) and "--calibrate" in str(error.value)
    return str(error.value)


def test_every_damaged_byte_is_noticed(tmp_path):
    path = save_calibration(tmp_path, stored())
    whole = path.read_bytes()
    for at in (3, 600, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        refused(path)
    for content in (b"", b"nonsense", whole[:-100]):
        path.write_bytes(content)
        refused(path)
    path.write_bytes(whole)
    assert load_calibration(path, list(RECIPE)).recipe == RECIPE


@pytest.mark.parametrize(
    "change",
    [
        {"weights": np.array([1.0])}, {"scale": np.array([0.0, 1])}, {"mean": np.array([np.nan, 0])},
        {"features": "lead"}, {"features": ""}, {"features": "lead lead"}, {"bias": np.inf}, {"queries": "many"},
        {"spec": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change):
    path = save_calibration(tmp_path, stored())
    with h5py.File(path) as file:
        values, attributes = {name: file[name][:] for name in file}, dict(file.attrs)
    del attributes["checksum"]
    for name, value in change.items():
        (values if name in values else attributes)[name] = value
    write_hdf5(path, values, {name: value for name, value in attributes.items() if value is not None})
    refused(path)


def test_features_of_a_later_version_are_named(tmp_path):
    learnt = dataclasses.replace(LEARNT, names=("lead", "depth"))
    path = save_calibration(tmp_path, dataclasses.replace(stored(), calibration=learnt))
    assert "depth" in refused(path)


def images_of(name, split="val", query=(1.0, 1.0), database=("a", "b"), **more):
    """A split of own images with one query."""
    places = Places(name, [*database], ["q"], np.zeros((len(database), 2)), np.array([query]), 25.0, 10.0)
    return PlaceImages(places, split, [*map(Path, database)], [Path("q")], dataset="folder", **more)


def learnt_from(images):
    return dataclasses.replace(stored(), learnt_on=learnt_on(images))


def test_queries_are_known_again_whatever_the_database():
    kept = learnt_from(images_of("made_val"))
    assert kept.learnt_on.right == "within 25 m" and kept.learnt_on.queries == 1
    assert kept.learnt_on_these(images_of("made_val")) and kept.learnt_on_these(images_of("made_val", database="b"))
    assert not kept.learnt_on_these(images_of("made_val", query=(2.0, 1.0)))


def test_own_images_of_each_folder_have_their_calibration(tmp_path):
    """One of another place neither replaces it nor is taken for it."""
    town, city = images_of("town_val"), images_of("city_val")
    assert len({save_calibration(tmp_path, learnt_from(each)) for each in (town, city)}) == 2
    for images, spec in ((town, "town_val"), (city, "city_val"), (images_of("town_test", "test"), "town_val")):
        assert find_calibration(tmp_path, RECIPE, data_set(images)).learnt_on.spec == spec
    assert data_set(dataclasses.replace(town, dataset="toy")) == "toy"


def test_the_label_says_what_was_left_out_of_the_database():
    label = learnt_from(images_of("town_val", left_out="2 database images left out")).label
    assert "calibrated on town_val, 2 database images left out (split val, 1 queries)" in label
