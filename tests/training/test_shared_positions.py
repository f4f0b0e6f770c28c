"""Which queries a training takes, and what is said of the others."""

import pytest

from vpr.common.errors import UserError
from vpr.data.places import PlacesSpec
from vpr.training.rules import TrainingRules
from vpr.training.training_set import load_training_set


def folder(root, database, queries):
    for role, places in (("database", database), ("queries", queries)):
        (root / "train" / role).mkdir(parents=True)
        for number, (east, north) in enumerate(places):
            (root / "train" / role / f"@{east}@{north}@{number}@.jpg").write_bytes(b"some")
    return PlacesSpec("folder", root)


RULES = TrainingRules()


def test_pairs_that_share_a_position_are_told_the_rule(tmp_path, capsys):
    """Pairs of images whose position is made up, 100 m a pair."""
    places = [(100 * number, 0) for number in range(30)]
    with pytest.raises(UserError) as caught:
        load_training_set(folder(tmp_path, places, places), RULES)
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
    found = load_training_set(folder(tmp_path, database, queries), RULES)
    assert len(found.usable) == 30 - left_out
    line = capsys.readouterr().out
    assert f"{left_out} queries without a potential positive are left out" in line
    assert (f"({said} stand where" in line) == (said > 0) and ("stand where" in line) == (said > 0)
