"""Specs: the nine real ones, written ones with borders and odd layouts, and damaged ones."""

import json
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

import pittsburgh
from pittsburgh import Places, SpecError, read_places, write_places
from vpr.common.errors import UserError
from vpr.data.catalogue import DATASETS
from vpr.data.places import PlacesSpec, load_places

REAL_SPECS = {
    "pitts30k_train": (10000, 7416), "pitts30k_val": (10000, 7608), "pitts30k_test": (10000, 6816),
    "pitts250k_train": (91464, 7824), "pitts250k_val": (78648, 7608), "pitts250k_test": (83952, 8280),
    "tokyo247": (75984, 315), "tokyoTM_train": (49104, 7277), "tokyoTM_val": (49056, 7186),
}  # fmt: skip
EAST, NORTH = 585000.0, 4477000.0  # about where Pittsburgh lies in UTM
CORNER = np.array([EAST, NORTH])
DATABASE = ["a.jpg", "b.jpg", "c.jpg"]
DATABASE_POSITIONS = [[EAST, NORTH], [EAST + 5, NORTH], [EAST + 200, NORTH]]
QUERIES = ["q.jpg", "r.jpg"]
QUERY_POSITIONS = [[EAST, NORTH], [EAST + 195, NORTH]]


@pytest.fixture
def spec(tmp_path, write_spec):
    """Writes three images and two queries; fields can be replaced, added or, with None, left out."""

    def write(reverse=False, **changes):
        path = write_spec(tmp_path / "spec.mat", DATABASE, DATABASE_POSITIONS, QUERIES, QUERY_POSITIONS)
        record = loadmat(path)["dbStruct"][0, 0]
        fields = {name: record[name] for name in record.dtype.names} | changes
        fields = {name: value for name, value in fields.items() if value is not None}
        savemat(path, {"dbStruct": dict(reversed(fields.items())) if reverse else fields})
        return path

    return write


def lists(indices_of_query):
    return [indices.tolist() for indices in indices_of_query]


def complaint(path):
    """The message of the SpecError that reading gives; it is one line and names the file."""
    with pytest.raises(SpecError) as caught:
        read_places(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def make_places(database, queries, database_times=None, query_times=None):
    return Places(
        name="made",
        database_names=[f"{index}.jpg" for index in range(len(database))],
        query_names=[f"q{index}.jpg" for index in range(len(queries))],
        database_positions=np.array(database, dtype=float).reshape(-1, 2),
        query_positions=np.array(queries, dtype=float).reshape(-1, 2),
        positive_radius=25.0,
        training_positive_radius=10.0,
        database_times=None if database_times is None else np.array(database_times),
        query_times=None if query_times is None else np.array(query_times),
    )


@pytest.mark.parametrize("name", REAL_SPECS)
def test_a_real_spec_is_read_as_scipy_reads_it(shared, name):
    """SciPy's reader is another program's reading of the same format; names of Tokyo's images tell place and time."""
    path = shared / "netvlad_specs" / f"{name}.mat"
    record, places = loadmat(path)["dbStruct"][0, 0], read_places(path)
    assert places.name == name
    assert (len(places.database_names), len(places.query_names)) == REAL_SPECS[name]
    assert places.database_positions.dtype == places.query_positions.dtype == np.float64
    assert [places.positive_radius, places.training_positive_radius] == [25, 10]
    assert type(places.positive_radius) is type(places.training_positive_radius) is float
    assert places.database_names == [str(cell[0]) for cell in record["dbImageFns"].ravel()]
    assert places.query_names == [str(cell[0]) for cell in record["qImageFns"].ravel()]
    assert np.array_equal(places.database_positions, record["utmDb"].T)
    assert np.array_equal(places.query_positions, record["utmQ"].T)
    if name == "tokyo247":  # the folder's name tells the position, here rounded: 03814/381418.231_3946450.428/...
        told = [[float(part) for part in path.split("/")[1].split("_")] for path in places.database_names]
        np.testing.assert_allclose(places.database_positions, told, rtol=0, atol=0.0051)
    if name.startswith("tokyoTM"):  # and so does the file's its month: .../_201306/...
        for times, names in ((places.database_times, places.database_names), (places.query_times, places.query_names)):
            assert times.tolist() == [int(path.split("/")[-2].lstrip("_")) for path in names]
    else:
        assert places.database_times is None and places.query_times is None


WHOLE = {"utmDb": DATABASE_POSITIONS, "utmQ": QUERY_POSITIONS}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reverse": True, "aFieldOfAnotherSet": np.arange(5), "posDistThrOther": np.uint8(3)},
        {field: np.array(rows).T.astype(np.uint32) for field, rows in WHOLE.items()},
    ],
    ids=["plain", "other fields in another order", "unsigned"],
)
def test_written_spec(spec, changes):
    places = read_places(spec(**changes))
    assert (places.name, places.database_names, places.query_names) == ("spec", DATABASE, QUERIES)
    assert places.database_positions.dtype == places.query_positions.dtype == np.float64
    np.testing.assert_array_equal(places.database_positions, DATABASE_POSITIONS)
    np.testing.assert_array_equal(places.query_positions, QUERY_POSITIONS)
    assert (places.positive_radius, places.training_positive_radius) == (25, 10)
    assert lists(places.positives()) == lists(places.not_negatives()) == [[0, 1], [2]]
    assert lists(places.training_positives()) == [[1], [2]]


def test_thresholds_do_not_overflow(spec):
    path = spec()
    assert loadmat(path)["dbStruct"][0, 0]["posDistThr"].dtype == np.uint8  # in which 25 squared is 113
    places = read_places(path)
    assert places.positive_radius**2 == 625
    assert places.training_positive_radius**2 == 100


@pytest.mark.parametrize("times", [1, 3], ids=["one time", "three times"])
@pytest.mark.parametrize("seed", range(4))
def test_positives_are_those_of_a_double_loop(seed, times):
    generator = np.random.default_rng(seed)
    queries = generator.integers(0, 200, (30, 2)) + CORNER
    steps = [(25, 0), (-15, 20), (7, -24), (26, 0), (1, 0), (0, -1), (1, 1), (0, 0), (10, 0), (-6, 8), (0, 11)]
    planted = np.concatenate([query + np.array(steps) for query in queries[:10]])  # whole numbers: distances are exact
    database = np.concatenate([generator.uniform(0, 200, (150, 2)) + CORNER, planted])
    database = database[generator.permutation(len(database))]
    stamps = [generator.integers(0, times, len(each)) for each in (database, queries)] if times > 1 else [None, None]
    near, other, training = [], [], []
    for query, (qx, qy) in enumerate(queries.tolist()):
        squares = [(x - qx) ** 2 + (y - qy) ** 2 for x, y in database.tolist()]
        counts = [times == 1 or stamps[0][index] != stamps[1][query] for index in range(len(database))]
        near.append([index for index, square in enumerate(squares) if square <= 625])
        other.append([index for index in near[-1] if counts[index]])
        training.append([index for index in near[-1] if counts[index] and 1 < squares[index] <= 100])
    places = make_places(database, queries, *stamps)
    assert lists(places.positives()) == other
    assert lists(places.not_negatives()) == near
    assert lists(places.training_positives()) == training


def test_borders():
    steps = [(25, 0), (15, 20), (25.001, 0), (1, 0), (0, -1), (1.001, 0), (10, 0), (6, -8), (10.001, 0), (0, 0)]
    places = make_places(CORNER + steps, [CORNER])
    assert lists(places.positives()) == [[0, 1, 3, 4, 5, 6, 7, 8, 9]]
    assert lists(places.training_positives()) == [[5, 6, 7]]
    assert lists(make_places([[25.00000001, 0]], [[0, 0]]).positives()) == [[]]


def test_no_queries_and_no_database():
    assert make_places([[0, 0]], []).positives() == []
    for lonely in (make_places([], [[0, 0]]), make_places([[100, 0]], [[0, 0]])):
        assert lists(lonely.positives()) == lists(lonely.training_positives()) == lists(lonely.not_negatives()) == [[]]


def test_own_time_stamp_is_dropped_from_positives_but_not_from_not_negatives(spec):
    path = spec(dbTimeStamp=np.array([[201306.0, 200912.0, 201306.0]]), qTimeStamp=np.array([[200912.0, 200912.0]]))
    places = read_places(path)
    assert places.database_times.tolist() == [201306, 200912, 201306]
    assert places.query_times.tolist() == [200912, 200912]
    assert lists(places.positives()) == [[0], [2]]
    assert lists(places.training_positives()) == [[], [2]]
    assert lists(places.not_negatives()) == [[0, 1], [2]]


def test_an_image_that_is_both_database_and_query_is_a_hit_but_no_training_positive(tmp_path, write_spec):
    path = write_spec(tmp_path / "s.mat", ["a.jpg", "b.jpg"], [[0, 0], [3, 4]], ["b.jpg"], [[3, 4]])
    places = read_places(path)
    assert (places.database_names, places.query_names) == (["a.jpg", "b.jpg"], ["b.jpg"])
    assert lists(places.positives()) == [[0, 1]]
    assert lists(places.training_positives()) == [[0]]


def test_fingerprint_is_that_of_names_and_positions(spec):
    places = read_places(spec())
    same = [read_places(spec(reverse=True)), replace(places, name="other", positive_radius=3.0)]
    assert {other.fingerprint() for other in same} == {places.fingerprint()}
    moved, moved_query = places.database_positions.copy(), places.query_positions.copy()
    moved[1, 1] += 1e-3
    moved_query[1, 0] += 1e-3
    changed = [
        replace(places, database_names=["a.jpg", "B.jpg", "c.jpg"]),
        replace(places, query_names=["r.jpg", "q.jpg"]),
        replace(places, database_positions=moved),
        replace(places, query_positions=moved_query),
        replace(places, database_positions=places.database_positions[::-1]),
    ]
    prints = [places.fingerprint(), *(other.fingerprint() for other in changed)]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("do_compression", [False, True], ids=["plain", "compressed"])
def test_truncated_file(spec, do_compression):
    path = spec()
    savemat(path, {"dbStruct": loadmat(path)["dbStruct"]}, do_compression=do_compression)
    whole = path.read_bytes()
    read_places(path)
    lengths = [0, 1, 100, 127, 128, 129, 136, len(whole) // 2, len(whole) - 100, len(whole) - 1]
    for length in lengths + random.Random(0).sample(range(140, len(whole) - 1), 30):
        path.write_bytes(whole[:length])
        assert path.name in complaint(path), length


def test_truncated_real_file(shared, tmp_path):
    whole = (shared / "netvlad_specs" / "pitts30k_val.mat").read_bytes()
    path = tmp_path / "pitts30k_val.mat"
    for length in (5000, len(whole) // 2, len(whole) - 1000):
        path.write_bytes(whole[:length])
        assert path.name in complaint(path), length


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"<html>not found</html>\n" * 40, "MATLAB")])
def test_file_that_is_missing_or_of_another_kind(tmp_path, content, words):
    path = tmp_path / "pitts30k_val.mat"
    if content:
        path.write_bytes(content)
    assert words in complaint(path)


@pytest.mark.parametrize(
    "content",
    [
        {"whatever": np.arange(3)},
        {"dbStruct": np.arange(3)},
        {"dbStruct": np.array([[1.0]])},
        {"dbStruct": np.zeros(2, dtype=[("utmDb", object)])},
        {},
    ],
)
def test_file_without_dbstruct(tmp_path, content):
    path = tmp_path / "spec.mat"
    savemat(path, content)
    assert "instead of one dbStruct" in complaint(path)


def test_count_is_optional(spec):
    assert len(read_places(spec(numImages=None, numQueries=None)).database_names) == 3


def moved(rows, value):
    positions = np.array(rows).T
    positions[1, 1] = value
    return positions


CELLS = np.array([["a.jpg"], [5.0], ["c.jpg"]], object)
STAMPS = {"dbTimeStamp": np.array([[1, 2, 3]]), "qTimeStamp": np.array([[3, 1]])}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({field: None}, f"no field {field}") for field in pittsburgh.NEEDED),
        ({"numImages": np.uint16(4)}, "numImages says 4"),
        ({"numQueries": np.uint16(1)}, "numQueries says 1"),
        ({"numImages": np.array([[np.nan]])}, "numImages"),
        *(({"utmDb": moved(DATABASE_POSITIONS, value)}, "utmDb are not finite or too small, the first is number 2")
          for value in (np.nan, np.inf)),
        *(({"utmQ": moved(QUERY_POSITIONS, value)}, "utmQ are not finite or too small, the first is number 2")
          for value in (np.nan, np.inf)),
        ({"utmDb": np.array(DATABASE_POSITIONS)}, "utmDb"),  # not transposed
        ({"utmDb": np.array(DATABASE_POSITIONS).T[:, :2]}, "utmDb"),
        ({"utmQ": np.zeros((3, 2))}, "utmQ"),
        ({"utmQ": np.zeros((2, 0))}, "utmQ"),
        ({"posDistThr": np.array([25, 10])}, "posDistThr"),
        ({"posDistThr": np.array([[np.nan]])}, "posDistThr"),
        ({"nonTrivPosDistSqThr": np.array([])}, "nonTrivPosDistSqThr"),
        ({"nonTrivPosDistSqThr": np.array([[-1.0]])}, "nonTrivPosDistSqThr"),
        ({"dbTimeStamp": np.array([[201306, 200912]])}, "dbTimeStamp"),
        ({"qTimeStamp": np.array([[201306, 200912, 201306]])}, "qTimeStamp"),
        ({"dbTimeStamp": np.array([[1, 2, 3]])}, "qTimeStamp"),
        (STAMPS | {"dbTimeStamp": np.array([[1, 2]])}, "dbTimeStamp has (1, 2)"),
        (STAMPS | {"qTimeStamp": np.array([[1, 2, 3]])}, "qTimeStamp has (1, 3)"),
        ({"dbImageFns": np.zeros((3, 1))}, "dbImageFns"),
        ({"dbImageFns": CELLS}, "entry 2 of dbImageFns"),
    ],
)  # fmt: skip
def test_a_field_that_is_missing_or_makes_no_sense_is_named(spec, changes, words):
    assert words in complaint(spec(**changes))


def test_load_places_finds_the_images(tiny_places):
    images = load_places(PlacesSpec("pittsburgh", tiny_places), "train")
    assert images.split == "train"
    assert images.places.name == "pitts30k_train"
    assert images.database_files == [tiny_places / f"000/{index:06d}.jpg" for index in range(12)]
    assert images.query_files == [tiny_places / f"queries_real/000/{index:06d}_query.jpg" for index in range(5)]


def test_load_places_names_a_missing_image_and_a_missing_spec(tiny_places):
    image = tiny_places / "queries_real" / "001" / "000003_query.jpg"
    image.unlink()
    for split, missing, words in (
        ("val", image, "1 of the 17 images"), ("test", tiny_places / "datasets" / "pitts30k_test.mat", "is missing"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words) as caught:
            load_places(PlacesSpec("pittsburgh", tiny_places), split)
        assert str(missing) in str(caught.value) and "\n" not in str(caught.value)


def test_tokyo_time_machine_has_no_test_split(tmp_path):
    assert set(DATASETS["tokyotm"].specs) == {"train", "val"}
    with pytest.raises(UserError, match="--dataset=tokyotm has no split test: choose from train, val"):
        load_places(PlacesSpec("tokyotm", tmp_path), "test")


def test_every_real_spec_belongs_to_a_split():
    known = {spec for name, dataset in DATASETS.items() if name != "toy" for spec in dataset.specs.values()}
    assert known == set(REAL_SPECS)


def test_names_in_a_character_matrix_lose_their_padding(spec):
    names = ["a.jpg", "longer.jpg", "c.jpg"]
    assert read_places(spec(dbImageFns=np.array(names))).database_names == names


def same_places(first, second):
    """Whether two places are equal in all but their names."""
    for one, other in zip(vars(replace(first, name="")).items(), vars(replace(second, name="")).items(), strict=True):
        if isinstance(one[1], np.ndarray):
            assert np.array_equal(one[1], other[1]) and (one[1].dtype == other[1].dtype or not one[1].size), one[0]
        else:
            assert one == other
    return True


@pytest.mark.parametrize("name", ["tokyoTM_val", "pitts30k_val"])
def test_a_tenth_of_a_real_spec_that_is_written_is_read_back_the_same(shared, tmp_path, name):
    places = read_places(shared / "netvlad_specs" / f"{name}.mat")
    places = places.only(*(range(0, len(names), 10) for names in (places.database_names, places.query_names)))
    write_places(tmp_path / f"{name}.mat", places)
    again = read_places(tmp_path / f"{name}.mat")
    assert again.name == name and same_places(again, places)
    assert (places.query_times is not None) == (name == "tokyoTM_val")


@pytest.mark.parametrize("times", [None, np.array([201306, 200912], np.int32)])
@pytest.mark.parametrize("names", [["a.jpg", "Straße/東京 1.jpg"], ["x" * 300, " y"]])
def test_what_is_written_is_read_back(tmp_path, names, times):
    places = Places(
        "s", names, names[:1], np.array([[0.1, -2.5], [1e6, 1 / 3]]), np.array([[0.0, 1e-9]]), 12.5, 3.0, times,
        None if times is None else times[:1], "plain" if times is None else "other_time",
    )  # fmt: skip
    write_places(tmp_path / "s.mat", places)
    assert same_places(read_places(tmp_path / "s.mat"), places)
    no_queries = places.only([0, 1], [])
    write_places(tmp_path / "s.mat", no_queries)
    assert same_places(read_places(tmp_path / "s.mat"), no_queries)


def test_pittsburgh_py_can_be_copied_into_another_project(tmp_path, spec):
    """Alone in a folder it reads and writes, without what is ours."""
    path = spec()
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(Path(__file__).resolve().parents[1] / "pittsburgh.py", alone)
    code = (
        "import pittsburgh, pathlib, sys; places = pittsburgh.read_places(pathlib.Path(sys.argv[1])); "
        "pittsburgh.write_places(pathlib.Path('copy.mat'), places); "
        "assert pittsburgh.read_places(pathlib.Path('copy.mat')).fingerprint() == places.fingerprint()"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {code}", path], cwd=alone, check=True
    )


@pytest.mark.parametrize("do_compression", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i4", "u2", "i8"])
def test_numbers_of_any_type_are_read(spec, dtype, do_compression):
    path = spec(**STAMPS, utmQ=np.array([[7, 300], [5, 9]], dtype))
    savemat(path, {"dbStruct": loadmat(path)["dbStruct"]}, do_compression=do_compression)
    places = read_places(path)
    assert places.query_positions.tolist() == [[7, 5], [300, 9]] and places.query_positions.dtype == np.float64
    assert places.query_times.tolist() == [3, 1]


def test_a_file_of_the_other_byte_order_is_read(tmp_path):
    """Made by hand: a structure of one cell of UTF-16 text, big-endian, as MATLAB once wrote it."""

    def element(kind, content):
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    def array(kind, shape, *parts, name=b""):
        head = element(6, struct.pack(">II", kind, 0)), element(5, struct.pack(">2i", *shape)), element(1, name)
        return element(14, b"".join([*head, *parts]))

    def text(value):
        return array(4, (1, len(value)), element(4, value.encode("utf-16-be")))

    def numbers(rows, columns, *values):
        return array(6, (rows, columns), element(9, struct.pack(f">{len(values)}d", *values)))

    fields = {
        "dbImageFns": array(1, (2, 1), text("a.jpg"), text("ü.jpg")), "utmDb": numbers(2, 2, 1, 2, 3, 4),
        "qImageFns": array(1, (1, 1), text("q.jpg")), "utmQ": numbers(2, 1, 5, 6),
        "posDistThr": numbers(1, 1, 25), "nonTrivPosDistSqThr": numbers(1, 1, 100),
    }  # fmt: skip
    names = b"".join(name.encode().ljust(32, b"\0") for name in fields)
    width = struct.pack(">HHI", 4, 5, 32)  # in the tag itself
    variable = array(2, (1, 1), width, element(1, names), *fields.values(), name=b"dbStruct")
    path = tmp_path / "big.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI" + variable)
    places = read_places(path)
    assert (places.database_names, places.query_names) == (["a.jpg", "ü.jpg"], ["q.jpg"])
    assert places.database_positions.tolist() == [[1, 2], [3, 4]] and places.query_positions.tolist() == [[5, 6]]
    assert (places.positive_radius, places.training_positive_radius) == (25, 10)


def test_what_grows_without_end_is_refused(tmp_path):
    """A compressed element of 100 kB that would be 100 MB is not inflated: no spec shrinks so far."""
    packed = zlib.compress(struct.pack("<II", 14, 100_000_000) + bytes(100_000_000), 9)
    path = tmp_path / "bomb.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + struct.pack("<II", 15, len(packed)) + packed)
    tracemalloc.start()
    text = complaint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "no end" in text and peak < 200 << 20


def test_damaged_copies_are_read_or_refused_and_end_no_process(spec, tmp_path):
    """Bits, ends, runs and tags are changed; nothing but a SpecError may come of it: no signal, no traceback."""
    small = spec(**STAMPS)
    command = [sys.executable, Path(__file__).with_name("spec_fuzz.py"), "123", "600", small]
    reading = subprocess.run(command, capture_output=True, text=True, check=False)
    assert reading.returncode == 0, reading.stderr
    (outcome,) = json.loads(reading.stdout).values()
    assert sum(outcome.values()) == 600 and outcome["refused"] > 300


def test_a_changed_byte_of_a_compressed_spec_is_noticed(shared, tmp_path):
    """The files are compressed, with a checksum."""
    whole = (shared / "netvlad_specs" / "pitts30k_test.mat").read_bytes()
    chance = random.Random(5)
    for _ in range(20):
        content = bytearray(whole)
        content[chance.randrange(136, len(whole))] ^= 1 << chance.randrange(8)
        (tmp_path / "changed.mat").write_bytes(content)
        complaint(tmp_path / "changed.mat")
