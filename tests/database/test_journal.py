"""A journal: what is read is what was written, up to where somebody was cut off."""

import numpy as np
import pytest

from vpr.common.errors import UserError
from vpr.database.journal import FORMAT, Entry, Journal, entries_of


def write(path, count):
    """Entries with arrays of all kinds of shapes; where each ends."""
    journal, ends = Journal(path), [len(FORMAT)]
    for number in range(count):
        arrays = {"a": np.arange(number * 3, dtype=np.float16).reshape(number, 3), "b": np.array(number, np.int64)}
        journal.append(Entry({"number": number, "name": "Straße\udc80"}, arrays))
        ends.append(path.stat().st_size)
    journal.close()
    return ends


def numbers(entries):
    entries = list(entries)
    for entry in entries:
        number = entry.says["number"]
        assert entry.says["name"] == "Straße\udc80" and entry.arrays["b"] == number
        np.testing.assert_array_equal(entry.arrays["a"].ravel(), np.arange(3 * number))
        assert entry.arrays["a"].dtype == np.float16 and entry.arrays["a"].shape == (number, 3)
    return [entry.says["number"] for entry in entries]


def test_what_is_written_is_read_and_gone_on_with(tmp_path):
    path = tmp_path / "a.journal"
    assert list(entries_of(path)) == []
    write(path, 3)
    assert numbers(entries_of(path)) == [0, 1, 2]
    journal = Journal(path)
    assert numbers(journal.entries) == [0, 1, 2]
    journal.append(Entry({"number": 0, "name": "Straße\udc80"}, journal.entries[0].arrays))
    journal.close()
    assert numbers(entries_of(path)) == [0, 1, 2, 0]


def test_cut_off_anywhere_it_keeps_all_whole_entries(tmp_path, capsys):
    path = tmp_path / "a.journal"
    ends = write(path, 3)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole = sum(end <= length for end in ends[1:])
        assert numbers(entries_of(path)) == list(range(whole))
    for length in (ends[1] + 1, ends[2] - 1, 5):
        path.write_bytes(content[:length])
        journal = Journal(path)
        journal.append(Entry({"number": 0, "name": "Straße\udc80"}, {"a": np.empty((0, 3), "f2"), "b": np.array(0)}))
        journal.close()
        assert "cut off" in capsys.readouterr().out
        assert numbers(entries_of(path)) == [*range(sum(end <= length for end in ends[1:])), 0]


def test_a_changed_byte_is_found_or_costs_the_end_alone(tmp_path):
    path = tmp_path / "a.journal"
    ends = write(path, 3)
    content = path.read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 64
        path.write_bytes(changed)
        try:
            found = numbers(entries_of(path))
        except UserError as error:
            assert "delete it" in str(error)
        else:
            assert found == list(range(len(found))) and ends[len(found)] <= at, "what is behind it is dropped"


def test_only_one_writes(tmp_path):
    first = Journal(tmp_path / "a.journal")
    with pytest.raises(UserError, match="another process"):
        Journal(tmp_path / "a.journal")
    first.close()
    Journal(tmp_path / "a.journal").close()
