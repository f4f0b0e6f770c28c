"""Sequences by each data set's protocol, and images that are no sequences."""

import contextlib

import numpy as np
import pytest
import torch
from test_search_and_recall import make_places

from vpr.common.errors import UserError
from vpr.data.frames import find_sequences
from vpr.search.protocols import search_frames, search_places
from vpr.search.rules import RecentFrames
from vpr.search.sequences import SequenceRule, require_order

PANORAMAS = [f"w/{panorama:02d}_{heading}.png" for panorama in range(5) for heading in range(12)]


def descriptors(count, seed):
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(
    "places",
    [
        make_places("plain", 60, 7),
        make_places("panorama", PANORAMAS, 7),
        make_places("other_time", 60, 7, database_times=[1, 2, 3] * 20, query_times=[1, 2, 1, 3, 3, 4, 2]),
    ],
    ids=lambda places: places.protocol,
)
@pytest.mark.parametrize("count", [4, 100])
def test_single_frames_are_found_by_the_protocol_as_ever(places, count):
    database, queries = descriptors(60, 1), descriptors(7, 2)
    found, scores = search_frames(database, queries, count, places, SequenceRule(0))
    np.testing.assert_array_equal(found, search_places(database, queries, count, places))
    similarities = (queries @ database.T).numpy()
    wanted = np.where(found >= 0, np.take_along_axis(similarities, found, axis=1), -np.inf)
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-6)


def test_sequences_of_one_time_do_not_help_what_may_not_be_found():
    """The protocol's excluded images are no part of any sequence: they may be anything."""
    times = {"database_times": [1, 2] * 10, "query_times": [1] * 5}
    places, database, queries = make_places("other_time", 20, 5, **times), descriptors(20, 3), descriptors(5, 4)
    changed = database.clone()
    changed[::2] = descriptors(10, 5)
    for one, other in zip(
        *(search_frames(each, queries, 20, places, SequenceRule(2)) for each in (database, changed)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    found, _ = search_frames(database, queries, 20, places, SequenceRule(2))
    assert (np.sort(found[:, :10], axis=1) == np.arange(1, 20, 2)).all()
    assert (found[:, 10:] == -1).all()


def test_a_sequence_in_its_own_map_is_not_found_at_its_own_time():
    """Twice around a circle of ten places: without the last frames, the first round is what is found."""
    around = torch.eye(10).repeat(2, 1)
    around[:, 0] += 0.1  # not all zeros between different places
    places = make_places("plain", 20, 0)
    names = places.database_names
    places = make_places("plain", names, 20)
    excluded = RecentFrames(3).of(names, names)
    places.query_names[:] = names
    found, _ = search_frames(around, around, 1, places, SequenceRule(1), excluded)
    assert found[:, 0].tolist() == [(n + 10) % 20 for n in range(20)]
    past = RecentFrames(3, causal=True).of(names, names)
    found, _ = search_frames(around, around, 20, places, SequenceRule(1, causal=True), past)
    assert found[10:, 0].tolist() == list(range(10))
    assert [int(row.max(initial=-1)) for row in found] == [max(n - 4, -1) for n in range(20)]


def frames_of(*names):
    return find_sequences(names)


FRAMES, ALONE = frames_of("a/1.jpg", "a/2.jpg", "a/3.jpg"), frames_of("a/1.jpg", "b/2.jpg")
TIMES = frames_of("q/1000.jpg", "q/1500.jpg", "q/2000.jpg")


@pytest.mark.parametrize(
    ("database", "queries", "rule", "refusal"),
    [
        (FRAMES, FRAMES, SequenceRule(2), None),
        (ALONE, ALONE, SequenceRule(0), None),
        (FRAMES, ALONE, SequenceRule(1), "no two of the 2 queries are of one sequence"),
        (ALONE, FRAMES, SequenceRule(1), "no two of the 2 database images are of one sequence"),
        # Numbers that no speed brings together.
        (FRAMES, TIMES, SequenceRule(1), "in steps of 500, the database's in steps of 1 over sequences of 2 at most"),
        (FRAMES, TIMES, SequenceRule(1, speeds=(1 / 500,)), None),
        (TIMES, FRAMES, SequenceRule(1), None),
    ],
)
def test_images_that_are_no_sequences_are_refused(database, queries, rule, refusal):
    with pytest.raises(UserError, match=refusal) if refusal else contextlib.nullcontext():
        require_order((database, queries), rule)
