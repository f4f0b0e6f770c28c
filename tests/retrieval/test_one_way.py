"""The same images have the same answers, to the bit, in test, locate, the server and Python."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawing import draw_image
from PIL import Image

import main
import vpr
import vpr.modes.test
from tests.serve.asking import serving
from vpr.cli.locating import database_images, locator_of
from vpr.cli.options import settle
from vpr.common.errors import UserError
from vpr.retrieval.ask import Ask, NotServed, TooSmall
from vpr.search.sequences import SequenceRule

MODEL = {"arch": "alexnet", "weights": "none", "pooling": "avg", "threads": 0, "device": "cpu", "precision": "fp32"}
ALIKE = {"cacheBatchSize": 1, "localDim": 8}  # sums of one image at a time round alike
TOLD = ("name", "distance", "easting", "northing", "zone", "latitude", "longitude")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Twelve database images 30 m apart, two of them the same, and four queries, all of one size."""
    root = tmp_path_factory.mktemp("own")
    for n in range(12):
        draw_image(root / "val" / "database" / f"@{585000 + 30 * n}@4477000@17@T@{n}@.png", (96, 80), min(n, 10))
    for n in range(4):
        draw_image(root / "val" / "queries" / f"@{585003 + 30 * n}@4477000@17@T@q{n}@.png", (96, 80), [5, n])
    return root


@pytest.fixture
def places(own, tmp_path):
    return {"dataset": "folder", "root": str(own), "dataPath": str(tmp_path / "model"), "runsPath": str(tmp_path)}


def queries_of(root):
    return sorted((root / "val" / "queries").iterdir())


def run_mode(mode, places, *words):
    flags = [f"--{name}={value}" for name, value in {**MODEL, **places, **ALIKE}.items()]
    assert main.main([f"--mode={mode}", *flags, *map(str, words)]) == 0


def loaded_locator(places, **flags):
    options = settle({**MODEL, **places, **flags, "mode": "locate"})
    return locator_of(options, database_images(options))[0]


def by_test(places, monkeypatch, *words):
    """What was found for all queries, and how sure that is, as they were counted."""
    kept, judge = [], vpr.modes.test.judge_answers

    def keep(images, results, *how):
        kept.append((results.ranking, judge(images, results, *how)))
        return kept[-1][1]

    monkeypatch.setattr(vpr.modes.test, "judge_answers", keep)
    run_mode("test", places, "--panels=0", *words)
    ((ranking, judged),) = kept
    return ranking, judged.certainty.scores.values


def pixels_of(file):
    return np.array(Image.open(file)).transpose(2, 0, 1)


def over_http(client, file, depth):
    status, answer, _ = client.locate(file.read_bytes(), f"?top=12&rerank={depth}")
    assert status == 200
    return answer


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("depth", [0, 6])
def test_hits_are_equal_to_the_bit(own, places, monkeypatch, capsys, depth, kept):
    files = queries_of(own)
    ranking, sure = by_test(places, monkeypatch, f"--rerank={depth}")
    if kept:
        run_mode("index", places, "--localDescriptors")
    capsys.readouterr()
    run_mode("locate", places, f"--rerank={depth}", "--top=12", "--json", "--panels=0", *files)
    located = json.loads(capsys.readouterr().out)
    locator, ask = loaded_locator(places, **ALIKE), Ask(top=12, rerank=depth)
    from_files = locator.rank(locator.describe_files(files, ask), ask)
    asked = [answer for file in files for answer in locator.answer_each([pixels_of(file)], [ask])]
    served = located
    if kept:  # a server takes seconds to start, and answers from either database by the same code
        with serving(locator) as client:
            served = [over_http(client, file, depth) for file in files]
    for number, (one, other, third) in enumerate(zip(located, asked, served, strict=True)):
        hits, distances = ranking.only(number), ranking.answers.distances[number].tolist()
        wanted = [(ranking.records.names[row], distance) for row, distance in zip(hits, distances, strict=False)]
        matches = [[vars(match) for match in other.matches], one["matches"], third["matches"]]
        for each in matches:
            assert [(match["name"], match["distance"]) for match in each] == wanted and len(wanted) == 12
            assert [[match[name] for name in TOLD] for match in each] == [
                [match[name] for name in TOLD] for match in matches[0]
            ]
        assert one["confidence"] == third["confidence"] == other.confidence == float(sure[number])
        assert one["confidence_kind"] == third["confidence_kind"] == other.confidence_kind
    assert from_files.order == ranking.order and ("second look" in ranking.order) == (depth > 0)
    for name in ("scores", "agreeing") if depth else ():
        np.testing.assert_array_equal(getattr(from_files.answers, name), getattr(ranking.answers, name))


def test_a_question_that_has_no_answer_says_why(own, places, tmp_path, monkeypatch):
    monkeypatch.setattr("vpr.cli.locating.FEW", 0)  # so that the index keeps no local descriptors
    root = shutil.copytree(own, tmp_path / "own")
    locator = loaded_locator({**places, "root": str(root)})
    file = queries_of(root)[0]
    small, image = np.zeros((3, 4, 4), np.uint8), pixels_of(file)
    found = locator.answer_each([small, image, image], [Ask(), Ask(sequence=SequenceRule(1)), Ask()])
    assert [type(each) for each in found[:2]] == [TooSmall, NotServed] and len(found[2].matches) == 5
    shutil.rmtree(root / "val" / "database")
    (lost,) = locator.answer_each([image], [Ask(rerank=3)])
    assert type(lost) is NotServed and "not all there" in lost.told and str(root) not in lost.told
    with pytest.raises(UserError, match="own"):
        locator.locate([file], Ask(rerank=3))


@pytest.mark.parametrize("given", ["run", "checkpoint", "exported file"])
def test_python_loads_a_locator_and_keeps_its_index(copy_toy_run, tiny_city, tmp_path, given, capsys, request):
    path = copy_toy_run(tmp_path).run
    if given == "checkpoint":
        path = path / "checkpoints" / "model_best.pth.tar"
    elif given == "exported file":
        path = Path(shutil.copy(request.getfixturevalue("exported_toy_run"), tmp_path / "model.onnx"))
    flags = {} if given == "exported file" else {"precision": "fp32"}
    image = next(tiny_city.rglob("*.jpg"))
    for turn in range(2):
        locator = vpr.load_locator(path, tiny_city, device="cpu", **flags)
        (answer,) = locator.locate([image])
        assert len(answer.matches) == 5 == len(answer.files) and answer.files[0].is_file()
        assert ("described" in capsys.readouterr().out) == (turn == 0)
    assert len(locator.locate([image], Ask(top=2))[0].matches) == 2
    with pytest.raises(UserError):
        vpr.load_locator(tmp_path / "absent", tiny_city)


def test_importing_the_package_imports_no_pytorch():
    code = "import sys, vpr; assert 'torch' not in sys.modules and 'load_locator' in vpr.__all__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
