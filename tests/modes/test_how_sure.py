"""Calibrations from the command line: learnt by test, used by test and locate, refused where they do not fit."""

import dataclasses
import json
import math
import re
import shutil

import h5py
import numpy as np
import pytest
from drawing import draw_image
from own_images import FP32, a_query, database_names, image_name
from PIL import Image
from scipy.stats import binom

from vpr.evaluation.calibrate import learn_calibration
from vpr.retrieval.answer_features import Answers
from vpr.retrieval.calibration_file import LearntOn, load_calibration, save_calibration

MODEL = [*FP32, "--channels", "16", "16", "16", "16", "16"]
RERANKED = ["--rerank=10", "--localDim=8"]
PLAIN = ["--conditions=off"]  # as test counts, each query by itself
PLACES, QUERIES = 30, 60


@pytest.fixture(autouse=True)
def plain_indexes(monkeypatch):
    """New indexes keep no local descriptors, so that answers are those of global ones alone."""
    monkeypatch.setattr("vpr.cli.locating.FEW", 0)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """30 database images 100 m apart; 60 queries at their places that show them through more or less of another."""
    root = tmp_path_factory.mktemp("own") / "town"
    random = np.random.default_rng(0)
    paths = [root / "val" / "database" / image_name(100 * n, n) for n in range(PLACES)]
    images = [Image.open(draw_image(path, (64, 48), [0, n])) for n, path in enumerate(paths)]
    (root / "val" / "queries").mkdir()
    for n in range(QUERIES):
        place, other = n % PLACES, int(random.integers(PLACES))
        mixed = Image.blend(images[place], images[other], float(random.uniform(0.2, 0.75)))
        mixed.save(root / "val" / "queries" / image_name(100 * place + 1, f"q{n:02d}"))
    return root


@pytest.fixture
def call(own, call_on):
    """Runs a mode on the folder, or another one."""
    return lambda mode, *words, root=own: call_on(root, mode, *words, model=MODEL)


def last_result(folder):
    return json.loads((folder / "results.json").read_text())[-1]


def stored_calibration(folder):
    (path,) = (folder / "model").glob("calibration_*.h5")
    with h5py.File(path) as file:
        numbers = {name: file[name][:].tolist() for name in ("mean", "scale", "weights")}
        return path, {**numbers, **{name: file.attrs[name] for name in ("features", "bias", "slope")}}


def probability_by_loop(query, database, stored):
    """From descriptors, by the formulas of the features and of the logistic function; places lie in a row."""
    distances = [math.dist(query, row) for row in database]
    order = sorted(range(len(database)), key=lambda n: distances[n])
    near = [distances[n] for n in order]
    weights = [math.exp(-stored["slope"] * (d * d - near[0] ** 2)) for d in near[:10]]
    east = [100.0 * n for n in order[:10]]
    mean = sum(w * e for w, e in zip(weights, east, strict=True)) / sum(weights)
    capped = [max(-500.0, min(500.0, e - mean)) for e in east]
    variance = sum(w * c * c for w, c in zip(weights, capped, strict=True)) / sum(weights)
    features = {
        "lead": 1 - near[0] / near[1],
        "similarity": 1 - near[0] ** 2 / 2,
        "spread": -math.log10(1 + math.sqrt(variance / 2)),
    }
    rows = zip(stored["features"].split(), stored["mean"], stored["scale"], stored["weights"], strict=True)
    logit = stored["bias"] + sum(w * (features[name] - m) / s for name, m, s, w in rows)
    return 1 / (1 + math.exp(-logit))


def test_a_calibration_is_learnt_by_test_and_used_by_locate(call, own, tmp_path):
    kept = tmp_path / "kept.h5"
    code, out, _ = call("test", "--calibrate", f"--saveDescriptors={kept}", "--panels=1")
    label = "probability that the first hit lies within 25 m, calibrated on town_val (split val, 60 queries)"
    assert code == 0 and f"how sure: {label}" in out and "cross-validated" in out
    figures = last_result(tmp_path)["certainty"]
    assert figures["score"] == label and 0 <= figures["calibration_error"] < 0.3
    assert 0 < figures["area"] <= figures["area_at_most"] == pytest.approx(last_result(tmp_path)["recalls"]["1"])
    (report,) = tmp_path.glob("test_val_*/report.html")
    assert (report.parent / "precision_recall.png").is_file() and (report.parent / "reliability.png").is_file()
    assert label in report.read_text()
    with h5py.File(kept) as file:
        database, queries = (file[name][:].astype(float).tolist() for name in ("database", "queries"))
    _, stored = stored_calibration(tmp_path)
    code, out, _ = call("locate", "--json", own / "val" / "queries")
    answers = json.loads(out)
    assert code == 0 and {answer["confidence_kind"] for answer in answers} == {label}
    names = database_names(own)
    database = [database[names.index(name)] for name in sorted(names, key=lambda name: float(name.split("@")[1]))]
    for query, answer in zip(queries, answers, strict=True):
        assert answer["confidence"] == pytest.approx(probability_by_loop(query, database, stored), abs=0.01)
        assert answer["refused"] is False
    code, out, _ = call("test")
    assert code == 0 and f"how sure: {label}" in out and "learnt on these very queries" in out


def test_without_a_calibration_the_ratio_stays_and_says_that_it_is_none(call, own, tmp_path):
    code, out, err = call("locate", "--json", own / "val" / "queries")
    answers = json.loads(out)
    assert code == 0 and all("no probability" in answer["confidence_kind"] for answer in answers)
    assert "confidence: 1 - (descriptor distance" in err
    code, out, _ = call("test")
    assert code == 0 and "no probability" in out and "calibration error" not in out
    assert "calibration_error" not in last_result(tmp_path)["certainty"]


def test_below_the_least_confidence_no_place_is_found(call, own, tmp_path):
    _, out, _ = call("locate", *PLAIN, "--json", own / "val" / "queries")
    free = json.loads(out)
    least = float(np.median([answer["confidence"] for answer in free]))
    _, out, _ = call("locate", *PLAIN, "--json", f"--minConfidence={least}", own / "val" / "queries")
    answers = json.loads(out)
    assert [answer["refused"] for answer in answers] == [answer["confidence"] < least for answer in free]
    assert 0 < sum(answer["refused"] for answer in answers) < QUERIES
    assert [answer["matches"] for answer in answers] == [answer["matches"] for answer in free]
    _, out, _ = call("locate", *PLAIN, f"--minConfidence={least}", own / "val" / "queries")
    said = re.findall(r"\.png: (no place found \(confidence|confidence) ", out)
    assert ["no place" in words for words in said] == [answer["refused"] for answer in answers]
    _, out, _ = call("test", f"--minConfidence={least}")
    counted = last_result(tmp_path)["certainty"]["least_confidence"]
    assert counted["answered"] == QUERIES - sum(answer["refused"] for answer in answers)
    assert f"{counted['answered']} answered, of which {counted['right']} right" in out


def test_a_held_out_region_makes_queries_that_are_not_in_the_map(call, tmp_path):
    code, out, _ = call("test", "--heldOutRegion", 585_450, 4_477_000, 260)
    figures = last_result(tmp_path)["certainty"]
    assert code == 0 and figures["queries"] == QUERIES and figures["answerable"] == QUERIES - 2 * 6, "at 200 to 700 m"
    assert "6 database images within 260 m of 585450.0 E 4477000.0 N left out" in last_result(tmp_path)["protocol"]
    assert "of 12 queries without a true match answered" in out
    assert "no database image lies within 10 m" in call("test", "--heldOutRegion", 0, 0, 10).error


def test_too_few_queries_are_refused_before_they_are_described(call, own, tmp_path):
    shutil.copytree(own, tmp_path / "small")
    for path in sorted((tmp_path / "small" / "val" / "queries").iterdir())[49:]:
        path.unlink()
    code, out, err = call("test", "--calibrate", root=tmp_path / "small")
    assert code == 2 and "found 49 queries, wanted at least 50" in err and err.count("\n") == 1
    assert "database:" not in out and not (tmp_path / "results.json").exists()


def test_a_calibration_that_cannot_be_learnt_costs_no_recalls(call, own, tmp_path):
    """All queries are database images: none is wrong."""
    shutil.copytree(own, tmp_path / "easy")
    queries = tmp_path / "easy" / "val" / "queries"
    shutil.rmtree(queries)
    queries.mkdir()
    for n in range(2):
        for path in (own / "val" / "database").iterdir():
            shutil.copy(path, queries / path.name.replace("@.png", f"q{n}@.png"))
    code, out, err = call("test", "--calibrate", root=tmp_path / "easy")
    assert code == 2 and "0 of 60 first hits are wrong" in err and err.count("\n") == 1
    assert "R@1: 100.0" in out and last_result(tmp_path)["recalls"]["1"] == 1
    assert not list((tmp_path / "model").glob("calibration_*"))


def test_a_calibration_of_another_image_size_is_not_used(call, own, tmp_path):
    assert call("test", "--calibrate").code == 0
    code, out, _ = call("test", "--imageSize", 80, 96)
    assert code == 0 and "image_size=own, not 80 96" in out and "no probability" in out


def test_a_damaged_calibration_costs_no_recalls_and_is_refused(call, own, tmp_path):
    assert call("test", "--calibrate").code == 0
    path, _ = stored_calibration(tmp_path)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    code, out, err = call("test")
    assert code == 2 and "R@1" in out and f"{path} cannot be read as a calibration" in err and err.count("\n") == 1
    code, out, err = call("locate", "--json", own / "val" / "queries")
    assert code == 2 and out == "" and "delete it, or make it anew" in err
    assert call("test", "--calibrate").code == call("test").code == 0, "a new one takes its place"


def test_a_calibration_of_re_ranking_serves_that_re_ranking_alone(call, own, tmp_path):
    code, out, _ = call("test", "--calibrate", *RERANKED)
    assert code == 0 and re.search(r"wrote .*calibration_.*; from .*lead", out)
    assert last_result(tmp_path)["certainty"]["score"].startswith("probability")
    image = sorted((own / "val" / "queries").iterdir())[0]
    kinds = {}
    for words in (RERANKED, [], ["--rerank=5", "--localDim=8"]):
        code, out, err = call("locate", "--json", *words, image)
        assert code == 0, err
        (answer,) = json.loads(out)
        kinds[tuple(words)] = answer["confidence_kind"].split()[0], "no calibration is used" in err
    assert list(kinds.values()) == [("probability", False), ("1", True), ("1", True)]
    code, out, _ = call("test", "--rerank=10", "--localDim=4")
    assert code == 0 and "8-D local descriptors in 8 bits), not a second look" in out


def test_frames_in_order_have_a_calibration_of_their_own_and_recent_ones_are_no_matches(call, tmp_path):
    """60 frames of a sequence are searched in one another: those close in time are neither found nor right."""
    root, random = tmp_path / "sequence", np.random.default_rng(1)
    names = [image_name(100 * (n % 30), f"{n:03d}") for n in range(60)]
    images = [draw_image(root / "plain" / f"{n}.png", (64, 48), [3, n % 30]) for n in range(60)]
    for split in ("database", "queries"):
        (root / "val" / split).mkdir(parents=True)
        for n, name in enumerate(names):
            with Image.open(images[n]) as image, Image.open(images[int(random.integers(60))]) as other:
                Image.blend(image, other, float(random.uniform(0.1, 0.8))).save(root / "val" / split / name)
    assert call("test", "--sequence=1", "--calibrate", root=root).code == 0
    for recent, answerable in ((29, 60), (30, 0)):  # the only match is 30 frames later or earlier
        assert call("test", "--sequence=1", f"--excludeRecent={recent}", root=root).code == 0
        figures = last_result(tmp_path)["certainty"]
        assert (figures["queries"], figures["answerable"]) == (60, answerable)
        assert (figures["area"] is None) == (answerable == 0)
        assert figures["score"].startswith("1 - ")  # the calibration is of answers among all frames
    for order, kind in ((["--sequence=1"], "probability"), ([], "1")):
        code, out, err = call("locate", *order, "--json", root / "val" / "queries", root=root)
        assert code == 0 and {answer["confidence_kind"].split()[0] for answer in json.loads(out)} == {kind}
    assert "order=sequences of 1 frame before and after, not none" in err


def test_an_approximate_index_has_the_probabilities_that_were_learnt_with_it_alone(call, own, tmp_path):
    """What an index misses makes answers look surer: of FAISS's indexes each its own."""
    image = a_query(own)
    factories = ["none", "Flat", "IVF4,Flat", "IVF4,PQ4x4", "LSH"]

    def calibrated(factory, *words):
        index = [f"--index={factory}"] if factory != "none" else []
        code, out, err = call("locate", "--json", image, *index, f"--indexFile={tmp_path / factory}.h5", *words)
        (answer,) = json.loads(out)
        found = answer["confidence_kind"].startswith("probability")
        assert code == 0 and ("no calibration is used" in err) != found and answer["matches"][0]["distance"] < 2
        return found

    assert call("test", "--calibrate").code == 0
    assert [calibrated(each) for each in factories] == [True, True, False, False, False]
    code, out, _ = call("test", "--calibrate", "--index=IVF4,Flat", "--nprobe=2", *RERANKED)
    assert code == 0 and "faiss IVF4,Flat (2 of 4 lists looked through): how sure: probability" in out
    for file in tmp_path.glob("IVF4,Flat.*"):
        file.unlink()
    assert [calibrated(each, "--nprobe=2", *RERANKED) for each in factories if "," in each] == [True, False]
    assert not calibrated("IVF4,Flat", "--nprobe=3", *RERANKED) and calibrated("none", *RERANKED) and calibrated("none")
    assert len(list((tmp_path / "model").glob("calibration_*"))) == 3


def test_a_search_of_a_part_has_no_probability_and_does_not_pass_for_sure(call, own, tmp_path):
    """A filter around another place leaves nothing that a wrong match could be compared with."""
    queries = own / "val" / "queries"
    limit = ["--json", "--near=40.43932,-79.97,400", queries]
    for learn in (False, True):
        assert not learn or call("test", "--calibrate").code == 0
        code, out, err = call("locate", *limit)
        answers = json.loads(out)
        assert code == 0 and len(answers) == QUERIES and all(len(answer["matches"]) == 5 for answer in answers)
        assert {answer["confidence"] for answer in answers} == {None}
        assert "confidence: unknown, since only a part of the database was searched" in err
        out = call("locate", "--minConfidence=0.001", *limit).out
        assert all(answer["refused"] for answer in json.loads(out))
        assert not any(answer["confidence"] is None for answer in json.loads(call("locate", "--json", queries).out))


def test_where_nothing_is_found_a_calibrated_re_ranking_says_how_far_the_nearest_is(call, own, tmp_path):
    assert call("test", "--calibrate", *RERANKED).code == 0
    kept = f"--indexFile={tmp_path / 'kept.h5'}"
    assert call("index", kept, "--localDescriptors", "--localDim=8").code == 0
    image = a_query(own)
    for words in (RERANKED, [kept, *RERANKED], [kept]):
        code, out, _ = call("locate", "--near=40.45,-79.97,500", *words, image)
        assert code == 0 and out.split("\nnext: ")[0].splitlines()[-1].startswith(f"{image}: confidence unknown")
        assert re.search(r"no database image lies within 500 m of 40\.45, -79\.97: the nearest is 1\.\d km away", out)
    for words, said in (
        (["--near=-79.97,40.45,500"], r"of -79\.97, 40\.45: the nearest is \d{2},\d{3}\.\d km away"),
        (["--near=40.43932,-79.9,1"], r"within 1 m of 40\.4393, -79\.9: the nearest is \d\.\d km away"),
        (["--box=1,2,3,4"], "no database image is left by what the search is limited to"),
        (["--near=40.4393,-79.98,5000", "--box=1,2,3,4"], "no database image is left by"),
    ):
        code, out, _ = call("locate", *words, *RERANKED, image)
        assert code == 0 and re.search(said, out), out


RATE = 0.3  # of false answers, for which these few queries are enough


def stored_guarantee(folder):
    (path,) = (folder / "model").glob("calibration_*.h5")
    with h5py.File(path) as file:
        return [file[name][:] for name in ("confidences", "right", "unknown")]


def least_by_tails(confidences, right, unknown, rate):
    """The least confidence above which both kinds of false answers are rarer than chance leaves them at the rate."""
    least = 0.0
    for false in (confidences[~right], unknown):
        for value in sorted(false[~np.isnan(false)], reverse=True):
            if binom.cdf((false >= value).sum(), len(right), rate) > 0.05:
                least = max(least, value)
                break
    return least


def by_brute_force(queries, database, without):
    """All images nearest first, but some of each query, as answers; places lie in a row, 100 m apart."""
    distances = np.linalg.norm(queries[:, None] - database[None], axis=2)
    distances[without] = np.nan
    order = np.argsort(distances, axis=1, kind="stable")  # NaN last
    measured = np.take_along_axis(distances, order, axis=1)
    positions = np.stack([585000.0 + 100 * np.arange(PLACES), np.full(PLACES, 4477000.0)], axis=1)
    return Answers(np.where(np.isnan(measured), -1, order), measured, positions)


def test_a_test_says_what_false_answers_are_promised_and_its_numbers_are_those_of_brute_force(call, own, tmp_path):
    kept = tmp_path / "kept.h5"
    code, out, _ = call("test", "--calibrate", f"--maxFalseRate={RATE}", f"--saveDescriptors={kept}")
    assert code == 0
    confidences, right, unknown = stored_guarantee(tmp_path)
    with h5py.File(kept) as file:
        database, queries = (file[name][:].astype(float) for name in ("database", "queries"))
    names, asked = database_names(own), sorted(path.name for path in (own / "val" / "queries").iterdir())
    metres = [np.array([float(name.split("@")[1]) for name in each]) for each in (names, asked)]
    database = database[np.argsort(metres[0], kind="stable")]
    own_place = np.abs(metres[1][:, None] - np.sort(metres[0])) <= 25
    assert (own_place.sum(axis=1) == 1).all()
    answers = by_brute_force(queries, database, np.zeros_like(own_place))
    others = by_brute_force(queries, database, own_place)
    assert right.tolist() == [bool(own_place[n, hit]) for n, hit in enumerate(answers.found[:, 0])]
    groups = np.unique(np.floor(metres[1] / 25), return_inverse=True)[1] + QUERIES
    _, held_out, left = learn_calibration(answers, right, groups, others)
    np.testing.assert_allclose(confidences, held_out, atol=0.01)
    np.testing.assert_allclose(unknown, left, atol=0.01)

    least = least_by_tails(confidences, right, unknown, RATE)
    shares = [(confidences > least).sum(), ((confidences > least) & ~right).sum(), (unknown > least).sum()]
    given, false, without = (f"{100 * share / QUERIES:.1f}%" for share in shares)
    assert (
        f"at most 30% false answers, 90% sure: from confidence {least:.3f} on; of the queries of town_val {given} are "
        f"answered then, {false} falsely; without their places in the database {without}\n" in out
    )
    assert 0 < shares[0] < QUERIES
    assert "at most 5% false answers, 90% sure: " in call("test", "--calibrate").out
    assert "at most 0% false answers, 90% sure: for that 60" in call("test", "--calibrate", "--maxFalseRate=0").out


@pytest.mark.parametrize("words", [["--conditions=session"], RERANKED, ["--conditions=session", *RERANKED]])
def test_none_that_is_asked_without_its_place_is_answered_rightly(call, tmp_path, monkeypatch, words):
    """With conditions and re-ranking, whatever moves the hits."""
    seen = []

    def recorded(answers, right, groups, others):
        seen.append((answers, right, others))
        return learn_calibration(answers, right, groups, others)

    monkeypatch.setattr("vpr.evaluation.judging.learn_calibration", recorded)
    code, out, _ = call("test", "--calibrate", *words)
    assert code == 0 and "false answers" in out
    ((answers, right, others),) = seen
    places = 585001 + 100.0 * (np.arange(QUERIES) % PLACES)  # whatever the order, each twice
    assert right.any() and (answers.scores is None) == (others.scores is None) == ("--rerank=10" not in words)
    for each, there in ((answers, PLACES), (others, PLACES - 1)):
        assert ((each.found >= 0).sum(axis=1) == there).all() and (np.isnan(each.distances) == (each.found < 0)).all()
    gone = np.array([({*range(PLACES)} - {*row[row >= 0].tolist()}).pop() for row in others.found])
    assert sorted(others.positions[gone, 0] + 1) == sorted(places), "of each query its own, and nothing else"
    assert np.array_equal(answers.found[:, 0] == gone, right)


def test_locate_answers_as_many_as_is_promised_and_refuses_all_without_a_promise(call, own, tmp_path):
    asked, queries = f"--maxFalseRate={RATE}", own / "val" / "queries"

    def located(*words):
        code, out, err = call("locate", *PLAIN, "--json", *words, queries)
        assert code == 0
        return json.loads(out), err

    answers, said = located(asked)
    assert all(answer["refused"] for answer in answers) and said.count("--maxFalseRate refuses all images") == 1
    assert "--calibrate" in next(line for line in said.splitlines() if "--maxFalseRate" in line)
    assert not any(answer["refused"] for answer in located()[0])
    assert call("test", "--calibrate").code == 0
    least = least_by_tails(*stored_guarantee(tmp_path), RATE)
    answers, said = located(asked)
    assert [answer["refused"] for answer in answers] == [answer["confidence"] <= least for answer in answers]
    assert 0 < sum(answer["refused"] for answer in answers) < QUERIES
    assert said.count("at most 30% false answers, 90% sure: from confidence") == 1 and "refuses all" not in said
    answers, _ = located(asked, "--minConfidence=1")
    assert all(answer["refused"] for answer in answers), "the higher of the two"
    assert all(answer["refused"] for answer in located("--maxFalseRate=0")[0])
    answers, said = located(asked, *RERANKED)
    assert all(answer["refused"] for answer in answers) and said.count("--maxFalseRate refuses all images") == 1

    (path,) = (tmp_path / "model").glob("calibration_*.h5")
    earlier = load_calibration(path, recipe_names(path))
    save_calibration(path.parent, dataclasses.replace(earlier, guarantee=None))
    answers, said = located(asked)
    assert all(answer["refused"] for answer in answers) and all(answer["confidence"] for answer in answers)
    assert said.count("no bound of false answers was learnt with this calibration") == 1


def recipe_names(path):
    learnt = {"features", "bias", "slope", "checksum", *(field.name for field in dataclasses.fields(LearntOn))}
    with h5py.File(path) as file:
        return sorted({*file.attrs} - learnt)


def test_a_server_refuses_likewise_and_says_at_its_start_where_it_answers_nothing(call, own, tmp_path, monkeypatch):
    images = [np.array(Image.open(path)).transpose(2, 0, 1) for path in sorted((own / "val" / "queries").iterdir())]
    answered = []

    def serve(settings, locator):
        answered[:] = locator.answer_each(images, [locator.usual] * len(images))

    monkeypatch.setattr("vpr.serve.server.run", serve)
    code, out, _ = call("serve", f"--maxFalseRate={RATE}")
    assert code == 0 and len(answered) == QUERIES and all(each.refused for each in answered)
    assert out.count("--maxFalseRate refuses all images: no calibration") == 1
    assert call("test", "--calibrate").code == 0
    least = least_by_tails(*stored_guarantee(tmp_path), RATE)
    code, out, _ = call("serve", f"--maxFalseRate={RATE}")
    assert code == 0 and "refuses all" not in out
    assert [each.refused for each in answered] == [each.confidence <= least for each in answered]
    assert 0 < sum(each.refused for each in answered) < QUERIES
    assert "refuses all" not in call("serve").out and not any(each.refused for each in answered)
