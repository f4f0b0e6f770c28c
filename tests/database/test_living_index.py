"""An index of which images come and go, against a dictionary and brute force; cut off at every point."""

import shutil

import numpy as np
import pytest
import torch

from vpr.common.errors import UserError
from vpr.database.filters import Condition, SearchFilter
from vpr.database.journal import entries_of
from vpr.database.living_index import journal_path, open_index
from vpr.database.merging import WantedIndex
from vpr.database.records import Records
from vpr.models.local_maps import SCALE
from vpr.models.local_projection import LocalProjection

DIM, MADE = 8, {"arch": "alexnet", "weights_hash": "abc"}


def vector(seed):
    value = torch.from_numpy(np.random.default_rng(seed).normal(size=DIM))
    return (value / value.norm()).to(torch.float16)


def local_of(seed):
    """Local descriptors of one image: 2 x 3 places of 4 dimensions."""
    return np.random.default_rng(seed).integers(-SCALE, SCALE, (6, 4)).astype(np.int8), (2, 3)


def records_of(names, **columns):
    count = len(names)
    positions = np.array([(float(len(name)), float(sum(map(ord, name)))) for name in names]).reshape(-1, 2)
    hashes = np.array([[sum(map(ord, name)) % 256] * 32 for name in names], np.uint8).reshape(-1, 32)
    times = np.arange(count, dtype=np.int64)
    return Records(list(names), positions, None, times + 5, times, hashes, [""] * count, columns)


def add(index, names, seed=0, local=False):
    rows = torch.stack([vector([seed, *map(ord, name)]) for name in names])
    maps = [local_of([seed, *map(ord, name)]) for name in names] if local else None
    index.add(records_of(names, side=[name[0] for name in names]), rows, maps)
    return dict(zip(names, rows, strict=True))


def check(index, truth, count=5):
    """What is there is what was added; searches find what brute force finds, all of it and a part."""
    rows = index.rows()
    names = [index.records.names[row] for row in rows]
    assert sorted(names) == sorted(truth) and index.count() == len(truth)
    for row, name, value in zip(rows, names, index.descriptors(rows), strict=True):
        assert torch.equal(value, truth[name]) and index.row_of[name] == row
        assert index.records.positions[row].tolist() == [len(name), sum(map(ord, name))]
    queries = torch.stack([vector([99, n]) for n in range(4)]).float()
    for wanted in (None, SearchFilter(where=(Condition("side", "=", "b"),))):
        allowed = [name for name in truth if wanted is None or name[0] == "b"]
        found, distances, _ = index.search(queries, count, wanted)
        for query, hits, apart in zip(queries, found, distances, strict=True):
            true = {name: float((truth[name].float() - query).norm()) for name in allowed}
            best = sorted(true, key=true.__getitem__)[:count]
            hits = hits[hits >= 0]
            assert [index.records.names[hit] for hit in hits] == best
            np.testing.assert_allclose(apart[: len(hits)], [true[name] for name in best], rtol=1e-3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "database_x.h5"


def opened(path):
    return open_index(path, MADE, DIM)


@pytest.mark.parametrize("factory", [None, "IVF1,Flat", "HNSW8", "RR8,Flat"])
def test_images_come_are_replaced_and_go(path, factory):
    index, truth = opened(path), {}
    index.begin(WantedIndex(), None, {})
    truth |= add(index, ["a1", "b1", "b2"])
    truth |= add(index, ["a2", "b3", "b1"], 1)  # b1 again
    check(index, truth)
    assert index.finish(wanted=WantedIndex(factory)) and not journal_path(path).exists()
    check(index, truth)
    truth |= add(index, ["b4", "a1"], 2)  # beside what the file holds
    index.remove(["b2", "nobody"])
    del truth["b2"]
    check(index, truth)
    index.close()
    again = opened(path)
    check(again, truth)
    assert again.finish(order=["b4", "b1"], wanted=WantedIndex(factory))
    assert again.records.names[:2] == ["b4", "b1"] and not again.finish(again.records.names, WantedIndex(factory))
    check(opened(path), truth)


def test_cut_off_anywhere_it_goes_on_with_what_it_kept(path, tmp_path, capsys):
    """The journal cut at every entry, and after the file was merged but before the journal was deleted."""
    index, truths, journal = opened(path), [{}], journal_path(path)
    index.begin(WantedIndex(), None, {})
    ends = [journal.stat().st_size]
    for number in range(4):
        truths.append(truths[-1] | add(index, [f"b{number}", f"a{number}"], number))
        ends.append(journal.stat().st_size)
    index.close()
    content = journal.read_bytes()
    for end, truth in zip(ends, truths, strict=True):
        journal.write_bytes(content[: end + 7] if end < len(content) else content)  # a torn end behind it
        index = opened(path)
        assert index.count() == len(truth)
        missing = {name: value for name, value in truths[-1].items() if name not in truth}
        for name, value in missing.items():
            index.add(records_of([name], side=[name[0]]), value[None])
        check(index, truths[-1])
        index.close()
    journal.write_bytes(content)
    index = opened(path)
    index.finish()
    journal.write_bytes(content)  # as if it had been killed before it deleted it
    capsys.readouterr()
    again = opened(path)
    check(again, truths[-1])
    again.remove(["b0"])
    assert len(list(entries_of(journal))) == 2, "what was merged is no longer there"
    assert "goes on from" not in capsys.readouterr().out and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("first", [True, False])
def test_a_journal_of_another_file_is_said_and_kept(path, tmp_path, capsys, first):
    """An older file is put back; when the newer one is, what its journal holds is there again."""
    index, journal = opened(path), journal_path(path)
    old = add(index, ["a1", "b1"])
    index.finish()
    older = path.read_bytes()
    if first:
        path.unlink()
        index = opened(path)
        truth = add(index, ["a3"])
    else:
        truth = old | add(index, ["a2"])
        index.finish()
        newer = path.read_bytes()
        truth |= add(index, ["a3"])
    index.close()
    content = journal.read_bytes()
    path.write_bytes(older)
    capsys.readouterr()
    index = opened(path)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"{journal} goes on from another file or model" in said
    check(index, old)
    add(index, ["b2"])
    kept = next(tmp_path.glob(f"{journal.name}.*"))
    assert kept.read_bytes() == content and f"kept as {kept}" in capsys.readouterr().out
    index.finish()
    path.unlink() if first else path.write_bytes(newer)
    kept.replace(journal)
    check(opened(path), truth)


def test_local_descriptors_come_and_go_with_their_images(path):
    index = opened(path)
    projection = LocalProjection(torch.arange(6.0), torch.eye(4, 6), "nothing")
    index.begin(WantedIndex(local_dim=4), projection, {})
    add(index, ["a1", "b1", "c1"], local=True)
    add(index, ["b1", "d1"], 1, local=True)
    index.close()

    def check_local(index):
        seeds = {"a1": 0, "b1": 1, "c1": 0, "d1": 1}
        for name, seed in seeds.items():
            if name in index.row_of:
                values, grid = local_of([seed, *map(ord, name)])
                row = index.row_of[name]
                np.testing.assert_array_equal(index.local.rows(row), values)
                assert tuple(index.local.grids[row]) == grid
        assert (
            torch.equal(index.projection.components, projection.components) and index.projection.learnt_on == "nothing"
        )

    index = opened(path)
    assert index.keeps_local
    check_local(index)
    index.finish(["d1", "a1"], index.kind if index.kind.local_dim else WantedIndex(local_dim=4))
    check_local(index)
    assert index.keeps_local and len(list(path.parent.glob("*.local"))) == 1
    add(index, ["e1"], 1, local=True)
    index.remove(["a1"])
    check_local(opened(path))
    index.finish()
    check_local(index)
    assert len(list(path.parent.glob("*.local"))) == 1, "that of the generation before is gone"
    index.finish(wanted=WantedIndex())
    assert index.local is None and not list(path.parent.glob("*.local"))


def test_another_model_and_another_writer_are_refused(path):
    index = opened(path)
    index.begin(WantedIndex(), None, {})
    add(index, ["a1"])
    with pytest.raises(UserError, match="another process"):
        add(opened(path), ["a2"])
    index.finish()
    with pytest.raises(UserError, match="weights_hash=abc, wanted xyz"):
        open_index(path, {**MADE, "weights_hash": "xyz"}, DIM)


def test_an_index_that_is_held_is_written_by_nobody_else(path):
    first = open_index(path, MADE, DIM)
    add(first, ["a"])
    first.finish()
    before = path.read_bytes()
    first.hold()
    other = open_index(path, MADE, DIM)
    for write in (lambda: add(other, ["b"]), lambda: other.remove(["a"]), other.hold, other.anew,
                  lambda: other.finish(edited=True)):  # fmt: skip
        with pytest.raises(UserError, match="is being written by another process"):
            write()
    assert not first.finish() and path.read_bytes() == before
    truth = {**dict(zip("a", first.descriptors([0]), strict=True)), **add(first, ["c"])}
    first.close()  # as if it were killed: what it wrote stays
    again = open_index(path, MADE, DIM)
    check(again, truth)
    again.hold()
    assert again.unmerged
    again.close()
    check(open_index(path, MADE, DIM), truth)


def test_holding_leaves_nothing_behind(path):
    index = open_index(path, MADE, DIM)
    add(index, ["a"])
    index.finish()
    index.hold()
    index.close()
    assert not journal_path(path).exists()
    index = open_index(path, MADE, DIM)
    index.hold()
    shutil.copy(journal_path(path), path.with_name("killed"))
    index.close()
    path.with_name("killed").rename(journal_path(path))  # as it is after a kill
    left = open_index(path, MADE, DIM)
    assert not left.unmerged and not left.finish()
    left.hold()
    assert left.count() == 1


def test_what_another_process_has_added_meanwhile_is_not_written_over(path):
    """Neither what stands in its journal, though it has ended, nor what it has merged."""
    index = opened(path)
    index.begin(WantedIndex(), None, {})
    truth = add(index, ["a1"])
    index.finish()
    first, second, third = (opened(path) for _ in range(3))
    truth |= add(first, ["b1"])
    first.close()  # as if it had been killed
    with pytest.raises(UserError, match="changed by another process"):
        add(second, ["b2"])
    check(opened(path), truth)
    opened(path).finish()
    with pytest.raises(UserError, match="changed by another process"):
        third.remove(["a1"])
    check(opened(path), truth)


def test_a_damaged_file_or_journal_is_named_and_kept(path):
    index = opened(path)
    index.begin(WantedIndex(), None, {})
    add(index, ["a1", "b1"])
    add(index, ["a2"])
    whole = journal_path(path).read_bytes()
    index.finish()
    content = path.read_bytes()
    for file, at in ((path, len(content) // 2), (journal_path(path), 400)):
        damaged = bytearray(content if file == path else whole)
        damaged[at] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{file.name}.*damaged"):
            opened(path)
        assert file.read_bytes() == damaged
        shutil.move(file, f"{file}.away")


def test_an_index_says_whether_it_was_changed_by_hand(path):
    index = opened(path)
    index.begin(WantedIndex(), None, {})
    truth = add(index, ["a1", "b1"])
    index.finish()
    assert not opened(path).edited
    index.by_hand = True
    index.remove(["a1"])
    index.close()
    again = opened(path)
    assert again.edited, "though it was not merged"
    check(again, {"b1": truth["b1"]})
    again.finish()
    assert opened(path).edited
    again.finish(edited=False)
    assert not opened(path).edited


def test_a_wider_index_finds_the_same_at_the_same_distances(path):
    index = opened(path)
    truth = add(index, [f"{side}{n}" for side in "ab" for n in range(9)])
    index.finish()
    queries = torch.stack([vector([99, n]) for n in range(4)])
    narrow = index.search(queries, 7)
    index.widen()
    for before, after in zip(narrow[:2], index.search(queries, 7)[:2], strict=True):
        np.testing.assert_array_equal(before, after)
    truth |= add(index, ["b3", "c1"], seed=4)
    index.remove(["a1"])
    del truth["a1"]
    check(index, truth)
    index.finish()
    check(opened(path), truth)


# Estimates of codes and bits are far from true distances, and a search of one list misses most.
COARSE = ["PQ2x4", "IVF16,PQ2x4", "IVF16,PQ2+2", "LSH", "IVF16,Flat", "HNSW4", "PQ2x4,RFlat", "PCA2,Flat"]


def coarse(path, factory, count, side="ab"):
    """An index of `count` images by a factory, of which one list is looked through; and what it holds."""
    index = opened(path)
    truth = add(index, [f"{side[n % len(side)]}{n}" for n in range(count)])
    index.finish(wanted=WantedIndex(factory, nprobe=1))
    return index, truth


def true_distances(index, query, names, truth):
    return {name: np.linalg.norm(truth[name].double().numpy() - query.double().numpy()) for name in names}


@pytest.mark.parametrize("factory", COARSE)
def test_an_approximate_index_tells_the_distances_of_the_stored_descriptors(path, factory):
    """In their order; and an image lies at 0 from itself, whatever its code is."""
    index, truth = coarse(path, factory, 300)
    queries = torch.stack([vector([99, n]) for n in range(8)] + list(truth.values())[:8])
    found, distances, _ = index.search(queries, 12)
    assert index.measures and (np.diff(distances[:, :3], axis=1) >= 0).all()
    for query, hits, apart in zip(queries, found, distances, strict=True):
        hits, apart = hits[hits >= 0], apart[hits >= 0]
        true = true_distances(index, query, [index.records.names[hit] for hit in hits], truth)
        np.testing.assert_allclose(apart, list(true.values()), rtol=1e-5)
        assert list(true.values()) == sorted(true.values()) and len(hits) > 2
    itself = [index.row_of[name] for name in list(truth)[:8]]
    zeros = [(hits[0], apart[0]) for hits, apart in zip(found[8:], distances[8:], strict=True)]
    assert all(apart == 0 for row, (hit, apart) in zip(itself, zeros, strict=True) if hit == row)


@pytest.mark.parametrize("factory", COARSE)
@pytest.mark.parametrize("side", ["abbbbbbbbb", "ab"])
def test_a_search_of_few_images_of_an_approximate_index_is_exact(path, factory, side):
    """As it is for each of them that was removed."""
    index, truth = coarse(path, factory, 300, side)
    index.remove(["a0"])
    few = [name for name in truth if name[0] == "a" and name != "a0"]
    queries = torch.stack([vector([99, n]) for n in range(6)])
    found, distances, _ = index.search(queries, 20, SearchFilter(where=(Condition("side", "=", "a"),)))
    for query, hits, apart in zip(queries, found, distances, strict=True):
        true = true_distances(index, query, few, truth)
        assert [index.records.names[hit] for hit in hits] == sorted(true, key=true.__getitem__)[:20]
        np.testing.assert_allclose(apart, sorted(true.values())[:20], rtol=1e-5)


@pytest.mark.parametrize("factory", COARSE)
def test_what_came_since_is_compared_as_what_the_file_holds(path, factory):
    """Of each place one image is in the file and one is fresh; after the merge the order is the same."""
    index, truth = coarse(path, factory, 300)
    queries = torch.stack([vector([99, n]) for n in range(10)])
    before = index.search(queries, 5)
    truth |= add(index, [f"c{n}" for n in range(60)], 1)
    found, distances, _ = index.search(queries, 5)
    assert (np.diff(distances, axis=1) >= 0).all() and ((found >= 300).any(axis=1) & (found < 300).any(axis=1)).any()
    for query, hits, old in zip(queries, found, before[0], strict=True):
        candidates = [index.records.names[row] for row in old if row >= 0] + [f"c{n}" for n in range(60)]
        true = true_distances(index, query, candidates, truth)
        assert [index.records.names[hit] for hit in hits] == sorted(true, key=true.__getitem__)[:5]


def test_rows_of_a_file_stay_those_that_were_read_when_another_takes_its_place(path):
    index, truth = coarse(path, "PQ2x4", 40)
    other = opened(path)
    other.remove(list(truth)[:10])
    assert other.finish()
    assert torch.equal(index.descriptors(index.rows()), torch.stack(list(truth.values())))


def test_an_index_is_named_where_it_may_miss_the_nearest(path):
    for factory, name in [
        (None, ""), ("Flat", ""), ("IVF4,Flat", "faiss IVF4,Flat (1 of 4 lists looked through)"),
        ("PQ2x4", "faiss PQ2x4"), ("HNSW4", "faiss HNSW4"), ("LSH", "faiss LSH"), ("PQ2x4,RFlat", "faiss PQ2x4,RFlat"),
    ]:  # fmt: skip
        index = coarse(path, factory, 40)[0]
        assert index.approximate == name
        path.unlink()
