"""Each data set as it is given out: where its images lie, how large they are, and which hits count."""

import csv
import re

import h5py
import numpy as np
import pytest
import torch
from drawing import draw_image
from loading import load, refusal, touch
from PIL import Image

import main
from pittsburgh import read_places
from vpr.cli.options import parse_options
from vpr.data.catalogue import DATASETS
from vpr.data.positions.of_images import read_positions
from vpr.data.reader import Reading
from vpr.search.protocols import search_places

NAMES = ["000/1.jpg", "000/2.jpg", "001/3.jpg"]
POSITIONS = [[500.0, 100.0], [510.0, 100.0], [900.0, 100.0]]
QUERIES = ["000/2.jpg", "001/7.jpg"]  # the first is also the name of a database image 400 m away
QUERY_POSITIONS = [[905.0, 100.0], [505.0, 100.0]]


FLAGS = [
    "--arch=alexnet", "--fromscratch", "--pooling=avg", "--threads=0", "--device=cpu", "--precision=fp32", "--panels=0",
]  # fmt: skip
TIMES = {"dbTimeStamp": np.array([[1, 2, 1]]), "qTimeStamp": np.array([[2, 1]])}


def read(root, dataset="pittsburgh", split="val"):
    return load(root, dataset, split)


@pytest.fixture
def small_spec(tmp_path, write_spec):
    """Writes a spec of three database images and two queries, of which some may be others."""

    def write(name, database=POSITIONS, queries=QUERIES, query_positions=QUERY_POSITIONS, **fields):
        path = tmp_path / "datasets" / f"{name}.mat"
        return write_spec(path, NAMES, database, queries, query_positions, **fields)

    return write


@pytest.fixture
def link_spec(shared, tmp_path):
    """Puts a real spec into the folder; gives its places."""

    def link(name):
        (tmp_path / "datasets").mkdir(exist_ok=True)
        (tmp_path / "datasets" / f"{name}.mat").symlink_to(shared / "netvlad_specs" / f"{name}.mat")
        return read_places(tmp_path / "datasets" / f"{name}.mat")

    return link


@pytest.fixture
def pittsburgh(tmp_path, small_spec):
    """A root with a spec and all images of the city, its queries' names among them; but without queries."""
    small_spec("pitts30k_val")
    touch(tmp_path, [*NAMES, *QUERIES, "002/8.jpg"])
    return tmp_path


def test_queries_are_never_read_from_the_database_folders(pittsburgh):
    text = refusal(read, pittsburgh)
    assert "queries_real is missing: none of the 2 queries of pitts30k_val" in text


def test_a_query_that_is_missing_does_not_move_the_others_elsewhere(pittsburgh):
    touch(pittsburgh / "queries_real", QUERIES[1:])
    text = refusal(read, pittsburgh)
    assert text.startswith("1 of the 5 images") and f"{pittsburgh}/queries_real/{QUERIES[0]}" in text


def test_the_folder_that_has_most_of_the_queries_is_taken(pittsburgh):
    touch(pittsburgh / "queries_real", QUERIES[:1])
    touch(pittsburgh / "queries", QUERIES)
    images = read(pittsburgh)
    assert images.query_files == [pittsburgh / "queries" / name for name in QUERIES]
    assert images.database_files == [pittsburgh / name for name in NAMES]


def test_the_folder_that_has_most_of_the_database_is_taken(tmp_path, small_spec):
    small_spec("pitts30k_val")
    touch(tmp_path, NAMES[:1])
    touch(tmp_path / "images", NAMES)
    touch(tmp_path / "queries_real", QUERIES)
    assert read(tmp_path).database_files == [tmp_path / "images" / name for name in NAMES]


@pytest.mark.parametrize("link", ["queries_real", "queries_real/000"])
def test_queries_that_are_links_into_the_database_are_refused(pittsburgh, link):
    if link == "queries_real":
        (pittsburgh / link).symlink_to(pittsburgh)
    else:
        touch(pittsburgh / "queries_real", QUERIES[1:])
        (pittsburgh / link).symlink_to(pittsburgh / "000")
    assert "queries of pitts30k_val would be read from the database's folders" in refusal(read, pittsburgh)


def test_real_queries_have_names_of_other_images_and_are_refused_there(link_spec, tmp_path):
    places = link_spec("pitts30k_val")
    touch(tmp_path, {*places.database_names, *places.query_names})
    assert "queries_real is missing: none of the 7608 queries of pitts30k_val" in refusal(read, tmp_path)


def test_queries_that_are_database_images_lie_among_them(tmp_path, small_spec):
    small_spec("tokyoTM_val", queries=NAMES[1:], query_positions=POSITIONS[1:], **TIMES)
    touch(tmp_path / "images", NAMES)
    images = read(tmp_path, "tokyotm")
    assert images.query_files == images.database_files[1:] == [tmp_path / "images" / name for name in NAMES[1:]]
    assert images.places.protocol == "other_time"
    moved = [POSITIONS[1], [901.0, 100.0]]  # by one metre
    small_spec("tokyoTM_val", queries=NAMES[1:], query_positions=moved, **TIMES)
    assert "queries_real is missing" in refusal(read, tmp_path, "tokyotm")


def test_real_time_machines_queries_lie_among_the_database(link_spec, tmp_path):
    places = link_spec("tokyoTM_val")
    assert "56242 of the 56242 images" in refusal(read, tmp_path, "tokyotm")
    assert set(places.query_names) <= set(places.database_names)


def test_time_machine_without_time_stamps_is_refused(tmp_path, small_spec):
    small_spec("tokyoTM_val")
    assert "no time stamps" in refusal(read, tmp_path, "tokyotm")


def table_of(root):
    with open(root / "positions.csv", newline="", encoding="utf-8") as file:
        return {row["image"]: [float(row["easting"]), float(row["northing"])] for row in csv.DictReader(file)}


def test_the_table_has_the_path_of_each_image(pittsburgh, capsys):
    touch(pittsburgh / "queries", QUERIES)
    assert main.main(["--mode=spec", f"--root={pittsburgh}"]) == 0
    assert "5 images of pitts30k_val" in capsys.readouterr().out
    wanted = dict(zip(NAMES, POSITIONS, strict=True))
    wanted |= {f"queries/{name}": position for name, position in zip(QUERIES, QUERY_POSITIONS, strict=True)}
    assert table_of(pittsburgh) == wanted
    found = read_positions([pittsburgh / name for name in wanted], pittsburgh)
    assert [[position.easting, position.northing] for position in found] == list(wanted.values())


def test_real_specs_become_a_table_in_which_no_image_has_anothers_position(link_spec, tmp_path):
    """Without the images; queries go where they belong."""
    wanted = {}
    for split in ("train", "val", "test"):
        places = link_spec(f"pitts30k_{split}")
        queries = [f"queries_real/{name}" for name in places.query_names]
        wanted |= dict(zip(places.database_names, places.database_positions.tolist(), strict=True))
        wanted |= dict(zip(queries, places.query_positions.tolist(), strict=True))
    assert main.main(["--mode=spec", f"--root={tmp_path}"]) == 0
    assert len(wanted) == 30_000 + 7416 + 7608 + 6816
    assert table_of(tmp_path) == wanted


def test_an_image_with_two_positions_is_in_no_table(pittsburgh, small_spec, capsys):
    small_spec("pitts30k_test", [[501.0, 100.0], *POSITIONS[1:]])
    assert main.main(["--mode=spec", f"--root={pittsburgh}"]) == 2
    error = capsys.readouterr().err
    assert f"{NAMES[0]} has two positions" in error and error.count("\n") == 1
    assert not (pittsburgh / "positions.csv").exists()


def test_time_machines_table_has_each_image_once(tmp_path, small_spec):
    small_spec("tokyoTM_val", queries=NAMES[1:], query_positions=POSITIONS[1:], **TIMES)
    assert main.main(["--mode=spec", "--dataset=tokyotm", f"--root={tmp_path}"]) == 0
    assert table_of(tmp_path) == dict(zip(NAMES, POSITIONS, strict=True))


PANORAMAS = [f"0381{panorama}/x_012_{30 * heading:03d}.jpg" for panorama in range(2) for heading in range(12)]
PANORAMA_POSITIONS = [[381_000.0 + 100 * (number // 12), 3_946_000.0] for number in range(24)]
QUERY_SIZES = [(1280, 960), (960, 1280), (320, 240)]  # width, height


@pytest.fixture
def tokyo(tmp_path, write_spec):
    """Tokyo 24/7 in small, as it is given out: the spec says .jpg, the database's files end with .png."""
    names = [f"{number:05d}.jpg" for number in range(3)]
    write_spec(
        tmp_path / "datasets" / "tokyo247.mat", PANORAMAS, PANORAMA_POSITIONS, names, [PANORAMA_POSITIONS[0]] * 3
    )
    for number, name in enumerate(PANORAMAS):
        draw_image(tmp_path / name.replace(".jpg", ".png"), (800 if number == 0 else 160, 120), number)
    for number, (name, size) in enumerate(zip(names, QUERY_SIZES, strict=True)):
        draw_image(tmp_path / "247query_subset_v2" / name, size, 100 + number)
    return tmp_path


def flags_on(tokyo):
    return ["--mode=test", "--dataset=tokyo247", "--split=test", f"--root={tokyo}", f"--runsPath={tokyo}", *FLAGS]


def test_tokyos_database_is_found_as_png(tokyo, capsys):
    images = read(tokyo, "tokyo247", "test")
    assert images.database_files == [tokyo / name.replace(".jpg", ".png") for name in PANORAMAS]
    assert images.places.database_names == PANORAMAS and all(file.is_file() for file in images.files)
    said = capsys.readouterr().out
    assert said.count(".png") == 1 and said.count("\n") == 1


def test_tokyos_endings_do_not_mix(tokyo, capsys):
    """One set has one ending: that of most of its files; the others are missing."""
    (tokyo / PANORAMAS[3]).touch()
    (tokyo / PANORAMAS[3].replace(".jpg", ".png")).unlink()
    text = refusal(read, tokyo, "tokyo247", "test")
    assert text.startswith("1 of the 27 images") and "x_012_090.png" in text
    touch(tokyo, PANORAMAS)
    capsys.readouterr()
    assert read(tokyo, "tokyo247", "test").database_files == [tokyo / name for name in PANORAMAS]
    assert capsys.readouterr().out == ""  # as the spec says


def test_pittsburghs_images_are_what_the_spec_says(pittsburgh):
    touch(pittsburgh / "queries_real", QUERIES)
    for name in NAMES:
        (pittsburgh / name).rename(pittsburgh / name.replace(".jpg", ".png"))
    assert "images of pitts30k_val are missing" in refusal(read, pittsburgh)


def test_tokyos_queries_are_shrunk_to_640_pixels(tokyo):
    """The longest side of queries alone, never enlarged; --imageSize is the size of all."""
    images = read(tokyo, "tokyo247", "test")
    numbers = [0, 1, 24, 25, 26]
    reader = images.reader(Reading())
    sizes = [(120, 800), (120, 160), (480, 640), (640, 480), (240, 320)]
    assert [reader.image_size(number) for number in numbers] == sizes
    for number, size, (group,) in zip(numbers, sizes, reader.batches([[n] for n in numbers]), strict=True):
        whole = Image.open(images.files[number])
        wanted = np.asarray(whole.resize(size[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert group.image_size == size and np.array_equal(group.values[0], wanted)
    fixed = images.reader(Reading((48, 64)))
    assert {group.image_size for (group,) in fixed.batches([[n] for n in numbers])} == {(48, 64)}
    assert {fixed.image_size(number) for number in numbers} == {(48, 64)}


@pytest.mark.parametrize(
    ("flags", "label"),
    [
        ([], "6 sizes from 160x120 to 480x640 pixels (own size, queries at most 640 pixels long)"),
        (["--imageSize", "64", "96"], "96x64 pixels (resized)"),
    ],
)
def test_a_result_says_how_large_the_queries_were(tokyo, capsys, flags, label):
    draw_image(tokyo / PANORAMAS[1].replace(".jpg", ".png"), (400, 120), 1)
    assert main.main([*flags_on(tokyo), *flags]) == 0 and label in capsys.readouterr().out


def test_descriptors_of_queries_of_another_size_are_not_loaded(tokyo, capsys):
    """Saved at 64x96 or at the queries' own size, they are other descriptors."""
    call = flags_on(tokyo)
    assert main.main([*call, f"--saveDescriptors={tokyo / 'd.h5'}"]) == 0
    first = re.findall("^R@1: .*", capsys.readouterr().out, re.M)
    assert main.main([*call, f"--loadDescriptors={tokyo / 'd.h5'}"]) == 0
    assert re.findall("^R@1: .*", capsys.readouterr().out, re.M) == first != []
    with h5py.File(tokyo / "d.h5", "a") as file:
        assert "640" in file.attrs["image_size"]
        file.attrs["image_size"] = "own"
    assert main.main([*call, f"--loadDescriptors={tokyo / 'd.h5'}"]) == 2
    capsys.readouterr()


def test_tokyos_protocol_is_the_data_sets_whatever_the_file_is_called(tokyo, write_spec):
    """Under --dataset=tokyo247 another file's name changes nothing; elsewhere that of Tokyo 24/7 does not either."""
    spec = tokyo / "datasets" / "tokyo247.mat"
    renamed = spec.rename(spec.with_name("tokyoTM_val.mat"))
    places = read(tokyo, "tokyo247", "val").places
    assert places.name == "tokyoTM_val" and places.protocol == "panorama"
    database = torch.arange(24.0)[:, None]
    assert search_places(database, torch.zeros(1, 1), 3, places).tolist() == [[0, 12, -1]]
    renamed.rename(spec.with_name("pitts30k_val.mat"))
    touch(tokyo, PANORAMAS)
    (tokyo / "247query_subset_v2").rename(tokyo / "queries_real")
    plain = read(tokyo, "pittsburgh", "val").places
    assert plain.protocol == "plain"
    assert search_places(database, torch.zeros(1, 1), 3, plain).tolist() == [[0, 1, 2]]


def test_time_stamps_make_the_protocol_of_any_set(tmp_path, small_spec):
    small_spec("pitts30k_val", **TIMES)
    touch(tmp_path, NAMES)
    touch(tmp_path / "queries_real", QUERIES)
    assert read(tmp_path).places.protocol == "other_time"


def test_each_data_set_has_its_learning_rate():
    """That of the original release's demo: 0.001 for Pittsburgh 30k, 0.0001 for Pittsburgh 250k and Tokyo."""
    rates = {name: parse_options(["--mode=train", f"--dataset={name}"]).lr for name in DATASETS}
    slow = {"pitts250k", "tokyo247", "tokyotm"}
    assert rates == {name: 0.0001 if name in slow else 0.001 for name in DATASETS}
    assert parse_options(["--mode=train", "--dataset=tokyotm", "--lr=0.01"]).lr == 0.01


@pytest.mark.parametrize("name", ["x" * 300 + "/1.jpg", "0\0/1.jpg", "..", "/1.jpg", "a\n/b.jpg"])
@pytest.mark.parametrize("dataset", ["pittsburgh", "tokyo247"])
def test_names_that_no_file_can_have_are_missing_images(tmp_path, write_spec, dataset, name):
    """As a damaged spec may have them."""
    spec = DATASETS[dataset].specs["test"]
    write_spec(tmp_path / "datasets" / f"{spec}.mat", [name, "b.jpg"], POSITIONS[:2], QUERIES, QUERY_POSITIONS)
    assert "images of" in refusal(read, tmp_path, dataset, "test")
