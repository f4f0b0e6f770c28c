"""Where was this taken: matches against brute force, and the index they come from."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
import utm
from drawing import draw_image
from own_images import a_query, database_names, draw_split, image_name
from PIL import Image

from vpr.common.errors import UserError
from vpr.retrieval.answer_features import Answers, uncalibrated
from vpr.search.approximate import build_index, measures_descriptors

NEW = image_name(1000, "new")


@pytest.fixture(autouse=True)
def plain_indexes(monkeypatch):
    """New indexes keep no local descriptors, so that answers are those of global ones alone."""
    monkeypatch.setattr("vpr.cli.locating.FEW", 0)


@pytest.fixture
def locate(call_on):
    """Runs --mode=locate for JSON on a folder of own images; gives exit code, answers and what else was said."""

    def call(root, *arguments, mode="locate"):
        code, out, err = call_on(root, mode, *(["--json", "--panels=1"] if mode == "locate" else []), *arguments)
        return code, json.loads(out) if code == 0 and mode == "locate" else None, err + out

    return call


@pytest.fixture
def index(locate):
    """Runs --mode=index, which must end well."""

    def call(root, *arguments):
        code, _, text = locate(root, *arguments, mode="index")
        assert code == 0, text

    return call


def draw_images(folder, names, seed=0):
    for number, name in enumerate(names):
        draw_image(folder / name, (96, 72), [seed, number])


@pytest.fixture
def own(tmp_path):
    """Ten database images 20 m apart in zone 17N and three queries, in the common layout."""
    return draw_split(tmp_path / "own", 10, 3, step=20, alike=False)


@pytest.fixture
def kept(own, tmp_path, call_on):
    """The descriptors of database and queries, float64, and the file in which --mode=test keeps them."""
    path = tmp_path / "kept.h5"
    assert call_on(own, "test", f"--saveDescriptors={path}").code == 0
    with h5py.File(path) as file:
        return file["database"][:].astype(float), file["queries"][:].astype(float), path


@pytest.mark.parametrize("factory", [None, "Flat"])
def test_matches_are_the_nearest_descriptors_with_their_places(locate, own, kept, tmp_path, factory):
    database, queries, _ = kept
    code, answers, _ = locate(
        own, own / "val" / "queries", "--top=4", "--rerank=0", *([f"--index={factory}"] if factory else [])
    )
    assert code == 0 and len(answers) == 3
    names = database_names(own)
    for query, answer in zip(queries, answers, strict=True):
        distances = np.linalg.norm(database - query, axis=1)
        order = np.argsort(distances)
        assert [match["name"].split("/")[-1] for match in answer["matches"]] == [names[n] for n in order[:4]]
        np.testing.assert_allclose([m["distance"] for m in answer["matches"]], distances[order[:4]], rtol=1e-3)
        assert answer["usual_distance"] == pytest.approx(np.median(distances), rel=5e-3), "all ten are drawn"
        best = answer["matches"][0]
        assert (best["easting"], best["northing"]) == (585000 + 20 * order[0], 4477000) and best["zone"] == "17N"
        wanted = utm.to_latlon(best["easting"], best["northing"], 17, "T")
        assert (best["latitude"], best["longitude"]) == pytest.approx(wanted, abs=1e-6)
        elsewhere = next(n for n in order if abs(int(n) - int(order[0])) >= 2)  # 40 m and more
        assert answer["confidence"] == pytest.approx(1 - distances[order[0]] / distances[elsewhere], abs=2e-3)
    assert len(list(tmp_path.glob("locate_*/1_*.jpg"))) == 1


def confidence(hits, distances, positions):
    value = uncalibrated(Answers(hits[None], distances[None], positions))[0][0]
    return None if np.isnan(value) else value


def test_confidence_compares_with_the_best_match_elsewhere():
    positions = np.array([[0, 0], [10, 0], [500, 0], [900, 0], [np.nan, np.nan]])
    assert confidence(np.array([0, 1, 2, 3]), np.array([0.3, 0.4, 0.6, 0.9]), positions) == pytest.approx(0.5)
    assert confidence(np.array([0, 1]), np.array([0.3, 0.4]), positions) == pytest.approx(0.25), "at least"
    assert confidence(np.array([4, 0]), np.array([0.5, 1.0]), positions) == pytest.approx(0.5), "unknown places"
    assert confidence(np.array([2, -1]), np.array([0.5, np.nan]), positions) is None
    assert confidence(np.array([0, 2]), np.array([0.0, 0.0]), positions) == 0.0


def test_the_index_is_used_again_and_made_anew_when_images_change(locate, own):
    image = a_query(own)
    said = [locate(own, image)[2], locate(own, image)[2]]
    assert ["wrote" in text and "database_own_val.sqlite" in text for text in said] == [True, False]
    draw_images(own / "val" / "database", [NEW], 7)
    _, answers, text = locate(own, own / "val" / "database" / NEW)
    assert "bringing it up to date" in text and "1 added, 10 unchanged; 1 described" in text
    assert answers[0]["matches"][0]["easting"] == 586000
    assert answers[0]["matches"][0]["distance"] == pytest.approx(0, abs=2e-3)


def test_an_index_of_another_model_is_refused(locate, index, own, tmp_path):
    image = a_query(own)
    index(own)
    path = tmp_path / "model" / "database_own_val.sqlite"
    code, _, text = locate(own, image, "--seed=5", f"--indexFile={path}")  # other random weights
    assert code == 2 and "was made by another model (weights_hash=" in text and text.count("\n") <= 2
    assert locate(own, image, "--seed=5")[0] == 0, "one of its own"
    assert len(list((tmp_path / "model").glob("*.sqlite"))) == 2
    (tmp_path / "model" / "database_own_val.sqlite").write_bytes(b"nonsense" * 99)
    code, _, text = locate(own, image)
    assert code == 2 and "cannot be read as an index" in text


def test_images_without_places_are_found_by_name(locate, tmp_path):
    folder = tmp_path / "holiday"
    draw_images(folder, ["a/one.png", "two.png"])
    (folder / "b" / "c").mkdir(parents=True)
    with Image.open(folder / "two.png") as two:
        two.point(lambda value: 0.9 * value + 20).save(folder / "b" / "c" / "three.png")
    code, answers, text = locate(folder, folder / "two.png", "--top=2")
    assert code == 0 and f"no image of {folder} has a position" in text
    best, second = answers[0]["matches"]
    assert best["name"] == "two.png" and best["easting"] is None and best["latitude"] is None
    assert best["distance"] < 0.02 and answers[0]["confidence"] is None, "no other place is known"
    assert second["name"] == "b/c/three.png", "the same in other light"


@pytest.mark.parametrize(
    ("named", "said"), [([], "wants images or folders"), (["nowhere.jpg"], "does not exist"), (["empty"], "no images")]
)  # fmt: skip
def test_what_cannot_be_located_is_said_in_a_line(locate, own, tmp_path, monkeypatch, named, said):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    code, _, text = locate(own, *named)
    assert code == 2 and said in text and text.count("\n") == 1


def test_a_database_folder_without_images_is_refused(locate, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, text = locate(tmp_path / "empty", mode="index")
    assert code == 2 and "has no images" in text


def test_folders_with_the_same_last_name_have_an_index_each(locate, tmp_path):
    folders = [tmp_path / parent / "photos" for parent in "ab"]
    names = [f"frame_{number:02d}.png" for number in range(6)]
    for seed, folder in enumerate(folders):
        draw_images(folder, names, seed)
    for turn in range(2):
        for folder in folders:
            _, answers, text = locate(folder, folder / names[3])
            assert answers[0]["matches"][0]["name"] == names[3]
            assert answers[0]["matches"][0]["distance"] == pytest.approx(0, abs=2e-3)
            assert "up to date" not in text and ("wrote" in text and ".sqlite" in text) == (turn == 0)


def test_an_index_follows_an_image_that_is_replaced_in_place_and_travels_with_its_images(locate, index, tmp_path):
    here, there = (tmp_path / name / "holiday" for name in ("here", "there"))
    draw_images(here, [f"{number}.png" for number in range(5)])
    index(here)
    draw_images(here, ["2.png"], 9)
    _, answers, text = locate(here, here / "2.png")
    assert "1 replaced, 4 unchanged; 1 described" in text
    assert answers[0]["matches"][0]["name"] == "2.png"
    assert answers[0]["matches"][0]["distance"] == pytest.approx(0, abs=2e-3)
    there.parent.mkdir()
    shutil.move(here, there)  # keeps times
    code, answers, text = locate(there, there / "1.png")
    assert code == 0 and answers[0]["matches"][0]["name"] == "1.png" and ".sqlite" not in text


@pytest.mark.parametrize("factory", [None, "SQ8"])
def test_a_damaged_descriptor_is_named_and_left_out_until_it_is_described_again(locate, index, own, tmp_path, factory):
    def damage(byte):
        (path,) = (tmp_path / "model").glob("*.descriptors")
        content = bytearray(path.read_bytes())
        content[byte] ^= 4
        path.write_bytes(content)

    image, words = a_query(own), [f"--index={factory}"] if factory else []
    index(own, *words)
    first = locate(own, image, "--top=20")[1][0]["matches"]
    damage(4 * 512 + 7)
    code, answers, text = locate(own, image, "--top=20")
    (said,) = [line for line in text.splitlines() if "is damaged" in line]
    assert code == 0 and "left out until it is described again" in said and "1 added, 9 unchanged; 1 described" in text
    (name,) = [match["name"] for match in first if f"{match['name']} is damaged" in said]
    assert answers[0]["matches"] == first
    index(own, "--remove", name)  # from now on it is taken as it is
    damage(7)
    _, answers, text = locate(own, image, "--top=20")
    assert "is damaged: it is left out" in text and len(answers[0]["matches"]) == len(first) - 2
    assert "2 added, 8 unchanged; 2 described" in locate(own, *words, mode="index")[2]
    assert locate(own, image, "--top=20")[1][0]["matches"] == first


def test_a_damaged_index_of_faiss_is_made_again_of_the_descriptors(locate, index, own, tmp_path):
    image = a_query(own)
    index(own, "--index=SQ8")
    first = locate(own, image)[1]
    for spoil in (lambda file: file.write_bytes(file.read_bytes()[:-9]), lambda file: file.unlink()):
        (path,) = (tmp_path / "model").glob("*.faiss")
        spoil(path)
        code, answers, text = locate(own, image)
        assert code == 0 and answers == first and "SQ8 is made again of the descriptors" in text
        assert locate(own, image)[1] == first


def test_an_inverted_file_looks_through_as_many_lists_as_asked_for(locate, index, own):
    image = a_query(own)
    index(own, "--index=IVF5,Flat", "--nprobe=1")
    found = {flags: len(locate(own, image, "--top=10", *flags)[1][0]["matches"]) for flags in [
        (), ("--nprobe=1",), ("--nprobe=5",),
    ]}  # fmt: skip
    assert found[("--nprobe=5",)] == 10 and found[("--nprobe=1",)] == found[()] < 10


def test_an_index_that_contradicts_the_flags_is_refused(locate, index, own):
    image = a_query(own)
    index(own)
    code, _, text = locate(own, image, "--index=SQ4")
    assert code == 2 and "--index=none" in text and "--index=SQ4" in text
    index(own, "--index=SQ8")
    assert locate(own, image, "--index=SQ8")[0] == 0 and locate(own, image)[0] == 0
    assert locate(own, image, "--index=Flat")[0] == 2
    draw_images(own / "val" / "database", [NEW], 7)
    assert "1 added, 10 unchanged; 1 described" in locate(own, image)[2]
    assert locate(own, image, "--index=SQ8")[0] == 0, "made anew as it was"


@pytest.mark.parametrize("factory", ["LSH", "PQ8x2", "PCA4,Flat"])
def test_whatever_an_index_compares_the_distances_of_the_descriptors_are_shown(locate, own, kept, factory):
    database, queries, _ = kept
    _, answers, _ = locate(own, own / "val" / "queries", f"--index={factory}", "--top=9")
    names = database_names(own)
    for query, answer in zip(queries, answers, strict=True):
        told = [match["distance"] for match in answer["matches"]]
        rows = [names.index(match["name"].split("/")[-1]) for match in answer["matches"]]
        true = np.linalg.norm(database[rows] - query, axis=1)
        np.testing.assert_allclose(told, true, rtol=1e-3)
        assert told == sorted(told) and len(told) == 9 and answer["confidence"] is not None


@pytest.mark.parametrize(
    ("factory", "measures"),
    [
        ("Flat", True), ("SQfp16", True), ("IVF4,Flat", True), ("HNSW8", True), ("PQ8x4", True), ("OPQ8,PQ8x4", True),
        ("LSH", False), ("PCA4,Flat", False), ("ITQ8,LSH", False),
    ],
)  # fmt: skip
def test_which_indexes_measure_descriptors(factory, measures):
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 16)).astype("f4"))
    rows /= rows.norm(dim=1, keepdim=True)
    index = build_index(factory, rows, 0)
    assert measures_descriptors(index) == measures
    squared, found = index.search(rows[:20].numpy(), 5)
    truth = ((rows[:20, None] - rows[found]) ** 2).sum(dim=2).numpy()
    assert (np.abs(squared - truth).mean() < 0.25) == measures


@pytest.mark.parametrize("where", ["database", "queries"])
def test_stored_descriptors_of_other_images_are_refused(own, kept, call_on, where):
    load = f"--loadDescriptors={kept[2]}"
    assert call_on(own, "test", load).code == 0
    draw_images(own / "val" / where, [next((own / "val" / where).iterdir()).name], 5)
    assert "other image files" in call_on(own, "test", load).error


def test_stored_descriptors_are_checked_whole_and_earlier_ones_are_read(own, kept, call_on):
    database, _, path = kept
    load, whole = f"--loadDescriptors={path}", path.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(database.astype("f2")[3].tobytes()) + 100] ^= 1
    path.write_bytes(damaged)
    assert "it is damaged" in call_on(own, "test", load).last_error
    path.write_bytes(whole)
    with h5py.File(path) as file:
        values = {name: file[name][:] for name in file}
        attributes = {name: value for name, value in file.attrs.items() if name not in ("files_hash", "checksum")}
    for rows, code in ((values["database"], 0), (values["database"][1:], 2), (values["database"][:, 1:], 2)):
        with h5py.File(path, "w") as file:
            for name, value in {**values, "database": rows}.items():
                file[name] = value
            file.attrs.update(attributes)
        called = call_on(own, "test", load)
        assert "earlier version" in called.out and called.code == code
        assert code == 0 or "wanted float16 (10, 256)" in called.error


def test_an_image_with_a_long_name_is_located_and_drawn(locate, own, tmp_path):
    draw_images(tmp_path, ["n" * 245 + ".png"], 3)
    code, answers, _ = locate(own, tmp_path / ("n" * 245 + ".png"))
    assert code == 0 and len(answers[0]["matches"]) == 5
    (panel,) = tmp_path.glob("locate_*/1_n*.jpg")
    with Image.open(panel) as picture:
        assert picture.width > 1000


@pytest.mark.parametrize("as_json", [False, True])
def test_matches_are_printed_though_no_panel_can_be_drawn(own, call_on, monkeypatch, as_json):
    def no_room(*_):
        raise UserError("no room for panels")

    monkeypatch.setattr("vpr.report.located.draw", no_room)
    image = a_query(own)
    code, out, err = call_on(own, "locate", image, "--panels=1", *(["--json"] if as_json else []))
    assert code == 2 and "no room for panels" in err
    if as_json:
        assert len(json.loads(out)[0]["matches"]) == 5
    else:
        assert f"{image}: confidence" in out


def test_flags_without_effect_do_not_get_among_the_json(locate, own):
    code, answers, text = locate(own, a_query(own), "--lr=0.1")
    assert code == 0 and len(answers) == 1 and "without effect in --mode=locate: --lr" in text


@pytest.mark.parametrize("mode", ["index", "locate"])
def test_a_split_that_the_folder_lacks_is_refused(locate, own, mode):
    """Else all images under the folder would be taken, queries among them."""
    images = [a_query(own)] if mode == "locate" else []
    code, _, text = locate(own, *images, "--split=test", mode=mode)
    assert code == 2 and "--split=test" in text and "test/database" in text and text.count("\n") == 1
    assert locate(own, *images, "--split=val", mode=mode)[0] == 0
