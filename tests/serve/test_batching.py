"""Requests that wait at the same time become one batch."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from vpr.common.device import Device
from vpr.retrieval.ask import TooLarge
from vpr.retrieval.model_pass import ModelPass
from vpr.serve.batching import Batcher
from vpr.serve.problems import Problem


class Passes:
    """Doubles numbers, with an error in the place of 99, and notes which came together; can be held."""

    def __init__(self):
        self.seen, self.may_go, self.began = [], threading.Event(), threading.Event()
        self.may_go.set()

    def __call__(self, numbers):
        self.seen.append(list(numbers))
        self.began.set()
        assert self.may_go.wait(10)
        if any(number < 0 for number in numbers):
            raise ValueError(f"negative among {numbers}")
        return [ValueError("99 alone") if number == 99 else 2 * number for number in numbers]

    def hold(self, batcher, slots):
        """Puts 0 in and waits until its pass has begun, where it is held."""
        self.may_go.clear()
        first = batcher.put(slots, 0)
        assert self.began.wait(10)
        return first

    def steps(self, name, count=3):
        """Long work of some steps, which are noted with those of others."""

        def work(pause):
            for number in range(count):
                self.seen.append(f"{name}{number}")
                pause()
            return name

        return work


@pytest.fixture
def batches():
    """Makes a batcher of `Passes`, of whose clients two may have 8 long ones each."""
    made = []

    def make(size=16, wait=0.0, room=64):
        passes = Passes()
        made.append((Batcher(passes, size, wait, room, long_room=8), passes))
        return made[-1]

    yield make
    for batcher, passes in made:
        passes.may_go.set()
        batcher.close()


def require_full(batcher, *count_and_client):
    """Requires that there is no room; gives the seconds after which there is."""
    with pytest.raises(Problem) as found, batcher.slots(*count_and_client):
        pass
    assert found.value.status == 503
    return found.value.seconds


def results(futures):
    return [future.result(10).result for future in futures]


@pytest.mark.parametrize(("size", "count", "batch_sizes"), [(16, 16, [1, 16]), (3, 7, [1, 3, 3, 1])])
def test_what_waits_together_is_answered_together_in_its_order(batches, size, count, batch_sizes):
    batcher, passes = batches(size)
    with batcher.slots(1 + count) as slots:
        first = passes.hold(batcher, slots)
        futures = [batcher.put(slots, number) for number in range(1, 1 + count)]
        passes.may_go.set()
        assert results(futures) == [2 * number for number in range(1, 1 + count)]
    assert [len(batch) for batch in passes.seen] == batch_sizes
    assert [number for batch in passes.seen for number in batch] == list(range(1 + count))
    assert first.result().together == 1 and futures[0].result().together == size


def test_one_that_is_alone_waits_for_nobody(batches):
    batcher, _ = batches(wait=30.0)
    with batcher.slots() as slots:
        assert results([batcher.put(slots, 4)]) == [8]


def test_a_batch_waits_for_those_on_their_way_until_they_come_or_turn_back(batches):
    batcher, passes = batches(wait=30.0)
    with batcher.slots() as one:
        with batcher.slots() as other, batcher.slots():
            first = batcher.put(one, 1)
            time.sleep(0.05)
            assert not passes.seen
            second = batcher.put(other, 2)
        assert results([first, second]) == [2, 4]  # the third never came
    assert passes.seen == [[1, 2]]


def test_a_batch_does_not_wait_longer_than_it_may(batches):
    batcher, _ = batches(wait=0.02)
    with batcher.slots(2) as slots:
        done = batcher.put(slots, 1).result(10)
    assert done.result == 2 and done.waited >= 0.02


def test_more_than_the_room_is_sent_away_until_there_is_room_again(batches):
    batcher, _ = batches(room=3)
    with batcher.slots(2):
        require_full(batcher, 2)
        with batcher.slots(1):
            assert batcher.underway == 3
    assert batcher.underway == 0
    with batcher.slots(3) as slots:
        assert results([batcher.put(slots, 1)]) == [2]


@pytest.mark.parametrize(
    ("wrong", "message", "passes_made"),
    [(-1, r"among \[-1\]", [[1, -1, 2, 3], [1], [-1], [2], [3]]), (99, "99 alone", [[1, 99, 2, 3]])],
)
def test_one_that_fails_fails_alone(batches, wrong, message, passes_made):
    """Whether all fail with it, and each is answered once more by itself, or an error is its answer."""
    batcher, passes = batches()
    with batcher.slots(5) as slots:
        passes.hold(batcher, slots)
        futures = [batcher.put(slots, number) for number in (1, wrong, 2, 3)]
        passes.may_go.set()
        assert results([futures[0], *futures[2:]]) == [2, 4, 6]
        with pytest.raises(ValueError, match=message):
            futures[1].result(10)
    assert passes.seen[1:] == passes_made


def test_calls_are_made_between_batches_in_their_turn(batches):
    batcher, passes = batches()
    with batcher.slots(4) as slots:
        passes.hold(batcher, slots)
        futures = [batcher.put(slots, 1), batcher.call(lambda: list(passes.seen), slots), batcher.put(slots, 2)]
        passes.may_go.set()
        assert futures[1].result(10) == [[0], [1]] and results(futures[2:]) == [4]
    assert passes.seen == [[0], [1], [2]]


def test_a_call_that_fails_says_so(batches):
    batcher, _ = batches()
    with batcher.slots(2) as slots:
        with pytest.raises(ZeroDivisionError):
            batcher.call(lambda: 1 / 0, slots).result(10)
        assert results([batcher.put(slots, 1)]) == [2]


def test_closing_answers_what_waits_and_takes_nothing_new(batches):
    batcher, passes = batches(size=1)
    with batcher.slots(3) as slots:
        passes.hold(batcher, slots)
        futures = [batcher.put(slots, 1), batcher.put(slots, 2)]
        closing = threading.Thread(target=batcher.close)
        closing.start()
        time.sleep(0.02)
        require_full(batcher)
        with pytest.raises(Problem, match="ending"):
            batcher.call(lambda: None)
        passes.may_go.set()
        closing.join(10)
        assert not closing.is_alive() and [future.result(0).result for future in futures] == [2, 4]


def test_what_is_short_comes_between_the_steps_of_long_work(batches):
    batcher, passes = batches()
    with batcher.slots(3) as short, batcher.slots(1, "one") as long:
        passes.hold(batcher, short)
        work = batcher.long(long, passes.steps("a"), "one")
        call = batcher.call(lambda: passes.seen.append("call"), short)
        later = batcher.put(short, 1)
        passes.may_go.set()
        assert work.result(10) == "a" and call.result(10) is None and results([later]) == [2]
    assert passes.seen == [[0], "call", "a0", [1], "a1", "a2"]


def test_clients_take_turns_and_short_ones_of_a_client_come_first(batches):
    batcher, passes = batches()
    with batcher.slots() as short, batcher.slots(4, "one") as one, batcher.slots(1, "two") as two:
        passes.hold(batcher, short)
        works = [batcher.long(one, passes.steps(name), "one") for name in "ab"]
        works.append(batcher.long(one, passes.steps("s", 1), "one", is_short=True))
        works.append(batcher.long(two, passes.steps("x", 2), "two"))
        passes.may_go.set()
        assert [work.result(10) for work in works] == ["a", "b", "s", "x"]
    assert passes.seen == [[0], "s0", "x0", "x1", "a0", "a1", "a2", "b0", "b1", "b2"]


def test_a_client_has_no_more_long_work_underway_than_its_share(batches):
    batcher, _ = batches()
    with batcher.slots(8, "one"):
        require_full(batcher, 1, "one")
        with batcher.slots(8, "two"):
            require_full(batcher, 1, "three")  # all share half of the room, say
            with batcher.slots(1) as slots:  # for what is short there is room
                assert results([batcher.put(slots, 1)]) == [2]
        with batcher.slots(1, "three"):
            pass
    with batcher.slots(8, "one"):
        pass


def test_long_work_that_fails_or_that_nobody_waits_for_ends(batches):
    batcher, passes = batches()
    with batcher.slots() as short, batcher.slots(3, "one") as long:
        passes.hold(batcher, short)
        failed, gone, never = (
            batcher.long(long, work, "one") for work in (lambda _: 1 / 0, passes.steps("g", 1000), passes.steps("n"))
        )
        assert never.cancel()
        passes.may_go.set()
        with pytest.raises(ZeroDivisionError):
            failed.result(10)
        while "g0" not in passes.seen:
            time.sleep(0.001)
        assert gone.cancel()
    batcher.close()
    assert len(passes.seen) < 900 and "n0" not in passes.seen
    assert not [thread for thread in threading.enumerate() if thread.name == "long work"]


def test_closing_ends_long_work_first(batches):
    batcher, passes = batches()
    with batcher.slots(1, "one") as long:
        work = batcher.long(long, passes.steps("a", 5), "one")
        batcher.close()
        assert work.result(0) == "a"


def test_who_is_sent_away_is_told_how_long_it_will_take():
    batcher = Batcher(lambda numbers: (time.sleep(0.3 * len(numbers)), numbers)[1], 1, 0.0, 40, 40)
    with batcher.slots(40) as slots:
        assert results(batcher.put(slots, n) for n in (1, 2)) == [1, 2]
        assert 1 < require_full(batcher) <= 30
    batcher.close()


def test_long_work_that_would_wait_too_long_is_sent_away_at_once(batches, monkeypatch):
    monkeypatch.setattr("vpr.serve.batching.LONGEST_WAIT", 0.2)
    monkeypatch.setattr("vpr.serve.batching.PACE", 1.0)  # the last one is the mean
    batcher, _ = batches()
    with batcher.slots(1, "one") as slots:
        for _ in range(2):
            batcher.long(slots, lambda pause: time.sleep(0.15), "one").result(10)
    with batcher.slots(2, "one"):
        assert require_full(batcher, 1, "one") > 0
        with batcher.slots(1, "two"):
            pass


def test_an_image_for_which_a_gpu_has_no_room_is_refused_as_beside_a_processor(monkeypatch):
    """Before it goes there, from where PyTorch's error would come in the middle of a batch."""
    monkeypatch.setattr("vpr.retrieval.model_pass.free_gpu_bytes", lambda device: 1999)
    model = SimpleNamespace(device=Device("cuda:0"), smallest_side=1, bytes_per_image=lambda *_: 1000)
    model.eval = lambda: model
    problem = ModelPass(model).refusal(np.zeros((3, 60, 80), np.uint8))
    assert isinstance(problem, TooLarge) and "80x60 pixels" in str(problem)
