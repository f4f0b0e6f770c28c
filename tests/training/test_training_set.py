"""Trainings that cannot train are refused before anything is described, with counts; what is doubtful is said."""

import numpy as np
import pytest
import torch
from drawing import draw_image

import main
from vpr.common.errors import UserError
from vpr.data.places import PlacesSpec
from vpr.training.mining import all_alike
from vpr.training.rules import TrainingRules
from vpr.training.training_set import load_training_set

RULES = TrainingRules(negatives=3, batch_size=2)


def site(root, database, queries, split="train", alike=False):
    """A folder of images at these eastings, metres."""
    for role, eastings in (("database", database), ("queries", queries)):
        for number, east in enumerate(eastings):
            seed = [0] if alike else [role == "queries", number]
            draw_image(root / split / role / f"@{1000 + east:.2f}@500@{number}.jpg", (64, 48), seed)
    return root


APART = np.arange(24) * 50.0


@pytest.mark.parametrize(
    ("database", "queries", "batch_size", "said"),
    [
        (np.arange(24) * 0.5, [2, 4, 6], 2,
         ("none of the 3 queries has a negative", "all 24 database images", "25 m")),
        (APART, APART[:3], 2,  # at the very places of database images
         ("none of the 3 queries has a potential positive", "over 1 m and at most 10 m")),
        (APART, [2, 52, 102], 4, ("24 database images and 3 usable queries", "4 (--batchSize)", "lower")),
    ],
    ids=["no negative", "no positive", "no batch"],
)  # fmt: skip
def test_what_cannot_train_is_refused_with_counts(tmp_path, database, queries, batch_size, said):
    site(tmp_path, database, queries)
    with pytest.raises(UserError) as caught:
        load_training_set(PlacesSpec("folder", tmp_path), TrainingRules(negatives=3, batch_size=batch_size))
    text = str(caught.value)
    assert "\n" not in text and f"{tmp_path.name}_train" in text
    assert all(words in text for words in said), text


def test_queries_with_few_negatives_or_none_are_counted(tmp_path, capsys):
    near, far = np.arange(20) * 0.5, np.array([40.0, 41.0, 12.0 + 25])
    training = load_training_set(PlacesSpec("folder", site(tmp_path, [*near, *far], [2.0, 4.0, 13.0, 19.0])), RULES)
    free = [len(near) + len(far) - len(indices) for indices in training.not_negatives]
    assert sorted(free) == [0, 2, 3, 3], "by the eastings above"
    said = capsys.readouterr().out
    assert "1 of them have no negative" in said and "1 have fewer than 3" in said
    assert len(training.usable) == 4


def test_a_training_that_can_train_says_nothing_of_negatives(tmp_path, capsys):
    load_training_set(PlacesSpec("folder", site(tmp_path, APART, [2, 52, 102])), RULES)
    assert "negative" not in capsys.readouterr().out


def run(root, *more):
    return main.main([
        "--mode=train", "--dataset=folder", f"--root={root}", "--nEpochs=1", f"--runsPath={root / 'runs'}", *more,
        "--arch=alexnet", "--fromscratch", "--pooling=max", "--device=cpu", "--precision=fp32", "--threads=0",
    ])  # fmt: skip


def test_descriptors_are_alike_but_for_rounding():
    one = torch.nn.functional.normalize(torch.rand(1, 64, generator=torch.Generator().manual_seed(0)))
    assert all_alike(one.repeat(5, 1)) and all_alike(torch.zeros(5, 64))
    assert all_alike(torch.cat([one, one.to(torch.bfloat16).float(), one.half().float()]))
    other = one.clone()
    other[0, :2] = one[0, :2].flip(0)
    assert not all_alike(torch.cat([one, one, other]))


def test_images_that_are_all_alike_are_said(tmp_path, capsys):
    for split in ("train", "val"):
        site(tmp_path, np.arange(20) * 50.0, np.arange(4) * 50.0 + 2, split, alike=True)
    assert run(tmp_path) == 0
    assert "all 24 descriptors are alike" in capsys.readouterr().out


def test_an_epoch_without_tuples_is_said_and_a_refusal_leaves_no_run(tmp_path, capsys):
    for split in ("train", "val"):
        site(tmp_path, np.arange(20) * 50.0, np.arange(4) * 50.0 + 2, split)
        for number in range(4):  # each query is its positive's twin: no other image is as near
            query = tmp_path / split / "queries" / f"@{1002 + 50 * number:.2f}@500@{number}.jpg"
            query.write_bytes(
                (tmp_path / split / "database" / f"@{1000 + 50 * number:.2f}@500@{number}.jpg").read_bytes()
            )
    assert run(tmp_path, "--margin=1e-9") == 0
    said = capsys.readouterr().out
    assert "no query has a negative within the margin" in said and "alike" not in said
    site(tmp_path / "b", np.arange(24) * 0.5, [2, 4, 6, 8])
    site(tmp_path / "b", np.arange(24) * 0.5, [2, 4, 6, 8], "val")
    assert run(tmp_path / "b") == 2 and not (tmp_path / "b" / "runs").exists()


def folder(root, database, queries):
    for role, places in (("database", database), ("queries", queries)):
        (root / "train" / role).mkdir(parents=True)
        for number, (east, north) in enumerate(places):
            (root / "train" / role / f"@{east}@{north}@{number}@.jpg").write_bytes(b"some")
    return PlacesSpec("folder", root)


def test_pairs_that_share_a_position_are_told_the_rule(tmp_path, capsys):
    """Pairs of images whose position is made up, 100 m a pair."""
    places = [(100 * number, 0) for number in range(30)]
    with pytest.raises(UserError) as caught:
        load_training_set(folder(tmp_path, places, places), TrainingRules())
    for text in (str(caught.value), capsys.readouterr().out.rstrip("\n")):
        assert "30 stand where a database image does" in text and "over 1 m and at most 10 m" in text
        assert "docs/own-images.md" in text and "\n" not in text


@pytest.mark.parametrize(
    ("offset", "left_out", "said"),
    [((5, 0), 0, 0), ((1, 0), 20, 20), ((0.7, 0.7), 20, 20), ((0.8, 0.8), 0, 0), ((15, 0), 20, 0), ((50, 0), 20, 0)],
)
def test_queries_with_and_without_positives_are_counted(tmp_path, capsys, offset, left_out, said):
    """Ten queries have a database image 3 m away; twenty others have theirs at an offset."""
    database = [(1000 * number, 0) for number in range(30)]
    queries = [(east + 3, 0) for east, _ in database[:10]]
    queries += [(east + offset[0], offset[1]) for east, _ in database[10:]]
    found = load_training_set(folder(tmp_path, database, queries), TrainingRules())
    assert len(found.usable) == 30 - left_out
    line = capsys.readouterr().out
    assert f"{left_out} queries without a potential positive are left out" in line
    assert (f"({said} stand where" in line) == (said > 0) and ("stand where" in line) == (said > 0)
