"""Specs that MATLAB saved with -v7.3, which are HDF5 files, are read as those of v5."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from pittsburgh import SpecError, read_places
from vpr.data.places import PlacesSpec, load_places

HEAD = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  1 00:00:00 2024 HDF5 schema 1.00 ."
FIELDS = {
    "whichSet": "val", "dbImageFns": ["a.jpg", "b/ü.jpg", "c.jpg"], "utmDb": np.array([[1.0, 2, 30], [4, 5, 6]]),
    "qImageFns": ["q.jpg", "r.jpg"], "utmQ": np.array([[1.5, 2], [4, 5.25]]), "numImages": 3.0, "numQueries": 2.0,
    "posDistThr": 25.0, "posDistSqThr": 625.0, "nonTrivPosDistSqThr": 100.0,
}  # fmt: skip


def v73(path, fields, variable="dbStruct"):
    """A structure as MATLAB lays it out: arrays transposed, text as uint16, cells as references into `#refs#`, the
    sizes of what is empty in its stead, a block of 512 bytes in front."""
    with h5py.File(path, "w", userblock_size=512) as file:
        refs, group = file.create_group("#refs#"), file.create_group(variable)
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for name, value in fields.items():
            _store(group, name, value, refs)
    with open(path, "r+b") as file:
        file.write(HEAD.ljust(116) + bytes(8) + b"\0\2IM")
    return path


def _store(group, name, value, refs):
    if isinstance(value, list):  # a column of cells
        stored = np.empty((1, len(value)), h5py.ref_dtype)
        for number, each in enumerate(value):
            inner = f"{name}_{number}"
            _store(refs, inner, each, refs)
            stored[0, number] = refs[inner].ref
        _dataset(group, name, stored, "cell", (len(value), 1), dtype=h5py.ref_dtype)
    elif isinstance(value, str):
        units = np.frombuffer(value.encode("utf-16-le"), "<u2")
        _dataset(group, name, units[:, None], "char", (len(units) > 0, len(units))).attrs["MATLAB_int_decode"] = (
            np.int32(2)
        )
    else:
        value = np.atleast_2d(value)
        kind = {"f8": "double", "f4": "single", "u1": "uint8", "i4": "int32", "u2": "uint16"}[value.dtype.str[1:]]
        _dataset(group, name, value.T, kind, value.shape)


def _dataset(group, name, stored, kind, shape, **more):
    if stored.size:
        item = group.create_dataset(name, data=stored, **more)
    else:
        item = group.create_dataset(name, data=np.array(shape, "u8"))
        item.attrs["MATLAB_empty"] = np.uint8(1)
    item.attrs["MATLAB_class"] = np.bytes_(kind)
    return item


def complaint(path):
    with pytest.raises(SpecError) as caught:
        read_places(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def test_a_spec_of_v73_is_that_of_v5(tmp_path, write_spec):
    five = read_places(write_spec(
        tmp_path / "five.mat", FIELDS["dbImageFns"], FIELDS["utmDb"].T, FIELDS["qImageFns"], FIELDS["utmQ"].T
    ))  # fmt: skip
    places = read_places(v73(tmp_path / "spec.mat", FIELDS))
    assert (places.database_names, places.query_names) == (FIELDS["dbImageFns"], FIELDS["qImageFns"])
    assert np.array_equal(places.database_positions, FIELDS["utmDb"].T)
    assert np.array_equal(places.query_positions, FIELDS["utmQ"].T)
    assert (places.positive_radius, places.training_positive_radius, places.protocol) == (25, 10, "plain")
    assert places.database_positions.dtype == np.float64 and type(places.positive_radius) is float
    assert places.fingerprint() == five.fingerprint()


@pytest.mark.parametrize("name", ["pitts30k_val", "tokyoTM_val"])
def test_a_real_spec_saved_as_v73_is_the_same(name, shared, tmp_path):
    five = read_places(shared / "netvlad_specs" / f"{name}.mat")
    five = five.only(list(range(0, len(five.database_names), 50)), list(range(0, len(five.query_names), 50)))
    fields = {
        "qImageFns": five.query_names, "utmQ": five.query_positions.T, "posDistThr": np.uint8(25),
        "dbImageFns": five.database_names, "utmDb": five.database_positions.T, "nonTrivPosDistSqThr": np.uint8(100),
    }  # fmt: skip
    if five.database_times is not None:
        fields |= {"dbTimeStamp": five.database_times[None], "qTimeStamp": five.query_times[None]}
    places = read_places(v73(tmp_path / f"{name}.mat", fields))
    assert places.fingerprint() == five.fingerprint() and places.protocol == five.protocol
    for mine, theirs in ((places.database_times, five.database_times), (places.query_times, five.query_times)):
        assert mine is None if theirs is None else np.array_equal(mine, theirs)
    assert [each.tolist() for each in places.positives()] == [each.tolist() for each in five.positives()]


def test_the_order_of_fields_and_further_fields_do_not_matter(tmp_path):
    turned = dict(reversed([*FIELDS.items(), ("more", ["x", np.ones((3, 2)), ["y"]]), ("nothing", np.zeros((0, 0)))]))
    places = read_places(v73(tmp_path / "turned.mat", turned))
    assert places.fingerprint() == read_places(v73(tmp_path / "plain.mat", FIELDS)).fingerprint()


def test_one_image_no_query_and_numbers_of_other_types(tmp_path):
    fields = FIELDS | {
        "dbImageFns": ["𝔸.jpg"], "utmDb": np.array([[7], [9]], "f4"), "numImages": np.uint8(1), "qImageFns": [],
        "utmQ": np.zeros((2, 0)), "numQueries": np.uint16(0), "posDistThr": np.uint8(25),
        "nonTrivPosDistSqThr": np.uint8(100),
    }  # fmt: skip
    places = read_places(v73(tmp_path / "spec.mat", fields))
    assert (places.database_names, places.query_names) == (["𝔸.jpg"], [])
    assert places.database_positions.tolist() == [[7, 9]] and places.query_positions.shape == (0, 2)
    assert (places.positive_radius**2, places.training_positive_radius) == (625, 10)


def test_two_by_two_positions_are_not_taken_the_wrong_way_round(tmp_path):
    fields = FIELDS | {"dbImageFns": ["a", "b"], "utmDb": np.array([[1.0, 2], [30, 40]]), "numImages": 2.0}
    assert read_places(v73(tmp_path / "spec.mat", fields)).database_positions.tolist() == [[1, 30], [2, 40]]


def test_names_as_a_character_matrix(tmp_path):
    path = v73(tmp_path / "spec.mat", FIELDS)
    with h5py.File(path, "r+") as file:
        group = file["dbStruct"]
        del group["dbImageFns"]
        rows = np.array([list("a.jpg  "), list("long.jp"), list("c.jpg  ")])
        _dataset(group, "dbImageFns", np.vectorize(ord)(rows).T.astype("u2"), "char", rows.shape)
    assert read_places(path).database_names == ["a.jpg", "long.jp", "c.jpg"]


def test_what_another_program_writes_as_v73_is_read(tmp_path, mat_io):
    cells = {name: np.array(FIELDS[name], object)[:, None] for name in ("dbImageFns", "qImageFns")}
    mat_io.save_to_mat(str(tmp_path / "spec.mat"), {"dbStruct": FIELDS | cells}, version="v7.3")
    mine = read_places(v73(tmp_path / "mine.mat", FIELDS))
    assert read_places(tmp_path / "spec.mat").fingerprint() == mine.fingerprint()


@pytest.mark.parametrize("field", ["dbImageFns", "utmQ", "posDistThr"])
def test_what_is_missing_is_named_and_what_helps(field, tmp_path):
    text = complaint(v73(tmp_path / "spec.mat", {name: value for name, value in FIELDS.items() if name != field}))
    assert "v7.3" in text and f"no field {field}" in text and "save('spec.mat', 'dbStruct', '-v7')" in text


def test_another_variable_a_string_array_and_a_wrong_count_are_refused(tmp_path):
    assert "holds other instead of one dbStruct" in complaint(v73(tmp_path / "a.mat", FIELDS, "other"))
    assert "v7.3" in complaint(v73(tmp_path / "empty.mat", {}))
    path = v73(tmp_path / "b.mat", FIELDS)
    with h5py.File(path, "r+") as file:  # what MATLAB leaves of an object of a class such as string
        del file["dbStruct/dbImageFns"]
        item = _dataset(file["dbStruct"], "dbImageFns", np.arange(6, dtype="u4")[:, None], "string", (1, 6))
        item.attrs["MATLAB_object_decode"] = np.int32(3)
    assert "dbImageFns" in complaint(path)
    assert "utmDb" in complaint(v73(tmp_path / "c.mat", FIELDS | {"utmDb": FIELDS["utmDb"].T}))
    assert "utmDb" in complaint(v73(tmp_path / "d.mat", FIELDS | {"utmDb": FIELDS["utmDb"] * np.nan}))
    assert "numImages says 4" in complaint(v73(tmp_path / "e.mat", FIELDS | {"numImages": 4.0}))


def test_what_grows_without_end_is_refused(tmp_path):
    path = v73(tmp_path / "spec.mat", FIELDS)
    with h5py.File(path, "r+") as file:
        del file["dbStruct/utmDb"]
        item = file["dbStruct"].create_dataset(
            "utmDb", (1 << 30, 2), "f8", chunks=(1 << 16, 2)
        )  # nothing is stored of it
        item.attrs["MATLAB_class"] = np.bytes_("double")
    assert "bytes" in complaint(path)


def test_cells_that_hold_themselves_are_refused(tmp_path):
    path = v73(tmp_path / "spec.mat", FIELDS)
    with h5py.File(path, "r+") as file:
        cells = file["dbStruct/dbImageFns"]
        cells[0, 1] = cells.ref
    assert "entry 2 of dbImageFns" in complaint(path)


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    path = v73(tmp_path / "spec.mat", FIELDS)
    whole = path.read_bytes()
    for length in (520, 600, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "v7.3" in complaint(path)


def test_damaged_copies_are_read_or_refused_and_end_no_process(tmp_path):
    path = v73(tmp_path / "spec.mat", FIELDS)
    command = [sys.executable, Path(__file__).with_name("spec_fuzz.py"), "123", "300", path]
    reading = subprocess.run(command, capture_output=True, text=True, check=False)
    assert reading.returncode == 0, reading.stderr
    (outcome,) = json.loads(reading.stdout).values()
    assert sum(outcome.values()) == 300 and outcome["refused"] > 100


def test_without_h5py_the_line_says_so_and_v5_is_read(tmp_path, write_spec):
    """pittsburgh.py alone, where h5py is not installed."""
    shutil.copy(Path(__file__).resolve().parents[1] / "pittsburgh.py", tmp_path)
    v73(tmp_path / "spec.mat", FIELDS)
    write_spec(tmp_path / "five.mat", ["a.jpg"], [[0, 0]], ["q.jpg"], [[3, 4]])
    code = (
        "import sys; sys.path.insert(0, '.'); sys.modules['h5py'] = None; import pittsburgh, pathlib; "
        "print(pittsburgh.read_places(pathlib.Path('five.mat')).database_names)\n"
        "try: pittsburgh.read_places(pathlib.Path('spec.mat'))\n"
        "except pittsburgh.SpecError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "['a.jpg']" and "h5py" in second and "-v7" in second


def test_a_data_set_may_have_it(tiny_places):
    spec = tiny_places / "datasets" / "pitts30k_val.mat"
    five = load_places(PlacesSpec("pittsburgh", tiny_places), "val")
    v73(spec, {
        "dbImageFns": five.places.database_names, "utmDb": five.places.database_positions.T, "posDistThr": 25.0,
        "qImageFns": five.places.query_names, "utmQ": five.places.query_positions.T, "nonTrivPosDistSqThr": 100.0,
    })  # fmt: skip
    found = load_places(PlacesSpec("pittsburgh", tiny_places), "val")
    assert found.places.fingerprint() == five.places.fingerprint() and found.files == five.files
