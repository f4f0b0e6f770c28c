"""Requests that wait at the same time become one batch."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from vpr.serve.batching import Batcher, Full
from vpr.serve.model_pass import ModelPass
from vpr.serve.problems import Problem


class Passes:
    """Doubles numbers, and notes which came together; can be held."""

    def __init__(self):
        self.seen, self.may_go, self.began = [], threading.Event(), threading.Event()
        self.may_go.set()

    def __call__(self, numbers):
        self.seen.append(list(numbers))
        self.began.set()
        assert self.may_go.wait(10)
        if any(number < 0 for number in numbers):
            raise ValueError(f"negative among {numbers}")
        return [2 * number for number in numbers]


@pytest.fixture
def batches():
    """Makes a batcher of `Passes`."""
    made = []

    def make(size=16, wait=0.0, room=64):
        passes = Passes()
        made.append((Batcher(passes, size, wait, room), passes))
        return made[-1]

    yield make
    for batcher, passes in made:
        passes.may_go.set()
        batcher.close()


def while_one_is_held(batcher, passes, place):
    """Puts 0 in and waits until its pass has begun, where it is held."""
    passes.may_go.clear()
    first = place.put(0)
    assert passes.began.wait(10)
    return first


def test_what_waits_together_is_answered_together_in_its_order(batches):
    batcher, passes = batches(size=16)
    with batcher.place(17) as place:
        first = while_one_is_held(batcher, passes, place)
        futures = [place.put(number) for number in range(1, 17)]
        passes.may_go.set()
        assert [future.result(10).result for future in futures] == list(range(2, 33, 2))
    assert passes.seen == [[0], list(range(1, 17))] and first.result().together == 1
    assert {future.result().together for future in futures} == {16}


def test_a_batch_is_no_larger_than_it_may_be(batches):
    batcher, passes = batches(size=3)
    with batcher.place(8) as place:
        while_one_is_held(batcher, passes, place)
        futures = [place.put(number) for number in range(1, 8)]
        passes.may_go.set()
        assert [future.result(10).result for future in futures] == list(range(2, 16, 2))
    assert [len(batch) for batch in passes.seen] == [1, 3, 3, 1]


def test_one_that_is_alone_waits_for_nobody(batches):
    batcher, _ = batches(wait=30.0)
    with batcher.place() as place:
        assert place.put(4).result(10).result == 8


def test_a_batch_waits_for_those_on_their_way_until_they_come_or_turn_back(batches):
    batcher, passes = batches(wait=30.0)
    with batcher.place() as one:
        with batcher.place() as other, batcher.place():
            first = one.put(1)
            time.sleep(0.05)
            assert not passes.seen
            second = other.put(2)
        assert first.result(10).result == 2 and second.result(10).result == 4  # the third never came
    assert passes.seen == [[1, 2]]


def test_a_batch_does_not_wait_longer_than_it_may(batches):
    batcher, _ = batches(wait=0.02)
    with batcher.place(2) as place:
        done = place.put(1).result(10)
    assert done.result == 2 and done.waited >= 0.02


def test_more_than_the_room_is_sent_away_until_there_is_room_again(batches):
    batcher, _ = batches(room=3)
    with batcher.place(2):
        with pytest.raises(Full), batcher.place(2):
            pass
        with batcher.place(1):
            assert batcher.underway == 3
    assert batcher.underway == 0
    with batcher.place(3) as place:
        assert place.put(1).result(10).result == 2


def test_one_that_fails_fails_alone(batches):
    batcher, passes = batches()
    with batcher.place(5) as place:
        while_one_is_held(batcher, passes, place)
        futures = [place.put(number) for number in (1, -1, 2, 3)]
        passes.may_go.set()
        assert [futures[n].result(10).result for n in (0, 2, 3)] == [2, 4, 6]
        with pytest.raises(ValueError, match=r"among \[-1\]"):
            futures[1].result(10)


def test_calls_are_made_between_batches_in_their_turn(batches):
    batcher, passes = batches()
    with batcher.place(4) as place:
        while_one_is_held(batcher, passes, place)
        futures = [place.put(1), place.call(lambda: list(passes.seen)), place.put(2)]
        passes.may_go.set()
        assert futures[1].result(10) == [[0], [1]] and futures[2].result(10).result == 4
    assert passes.seen == [[0], [1], [2]]


def test_a_call_that_fails_says_so(batches):
    batcher, _ = batches()
    with batcher.place(2) as place:
        with pytest.raises(ZeroDivisionError):
            place.call(lambda: 1 / 0).result(10)
        assert place.put(1).result(10).result == 2


def test_closing_answers_what_waits_and_takes_nothing_new(batches):
    batcher, passes = batches(size=1)
    with batcher.place(3) as place:
        while_one_is_held(batcher, passes, place)
        futures = [place.put(1), place.put(2)]
        closing = threading.Thread(target=batcher.close)
        closing.start()
        time.sleep(0.02)
        with pytest.raises(Full), batcher.place():
            pass
        passes.may_go.set()
        closing.join(10)
        assert not closing.is_alive() and [future.result(0).result for future in futures] == [2, 4]


def test_an_image_for_which_a_gpu_has_no_room_is_refused_as_beside_a_processor(monkeypatch):
    """Before it goes there, from where PyTorch's error would come in the middle of a batch."""
    monkeypatch.setattr("vpr.serve.model_pass.free_gpu_bytes", lambda device: 1999)
    model = SimpleNamespace(device=torch.device("cuda", 0), smallest_side=1, bytes_per_image=lambda *_: 1000)
    model.eval = lambda: model
    with pytest.raises(Problem) as caught:
        ModelPass(model).describe([torch.zeros(3, 60, 80, dtype=torch.uint8)])
    assert caught.value.status == 413 and "80x60 pixels" in str(caught.value)
