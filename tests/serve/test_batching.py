"""Requests that wait at the same time become one batch."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from vpr.retrieval.ask import TooLarge
from vpr.retrieval.model_pass import ModelPass
from vpr.serve.batching import Batcher, Full


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


class Steps:
    """Long work of some steps, which are noted with those of others."""

    def __init__(self, seen, name, count=3):
        self.seen, self.name, self.count = seen, name, count

    def __call__(self, pause):
        for number in range(self.count):
            self.seen.append(f"{self.name}{number}")
            pause()
        return self.name


@pytest.fixture
def held(batches):
    """A batcher of whose clients two may have 8 long ones each, its passes, and a way to let it go."""
    passes = Passes()
    batcher = Batcher(passes, 16, 0.0, 64, long_room=8)
    yield batcher, passes
    passes.may_go.set()
    batcher.close()


def test_what_is_short_comes_between_the_steps_of_long_work(held):
    batcher, passes = held
    with batcher.place(3) as short, batcher.place(1, "one") as long:
        while_one_is_held(batcher, passes, short)
        work = long.long(Steps(passes.seen, "a"))
        call = short.call(lambda: passes.seen.append("call"))
        later = short.put(1)
        passes.may_go.set()
        assert work.result(10) == "a" and call.result(10) is None and later.result(10).result == 2
    assert passes.seen == [[0], "call", "a0", [1], "a1", "a2"]


def test_clients_take_turns_and_short_ones_of_a_client_come_first(held):
    batcher, passes = held
    with batcher.place() as short, batcher.place(4, "one") as one, batcher.place(1, "two") as two:
        while_one_is_held(batcher, passes, short)
        works = [one.long(Steps(passes.seen, name)) for name in "ab"]
        works += [one.long(Steps(passes.seen, "s", 1), is_short=True), two.long(Steps(passes.seen, "x", 2))]
        passes.may_go.set()
        assert [work.result(10) for work in works] == ["a", "b", "s", "x"]
    assert passes.seen == [[0], "s0", "x0", "x1", "a0", "a1", "a2", "b0", "b1", "b2"]


def test_a_client_has_no_more_long_work_underway_than_its_share(held):
    batcher, _passes = held
    with batcher.place(8, "one"):
        with pytest.raises(Full), batcher.place(1, "one"):
            pass
        with batcher.place(8, "two"):
            with pytest.raises(Full), batcher.place(1, "three"):  # all share half of the room, say
                pass
            with batcher.place(1) as place:  # for what is short there is room
                assert place.put(1).result(10).result == 2
        with batcher.place(1, "three"):
            pass
    with batcher.place(8, "one"):
        pass


def test_long_work_that_fails_or_that_nobody_waits_for_ends(held):
    batcher, passes = held
    with batcher.place() as short, batcher.place(3, "one") as long:
        while_one_is_held(batcher, passes, short)
        failed = long.long(lambda pause: 1 / 0)
        gone = long.long(Steps(passes.seen, "g", 1000))
        never = long.long(Steps(passes.seen, "n"))
        assert never.cancel()
        passes.may_go.set()
        with pytest.raises(ZeroDivisionError):
            failed.result(10)
        while "g0" not in passes.seen:
            time.sleep(0.001)
        assert gone.cancel() and short.call(lambda: None)
    batcher.close()
    assert len(passes.seen) < 900 and "n0" not in passes.seen
    assert not [thread for thread in threading.enumerate() if thread.name == "long work"]


def test_closing_ends_long_work_first(held):
    batcher, passes = held
    with batcher.place(1, "one") as long:
        work = long.long(Steps(passes.seen, "a", 5))
        batcher.close()
        assert work.result(0) == "a"


def test_an_error_that_is_answered_is_of_its_item_alone():
    seen = []

    def answer(numbers):
        seen.append(list(numbers))
        return [ValueError(number) if number < 0 else number for number in numbers]

    batcher, may_go = Batcher(answer, 16, 0.0, 8), threading.Event()
    with batcher.place(4) as place:
        place.call(lambda: may_go.wait(10))
        futures = [place.put(number) for number in (1, -1, 2)]
        may_go.set()
        assert [futures[n].result(10).result for n in (0, 2)] == [1, 2]
        with pytest.raises(ValueError, match="-1"):
            futures[1].result(10)
    batcher.close()
    assert seen == [[1, -1, 2]], "and the others are not answered again"


def test_who_is_sent_away_is_told_how_long_it_will_take():
    batcher = Batcher(lambda numbers: (time.sleep(0.3 * len(numbers)), numbers)[1], 1, 0.0, 40)
    with batcher.place(40) as place:
        assert [place.put(n).result(10).result for n in (1, 2)] == [1, 2]
        with pytest.raises(Full) as full, batcher.place():
            pass
    batcher.close()
    assert 1 < full.value.seconds <= 30


def test_long_work_that_would_wait_too_long_is_sent_away_at_once(held, monkeypatch):
    monkeypatch.setattr("vpr.serve.batching.LONGEST_WAIT", 1)
    monkeypatch.setattr("vpr.serve.batching.PACE", 1.0)  # the last one is the mean
    batcher, _ = held
    with batcher.place(1, "one") as place:
        place.long(lambda pause: time.sleep(0.6)).result(10)
        place.long(lambda pause: time.sleep(0.6)).result(10)
    with batcher.place(2, "one"):
        with pytest.raises(Full), batcher.place(1, "one"):
            pass
        with batcher.place(1, "two"):
            pass


def test_an_image_for_which_a_gpu_has_no_room_is_refused_as_beside_a_processor(monkeypatch):
    """Before it goes there, from where PyTorch's error would come in the middle of a batch."""
    monkeypatch.setattr("vpr.retrieval.model_pass.free_gpu_bytes", lambda device: 1999)
    model = SimpleNamespace(device=torch.device("cuda", 0), smallest_side=1, bytes_per_image=lambda *_: 1000)
    model.eval = lambda: model
    problem = ModelPass(model).refusal(torch.zeros(3, 60, 80, dtype=torch.uint8))
    assert isinstance(problem, TooLarge) and "80x60 pixels" in str(problem)
