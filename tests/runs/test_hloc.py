"""Files for hloc and COLMAP: read as hloc's own programs read them, and refused in one line where they do not fit."""

import json

import h5py
import numpy as np
import pytest
from drawing import draw_image

import main
from vpr.common.errors import UserError
from vpr.data.images import image_size
from vpr.runs.hloc import image_names

DATABASE, QUERIES = 9, 4


@pytest.fixture
def city(tmp_path):
    """A folder with a split `val`: database every 30 m, each query 3 m beside one image and drawn alike."""
    root = tmp_path / "city"
    for index in range(DATABASE):
        draw_image(
            root / "val" / "database" / f"part{index % 2}" / f"@{30 * index}@0@.png", (96 + 16 * index, 80), index
        )
    for index in range(QUERIES):
        draw_image(root / "val" / "queries" / f"@{30 * index}@3@.png", (96 + 16 * index, 80), index)
    return root


@pytest.fixture
def command(tmp_path, city, capsys):
    """Runs a mode on the city; gives its exit code and what it printed."""

    def run(mode, *flags):
        code = main.main([
            f"--mode={mode}", "--dataset=folder", f"--root={city}", "--arch=alexnet", "--fromscratch",
            "--pooling=max", "--threads=0", "--device=cpu", "--precision=fp32", f"--runsPath={tmp_path / 'runs'}",
            *(["--panels=0"] if mode == "test" else [f"--indexFile={tmp_path / 'index.h5'}"]), *flags,
        ])  # fmt: skip
        printed = capsys.readouterr()
        return code, printed.err if code else printed.out

    return run


def names_as_hloc_lists_them(path):
    """Every group that holds a data set, whatever its depth."""
    names = []
    with h5py.File(str(path), "r", libver="latest") as file:
        file.visititems(
            lambda _, entry: names.append(entry.parent.name.strip("/")) if isinstance(entry, h5py.Dataset) else None
        )
    return list(set(names))


def descriptors_as_hloc_reads_them(path, names):
    with h5py.File(str(path), "r", libver="latest") as file:
        return np.stack([file[str(name)]["global_descriptor"].__array__() for name in names], 0)


def pairs_as_hloc_reads_them(path):
    """Lines of two words, of which each first one keeps a list of the second ones in their order."""
    found = {}
    for line in path.read_text().rstrip("\n").split("\n"):
        query, other = line.split()
        found.setdefault(query, []).append(other)
    return found


def own(city, role):
    return sorted(path.relative_to(city).as_posix() for path in (city / "val" / role).rglob("*.png"))


def recalls(tmp_path):
    return json.loads((tmp_path / "runs" / "results.json").read_text())


@pytest.mark.parametrize(("flags", "dtype"), [([], np.float32), (["--hlocHalf"], np.float16)])
def test_hlocs_reader_finds_the_descriptor_of_each_image(city, command, tmp_path, flags, dtype):
    file, kept = tmp_path / "global-feats.h5", tmp_path / "own.h5"
    code, _ = command("test", f"--hlocFeatures={file}", f"--saveDescriptors={kept}", *flags)
    assert code == 0
    database, queries = own(city, "database"), own(city, "queries")
    assert sorted(names_as_hloc_lists_them(file)) == sorted(database + queries)
    with h5py.File(kept) as stored:
        for names, wanted in ((database, stored["database"][:]), (queries, stored["queries"][:])):
            found = descriptors_as_hloc_reads_them(file, names)
            assert found.dtype == dtype and found.ndim == 2
            np.testing.assert_array_equal(found, wanted)  # every float16 is a float32
    with h5py.File(file) as stored:
        for name in database:
            height, width = image_size(city / name)
            assert stored[name]["image_size"].__array__().tolist() == [width, height]


def test_pairs_are_those_of_hlocs_product_in_hlocs_form(city, command, tmp_path):
    file, pairs = tmp_path / "feats.h5", tmp_path / "pairs.txt"
    assert command("test", f"--hlocFeatures={file}", f"--pairs={pairs}", "--pairsTop=3")[0] == 0
    database, queries = own(city, "database"), own(city, "queries")
    product = descriptors_as_hloc_reads_them(file, queries) @ descriptors_as_hloc_reads_them(file, database).T
    wanted = [
        f"{query} {database[hit]}" for query, row in zip(queries, product, strict=True) for hit in np.argsort(-row)[:3]
    ]
    assert pairs.read_bytes() == "\n".join(wanted).encode()
    assert {query: len(hits) for query, hits in pairs_as_hloc_reads_them(pairs).items()} == dict.fromkeys(queries, 3)


def test_an_index_pairs_the_database_with_itself_but_no_image_with_itself(city, command, tmp_path):
    file, pairs = tmp_path / "feats.h5", tmp_path / "pairs.txt"
    assert command("index", f"--hlocFeatures={file}", f"--pairs={pairs}", "--pairsTop=2")[0] == 0
    database = own(city, "database")
    assert sorted(names_as_hloc_lists_them(file)) == database
    values = descriptors_as_hloc_reads_them(file, database)
    product = values @ values.T
    np.fill_diagonal(product, -np.inf)
    found = pairs_as_hloc_reads_them(pairs)
    assert found == {
        name: [database[hit] for hit in np.argsort(-row)[:2]] for name, row in zip(database, product, strict=True)
    }


def test_an_index_of_a_plain_folder_has_the_names_that_colmap_has(command, tmp_path):
    """Without train, val and test: the folder is COLMAP's --image_path."""
    folder = tmp_path / "plain"
    for number in range(4):
        draw_image(folder / f"cam{number % 2}" / f"{number}.jpg", (80, 64), number)
    pairs = tmp_path / "pairs.txt"
    assert command("index", f"--root={folder}", f"--pairs={pairs}")[0] == 0
    found = pairs_as_hloc_reads_them(pairs)
    names = {f"cam{number % 2}/{number}.jpg" for number in range(4)}
    assert set(found) == names
    for name, others in found.items():
        assert set(others) == names - {name}, "of fewer images than --pairsTop all others are paired"


def test_a_faiss_index_does_not_change_what_is_written_for_hloc(city, command, tmp_path):
    files = [tmp_path / "exact.h5", tmp_path / "flat.h5"]
    assert command("index", f"--hlocFeatures={files[0]}")[0] == 0
    assert command("index", f"--hlocFeatures={files[1]}", "--index=Flat")[0] == 0
    names = own(city, "database")
    np.testing.assert_array_equal(*(descriptors_as_hloc_reads_them(file, names) for file in files))


@pytest.mark.parametrize("half", [[], ["--hlocHalf"]])
def test_what_was_written_is_tested_to_the_same_recalls(command, tmp_path, half):
    file = tmp_path / "feats.h5"
    assert command("test", f"--hlocFeatures={file}", *half)[0] == 0
    code, printed = command("test", f"--loadDescriptors={file}")
    assert code == 0
    first, second = recalls(tmp_path)
    assert second["recalls"] == first["recalls"] and first["recalls"]["1"] == 1
    assert second["descriptor_dim"] == first["descriptor_dim"] == 256
    assert second["model"] == f"descriptors of {file}, made elsewhere" and second["descriptors"] == str(file)
    (note,) = [line for line in printed.splitlines() if "cannot be told" in line]
    assert str(file) in note


def test_a_file_of_hlocs_own_is_searched_whatever_its_dimension(city, command, tmp_path):
    """All queries look like the first database image, which lies at 0 m, as the first of the four queries does."""
    file = tmp_path / "global-feats-other.h5"
    vectors = np.eye(DATABASE, 12, dtype=np.float32)
    looks = dict(zip(own(city, "database"), vectors, strict=True))
    write_features(file, looks | dict.fromkeys(own(city, "queries"), vectors[0]))
    assert command("test", f"--loadDescriptors={file}", "--recallValues", "1")[0] == 0
    (result,) = recalls(tmp_path)
    assert own(city, "database")[0].endswith("/@0@0@.png")
    assert result["recalls"]["1"] == 1 / 4 and result["descriptor_dim"] == 12


def write_features(path, descriptors):
    """As hloc writes them: one opening of the file for each image."""
    for name, values in descriptors.items():
        with h5py.File(str(path), "a", libver="latest") as file:
            file.create_group(name).create_dataset("global_descriptor", data=values)


UNIT = np.eye(8, dtype=np.float16)[0]


@pytest.fixture
def foreign(city, tmp_path):
    """A file of hloc's kind with the same descriptor of each image, and the images' names."""
    file, names = tmp_path / "feats.h5", own(city, "database") + own(city, "queries")
    write_features(file, dict.fromkeys(names, UNIT))
    return file, names


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file, name: file.pop(name), ["no descriptor of 1 of 13 images", "below --root"]),
        (lambda file, name: replace(file, name, UNIT[:7]), ["float16 (7,)", "wanted 8"]),
        (lambda file, name: replace(file, name, UNIT * np.float16(np.nan)), ["not finite or all 0"]),
        (lambda file, name: replace(file, name, np.full(8, 1e30, np.float32)), ["not finite or all 0"]),
        (lambda file, name: replace(file, name, 0 * UNIT), ["not finite or all 0"]),
        (lambda file, name: replace(file, name, np.ones(8, np.int32)), ["int32"]),
        (lambda file, name: replace(file, name, UNIT[None]), ["(1, 8)"]),
        (lambda file, name: replace(file, name, None), ["no data set"]),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(foreign, command, tmp_path, change, words):
    file, names = foreign
    with h5py.File(file, "a") as stored:
        change(stored, names[3])
    code, error = command("test", f"--loadDescriptors={file}")
    assert code == 2 and len(error.strip().splitlines()) == 1
    assert names[3] in error and all(word in error for word in words), error
    assert not (tmp_path / "runs" / "results.json").exists()


def replace(file, name, values):
    del file[name]["global_descriptor"]
    if values is None:
        file[name].create_group("global_descriptor")
    else:
        file[name].create_dataset("global_descriptor", data=values)


def test_descriptors_that_are_not_of_length_1_are_named(foreign, command):
    file, names = foreign
    with h5py.File(file, "a") as stored:
        for name in names:
            stored[name]["global_descriptor"][:] = 3 * UNIT
    code, printed = command("test", f"--loadDescriptors={file}")
    assert code == 0 and "13 descriptors" in printed and "not of length 1" in printed


def test_truncated_files_are_one_line(foreign, command):
    file, _ = foreign
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    code, error = command("test", f"--loadDescriptors={file}")
    assert code == 2 and len(error.strip().splitlines()) == 1 and str(file) in error


def test_names_with_spaces_are_refused_before_anything_is_described(city, command, tmp_path):
    draw_image(city / "val" / "queries" / "old town" / "@0@4@.png", (96, 80), 1)
    code, error = command("test", f"--pairs={tmp_path / 'pairs.txt'}")
    assert code == 2 and "have spaces" in error and "old town" in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "pairs.txt").exists() and not (tmp_path / "runs").exists()
    assert command("test", f"--hlocFeatures={tmp_path / 'feats.h5'}")[0] == 0  # HDF5 has room for them


def test_images_elsewhere_have_no_name(tmp_path):
    assert image_names([tmp_path / "a" / "b.jpg"], tmp_path) == ["a/b.jpg"]
    with pytest.raises(UserError, match="does not lie below --root"):
        image_names([tmp_path / "other" / "b.jpg"], tmp_path / "a")


def test_a_file_that_cannot_be_written_leaves_the_earlier_one(city, command, tmp_path, monkeypatch):
    file = tmp_path / "feats.h5"
    assert command("test", f"--hlocFeatures={file}")[0] == 0
    before, made = file.read_bytes(), h5py.Group.create_dataset

    def no_room(group, name, *rest, **named):
        if name == "global_descriptor" and group.name.endswith("@60@3@.png"):
            raise OSError("No space left on device")
        return made(group, name, *rest, **named)

    monkeypatch.setattr(h5py.Group, "create_dataset", no_room)
    code, error = command("test", f"--hlocFeatures={file}")
    assert code == 2 and "No space left" in error and len(error.strip().splitlines()) == 1
    assert file.read_bytes() == before and not list(tmp_path.rglob("*.part"))
    assert len(recalls(tmp_path)) == 2, "what was measured is kept though the file is not written"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--hlocHalf"], "--hlocFeatures"), (["--pairsTop=3"], "--pairs"),
        (["--loadDescriptors={}", "--explain"], "--explain needs the model that made"),
    ],
)  # fmt: skip
def test_flags_that_would_do_nothing_are_refused(foreign, command, words, named):
    code, error = command("test", *(word.format(foreign[0]) for word in words))
    assert code == 2 and named in error and len(error.strip().splitlines()) == 1
