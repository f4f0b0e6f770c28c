"""Recalls by sequences and of loop closure, of places whose answers are known."""

import numpy as np
import pytest
import torch

from pittsburgh import Places
from vpr.data.places import PlaceImages
from vpr.descriptors.local_maps import LocalMaps
from vpr.evaluation.evaluate import measure_each
from vpr.retrieval.ask import Ask
from vpr.retrieval.rerank import Reranked
from vpr.runs.descriptors_file import SplitDescriptors, SplitLocal
from vpr.search.rules import RecentFrames
from vpr.search.sequences import SequenceRule


def split_of(database_names, query_names, database_metres, query_metres):
    positions = [np.stack([metres, np.zeros(len(metres))], axis=1) for metres in (database_metres, query_metres)]
    places = Places("made", database_names, query_names, positions[0], positions[1], 5.0, 5.0)
    return PlaceImages(places, "val", database_names, query_names)


def looks(pattern):
    """Descriptors, one letter each: equal letters look alike, different ones not at all."""
    rows = torch.eye(26)[[ord(letter) - ord("a") for letter in pattern]]
    return rows.half()


def measured(pattern, asked, images, rule, recent=None):
    descriptors = SplitDescriptors(looks(pattern), looks(asked), {(6, 8)}, made_by="letters")
    return measure_each(descriptors, None, images, [1, 2], Ask(sequence=rule, exclusion=recent))


@pytest.mark.parametrize("causal", [False, True])
def test_sequences_find_what_single_frames_cannot_tell(causal):
    """A corridor of three equal doors x, between rooms that differ; the queries pass the last two."""
    database, asked = "axbcxdexf", "cxdexf"
    images = split_of(
        [f"m/{n}.jpg" for n in range(9)], [f"q/{n}.jpg" for n in range(6)], 10.0 * np.arange(9), 10.0 * np.arange(3, 9)
    )
    (single, before), (evaluation, after) = measured(database, asked, images, SequenceRule(1, causal))
    assert single.recalls[1] < 1
    assert evaluation.recalls == {1: 1.0, 2: 1.0}
    assert after.found[:, 0].tolist() == [3, 4, 5, 6, 7, 8]
    assert [outcome.rank for outcome in after.outcomes] == [1] * 6
    assert [outcome.rank_before for outcome in after.outcomes] == [outcome.rank for outcome in before.outcomes]
    frames = "1 frame before" + ("" if causal else " and after")
    assert evaluation.search == f"exact, sequences of {frames}"
    assert single.search == "exact"
    assert after.ranking.answers.sequence.shape == after.found.shape
    assert after.curve[1] == 1


def test_loop_closure_counts_earlier_rounds_alone():
    """Two rounds of five places, 10 m apart: only the other round is right, and the first frames have none."""
    names = [f"w/{n}.jpg" for n in range(10)]
    metres = 10.0 * np.tile(np.arange(5), 2)
    images = split_of(names, names, metres, metres)
    recent = RecentFrames(2, causal=True)
    (single, answers), (evaluation, by_sequence) = measured("abcdeabcde", "abcdeabcde", images, SequenceRule(1), recent)
    assert single.queries_without_positive == 5
    assert single.recalls[1] == 0.5
    assert evaluation.recalls[1] == 0.5
    assert [right.tolist() for right in answers.positives] == [[]] * 5 + [[n] for n in range(5)]
    assert [outcome.answerable for outcome in by_sequence.outcomes] == [False] * 5 + [True] * 5
    for results in (answers, by_sequence):
        assert results.found[5:, 0].tolist() == list(range(5))
        assert (results.found[:3] == -1).all()  # nothing is older than two frames
    assert "no hits nor positives among the 2 frames of its walk before the query and all after it" in single.protocol


def test_reranking_adds_to_the_cosines_of_all_frames(monkeypatch):
    """Its global term is the sum along the sequence: a mean would count less beside the local score than one image."""
    given = []

    def keep(found, similarities, queries, database, how, *rest):
        given.append(similarities)
        order = np.tile(np.arange(how.depth), (len(found), 1))
        return Reranked(found, order, similarities[:, :2], {}, similarities[:, :2])

    monkeypatch.setattr("vpr.retrieval.ranking.rerank", keep)
    images = split_of(["m/0.jpg", "m/1.jpg", "m/2.jpg"], ["q/0.jpg", "q/1.jpg", "q/2.jpg"], np.arange(3), np.arange(3))
    maps = LocalMaps(values=np.zeros((6, 1), np.int8), grids=np.ones((6, 2), np.int32), starts=np.arange(7))
    local = SplitLocal(maps, 3, None)
    descriptors = SplitDescriptors(looks("abc"), looks("abc"), {(6, 8)}, made_by="letters", local=local)
    for rule in (None, SequenceRule(1)):
        list(measure_each(descriptors, None, images, [1, 2], Ask(rerank=2, sequence=rule)))
    np.testing.assert_allclose(given[0][:, 0], [1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(given[1][:, 0], [2, 3, 2], rtol=1e-6)
