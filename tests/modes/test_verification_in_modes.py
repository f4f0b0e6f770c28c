"""Verification by keypoints by the command line: test, locate, index and compare order hits alike."""

import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from drawing import draw_image
from own_images import FP32, MODEL, database_names, draw_split, image_name, names_found
from PIL import Image

import main
import vpr.cli.locating
import vpr.modes.test
from vpr.common.errors import UserError
from vpr.data.images import decode
from vpr.data.reader import Reading
from vpr.descriptors.local_file import read_local
from vpr.retrieval.rerank import local_scores
from vpr.retrieval.verification.head import FILE
from vpr.retrieval.verification.kept import KeptKeypoints, write_matches
from vpr.retrieval.verification.keypoints import KeypointNetwork
from vpr.retrieval.verification.pairs import verify

DATABASE, QUERIES = 12, 6
RECALLS = ["--recallValues", 1, 2, 3, 4, 5, 6]
HUBCONF = """
import torch

class Means(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(1.0))
    def forward(self, images):
        return self.factor * torch.nn.functional.adaptive_avg_pool2d(images, (3, 4)).flatten(1)

def means():
    return Means()
"""


@pytest.fixture
def own(tmp_path):
    """Database images 30 m apart, and queries each beside one of them: those of odd numbers see what that sees, moved
    by a quarter, the others something else. Pixels of noise, of which the model's descriptors tell little."""
    root = draw_split(tmp_path / "own", DATABASE, QUERIES)
    for n in range(DATABASE):
        scene, other = (
            np.random.default_rng((n, seed)).integers(0, 256, (96, 160, 3), dtype=np.uint8) for seed in (0, 1)
        )
        Image.fromarray(scene[:, :128]).save(root / "val" / "database" / image_name(30 * n, n))
        if n < QUERIES:
            seen = scene[:, 32:] if n % 2 else other[:, 32:]
            Image.fromarray(seen).save(root / "val" / "queries" / image_name(30 * n + 3, f"q{n}"))
    return root


@pytest.fixture
def run(own, call_on, xfeat_file):
    """Runs a mode on the folder, with weights of the network for keypoints."""
    extra = {"locate": ["--json", "--top=12", own / "val" / "queries", "--conditions=off"], "test": RECALLS}

    def call(mode, *words, model=FP32, weights=xfeat_file):
        named = [f"--keypointWeights={weights}"] if weights else []
        return call_on(own, mode, *extra.get(mode, []), *named, *words, model=[*model, "--localDim=8"])

    return call


@pytest.fixture
def detected(monkeypatch):
    """The sizes of images whose keypoints were made."""
    made, detect = [], KeypointNetwork.detect

    def counting(network, image):
        made.append(image.shape)
        return detect(network, image)

    monkeypatch.setattr(KeypointNetwork, "detect", counting)
    return made


def blocks(out):
    """The lines that say how each block was searched, and its recalls in percent."""
    searched = re.findall(r"; search (.*), \d+ bytes per image", out)
    recalls = [[float(value) for value in re.findall(r": ([\d.]+)", line)] for line in re.findall(r"R@1:.*", out)]
    return searched, recalls


def recalls_of(orders, own):
    """Recall@1 to 6 in percent, of hits by their rows in the order of names."""
    names, found = database_names(own), []
    for count in range(1, 7):
        hits = [image_name(30 * q, q) in [names[row] for row in order[:count]] for q, order in enumerate(orders)]
        found.append(100 * np.mean(hits))
    return found


def keypoints_by(network, folder):
    return [network.detect(decode(file, None)) for file in sorted(folder.iterdir())]


def standard(values):
    deviation = np.std(values)
    return (np.array(values, float) - np.mean(values)) / (deviation if deviation > 1e-6 else np.inf)


def odds(kind, **scores):
    """Log-odds by the stored coefficients."""
    known = json.loads(FILE.read_text())[kind]
    return known["bias"] + sum(weight * standard(scores[name]) for name, weight in known["weights"].items())


@pytest.mark.parametrize("by", ["head", "xfeat"])
def test_recalls_are_those_of_loops_over_saved_pieces(run, own, tmp_path, xfeat_tensors, by):
    """Saved descriptors, plain and local; keypoints and their matches image by image; and the coefficients' file."""
    how = ["--rerank=6", "--verify=4", f"--rerankBy={by}"]
    code, out, err = run("test", *how, f"--saveDescriptors={tmp_path / 'kept.h5'}")
    assert code == 0, err
    searched, recalls = blocks(out)
    assert len(recalls) == (3 if by == "head" else 2)
    steps = ["a second look at the first 6 hits (head, 8-D local descriptors in 8 bits)"] * (by == "head")
    assert searched[-1] == ", then ".join(
        ["exact", *steps, f"verification of the first 4 hits ({by}, XFeat's keypoints)"]
    )
    local = None
    with h5py.File(tmp_path / "kept.h5") as file:
        database, queries = (file[name][:].astype(np.float64) for name in ("database", "queries"))
        if by == "head":
            local = read_local(file, tmp_path / "kept.h5")[0]
    network = KeypointNetwork(xfeat_tensors)
    known, asked = (keypoints_by(network, own / "val" / name) for name in ("database", "queries"))
    plain, looked, verified = [], [], []
    for q, query in enumerate(queries):
        cosines = 1 - np.square(database - query).sum(axis=1) / 2
        order = np.argsort(-cosines, kind="stable")
        plain.append(order.tolist())
        if local:
            part = np.arange(len(database))
            scores = {by: local_scores(len(database) + q, part, local, local, by)[0] for by in ("soft", "spatial")}
            first = order[:6]
            found = odds("plain", **{"global": cosines[first]}, **{name: own[first] for name, own in scores.items()})
            order = np.concatenate([first[np.argsort(-found, kind="stable")], order[6:]])
            looked.append(order.tolist())
        first = order[:4]
        inliers = np.array([verify(asked[q], known[row]).inliers for row in first])
        if local:
            parts = {name: own[first] for name, own in scores.items()}
            found = odds("verified", **{"global": cosines[first]}, **parts, inliers=np.sqrt(inliers))
        else:
            found = inliers + 0.2 * cosines[first]
        verified.append([*first[np.argsort(-found, kind="stable")].tolist(), *order[4:].tolist()])
    for orders, found in zip([plain, *[looked] * bool(local), verified], recalls, strict=True):
        np.testing.assert_allclose(found, recalls_of(orders, own), atol=0.06)
    assert plain != verified and (not local or plain != looked != verified), "the order is put to the test"
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["search"] for entry in results] == searched
    each = np.mean([12 + 68 * len(one.points) for one in known])
    added = results[-1]["bytes_per_image"] - results[-2]["bytes_per_image"]
    if by == "xfeat":  # all that were among the first four of a query
        assert added == pytest.approx(each, rel=0.1)


def test_each_stage_is_a_block(run):
    code, out, err = run("test", "--rerank=6", "--verify=4", "--conditions=session")
    assert code == 0, err
    searched, recalls = blocks(out)
    assert len(recalls) == 4 and ["verification" in text for text in searched] == [False, False, False, True]
    assert all(searched[n + 1].startswith(searched[n]) for n in range(3))
    for words in (["--verify=0"], ["--rerankBy=soft"]):
        code, out, _ = run("test", "--rerank=6", *words)
        assert code == 0 and "verification" not in out and out.count("R@1:") == 2
    code, out, _ = run("test")
    assert code == 0 and out.count("R@1:") == 1
    code, out, _ = run("test", "--rerank=6", weights=None)
    assert code == 0 and out.count("R@1:") == 2, "nobody has a network for it"


@pytest.mark.parametrize("by", ["head", "xfeat"])
def test_locate_gives_the_order_that_test_counts(run, own, monkeypatch, by, detected):
    """Whether keypoints are kept beside the index or made anew; of kept ones queries alone are looked at."""
    counted, measure_all = [], vpr.modes.test.measure_all
    monkeypatch.setattr(vpr.modes.test, "measure_all", lambda *given: counted.append(measure_all(*given)) or counted[0])
    how = ["--rerank=6", "--verify=4", f"--rerankBy={by}"]
    assert run("test", *how).code == 0
    found, names = counted[0][-1][1].ranking.answers.found, database_names(own)
    wanted = [[f"val/database/{names[row]}" for row in rows[:12]] for rows in found]
    code, out, err = run("locate", *how)
    assert code == 0 and names_found(out) == wanted, err
    kept = list(own.parent.rglob("*.keypoints.sqlite"))
    assert len(kept) == 1 and kept[0].name == "database_own_val.keypoints.sqlite"
    code, out, err = run("index")
    assert code == 0
    del detected[:]
    code, out, err = run("locate", *how)
    assert code == 0 and names_found(out) == wanted and len(detected) == QUERIES


def test_the_index_prepares_keypoints_and_says_their_bytes(run, own, detected):
    code, out, _ = run("index")
    assert code == 0 and len(detected) == DATABASE
    said, each = re.search(r"keypoints of (\d+) images, ([\d,]+) bytes each", out).groups()
    assert int(said) == DATABASE and int(each.replace(",", "")) > 12
    code, out, _ = run("index")
    assert code == 0 and len(detected) == DATABASE and "bytes each" not in out
    draw_image(own / "val" / "database" / database_names(own)[0], (96, 80), 99)
    code, out, _ = run("index")
    assert code == 0 and len(detected) == DATABASE + 1 and "keypoints of 1 images" in out
    (own / "val" / "database" / image_name(900, "new")).write_bytes(
        (next((own / "val" / "queries").iterdir())).read_bytes()
    )
    code, out, _ = run("locate")
    assert code == 0 and len(names_found(out)[0]) == 12


@pytest.mark.parametrize("few", [DATABASE - 1, DATABASE])
def test_an_index_of_few_own_images_keeps_local_descriptors(run, own, monkeypatch, few):
    """When it is made, by whichever mode; and as often as it follows its folder."""
    monkeypatch.setattr(vpr.cli.locating, "FEW", few)
    code, out, said = run("locate", weights=None)
    kept = few == DATABASE
    assert code == 0 and ("no local descriptors: no re-ranking" in said) != kept
    assert ("second look" in json.loads(out)[0]["confidence_kind"]) == kept
    for changed in (False, True, True):
        if changed:
            next((own / "val" / "database").iterdir()).unlink()
        assert run("index", weights=None).code == 0
        assert bool(list(own.parent.rglob("*.local"))) == kept
        code, out, said = run("locate", weights=None)
        assert code == 0 and ("no re-ranking" in said) != kept
    assert run("index", "--index=Flat", weights=None).code == 0
    assert not list(own.parent.rglob("*.local")), "who chooses an index says what it keeps"


def test_an_index_of_too_few_local_descriptors_does_without(own, call_on, tmp_path):
    """64 directions are learnt on more local descriptors; nobody asked for any."""
    small = draw_split(tmp_path / "small", 2)
    image = next((own / "val" / "queries").iterdir())
    code, out, err = call_on(small, "locate", image, model=FP32)
    assert code == 0 and "no local descriptors" in out + err
    assert call_on(small, "index", model=FP32).code == 0
    assert "--localDim" in call_on(small, "index", "--localDescriptors", model=FP32).last_error


def test_keypoints_alone_verify_without_local_descriptors(run, own, monkeypatch):
    """As many hits as are re-ranked by themselves, without --rerank too."""
    monkeypatch.setattr(vpr.cli.locating, "FEW", 0)
    code, every, said = run("locate", "--rerankBy=xfeat", "--verify=50")
    assert code == 0 and "no re-ranking" not in said
    code, asked, _ = run("locate", "--rerankBy=xfeat", "--verify=50", "--rerank=12")
    assert code == 0 and names_found(every) == names_found(asked)
    code, plain, _ = run("locate", "--rerank=0")
    assert names_found(plain) != names_found(every)
    for query in (1, 3, 5):  # which show what the database does
        assert names_found(every)[query][0].endswith(image_name(30 * query, query))


def test_a_filter_limits_what_is_verified(run):
    code, everywhere, _ = run("locate", "--rerankBy=xfeat", "--verify=12")
    code, part, _ = run("locate", "--rerankBy=xfeat", "--verify=12", f"--box={box(everywhere)}")
    assert code == 0
    for whole, some in zip(names_found(everywhere), names_found(part), strict=True):
        assert 0 < len(some) < len(whole) and some == [name for name in whole if name in some]
    code, out, _ = run("locate", "--near=0,0,100")
    assert code == 0 and names_found(out) == [[]] * QUERIES


def box(out):
    """One around some of the places that were found."""
    latitudes, longitudes = zip(*((m["latitude"], m["longitude"]) for m in json.loads(out)[0]["matches"]), strict=True)
    return f"{min(latitudes) - 1},{min(longitudes) - 1},{max(latitudes) + 1},{np.median(longitudes)}"


def test_sequences_are_verified(call_on, tmp_path, xfeat_file):
    names = [f"val/database/a/{n:03d}.png" for n in range(8)] + [f"val/queries/{n}.png" for n in range(4)]
    for number, name in enumerate(names):
        draw_image(tmp_path / "frames" / name, (96, 72), number % 8)
    rows = [f"{name},{585000 + 30 * (number % 8)},4477000" for number, name in enumerate(names)]
    (tmp_path / "frames" / "positions.csv").write_text("\n".join(["image,easting,northing", *rows]))
    how = ["--sequence=1", "--rerank=5", "--verify=3", "--localDim=8", f"--keypointWeights={xfeat_file}"]
    code, out, err = call_on(tmp_path / "frames", "test", *how)
    assert code == 0, err
    searched, recalls = blocks(out)
    assert len(recalls) == 4 and recalls[-1][0] == 100
    assert "sequences of 1 frame" in searched[-1] and searched[-1].endswith("(head, XFeat's keypoints)")


@pytest.mark.parametrize("mode", ["test", "locate", "index"])
def test_wrong_weights_are_refused_in_a_line(run, tmp_path, mode):
    wrong, words = tmp_path / "wrong.pt", ["--rerank=3"] if mode == "test" else []
    torch.save({"weight": torch.zeros(2)}, wrong)
    for weights, said in ((wrong, "no weights of XFeat"), (tmp_path / "missing.pt", "missing.pt")):
        call = run(mode, *words, weights=weights)
        error = call.error if mode == "test" else call.last_error  # before images are described
        assert said in error and "--keypointWeights" in error


@pytest.mark.parametrize("package", ["kornia", "cv2"])
def test_a_missing_package_is_named_with_what_to_install(run, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    error = run("test", "--rerank=3").error
    assert package in error and "pip install kornia opencv-python-headless" in error
    assert package in run("test", "--rerank=3", "--rerankBy=xfeat", weights=None).error
    assert package in run("locate").last_error
    code, _, err = run("test", "--rerank=3", weights=None)
    assert code == 0, err


def test_flags_that_leave_nothing_to_do_are_refused(run):
    assert "--verify=0" in run("test", "--rerank=3", "--rerankBy=xfeat", "--verify=0").error
    assert "--rerankBy has no effect without --rerank K" in run("test", "--rerankBy=xfeat").error


def test_a_model_of_others_is_verified_without_local_descriptors(run, own, tmp_path):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "hubconf.py").write_text(HUBCONF)
    model = [f"--model=hub:{tmp_path / 'others'}:means", "--trustRepo", *MODEL[3:]]
    how = ["--rerank=6", "--rerankBy=xfeat", "--verify=6"]
    code, out, err = run("test", *how, model=model)
    assert code == 0, err
    searched, recalls = blocks(out)
    assert len(recalls) == 2 and "verification of the first 6 hits (xfeat" in searched[-1]
    code, out, err = run("locate", *how, model=model)
    assert code == 0, err
    orders = [[database_names(own).index(Path(name).name) for name in names] for names in names_found(out)]
    np.testing.assert_allclose(recalls[-1], recalls_of(orders, own), atol=0.06)
    code, out, err = run("index", model=model)
    assert code == 0 and int(re.search(r"keypoints of (\d+) images", out)[1]) < DATABASE, "locate kept some"
    assert run("locate", "--rerank=6", model=model).code == 2


def test_compare_verifies_a_file_without_local_descriptors(
    toy_run, exported_toy_run, tiny_city, capsys, tmp_path, xfeat_file
):
    words = ["--mode=compare", str(exported_toy_run), "--dataset=toy", f"--root={tiny_city}", f"--runsPath={tmp_path}"]
    words += ["--rerank=5", f"--keypointWeights={xfeat_file}"]
    assert main.main([*words, "--rerankBy=xfeat"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and "R@1" not in line]
    assert len(rows) == 2 and ", verified |" in rows[1]
    assert main.main(words) == 2 and "local descriptors" in capsys.readouterr().err


def test_compare_has_a_row_of_verified_hits(toy_run, capsys, tmp_path, xfeat_file):
    words = ["--mode=compare", str(toy_run.run), "--rerank=5", "--precision=fp32", f"--runsPath={tmp_path}"]
    for more, names in (([], ["re-ranked", "verified"]), (["--rerankBy=xfeat"], ["verified"])):
        assert main.main([*words, *more, f"--keypointWeights={xfeat_file}"]) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and "R@1" not in line]
        assert len(rows) == 1 + len(names)
        assert all(f", {name} |" in row for name, row in zip(names, rows[1:], strict=True))
        assert ", verified |" not in rows[0]
        kept = [float(row.split("|")[-3]) for row in rows]
        assert all(more > less for less, more in itertools.pairwise(kept)) and not math.isnan(sum(kept))


# Files for hloc, and what a folder remembers. -------------------------------------------------------------------------


def matches_as_hloc_reads_them(path, first, second):
    """As `hloc.utils.io.get_matches`: pairs of keypoints' numbers with their scores, of images in this order."""
    with h5py.File(str(path), "r", libver="latest") as file:
        pair = file["/".join((first.replace("/", "-"), second.replace("/", "-")))]
        matches, scores = pair["matches0"].__array__(), pair["matching_scores0"].__array__()
    rows = np.where(matches != -1)[0]
    return np.stack([rows, matches[rows]], -1), scores[rows], len(matches)


def keypoints_as_hloc_reads_them(path, name):
    with h5py.File(str(path), "r", libver="latest") as file:
        return file[name]["keypoints"].__array__(), file[name]["image_size"].__array__().tolist()


@pytest.mark.parametrize(("mode", "side"), [("test", None), ("index", None), ("index", 64)])
def test_hloc_finds_the_keypoints_and_verified_matches_of_the_listed_pairs(
    run, own, tmp_path, xfeat_tensors, mode, side
):
    pairs, file = tmp_path / "pairs.txt", tmp_path / "matches.h5"
    smaller = [f"--longSide={side}"] * bool(side)  # what the model sees; COLMAP sees the files
    code, _, err = run(mode, f"--pairs={pairs}", "--pairsTop=3", f"--hlocMatches={file}", *smaller)
    assert code == 0, err
    listed = [line.split() for line in pairs.read_text().splitlines()]
    assert len(listed) == 3 * (QUERIES if mode == "test" else DATABASE)
    same = {
        (f"val/queries/{image_name(30 * n + 3, f'q{n}')}", f"val/database/{image_name(30 * n, n)}") for n in (1, 3, 5)
    }
    network, agreeing = KeypointNetwork(xfeat_tensors), 0
    known = {
        name: network.detect(decode(own / name, None, side)) for name in {name for pair in listed for name in pair}
    }
    for name, keypoints in known.items():
        found, size = keypoints_as_hloc_reads_them(file, name)
        assert found.dtype == np.float32 and size == [128, 96]
        np.testing.assert_allclose(found, keypoints.points * size, atol=0.01)
    for first, second in listed:
        wanted = verify(known[first], known[second])
        found, scores, count = matches_as_hloc_reads_them(file, first, second)
        assert count == len(known[first].points) and (scores == 1).all()
        ends = [keypoints_as_hloc_reads_them(file, name)[0] for name in (first, second)]
        assert abs(len(found) - wanted.inliers) <= 0.1 * wanted.inliers, "but for positions in 16 bits"
        if (first, second) in same:
            moved = ends[1][found[:, 1]] - ends[0][found[:, 0]]
            assert np.abs(np.median(moved, axis=0) - (32, 0)).max() < 2, "the query sees what is 32 pixels further"
            agreeing += 1
    assert mode == "index" or agreeing > 1


def test_images_whose_pairs_have_one_name_are_refused_in_a_line(own, tmp_path, xfeat_tensors):
    pairs, kept = tmp_path / "pairs.txt", KeptKeypoints(KeypointNetwork(xfeat_tensors), Reading())
    folder = tmp_path / "images"
    for name in ("a/é.jpg", "a-é.jpg", "b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(own.rglob("*.png")), folder / name)
    pairs.write_text("a/é.jpg b.jpg\na-é.jpg b.jpg", encoding="utf-8")
    with pytest.raises(UserError, match=r"^--hlocMatches: a-é\.jpg/b\.jpg stands for two pairs.*rename"):
        write_matches(tmp_path / "matches.h5", pairs, kept, folder, folder)
    assert not (tmp_path / "matches.h5").exists()
    pairs.write_text("a/é.jpg b.jpg", encoding="utf-8")
    write_matches(tmp_path / "matches.h5", pairs, kept, folder, folder)
    assert keypoints_as_hloc_reads_them(tmp_path / "matches.h5", "a/é.jpg")[1] == [128, 96]


def test_matches_without_a_list_or_a_network_are_refused(run, tmp_path, monkeypatch):
    code, _, err = run("test", f"--hlocMatches={tmp_path / 'matches.h5'}")
    assert code == 2 and "--hlocMatches has no effect without --pairs FILE" in err
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    words = [f"--pairs={tmp_path / 'pairs.txt'}", f"--hlocMatches={tmp_path / 'matches.h5'}"]
    code, _, err = run("test", *words, weights=None)
    assert code == 2 and "cannot download XFeat's weights" in err and len(err.strip().splitlines()) == 1


def no_network(*_, **__):
    raise OSError("no network")


def test_a_folder_remembers_the_weights(run, own, xfeat_file, tmp_path, monkeypatch):
    """Whatever the model is that is named; who types others is given those, which are the folder's from then on."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where none have been downloaded
    how = ["--rerank=5", "--verify=3"]
    code, plain, _ = run("locate", *how, weights=None)
    first, second = (run("locate", *how, weights=weights) for weights in (xfeat_file, None))
    assert code == first[0] == second[0] == 0
    scores = [[match["score"] for match in json.loads(out)[5]["matches"]] for out in (plain, first[1], second[1])]
    assert scores[1] == scores[2] != scores[0]
    assert str(xfeat_file) in second[2] and json.loads((own / ".netvlad.json").read_text())["keypointWeights"]
    code, out, _ = run("locate", "--rerank=5", "--verify=0", weights=None)
    assert code == 0 and [match["score"] for match in json.loads(out)[5]["matches"]] == scores[0]
    code, _, err = run("locate", *how, weights=tmp_path / "missing.pt")
    assert code == 2 and "missing.pt" in err
    assert json.loads((own / ".netvlad.json").read_text())["keypointWeights"] == str(xfeat_file.resolve())
