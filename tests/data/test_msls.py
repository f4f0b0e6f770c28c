"""Mapillary Street-Level Sequences: which images take part, and which of them match, counted by hand."""

import pytest
from drawing import draw_image
from loading import hits, load, refusal, touch

import main
from vpr.data.catalogue import DATASETS
from vpr.data.places import PlacesSpec, has_split, load_database

# key, easting, northing, panorama, in the subtask `all`
CPH_DATABASE = [("a", 0, 0, 0, 1), ("b", 20, 0, 0, 1), ("c", 100, 0, 1, 1), ("d", 60, 0, 0, 1), ("e", 300, 0, 0, 0)]
CPH_QUERIES = [
    ("q0", 10, 0, 0, 1),  # a, b
    ("q1", 25, 0, 0, 1),  # a at 25 m, b
    ("q2", 100, 0, 0, 1),  # c alone, a panorama: none
    ("q3", 60, 0, 1, 1),  # a panorama
    ("q4", 61, 0, 0, 0),  # d, but not in `all`
    ("q5", 300, 0, 0, 1),  # e alone, which is not in `all`
]
SF_DATABASE = [("f", 1000, 0, 0, 1), ("g", 0, 0, 0, 1)]
SF_QUERIES = [("q6", 0, 0, 0, 1), ("q7", 20, 0, 0, 1), ("q8", 2000, 0, 0, 1)]  # g though Copenhagen's a is there too; g


def table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f",{columns}", *(",".join(map(str, (number, *row))) for number, row in enumerate(rows))]
    path.write_text("\n".join(lines) + "\n")


def city(root, name, database, queries, part="train_val"):
    """A city in the columns of the metadata archive."""
    for role, images in (("database", database), ("query", queries)):
        folder = root / part / name / role
        table(
            folder / "postprocessed.csv",
            "key,easting,northing,unique_cluster,night,control_panel,view_direction",
            [(key, east, north, 0, False, False, "Forward") for key, east, north, _, _ in images],
        )
        taken = [(key, 1.5, 2.5, 90, "2017-01-01", bool(pano)) for key, _, _, pano, _ in images]
        table(folder / "raw.csv", "key,lon,lat,ca,captured_at,pano", taken)
        asked = [(key, bool(taken), False) for key, _, _, _, taken in images]
        table(folder / "subtask_index.csv", "key,all,s2w", asked)
        touch(folder / "images", [f"{key}.jpg" for key, *_ in images])


@pytest.fixture
def root(tmp_path):
    city(tmp_path, "cph", CPH_DATABASE, CPH_QUERIES)
    city(tmp_path, "sf", SF_DATABASE, SF_QUERIES)
    return tmp_path


def read(root, split="val"):
    return load(root, "msls", split)


def keys(files):
    return [file.stem for file in files]


def matches(images):
    """The keys of each query's positives."""
    found = [keys([images.database_files[hit] for hit in each]) for each in hits(images.places)]
    return dict(zip(keys(images.query_files), found, strict=True))


def test_the_official_validation_asks_queries_of_all_that_have_a_positive(root):
    images = read(root)
    assert keys(images.database_files) == ["a", "b", "d", "f", "g"]
    assert matches(images) == {"q0": ["a", "b"], "q1": ["a", "b"], "q6": ["g"], "q7": ["g"]}
    assert images.query_files[2] == root / "train_val" / "sf" / "query" / "images" / "q6.jpg"


def test_all_queries_of_the_validation_are_another_split(root):
    images = read(root, "val_all")
    assert keys(images.database_files) == ["a", "b", "d", "e", "f", "g"]
    assert matches(images) == {
        "q0": ["a", "b"], "q1": ["a", "b"], "q2": [], "q4": ["d"], "q5": ["e"], "q6": ["g"], "q7": ["g"], "q8": [],
    }  # fmt: skip


def test_training_positives_are_within_10_m_of_the_same_city(root):
    found = read(root, "val_all").places.training_positives()
    # q0 lies 10 m from a and b, q4 just 1 m from d, which is too near; q6 lies on g, q7 20 m from it.
    assert [each.tolist() for each in found] == [[0, 1], [1], [], [], [], [], [], []]
    assert read(root, "val_all").places.not_negatives()[0].tolist() == [0, 1]


def test_an_image_that_is_left_out_keeps_the_others_in_their_cities(root):
    places = read(root, "val_all").places.only([0, 5], [0, 5])
    assert hits(places) == [[0], [1]]


def test_test_cities_need_the_published_ground_truth_and_no_raw_table(tmp_path):
    for name in DATASETS["msls"].splits["test"].cities:
        city(tmp_path, name, [(f"d{name}", 0, 0, 0, 1)], [(f"q{name}", 3, 4, 0, 1), (f"r{name}", 90, 0, 0, 1)], "test")
        for role in ("database", "query"):
            (tmp_path / "test" / name / role / "raw.csv").unlink()
    assert matches(read(tmp_path, "test")) == {
        f"q{name}": [f"d{name}"] for name in DATASETS["msls"].splits["test"].cities
    }
    (tmp_path / "test" / "miami" / "query" / "postprocessed.csv").unlink()
    assert "miami/query/postprocessed.csv cannot be read" in refusal(read, tmp_path, "test")


def test_the_database_alone_for_an_index(root):
    images = load_database(PlacesSpec("msls", root), "val")
    assert keys(images.database_files) == ["a", "b", "d", "f", "g"] and not images.query_files
    assert has_split(PlacesSpec("msls", root), "val") and not has_split(PlacesSpec("msls", root), "train")


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("postprocessed.csv", "easting", "x", "has no column easting"),
        ("postprocessed.csv", "b,20", "b,west", "a position that is no number"),
        ("postprocessed.csv", "b,20", "b,nan", "a position that is no number"),
        ("raw.csv", "pano", "panorama", "has no column pano"),
        ("raw.csv", "1,b", "1,B", "lists other images than postprocessed.csv"),
        ("raw.csv", "1,b,1.5,2.5,90,2017-01-01,False", "1,b", "line 3 is too short"),
        ("subtask_index.csv", "all", "every", "has no column all"),
        ("subtask_index.csv", "4,e,False,False\n", "", "lists other images than postprocessed.csv"),
    ],
)
def test_tables_that_do_not_fit_are_one_line(root, name, old, new, words):
    path = root / "train_val" / "cph" / "database" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    text = refusal(read, root)
    assert words in text and ("cph" in text)


@pytest.mark.slow
def test_a_network_is_trained_on_the_training_cities_and_tested_by_the_official_queries(tmp_path, capsys):
    """22 cities of a street each, all at the same metres: images of other cities are no positives but negatives."""
    for part, number_of_cities in (("train", 22), ("val", 2)):
        for name in DATASETS["msls"].splits[part].cities:
            city(tmp_path, name, [(f"d{name}{n}", 60 * n, 0, 0, 1) for n in range(2)], [(f"q{name}", 3, 4, 0, 1)])
        assert len(DATASETS["msls"].splits[part].cities) == number_of_cities
    for number, file in enumerate(sorted((tmp_path / "train_val").rglob("*.jpg"))):
        draw_image(file, (80, 64), number)
    common = [
        "--dataset=msls", f"--root={tmp_path}", "--arch=alexnet", "--fromscratch", "--num_clusters=4", "--threads=0",
        "--device=cpu", f"--dataPath={tmp_path / 'centroids'}", f"--runsPath={tmp_path / 'runs'}",
    ]  # fmt: skip
    assert main.main(["--mode=cluster", *common]) == 0
    assert main.main(["--mode=train", *common, "--nEpochs=1", "--margin=5", "--nNeg=5"]) == 0
    assert (
        "msls_train: 44 database images, 22 queries; 0 queries without a potential positive" in capsys.readouterr().out
    )
    assert main.main(["--mode=test", "--resume", f"--runsPath={tmp_path / 'runs'}", "--panels=1", "--device=cpu"]) == 0
    (line,) = {line for line in capsys.readouterr().out.splitlines() if line.startswith("protocol: ")}
    assert line == (
        "protocol: msls, split val (msls_val); 2 queries, 4 database images (published: 740 and 18871); right: within "
        "25 m; queries in the joint database of the split's cities, right only in the query's own; panoramas not "
        "merged; subtask all, queries without a positive left out, panoramic images left out"
    )


def test_missing_cities_and_images_are_named(root):
    (root / "train_val" / "sf" / "query" / "images" / "q7.jpg").unlink()
    text = refusal(read, root)
    assert "1 of the 9 images of msls_val are missing" in text and "q7.jpg" in text
    (root / "train_val" / "sf").rename(root / "train_val" / "sanfrancisco")
    assert "train_val has no folder sf" in refusal(read, root)
    assert "no folder trondheim, london" in refusal(read, root, "train")
