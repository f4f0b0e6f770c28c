"""Names of images that are written otherwise elsewhere, or cannot be written at all."""

import io
import json
import os
import sys
import unicodedata

import h5py
import numpy as np
import pytest
from drawing import draw_image
from loading import hits, load, refusal, touch

import main
from pittsburgh import read_places, write_places
from vpr.common.errors import UserError
from vpr.common.provenance import files_digest
from vpr.data.image_files import find_images
from vpr.data.layouts.folders import read_folder
from vpr.data.layouts.numbered import read_pairs
from vpr.data.names import on_disk, shown
from vpr.data.positions.of_images import read_positions
from vpr.database.columns import read_columns
from vpr.database.folder import folder_to_add
from vpr.database.open import matching_names
from vpr.database.records import Records
from vpr.retrieval.answer import match_of
from vpr.runs.hloc import DESCRIPTOR, load_hloc
from vpr.serve.schemas import match_json

COMPOSED, APART = "café 写真.jpg", unicodedata.normalize("NFD", "café 写真.jpg")
BYTES = os.fsdecode(b"\xe9t\xe9.jpg")
CALLED = ["--arch=alexnet", "--fromscratch", "--pooling=max", "--nocuda", "--threads=0", "--panels=0"]


def image(path, seed=0):
    return draw_image(path, (48, 36), seed)


def locate(root, *more):
    kept = [f"--runsPath={root.parent}", f"--dataPath={root.parent / 'model'}"]
    return main.main(["--mode=locate", "--dataset=folder", f"--root={root}", *kept, *more])


@pytest.fixture
def undecodable(tmp_path):
    """A folder with three database images, of which one's name is in Latin-1."""
    root = tmp_path / "own"
    for n in range(3):
        image(root / f"test/database/@{100 + 50 * n}@500@{n}.jpg", n)
        image(root / f"test/queries/@{102 + 50 * n}@500@q.jpg", n)
    (root / "test/database/@150@500@1.jpg").rename(root / f"test/database/@150@500@{BYTES}")
    return root


@pytest.mark.parametrize("mode", ["test", "index", "spec", "cluster", "train", "serve"])
def test_names_that_are_not_utf8_are_refused_in_one_line(undecodable, tmp_path, capsys, mode):
    if mode in ("cluster", "train"):
        (undecodable / "test").rename(undecodable / "train")
    model = ["--arch=alexnet", "--fromscratch", "--nocuda", f"--dataPath={tmp_path / 'c'}", "--pooling=max"]
    model = {"spec": [], "cluster": model[:-1], "test": [*model, "--split=test"]}.get(mode, model)
    assert main.main([f"--mode={mode}", "--dataset=folder", f"--root={undecodable}", *model]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "1 of names that are not UTF-8" in text
    assert r"\udce9t\udce9.jpg" in text and "convmv" in text


def test_an_added_folder_and_images_that_are_located_have_text_for_names(undecodable, tmp_path, capsys):
    more = tmp_path / "more"
    image(more / BYTES)
    with pytest.raises(UserError, match="not UTF-8"):
        folder_to_add(more, undecodable)
    assert locate(more, *CALLED, str(more)) == 2 and "not UTF-8" in capsys.readouterr().err
    assert locate(more, *CALLED, str(more / BYTES)) == 2 and "wanted one of UTF-8" in capsys.readouterr().err


def test_skip_broken_goes_on_without_such_names(undecodable, capsys):
    places, _ = read_folder(undecodable, "test", skip_broken=True)
    assert len(places.database_names) == 2 and len(places.fingerprint()) == 12
    assert "1 of names that are not UTF-8" in capsys.readouterr().out


def test_a_root_that_is_not_utf8_is_refused(tmp_path, capsys, monkeypatch):
    image(tmp_path / os.fsdecode(b"\xe9t\xe9") / "a.jpg")
    (tmp_path / "link").symlink_to(os.fsdecode(b"\xe9t\xe9"))
    for root in (str(tmp_path / "link"), str(tmp_path / os.fsdecode(b"\xe9t\xe9"))):
        assert main.main(["--mode=index", "--dataset=folder", f"--root={root}", *CALLED[:-1]]) == 2
        text = capsys.readouterr().err
        assert "UTF-8" in text and text.count("\n") == 1


def test_an_answer_of_an_old_index_with_such_a_name_is_json():
    match = match_json(1, match_of(f"street/{BYTES}", 0.5, np.array([1.0, 2.0]), None))
    assert json.loads(json.dumps(match, ensure_ascii=False).encode("utf-8"))["name"] == "street/?t?.jpg"


@pytest.mark.parametrize(("encoding", "as_json"), [("ascii", False), ("cp1252", False), ("ascii", True)])
def test_consoles_without_the_characters_of_a_name_get_escapes(tmp_path, monkeypatch, encoding, as_json):
    for n, name in enumerate((COMPOSED, "b.jpg")):
        image(tmp_path / "db" / name, n)
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    assert locate(tmp_path / "db", *CALLED, *["--json"] * as_json, str(tmp_path / "db" / COMPOSED)) == 0
    console.flush()
    text = console.buffer.getvalue().decode(encoding)
    name = json.loads(text)[0]["matches"][0]["name"] if as_json else text
    assert (COMPOSED if as_json else r"\u5199\u771f.jpg") in name


@pytest.mark.parametrize(("there", "written"), [(COMPOSED, APART), (APART, COMPOSED), (" a b.jpg", "a b.jpg")])
@pytest.mark.parametrize("folder", ["", "é"])
def test_a_table_may_have_another_form_of_a_name(tmp_path, there, written, folder):
    file = image(tmp_path / unicodedata.normalize("NFD", folder) / there)
    for line in (written, f"{folder}/{written}" if folder else written, f"{folder}\\{written}" if folder else written):
        rows = f"image,easting,northing,weather\n{line},500,600,rain\n"
        (tmp_path / "positions.csv").write_text(rows, encoding="utf-8")
        (place,) = read_positions([file], tmp_path)
        assert (place.easting, place.northing) == (500, 600)
        assert read_columns(tmp_path, [file]) == {"weather": ["rain"]}


def test_two_forms_of_a_name_are_one_image_of_a_table(tmp_path):
    image(tmp_path / COMPOSED)
    rows = f"image,easting,northing\n{COMPOSED},1,2\n{APART},3,4\n"
    (tmp_path / "positions.csv").write_text(rows, encoding="utf-8")
    assert "two positions" in refusal(read_positions, [tmp_path / COMPOSED], tmp_path)


@pytest.mark.parametrize(("there", "written"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_a_spec_may_have_another_form_of_a_name(tmp_path, write_spec, there, written):
    folder = unicodedata.normalize("NFD", "straße é")
    for n, name in enumerate((f"{folder}/{there}", "b.jpg", f"queries_real/{there}")):
        image(tmp_path / name, n)
    names = [f"{unicodedata.normalize('NFC', folder)}/{written}", "b.jpg"]
    write_spec(tmp_path / "datasets" / "pitts30k_val.mat", names, [[0.0, 0.0], [50.0, 0.0]], [written], [[1.0, 0.0]])
    images = load(tmp_path, "pittsburgh", "val")
    assert images.database_files == [tmp_path / folder / there, tmp_path / "b.jpg"]
    assert images.query_files == [tmp_path / "queries_real" / there]


def test_an_image_of_an_index_is_found_under_another_form_of_its_name(tmp_path):
    file = image(tmp_path / APART)
    stamp = np.zeros(1, np.int64)
    records = Records([COMPOSED], np.zeros((1, 2)), None, stamp, stamp, np.zeros((1, 32), np.uint8), [""])
    assert records.file(0, tmp_path) == file
    file.rename(tmp_path / COMPOSED)
    assert records.file(0, tmp_path) == tmp_path / COMPOSED
    assert on_disk(tmp_path, "é/none.jpg") == tmp_path / "é" / "none.jpg"
    assert matching_names({APART: 0, "b.jpg": 1}, [COMPOSED]) == [APART]


def test_pairs_are_found_under_another_form_of_their_names(tmp_path):
    touch(tmp_path, [f"ref/{APART}", f"query/{COMPOSED}", "ref/b.jpg", "query/b.jpg"])
    places = read_pairs(tmp_path, tmp_path / "ref", tmp_path / "query", "pairs")
    assert len(places.database_names) == 2 and [*map(len, hits(places))] == [1, 1]


def test_descriptors_of_hloc_are_found_under_another_form_of_their_names(tmp_path):
    root = tmp_path / "own"
    image(root / "test/database" / f"@1@2@{APART}")
    image(root / "test/queries/@1@3@.jpg", 1)
    spec = load(root, "folder")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name, value in ((f"test/database/@1@2@{COMPOSED}", [1.0, 0.0]), ("test/queries/@1@3@.jpg", [0.0, 1.0])):
            file.create_group(name)[DESCRIPTOR] = np.array(value, np.float32)
    found = load_hloc(tmp_path / "f.h5", spec, root)
    assert found.database.tolist() == [[1, 0]] and found.queries.tolist() == [[0, 1]]


ODD = [
    "with blank.jpg", "line\nbreak.jpg", "back\\slash.jpg", "tab\t.jpg", 'quote".jpg', "写真.jpg", "😀.jpg", "a'b.jpg",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_names_go_through_folder_and_spec(tmp_path, name):
    root = tmp_path / "own"
    for role, metres in (("database", 1), ("queries", 2)):
        image(root / "test" / role / f"@{metres}@2@{name}", metres)
    places, base = read_folder(root, "test")
    assert places.database_names == [f"test/database/@1@2@{name}"]
    assert len(files_digest(places.database_names, [base / places.database_names[0]])) == 12
    write_places(tmp_path / "own.mat", places)
    again = read_places(tmp_path / "own.mat")
    assert again.database_names == places.database_names and again.fingerprint() == places.fingerprint()


def test_odd_names_go_through_an_index(tmp_path, capsys):
    for n, name in enumerate(ODD):
        image(tmp_path / "db" / name, n)
    files = [str(tmp_path / "db" / name) for name in ODD]
    assert locate(tmp_path / "db", "--json", *CALLED[:-1], "--panels=all", *files) == 0
    located = json.loads(capsys.readouterr().out)
    assert [each["matches"][0]["name"] for each in located] == ODD and [each["photo"] for each in located] == files


def test_what_is_printed_of_a_name_is_one_line():
    assert shown("a b é 写.jpg") == "a b é 写.jpg"
    assert shown("a\nb\t\udce9\x1b[31m.jpg") == r"a\nb\t\udce9\x1b[31m.jpg"


def test_an_error_is_one_line_whatever_the_name(tmp_path, capsys):
    (tmp_path / "line\nbreak.jpg").write_bytes(b"no image")
    assert find_images(tmp_path)
    call = ["--mode=index", "--dataset=folder", f"--root={tmp_path}", f"--runsPath={tmp_path}", *CALLED[:-1]]
    assert main.main(call) == 2
    assert capsys.readouterr().err.count("\n") == 1
