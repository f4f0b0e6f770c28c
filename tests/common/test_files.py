"""Several processes that write one file at a time: nothing is lost, nothing fails, nothing is left behind."""

import multiprocessing
import os
import time

import pytest

from vpr.common import files
from vpr.common.errors import UserError
from vpr.common.files import append_to_list, atomic_write, locked, read_json

ENTRIES = 40
FORK = multiprocessing.get_context("fork")


def append_many(path, who):
    for number in range(ENTRIES):
        append_to_list(path, [who, number])


def test_two_processes_that_append_lose_nothing(tmp_path):
    path = tmp_path / "results.json"
    writers = [FORK.Process(target=append_many, args=(path, who)) for who in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    entries = read_json(path)
    assert sorted(entries) == [[who, number] for who in range(2) for number in range(ENTRIES)]
    for who in range(2):
        assert [number for writer, number in entries if writer == who] == list(range(ENTRIES)), "oldest first"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second and first.read_text() == "first"
    assert (tmp_path / "a").read_text() == "first", "the last to end"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", ['{"an": "object"}', "[1, 2"])
def test_a_list_that_is_none_is_kept(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"results\.json"):
        append_to_list(path, 3)
    assert path.read_text() == content


def hold(path, ready, go):
    with locked(path):
        ready.set()
        go.wait(60)


def test_a_lock_that_is_never_given_back_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_WAIT", 0.1)
    ready, go = FORK.Event(), FORK.Event()
    holder = FORK.Process(target=hold, args=(tmp_path / "a", ready, go))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(UserError, match="another process"), locked(tmp_path / "a"):
        pass
    holder.kill()  # without a chance to clean up
    holder.join()
    with locked(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    host = files.host()
    ended = FORK.Process(target=int)
    ended.start()
    ended.join()
    names = {
        f".a.{host}-{ended.pid}-0.part": False,
        f".a.{host}-{os.getppid()}-0.part": True,
        f".a.another_{host}-{ended.pid}-3.part": True,  # another host
        f".old.another_{host}-{ended.pid}-3.part": False,
        ".trunk_alexnet_x.float16.part": True,
        "notes.part": True,
    }
    for name in names:
        (tmp_path / name).write_text("half")
    long_ago = time.time() - 2 * files.LEFTOVER_AGE
    os.utime(tmp_path / f".old.another_{host}-{ended.pid}-3.part", (long_ago, long_ago))
    with atomic_write(tmp_path / "b") as temporary:
        temporary.write_text("whole")
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_names_as_long_as_a_file_system_allows(tmp_path):
    path = tmp_path / ("x" * 250)
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


@pytest.mark.parametrize("error", [OSError("No space left on device"), RuntimeError("unexpected pos")])
def test_failed_write_leaves_the_old_file_and_no_part(tmp_path, error):
    path = tmp_path / "state.bin"
    path.write_text("old")
    with pytest.raises(UserError, match=r"state\.bin"), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise error
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["state.bin"]


def test_failed_first_write_leaves_nothing(tmp_path):
    with pytest.raises(UserError), atomic_write(tmp_path / "state.bin") as temporary:
        temporary.write_text("half")
        raise OSError("No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_finished_write_replaces_the_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "state.bin"
    for text in ("first", "second"):
        with atomic_write(path) as temporary:
            assert temporary != path
            temporary.write_text(text)
        assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["state.bin"]


def test_reader_of_the_old_file_never_sees_the_new_one(tmp_path):
    path = tmp_path / "state.bin"
    path.write_text("old and long")
    with path.open() as reader:
        with atomic_write(path) as temporary:
            temporary.write_text("new")
        assert reader.read() == "old and long"


def test_interrupted_write_stays_an_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "state.bin"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    """As /dev/null would be, by one who may."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="found a device or a pipe"), atomic_write(tmp_path / "pipe") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1
