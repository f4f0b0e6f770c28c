"""Which frames may not be found: against loops over names whose times are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from vpr.search.protocols import either, own_time, without_excluded
from vpr.search.rules import RecentFrames

# Queries are every third frame of two sequences, and in the second also database images.
DATABASE = [("a", n) for n in range(12) if n % 3] + [("b", n) for n in range(6)]
QUERIES = [("a", n) for n in range(0, 12, 3)] + [("b", n) for n in range(0, 6, 3)]


def names(frames, folder):
    return [f"{folder}{sequence}/{number:03d}.jpg" for sequence, number in frames]


@pytest.mark.parametrize("folders", [("", ""), ("val/database/", "val/queries/"), ("", "queries_real/")])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("count", [0, 1, 4, 100])
def test_recent_frames_are_those_of_the_own_sequence(folders, causal, count):
    excluded = RecentFrames(count, causal).of(names(DATABASE, folders[0]), names(QUERIES, folders[1]))
    asked = np.array([5, 0, 2])
    for row, query in zip(excluded(asked), asked, strict=True):
        sequence, time = QUERIES[query]
        wanted = []
        for other, number in DATABASE:
            late = number > time + count and not causal
            wanted.append(other == sequence and not late and not number < time - count)
        assert row.tolist() == wanted


def test_frames_are_counted_not_their_numbers():
    """Times in nanoseconds: the last frame is the last, however long ago."""
    database = [f"a/{10**9 * n}.png" for n in (1, 2, 3, 5)]
    excluded = RecentFrames(1).of(database, [f"a/{10**9 * 4}.png"])
    assert excluded(np.array([0])).tolist() == [[False, False, True, True]]


def test_right_images_that_may_not_be_found_are_not_right():
    excluded = RecentFrames(1).of(names(DATABASE, ""), names(QUERIES, ""))
    every = [np.arange(len(DATABASE)) for _ in QUERIES]
    every[1] = np.empty(0, np.int64)
    left = without_excluded(every, excluded)
    for query, kept in enumerate(left):
        sequence, time = QUERIES[query]
        near = [other == sequence and abs(number - time) <= 1 for other, number in DATABASE]
        assert kept.tolist() == ([] if query == 1 else [i for i, out in enumerate(near) if not out])


def test_rules_are_joined():
    times = own_time(SimpleNamespace(query_times=np.array([1, 2]), database_times=np.array([2, 1, 3])))
    assert times(np.array([1, 0])).tolist() == [[True, False, False], [False, True, False]]
    assert either(None, None) is None
    assert either(times, None) is either(None, times) is times
    both = either(times, lambda queries: np.array([[False, False, True]] * len(queries)))
    assert both(np.array([1])).tolist() == [[True, False, True]]
