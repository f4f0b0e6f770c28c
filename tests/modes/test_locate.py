"""Where was this taken: matches against brute force, and the index they come from."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
import utm
from drawing import draw_image
from PIL import Image

import main
from vpr.common.errors import UserError
from vpr.retrieval.answer_features import Answers, uncalibrated
from vpr.search.approximate import build_index, measures_descriptors

SQUARE = (64, 48)
MODEL = ["--arch=alexnet", "--fromscratch", "--pooling=avg", "--threads=0", "--device=cpu"]


@pytest.fixture
def locate(tmp_path, capsys):
    """Runs --mode=locate for JSON on a folder of own images; gives exit code, answers and what else was said."""

    def call(root, *arguments, mode="locate"):
        places = ["--dataset=folder", f"--root={root}", f"--dataPath={tmp_path / 'model'}", f"--runsPath={tmp_path}"]
        shown = ["--json", "--panels=1"] if mode == "locate" else []
        code = main.main([f"--mode={mode}", *MODEL, *places, *shown, *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, json.loads(out) if code == 0 and mode == "locate" else None, err + out

    return call


def draw_images(folder, names, seed=0):
    for number, name in enumerate(names):
        draw_image(folder / name, (96, 72), [seed, number])


@pytest.fixture
def own(tmp_path):
    """Ten database images 20 m apart in zone 17N and three queries, in the common layout."""
    root = tmp_path / "own"
    draw_images(root / "val" / "database", [f"@{585000 + 20 * n}.0@4477000.0@17@T@{n}@.png" for n in range(10)])
    draw_images(root / "val" / "queries", [f"@{585001 + 20 * n}.0@4477000.0@17@T@q{n}@.png" for n in range(3)], 1)
    return root


def descriptors_by_test(own, tmp_path):
    """Those that --mode=test keeps: database, queries."""
    places = ["--dataset=folder", f"--root={own}", f"--dataPath={tmp_path / 'model'}", f"--runsPath={tmp_path}"]
    assert main.main(["--mode=test", *MODEL, *places, "--panels=0", f"--saveDescriptors={tmp_path / 'kept.h5'}"]) == 0
    with h5py.File(tmp_path / "kept.h5") as file:
        return file["database"][:].astype(float), file["queries"][:].astype(float)


@pytest.mark.parametrize("factory", [None, "Flat"])
def test_matches_are_the_nearest_descriptors_with_their_places(locate, own, tmp_path, factory, capsys):
    database, queries = descriptors_by_test(own, tmp_path)
    capsys.readouterr()
    index = [f"--index={factory}"] if factory else []
    code, answers, _ = locate(own, own / "val" / "queries", "--top=4", *index)
    assert code == 0 and len(answers) == 3
    names = sorted(path.name for path in (own / "val" / "database").iterdir())
    for query, answer in zip(queries, answers, strict=True):
        distances = np.linalg.norm(database - query, axis=1)
        order = np.argsort(distances)
        assert [match["name"].split("/")[-1] for match in answer["matches"]] == [names[n] for n in order[:4]]
        np.testing.assert_allclose([m["distance"] for m in answer["matches"]], distances[order[:4]], rtol=1e-3)
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
    image = next((own / "val" / "queries").iterdir())
    said = [locate(own, image)[2], locate(own, image)[2]]
    assert ["wrote" in text and "database_own_val.sqlite" in text for text in said] == [True, False]
    draw_images(own / "val" / "database", ["@586000.0@4477000.0@17@T@new@.png"], 7)
    _, answers, text = locate(own, own / "val" / "database" / "@586000.0@4477000.0@17@T@new@.png")
    assert "bringing it up to date" in text and "1 added, 10 unchanged; 1 described" in text
    assert answers[0]["matches"][0]["easting"] == 586000
    assert answers[0]["matches"][0]["distance"] == pytest.approx(0, abs=2e-3)


def test_an_index_of_another_model_is_refused(locate, own, tmp_path):
    image = next((own / "val" / "queries").iterdir())
    assert locate(own, mode="index")[0] == 0
    code, _, text = locate(own, image, "--seed=5")  # other random weights
    assert code == 2 and "was made by another model (weights_hash=" in text and text.count("\n") <= 2
    assert locate(own, "--seed=5", mode="index")[0] == 0 and locate(own, image, "--seed=5")[0] == 0
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
    assert code == 0 and "3 of 3 images have no position" in text
    best, second = answers[0]["matches"]
    assert best["name"] == "two.png" and best["easting"] is None and best["latitude"] is None
    assert answers[0]["confidence"] == pytest.approx(1, abs=0.02), "the image itself is there"
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


def test_an_index_is_made_anew_when_an_image_is_replaced_in_place(locate, tmp_path):
    folder = tmp_path / "holiday"
    draw_images(folder, [f"{number}.png" for number in range(5)])
    assert locate(folder, mode="index")[0] == 0
    draw_images(folder, ["2.png"], 9)
    _, answers, text = locate(folder, folder / "2.png")
    assert "1 replaced, 4 unchanged; 1 described" in text
    assert answers[0]["matches"][0]["name"] == "2.png"
    assert answers[0]["matches"][0]["distance"] == pytest.approx(0, abs=2e-3)


def test_an_index_travels_with_its_images(locate, tmp_path):
    folder = tmp_path / "here" / "holiday"
    draw_images(folder, [f"{number}.png" for number in range(5)])
    assert locate(folder, mode="index")[0] == 0
    (tmp_path / "there").mkdir()
    shutil.move(folder, tmp_path / "there" / "holiday")  # keeps times
    code, answers, text = locate(tmp_path / "there" / "holiday", tmp_path / "there" / "holiday" / "1.png")
    assert code == 0 and answers[0]["matches"][0]["name"] == "1.png" and ".sqlite" not in text


@pytest.mark.parametrize("factory", [None, "SQ8"])
def test_a_damaged_descriptor_is_named_and_left_out_until_it_is_described_again(locate, own, tmp_path, factory):
    index = [f"--index={factory}"] if factory else []
    image = next((own / "val" / "queries").iterdir())
    assert locate(own, *index, mode="index")[0] == 0
    first = locate(own, image, "--top=20")[1][0]["matches"]
    (path,) = (tmp_path / "model").glob("*.descriptors")
    content = bytearray(path.read_bytes())
    content[4 * 512 + 7] ^= 4
    path.write_bytes(content)
    code, answers, text = locate(own, image, "--top=20")
    (said,) = [line for line in text.splitlines() if "is damaged" in line]
    assert code == 0 and "left out until it is described again" in said and "1 added, 9 unchanged; 1 described" in text
    (name,) = [match["name"] for match in first if f"{match['name']} is damaged" in said]
    assert answers[0]["matches"] == first
    assert locate(own, "--remove", name, mode="index")[0] == 0  # from now on it is taken as it is
    (path,) = (tmp_path / "model").glob("*.descriptors")
    content = bytearray(path.read_bytes())
    content[7] ^= 4
    path.write_bytes(content)
    _, answers, text = locate(own, image, "--top=20")
    assert "is damaged: it is left out" in text and len(answers[0]["matches"]) == len(first) - 2
    assert "2 added, 8 unchanged; 2 described" in locate(own, *index, mode="index")[2]
    assert locate(own, image, "--top=20")[1][0]["matches"] == first


def test_a_damaged_index_of_faiss_is_made_again_of_the_descriptors(locate, own, tmp_path):
    image = next((own / "val" / "queries").iterdir())
    assert locate(own, "--index=SQ8", mode="index")[0] == 0
    first = locate(own, image)[1]
    for spoil in (lambda file: file.write_bytes(file.read_bytes()[:-9]), lambda file: file.unlink()):
        (path,) = (tmp_path / "model").glob("*.faiss")
        spoil(path)
        code, answers, text = locate(own, image)
        assert code == 0 and answers == first and "SQ8 is made again of the descriptors" in text
        assert locate(own, image)[1] == first


def test_an_inverted_file_looks_through_as_many_lists_as_asked_for(locate, own):
    image = next((own / "val" / "queries").iterdir())
    assert locate(own, "--index=IVF5,Flat", "--nprobe=1", mode="index")[0] == 0
    found = {flags: len(locate(own, image, "--top=10", *flags)[1][0]["matches"]) for flags in [
        (), ("--nprobe=1",), ("--nprobe=5",),
    ]}  # fmt: skip
    assert found[("--nprobe=5",)] == 10 and found[("--nprobe=1",)] == found[()] < 10


def test_an_index_that_contradicts_the_flags_is_refused(locate, own):
    image = next((own / "val" / "queries").iterdir())
    assert locate(own, mode="index")[0] == 0
    code, _, text = locate(own, image, "--index=SQ4")
    assert code == 2 and "--index=none" in text and "--index=SQ4" in text
    assert locate(own, "--index=SQ8", mode="index")[0] == 0
    assert locate(own, image, "--index=SQ8")[0] == 0 and locate(own, image)[0] == 0
    assert locate(own, image, "--index=Flat")[0] == 2
    draw_images(own / "val" / "database", ["@586000.0@4477000.0@17@T@new@.png"], 7)
    assert "1 added, 10 unchanged; 1 described" in locate(own, image)[2]
    assert locate(own, image, "--index=SQ8")[0] == 0, "made anew as it was"


@pytest.mark.parametrize("factory", ["LSH", "PQ8x2", "PCA4,Flat"])
def test_whatever_an_index_compares_the_distances_of_the_descriptors_are_shown(locate, own, tmp_path, factory, capsys):
    database, queries = descriptors_by_test(own, tmp_path)
    capsys.readouterr()
    _, answers, _ = locate(own, own / "val" / "queries", f"--index={factory}", "--top=9")
    names = sorted(path.name for path in (own / "val" / "database").iterdir())
    for query, answer in zip(queries, answers, strict=True):
        told = [match["distance"] for match in answer["matches"]]
        true = [
            np.linalg.norm(database[names.index(match["name"].split("/")[-1])] - query) for match in answer["matches"]
        ]
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
def test_stored_descriptors_of_other_images_are_refused(own, tmp_path, capsys, where):
    flags = [
        "--mode=test", *MODEL, "--panels=0", "--dataset=folder", f"--root={own}", f"--dataPath={tmp_path / 'model'}",
        f"--runsPath={tmp_path}",
    ]  # fmt: skip
    kept = tmp_path / "kept.h5"
    assert main.main([*flags, f"--saveDescriptors={kept}"]) == 0
    assert main.main([*flags, f"--loadDescriptors={kept}"]) == 0
    name = next((own / "val" / where).iterdir()).name
    draw_images(own / "val" / where, [name], 5)
    capsys.readouterr()
    assert main.main([*flags, f"--loadDescriptors={kept}"]) == 2
    error = capsys.readouterr().err
    assert "other image files" in error and error.count("\n") == 1


def test_stored_descriptors_are_checked_whole_and_earlier_ones_are_read(own, tmp_path, capsys):
    database, _ = descriptors_by_test(own, tmp_path)
    kept = tmp_path / "kept.h5"
    flags = [
        "--mode=test", *MODEL, "--panels=0", "--dataset=folder", f"--root={own}", f"--dataPath={tmp_path / 'model'}",
        f"--runsPath={tmp_path}", f"--loadDescriptors={kept}",
    ]  # fmt: skip
    whole = kept.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(database.astype("f2")[3].tobytes()) + 100] ^= 1
    kept.write_bytes(damaged)
    assert main.main(flags) == 2 and "it is damaged" in capsys.readouterr().err
    kept.write_bytes(whole)
    with h5py.File(kept) as file:
        values = {name: file[name][:] for name in file}
        attributes = {name: value for name, value in file.attrs.items() if name not in ("files_hash", "checksum")}
    for rows, code in ((values["database"], 0), (values["database"][1:], 2), (values["database"][:, 1:], 2)):
        with h5py.File(kept, "w") as file:
            for name, value in {**values, "database": rows}.items():
                file[name] = value
            file.attrs.update(attributes)
        capsys.readouterr()
        assert main.main(flags) == code
        out, err = capsys.readouterr()
        assert "earlier version" in out and (code == 0 or ("wanted float16 (10, 256)" in err and err.count("\n") == 1))


def test_an_image_with_a_long_name_is_located_and_drawn(locate, own, tmp_path):
    draw_images(tmp_path, ["n" * 245 + ".png"], 3)
    code, answers, _ = locate(own, tmp_path / ("n" * 245 + ".png"))
    assert code == 0 and len(answers[0]["matches"]) == 5
    (panel,) = tmp_path.glob("locate_*/1_n*.jpg")
    with Image.open(panel) as picture:
        assert picture.width > 1000


@pytest.mark.parametrize("as_json", [False, True])
def test_matches_are_printed_though_no_panel_can_be_drawn(own, tmp_path, monkeypatch, capsys, as_json):
    def no_room(*_):
        raise UserError("no room for panels")

    monkeypatch.setattr("vpr.report.located.draw", no_room)
    places = ["--dataset=folder", f"--root={own}", f"--dataPath={tmp_path / 'model'}", f"--runsPath={tmp_path}"]
    image = str(next((own / "val" / "queries").iterdir()))
    assert main.main(["--mode=locate", *MODEL, *places, image, *(["--json"] if as_json else [])]) == 2
    out, err = capsys.readouterr()
    assert "no room for panels" in err
    if as_json:
        assert len(json.loads(out)[0]["matches"]) == 5
    else:
        assert f"{image}: confidence" in out


def test_flags_without_effect_do_not_get_among_the_json(locate, own):
    code, answers, text = locate(own, next((own / "val" / "queries").iterdir()), "--lr=0.1")
    assert code == 0 and len(answers) == 1 and "without effect in --mode=locate: --lr" in text


@pytest.mark.parametrize("mode", ["index", "locate"])
def test_a_split_that_the_folder_lacks_is_refused(locate, own, mode):
    """Else all images under the folder would be taken, queries among them."""
    images = [next((own / "val" / "queries").iterdir())] if mode == "locate" else []
    code, _, text = locate(own, *images, "--split=test", mode=mode)
    assert code == 2 and "--split=test" in text and "test/database" in text and text.count("\n") == 1
    assert locate(own, *images, "--split=val", mode=mode)[0] == 0
