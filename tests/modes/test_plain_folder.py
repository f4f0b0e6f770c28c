"""A flat folder of photos without splits, positions or a model: one command gives the nearest."""

import json
import shutil

import h5py
import numpy as np
import pytest
from drawing import draw_image

import main
import vpr
from vpr.cli.after import next_command
from vpr.cli.options import parse_options
from vpr.common.errors import UserError
from vpr.data.reader import Reading, size_text

MODEL = ("--arch=alexnet", "--fromscratch", "--num_clusters=4", "--precision=fp32")


@pytest.fixture
def photos(tmp_path):
    """Eight photos in a folder, none with a position."""
    for number in range(8):
        draw_image(tmp_path / "photos" / f"IMG_{number}.png", (96, 72), [7, number])
    return tmp_path / "photos"


@pytest.fixture
def call(tmp_path, photos, capsys):
    """Calls a mode by its name, as its first word, on the folder."""

    def run(mode, *words):
        capsys.readouterr()
        kept = [f"--dataPath={tmp_path / 'model'}", f"--runsPath={tmp_path / 'runs'}"]
        code = main.main([mode, f"--root={photos}", *MODEL, *kept, *map(str, words)])
        return code, *capsys.readouterr()

    return run


def test_one_command_learns_clusters_of_the_folder_and_locates(call, photos, tmp_path):
    asked = tmp_path / "asked.png"
    shutil.copyfile(photos / "IMG_3.png", asked)
    code, out, err = call("locate", asked, "--json", "--panels=0")
    assert code == 0 and err.count("no clusters yet: learning 4 from 8 images of photos") == 1
    (answer,) = json.loads(out)
    assert answer["matches"][0]["name"] == "IMG_3.png" and answer["matches"][0]["distance"] < 1e-3
    (kept,) = (tmp_path / "model").glob("*.hdf5")
    with h5py.File(kept) as file:
        norms = np.linalg.norm(file["descriptors"][:], axis=1)
        assert file["centroids"].shape[0] == 4 and np.allclose(norms, 1, atol=1e-5)

    # The folder grows: the clusters, and with them the descriptors of its other images, stay.
    draw_image(photos / "IMG_8.png", (96, 72), [7, 8])
    code, out, err = call("locate", photos / "IMG_8.png", "--json", "--panels=0")
    assert code == 0 and "no clusters yet" not in err and "1 described" in err
    assert json.loads(out)[0]["matches"][0]["name"] == "IMG_8.png"


def test_frames_of_a_video_are_asked_one_every_so_many_seconds(call, photos, tmp_path):
    cv2 = pytest.importorskip("cv2")
    video = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 4, (96, 72))
    for number in (1, 1, 5, 5, 2, 2):  # half a second of each image
        writer.write(cv2.imread(str(photos / f"IMG_{number}.png")))
    writer.release()
    code, out, _ = call("locate", video, "--videoStep=0.5", "--json", "--panels=1")
    assert code == 0
    answers = json.loads(out)
    assert [answer["photo"] for answer in answers] == [f"walk.avi/0000{n // 2}.{n % 2 * 5}0.jpg" for n in range(3)]
    assert [answer["matches"][0]["name"] for answer in answers] == ["IMG_1.png", "IMG_5.png", "IMG_2.png"]

    video.write_bytes(b"no video" * 99)
    code, _, err = call("locate", video)
    assert code == 2 and f"{video} has no frame that can be decoded" in err


def test_cluster_wants_no_positions_and_locate_takes_its_clusters(call, photos, tmp_path):
    code, out, _ = call("cluster")
    assert code == 0 and "4 centroids" in out
    code, out, _ = call("locate", photos / "IMG_0.png", "--panels=0")
    assert code == 0 and "no clusters yet" not in out and len([*(tmp_path / "model").glob("*.hdf5")]) == 1


def test_a_named_file_of_clusters_goes_first(call, photos, tmp_path):
    assert call("cluster")[0] == 0
    (kept,) = (tmp_path / "model").glob("*.hdf5")
    named = tmp_path / "named.hdf5"
    kept.rename(named)
    code, out, _ = call("locate", photos / "IMG_0.png", "--panels=0", f"--dataPath={named}")
    assert code == 0 and "no clusters yet" not in out
    code, _, err = call("locate", photos / "IMG_0.png", "--panels=0", f"--dataPath={tmp_path / 'none.hdf5'}")
    assert code == 2 and "no centroids at" in err


@pytest.mark.parametrize("skeleton", [("train/database",), ("train/database", "val/database"), ()])
def test_empty_folders_of_splits_are_no_splits(call, photos, skeleton):
    for folder in skeleton:
        (photos / folder).mkdir(parents=True)
    code, out, _ = call("cluster")
    assert code == 0 and "4 centroids" in out


def test_a_validation_split_alone_gives_its_database_to_the_clusters(call, photos):
    (photos / "val" / "queries").mkdir(parents=True)
    draw_image(photos / "val" / "queries" / "asked.png", (96, 72), [7, 20])
    (photos / "val" / "database").mkdir()
    for image in photos.glob("*.png"):
        image.rename(photos / "val" / "database" / image.name)
    code, out, _ = call("cluster")
    assert code == 0 and "local descriptors: 8/8 images" in out


def test_a_root_with_images_and_no_specs_is_a_folder_of_own_images(photos, tmp_path):
    assert parse_options(["locate", f"--root={photos}", "x.jpg"]).dataset == "folder"
    # Without splits there is nothing to test: the message of the data set by specs stays.
    assert parse_options(["test", f"--root={photos}"]).dataset == "pittsburgh"
    assert parse_options(["export", f"--root={photos}"]).dataset == "folder"
    (photos / "val" / "database").mkdir(parents=True)
    assert parse_options(["test", f"--root={photos}"]).dataset == "pittsburgh"  # an empty folder
    (photos / "IMG_0.png").rename(photos / "val" / "database" / "IMG_0.png")
    assert {parse_options([mode, f"--root={photos}"]).dataset for mode in ("test", "train", "whiten")} == {"folder"}
    assert parse_options(["test", f"--root={photos}", "--dataset=toy"]).dataset == "toy"  # typed
    (photos / "datasets").mkdir()
    (photos / "datasets" / "pitts30k_val.mat").touch()
    assert parse_options(["locate", f"--root={photos}", "x.jpg"]).dataset == "pittsburgh"
    assert parse_options(["locate", f"--root={tmp_path / 'nowhere'}", "x.jpg"]).dataset == "pittsburgh"


def test_the_first_word_may_be_the_mode():
    assert parse_options(["spec", "--dataset=toy"]).mode == "spec"
    options = parse_options(["locate", "spec"])
    assert options.mode == "locate" and options.inputs == ["spec"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["locat", "x.jpg"], "did you mean locate?"),
        (["x.jpg"], "no mode: "),
        (["locate", "--tpo=3"], "did you mean --top?"),
        (["test", "--dateset=folder"], "did you mean --dataset?"),
        (["test", "--qqqqqq"], "unrecognized arguments: --qqqqqq; see --help"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest(words, wanted):
    with pytest.raises(UserError) as raised:
        parse_options(words)
    assert wanted in str(raised.value)


def test_each_model_has_an_index_of_its_own(call, photos, tmp_path):
    asked = photos / "IMG_0.png"
    assert call("locate", asked, "--panels=0")[0] == 0
    code, out, _ = call("locate", asked, "--panels=0", "--pooling=gem")
    assert code == 0 and "8 described" in out
    names = sorted(path.name for path in (tmp_path / "model").glob("*.sqlite"))
    assert len(names) == 2 and names[0].startswith("database_photos")
    for words in ((), ("--pooling=gem",)):  # neither is made again
        code, out, _ = call("locate", asked, "--panels=0", *words)
        assert code == 0 and "described" not in out


def test_the_off_the_shelf_models_index_lies_beside_the_folder_of_clusters(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["index", f"--root={photos}", *MODEL]) == 0
    assert (tmp_path / "indexes" / "database_photos.sqlite").is_file()
    assert [path.suffix for path in (tmp_path / "centroids").iterdir()] == [".hdf5"]
    # One that an earlier version made lies in centroids/, and stays in use.
    for path in (tmp_path / "indexes").iterdir():
        path.rename(tmp_path / "centroids" / path.name)
    capsys.readouterr()
    assert main.main(["index", f"--root={photos}", *MODEL]) == 0
    assert "8 unchanged" in capsys.readouterr().out and not [*(tmp_path / "indexes").iterdir()]
    # So does one of before these files, beside which the new one comes: it may have images of other folders.
    for path in (tmp_path / "centroids").glob("database_*"):
        path.unlink()
    (tmp_path / "centroids" / "database_photos.h5").write_bytes(b"no index")
    assert main.main(["index", f"--root={photos}", *MODEL]) == 2
    assert "database_photos.h5" in capsys.readouterr().err


def test_bare_resume_passes_over_a_run_without_a_model(tmp_path):
    flags = {"arch": "alexnet", "pooling": "avg", "dataset": "toy"}
    for name, files in (("2026-01-01_a", ("model_best", "checkpoint")), ("2026-01-02_b", ("checkpoint",))):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "flags.json").write_text(json.dumps(flags))
        for file in files:
            (tmp_path / name / "checkpoints" / f"{file}.pth.tar").touch()
    used, trained = (parse_options([mode, "--resume", f"--runsPath={tmp_path}"]) for mode in ("test", "train"))
    assert used.run.name == "2026-01-01_a" and trained.run.name == "2026-01-02_b"
    assert any("2026-01-02_b has no model" in note for note in used.notes) and not trained.notes
    latest = parse_options(["test", "--resume", "--ckpt=latest", f"--runsPath={tmp_path}"])
    assert latest.run.name == "2026-01-02_b"


def test_re_ranked_matches_have_the_score_that_orders_them(call, photos):
    code, out, _ = call("locate", photos / "IMG_0.png", "--json", "--panels=0", "--rerank=3", "--top=5")
    scores = [match["score"] for match in json.loads(out)[0]["matches"]]
    assert code == 0 and scores[:3] == sorted(scores[:3], reverse=True) and scores[3:] == [None, None]
    code, out, _ = call("locate", photos / "IMG_0.png", "--panels=0", "--rerank=3", "--top=1")
    assert f"score {scores[0]:.3f}  distance" in out

    def scores_by(*words):
        answers = json.loads(call("locate", photos / "IMG_0.png", "--json", "--panels=0", *words)[1])
        return [match["score"] for match in answers[0]["matches"]]

    assert set(scores_by("--rerank=0")) == {None}
    assert None not in scores_by(), "a small index of own images keeps local descriptors by itself"


def test_without_positions_nothing_is_said_of_other_places(call, photos):
    (answer,) = json.loads(call("locate", photos / "IMG_0.png", "--json", "--panels=0")[1])
    assert answer["confidence"] is None and "no position of the first match is known" in answer["confidence_kind"]
    asked, told = photos / "IMG_0.png", "refuses all images: the database has no positions"
    _, out, _ = call("locate", asked, "--panels=0", "--minConfidence=0.1")
    assert out.count(f"--minConfidence=0.1 {told}") == 1 and "no place found" in out
    assert out.count(f"no image of {photos} has a position") == 1 and "IMG_3.png, " not in out
    assert told not in call("locate", asked, "--panels=0")[1]
    rows = [f"IMG_{n}.png,{585000 + 10 * n},4477000" for n in range(1, 8)]
    (photos / "positions.csv").write_text("\n".join(["image,easting,northing", *rows]))
    _, out, _ = call("locate", asked, "--panels=0", "--minConfidence=0.1")
    assert told not in out and "1 of 8 images have no position, first" in out


def test_the_longer_side_is_shrunk_and_proportions_are_kept(tmp_path, call, photos):
    sizes = {"wide.png": (96, 72), "upright.png": (60, 120), "small.png": (40, 30)}
    for name, (width, height) in sizes.items():
        draw_image(tmp_path / "sizes" / name, (width, height), [7, width])
    reader = Reading((48,)).of([tmp_path / "sizes" / name for name in sizes])
    shapes = [reader[index].shape[1:] for index in range(3)]
    assert shapes == [(36, 48), (48, 24), (30, 40)] == [reader.image_size(index) for index in range(3)]
    assert size_text((48,)) == "longest 48" and size_text((36, 48)) == "36 48" and size_text(None) == "own"

    asked = photos / "IMG_2.png"
    code, out, _ = call("locate", asked, "--panels=0", "--longSide=90")
    assert code == 0 and "8 described" in out and "IMG_2.png" in out.split("   1  ")[1].splitlines()[0]
    assert "8 described" in call("locate", asked, "--panels=0")[1], "other descriptors, another index"
    with pytest.raises(UserError, match="contradict"):
        parse_options(["locate", "--imageSize", "64", "80", "--longSide=90", "x.jpg"])


def test_a_folder_remembers_its_model(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["index", f"--root={photos}", *MODEL]) == 0
    assert f"next: python main.py locate --root={photos} IMAGE.jpg" in capsys.readouterr().out
    assert main.main(["locate", f"--root={photos}", "--precision=fp32", "--panels=0", str(photos / "IMG_5.png")]) == 0
    out = capsys.readouterr().out
    assert "--arch=alexnet" in out and "IMG_5.png" in out and "described" not in out
    assert "taken as --dataset=folder" not in out, "said when the model was chosen"
    (answer,) = vpr.load_locator(root=photos, precision="fp32").locate([photos / "IMG_5.png"])
    assert answer.matches[0].name == "IMG_5.png" and "described" not in capsys.readouterr().out
    exported = parse_options(["export", f"--root={photos}", "--out=x.onnx"])
    assert (exported.arch, exported.num_clusters, exported.dataset) == ("alexnet", 4, "folder")
    options = parse_options(["locate", f"--root={photos}", "--model=fast", "x.jpg"])  # who types a model is given that
    assert (options.arch, options.cut, options.fromscratch) == ("tf_efficientnet_lite0", 16, False)
    options = parse_options(["locate", f"--root={photos}", "--imageSize", "64", "80", "x.jpg"])
    assert (options.arch, options.num_clusters, options.imageSize) == ("alexnet", 4, [64, 80])
    assert parse_options(["cluster", f"--root={photos}"]).arch == "vgg16"  # is told in full
    (photos / ".netvlad.json").write_text(json.dumps({"model": "fast", "arch": "tf_efficientnet_lite0", "cut": 16}))
    assert [note.rpartition(": ")[2] for note in parse_options(["index", f"--root={photos}"]).notes] == ["--model=fast"]


@pytest.mark.parametrize("mode", ["cluster", "locate", "test", "train"])
@pytest.mark.parametrize("dataset", [[], ["--dataset=folder"]])
def test_a_root_that_is_not_there_is_said(photos, capsys, mode, dataset):
    words = [str(photos / "IMG_0.png")] if mode == "locate" else []
    assert main.main([mode, f"--root={photos}x", *dataset, *MODEL, *words]) == 2
    assert f"--root {photos}x does not exist" in capsys.readouterr().err


def test_a_typed_flag_takes_the_place_of_the_folders_that_contradicts_it(photos):
    kept = {"model": "fast", "noWhiten": True, "imageSize": [64, 80]}
    (photos / ".netvlad.json").write_text(json.dumps(kept))
    options = parse_options(["locate", f"--root={photos}", "--pcaDim=64", "--longSide=99", "x.jpg"])
    assert (options.pcaDim, options.noWhiten, options.longSide, options.imageSize) == (64, False, 99, None)


@pytest.mark.parametrize("content", ["[]", "{", '{"arch": "no/such"}', '{"sure": 1}'])
def test_nonsense_in_a_folders_file_is_refused(photos, content):
    (photos / ".netvlad.json").write_text(content)
    with pytest.raises(UserError) as raised:
        parse_options(["locate", f"--root={photos}", "x.jpg"])
    assert ".netvlad.json" in str(raised.value)


def test_short_names_of_models_yield_to_typed_flags():
    options = parse_options(["locate", "--model=fast", "--cut=8", "x.jpg"])
    assert (options.arch, options.cut) == ("tf_efficientnet_lite0", 8)
    assert parse_options(["locate", "--model=classic", "x.jpg"]).arch == "vgg16"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["train", "--dataset=toy"], "python main.py test --split=test --resume"),
        (["train", "--root=photos", "--dataset=folder"], "python main.py test --resume"),  # it has no such split
        (["train", "--resume=RUN", "--dataset=toy"], "python main.py test --split=test --resume=RUN"),
        (["index", "--dataset=toy", "--arch=alexnet"], 
         "python main.py --mode=locate --arch=alexnet --dataset=toy IMAGE.jpg"),
        (["index", "--dataset=folder", "--root=a b"], "python main.py locate --root='a b' IMAGE.jpg"),
        (["index", "--resume=RUN", "--split=test"], "python main.py locate --resume=RUN --split=test IMAGE.jpg"),
        (["test", "--resume=RUN", "--root=DIR", "--dataset=folder"],
         "python main.py locate --resume=RUN --dataset=folder --root=DIR IMAGE.jpg"),
        (["test", "--arch=alexnet", "--dataset=toy"],
         "python main.py --mode=locate --arch=alexnet --dataset=toy IMAGE.jpg"),
        (["test", "--dataset=toy", "--loadDescriptors=of_hloc.h5"], ""),
        (["locate", "--dataset=folder", "--root=DIR", "x.jpg"], "python main.py serve --root=DIR"),
        (["locate", "--resume=RUN", "--split=test", "x.jpg"], "python main.py serve --resume=RUN --split=test"),
        (["locate", "--json", "x.jpg"], ""),
        (["serve", "--dataset=toy"], ""),
    ],
)  # fmt: skip
def test_the_command_that_comes_next(words, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "photos").mkdir(exist_ok=True)
    (tmp_path / "RUN" / "flags.json").write_text(json.dumps({"arch": "vgg16", "dataset": "toy", "pooling": "netvlad"}))
    assert next_command(parse_options(words)) == wanted
