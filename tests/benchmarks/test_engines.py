"""The benchmark of engines, in small."""

import numpy as np
import pytest

from benchmarks import engines
from benchmarks.engines import Synthetic, Task, fill, look, synthetic_records


def test_descriptors_are_the_same_however_they_are_asked_for_and_neighbours_are_alike():
    values = Synthetic(2500, 64, 3)
    every = values[:]
    assert every.shape == values.shape and every.dtype == np.float16
    assert np.array_equal(values[np.array([2400, 3, 1000, 3])], every[[2400, 3, 1000, 3]])
    assert np.array_equal(np.concatenate([values[:700], values[700:]]), every)
    np.testing.assert_allclose(np.linalg.norm(every.astype(np.float32), axis=1), 1, atol=1e-3)
    alike = [(every[:900] * every[far : 900 + far]).sum(axis=1, dtype=np.float32).mean() for far in (1, 5, 50)]
    assert alike[0] > alike[1] > alike[2] > 0.2  # 0.75, 0.6, 0.3: shares of district and street
    assert not np.array_equal(Synthetic(10, 64, 4)[:], every[:10])


def test_records_have_names_and_places_of_their_own():
    records = synthetic_records(995, 10)
    assert records.names[0] == "city/000000995.jpg" and len(set(records.names)) == 10
    assert len({tuple(position) for position in records.positions}) == 10
    assert len({content.tobytes() for content in records.hashes}) == 10 and records.hashes.shape == (10, 32)


@pytest.mark.parametrize(("engine", "index"), [("faiss", ""), ("faiss", "IVF4,Flat"), ("milvus", "")])
def test_an_engine_is_filled_and_searched(tmp_path, monkeypatch, engine, index):
    monkeypatch.setattr(engines, "SAMPLE", 10)
    if engine == "milvus":
        pytest.importorskip("milvus_lite")
    task = Task(600, 16, engine, index, 4, 250, tmp_path)
    filled, looked = fill(task), look(task)
    assert filled["on disk, MB"] > 600 * 16 * 2 / 1e6
    # Both are looked at while others use the machine, which may take some of it back.
    assert filled["memory until finished, MB"] > 0.9 * filled["memory while adding, MB"] > 50
    assert looked["recall@20 against exact, %"] == 100
