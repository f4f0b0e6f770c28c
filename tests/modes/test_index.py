"""--mode=index follows a folder: what is new is described, what moved is not, what is gone is gone."""

import json
import shutil

import numpy as np
import pytest
from drawing import draw_image
from own_images import FP32, draw_split, image_name, names_found

from vpr.common.errors import UserError
from vpr.common.provenance import write_hdf5
from vpr.data.layouts.folders import folder_hash
from vpr.database.faiss_engine import FaissEngine
from vpr.database.store.store import Store
from vpr.database.store.stored_records import StoredColumns, StoredRecords


@pytest.fixture
def own(tmp_path):
    """Ten database images 20 m apart in zone 17N, with the weather in a table."""
    root = draw_split(tmp_path / "own", 10, step=20)
    lines = [f"{name(n)},{585000 + 20 * n},4477000,{'rain' if n % 3 else 'sun'},{n}" for n in range(10)]
    (root / "positions.csv").write_text("\n".join(["image,easting,northing,weather,hour", *lines]))
    return root


def name(number):
    return image_name(20 * number, number)


def draw(path, seed):
    draw_image(path, (96, 72), [4, seed])


@pytest.fixture
def run(own, call_on):
    """Runs a mode on the folder."""

    def call(mode, *words):
        extra = ["--json", "--top=20"] if mode == "locate" else ["--cacheBatchSize=3"]
        return call_on(own, mode, *extra, *words, model=FP32)

    return call


@pytest.fixture
def more(tmp_path):
    """Another folder, of one image."""
    draw(tmp_path / "more" / "1.png", 100)
    return tmp_path / "more"


def content(folder, stem="database_own_val"):
    store = Store(folder / "model" / f"{stem}.sqlite", 256)
    state = store.state()
    records = StoredRecords(StoredColumns(store, state.generation), np.ones(state.rows, bool), None)
    assert not len(state.gone)
    return list(records.names), store.flat(state)[0].copy(), records.columns


def suffixes(folder):
    return sorted(path.suffix for path in folder.iterdir())


def test_it_follows_its_folder_and_describes_only_what_is_new(run, own, tmp_path):
    assert "10 added; 10 described" in run("index").out
    before = content(tmp_path)
    code, out, _ = run("index")
    assert code == 0 and "10 unchanged; 0 described" in out and "wrote" not in out
    folder = own / "val" / "database"
    (folder / name(0)).rename(folder / "@585000@4477000@17@T@moved@.png")
    shutil.copyfile(folder / name(1), folder / "@585900@4477000@17@T@copy@.png")  # another time, the same content
    draw(folder / name(2), 77)
    (folder / name(3)).unlink()
    _, out, _ = run("index")
    assert "1 replaced, 2 found again under another name, 2 removed, 7 unchanged; 1 described" in out
    followed = content(tmp_path)
    (tmp_path / "model").rename(tmp_path / "followed")
    assert run("index").code == 0
    anew = content(tmp_path)
    assert followed[0] == anew[0] and followed[2] == anew[2]
    np.testing.assert_allclose(followed[1].astype(float), anew[1].astype(float), atol=1e-3)  # float16; other batches
    assert np.array_equal(followed[1][[0, -1]], before[1][[0, 1]]), "copied, not described again"


def test_swapped_images_are_swapped(run, own, tmp_path):
    run("index")
    folder, (names, before, _) = own / "val" / "database", content(tmp_path)
    first, second, aside = folder / name(0), folder / name(1), folder / "aside"
    first.rename(aside), second.rename(first), aside.rename(second)
    assert "0 described" in run("index").out
    after = content(tmp_path)
    assert after[0] == names and np.array_equal(after[1][[0, 1]], before[[1, 0]])
    assert np.array_equal(after[1][2:], before[2:])


def test_a_changed_table_changes_places_without_describing(run, own, tmp_path):
    run("index")
    table = (own / "positions.csv").read_text()
    (own / "positions.csv").write_text(table.replace("sun,9", "fog,9"))
    assert "1 with another place or table row, 9 unchanged; 0 described" in run("index").out
    assert content(tmp_path)[2] == {
        "weather": [*(["sun", "rain", "rain"] * 3), "fog"], "hour": [float(n) for n in range(10)],
    }  # fmt: skip


def test_a_cut_off_index_goes_on_and_ends_as_an_undisturbed_one(run, own, tmp_path, monkeypatch):
    assert run("index").code == 0
    whole = content(tmp_path)
    shutil.rmtree(tmp_path / "model")
    add, calls = FaissEngine.add, []

    def cut_off(self, *arguments):
        if len(calls) == 2:
            raise UserError("cut off")
        calls.append(1)
        return add(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(FaissEngine, "add", cut_off)
        assert run("index").code == 2
    _, out, _ = run("index")
    assert "4 added, 6 unchanged; 4 described" in out
    after = content(tmp_path)
    assert after[0] == whole[0] and np.array_equal(after[1], whole[1])


def test_images_of_other_folders_are_added_and_stay_until_they_are_removed(run, own, tmp_path):
    more = tmp_path / "more"
    for number in range(3):
        draw(more / f"@{586000 + 20 * number}@4477000@17@T@m@.png", 100 + number)
    file = next(more.iterdir())
    assert f"--add: {file} is a file: name a folder of images" in run("index", f"--add={file}").err
    assert "3 added; 3 described" in run("index", f"--add={more}").out, "also where there is no index yet"
    shutil.rmtree(tmp_path / "model")
    run("index")
    code, out, _ = run("index", f"--add={more}")
    assert code == 0 and "3 added; 3 described" in out
    draw(own / "val" / "database" / "@587000@4477000@17@T@late@.png", 200)
    code, out, err = run("locate", more)
    assert code == 0 and "edited by --add or --remove, and is taken as it is" in err
    found = names_found(out)
    assert [names[0] for names in found] == [f"more/@{586000 + 20 * n}@4477000@17@T@m@.png" for n in range(3)]
    assert len(found[0]) == 13
    code, out, _ = run("index", "--remove", "more/*586020*", f"val/database/{name(0)}")
    assert code == 0 and "2 removed" in out
    assert len(names_found(run("locate", more).out)[0]) == 11
    assert "2 added, 9 unchanged; 2 described" in run("index").out, "its folder's own again; the others stay"
    names = content(tmp_path)[0]
    assert sum(each.startswith("more/") for each in names) == 2 and len(names) == 13
    assert "found no such image" in run("index", "--remove", "nobody.png").error


def test_searches_are_limited_to_a_part_of_the_database(run, own):
    image = own / "val" / "database" / name(5)
    everywhere = names_found(run("locate", image, "--rerank=0").out)[0]
    assert len(everywhere) == 10

    def numbers(*words):
        code, out, err = run("locate", image, "--rerank=0", *words)
        assert code == 0, err
        names = names_found(out)[0]
        assert names == [each for each in everywhere if each in names], "in the same order"
        return sorted(int(each.rsplit("@", 2)[1]) for each in names)

    _, out, _ = run("locate", image, "--top=1")
    match = json.loads(out)[0]["matches"][0]
    latitude, longitude = match["latitude"], match["longitude"]
    assert numbers(f"--near={latitude},{longitude},50") == [3, 4, 5, 6, 7]
    assert numbers(f"--box={latitude - 1},{longitude - 1e-6},{latitude + 1},{longitude + 1}") == [5, 6, 7, 8, 9]
    assert numbers("--where", "weather=sun", "hour<=6") == [0, 3, 6]
    assert numbers("--near=0,0,100") == []
    assert "no column season" in run("locate", image, "--where", "season=winter").last_error
    assert "latitude" in run("locate", image, "--near=100,0,5").error


def test_an_inverted_file_stays_on_the_disk(run, own, tmp_path):
    assert run("index", "--index=IVF2,Flat", "--nprobe=2", "--onDisk").code == 0
    files = suffixes(tmp_path / "model")
    assert files == [".descriptors", ".faiss", ".lists", ".sqlite"]
    image = own / "val" / "database" / name(5)
    on_disk = names_found(run("locate", image).out)
    draw(own / "val" / "database" / "@587000@4477000@17@T@late@.png", 200)
    assert "1 added, 10 unchanged; 1 described" in run("locate", image).err
    assert suffixes(tmp_path / "model") == files
    (own / "val" / "database" / "@587000@4477000@17@T@late@.png").unlink()
    assert run("index").code == 0 and suffixes(tmp_path / "model") == [".descriptors", ".sqlite"]
    assert names_found(run("locate", image).out) == on_disk


def earlier_index(path, images, base):
    """A file as an earlier version wrote it, of which the records alone matter."""
    texts = {
        "names": [name for name, _ in images],
        "folders": [str(folder or "") for _, folder in images],
        "columns": {},
    }
    count = len(images)
    numbers = {"positions": np.full((count, 2), 585000.0), "hashes": np.zeros((count, 32), np.uint8)}
    numbers |= {"sizes": np.ones(count, np.int64), "modified": np.ones(count, np.int64)}
    arrays = {name: np.frombuffer(json.dumps(value).encode(), np.uint8) for name, value in texts.items()}
    write_hdf5(path, arrays | numbers, {"zone": "17N", "folder_hash": folder_hash(base)})


def test_images_of_other_folders_outlive_an_index_of_an_earlier_version(run, own, tmp_path):
    more, gone = tmp_path / "more", tmp_path / "gone"
    draw(more / "cards" / "1.png", 100)
    path = tmp_path / "model" / "database_own_val.h5"
    earlier_index(path, [(f"val/database/{name(0)}", None), ("cards/1.png", more), ("cards/2.png", gone)], own)
    code, out, _ = run("index")
    assert code == 0 and "10 added" in out and "1 of other folders described again" in out
    assert f"{path} was written by an earlier version" in out and "2 of other folders among them" in out
    assert "cards/2.png cannot be found until" in out
    assert names_found(run("locate", more).out)[0][0] == "cards/1.png"
    assert "cards/2.png cannot be found until" in run("index").out, "it is not forgotten"
    draw(gone / "cards" / "2.png", 101)
    assert "1 of other folders described again" in run("index").out
    assert names_found(run("locate", gone).out)[0][0] == "cards/2.png"


def test_changes_that_an_earlier_version_left_in_a_journal_are_not_passed_over(run, tmp_path):
    (tmp_path / "model").mkdir()
    journal = tmp_path / "model" / "database_own_val.journal"
    journal.write_bytes(b"netvlad journal 1\n")
    assert str(journal) in run("index").error
    journal.unlink()
    assert run("index").code == 0


def test_images_of_other_folders_outlive_another_model(run, more):
    run("index")
    run("index", f"--add={more}")
    code, out, _ = run("index", "--imageSize", "48", "64")
    assert code == 0 and "was made by another model (image_size=own" in out
    assert "1 images of other folders are described again" in out and "10 added" in out
    assert names_found(run("locate", more, "--imageSize", "48", "64").out)[0][0] == "more/1.png"
    (more / "1.png").unlink()
    code, out, _ = run("index")
    assert code == 0 and "more/1.png cannot be found until" in out
    assert run("index", "--remove", "more/1.png").code == 0 and "cannot be found" not in run("index").out


def test_sequences_are_searched_though_images_came_and_went_since(run, own, more):
    run("index")
    run("index", f"--add={more}")
    run("index", "--remove", f"val/database/{name(4)}")
    code, out, err = run("locate", "--sequence=1", own / "val" / "database")
    assert code == 0, err
    found, removed = names_found(out), f"val/database/{name(4)}"
    assert all(names[0] == f"val/database/{name(n)}" for n, names in enumerate(found) if n != 4)
    assert not any(removed in names or "" in names for names in found)


def test_a_damaged_index_is_kept_and_said(run, tmp_path):
    run("index")
    path = tmp_path / "model" / "database_own_val.sqlite"
    path.write_bytes(b"nonsense" * 99)
    code, out, _ = run("index")
    assert code == 0 and "replaced: " in out and "images of other folders are to be added again" in out
    assert path.with_suffix(".damaged").read_bytes() == b"nonsense" * 99 and content(tmp_path)[0]
