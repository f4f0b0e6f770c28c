"""A small random model with ten images, and a server of them on a free port."""

import contextlib
from dataclasses import replace

import engine_data
import numpy as np
import pytest
from asking import TOKEN, decoders, serving
from drawing import draw_image

from vpr.common.device import CPU
from vpr.data.reader import Reading
from vpr.database.engine import Hits
from vpr.database.records import joined
from vpr.descriptors.describe import describe
from vpr.models.place_model import build_model
from vpr.models.spec import ModelSpec
from vpr.retrieval.locator import Locator
from vpr.runs.model import LoadedModel
from vpr.search.exact import descriptor_distances, in_order, nearest
from vpr.search.sequences import search_sequences

SPEC = ModelSpec(arch="alexnet", weights="none", pooling="avg")


class PlainEngine:
    """An engine that keeps all in memory and searches exactly."""

    name, approximate, local, projection, provenance = "plain, exact", "", None, None, {}
    measures, is_shared, searches_sequences = True, False, True

    def __init__(self, records, kept):
        self.records, self.kept = records, kept

    def search(self, queries, count, wanted=None):
        there = self.rows()
        rows = there if wanted is None else there[wanted.mask(self.records)[there]]
        values = self.kept[rows]
        found = nearest(values, queries, count)
        found, distances = in_order(found, descriptor_distances(values, queries, found))
        return Hits(rows[found], distances, self.records)

    def search_in_order(self, queries, count, sequences, rule):
        rows = self.rows()
        values, own = self.kept[rows], sequences[0].of(rows)
        found, similarities = search_sequences(values, queries, count, (own, sequences[1]), rule)
        return rows[found], descriptor_distances(values, queries, found), similarities

    def rows(self):
        return np.flatnonzero([bool(name) for name in self.records.names])

    @property
    def row_of(self):
        return {self.records.names[row]: row for row in self.rows()}

    def count(self):
        return len(self.rows())

    def descriptors(self, rows):
        return self.kept[rows]

    def changed(self):
        return False

    def add(self, records, descriptors, local=None):
        self.remove(records.names)
        self.records = joined(self.records, records)
        self.kept = np.concatenate([self.kept, descriptors])

    def remove(self, names):
        self.records = replace(self.records, names=["" if n in names else n for n in self.records.names])

    def finish(self):
        pass

    close = check = finish


@pytest.fixture(scope="session", autouse=True)
def _decoders_end():
    yield
    if decoders.cache_info().currsize:
        decoders().end()


@pytest.fixture(scope="session")
def model():
    return build_model(SPEC).to_device(CPU, "fp32")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Ten database images in two folders."""
    folder = tmp_path_factory.mktemp("database")
    return folder, [draw_image(folder / f"{'ab'[n // 5]}/{n}.png", (80, 64), [3, n]) for n in range(10)]


@pytest.fixture(scope="session")
def make_locator(model, images, tmp_path_factory):
    """Makes locators of the ten images, 30 m apart on a line, with a column that says whether they were taken at night.

    Its arguments are those of `Locator`, in place of these.
    """
    folder, files = images
    descriptors, _ = describe(model, Reading().of(files), range(len(files)))
    records = engine_data.images(
        10, zone="17N", names=[file.relative_to(folder).as_posix() for file in files],
        positions=np.array([[585000.0 + 30 * n, 4477000.0] for n in range(10)]),
        columns={"night": ["yes" if n > 6 else "no" for n in range(10)]},
    )  # fmt: skip
    loaded = LoadedModel(model, {}, tmp_path_factory.mktemp("model"))

    def make(**changes):
        own = {"engine": PlainEngine(records, descriptors), "read": Reading(), "root": folder}
        return Locator(**{"loaded": loaded, **own, **changes})

    return make


@pytest.fixture
def locator(make_locator):
    """A locator that a test may change."""
    return make_locator()


@pytest.fixture(scope="session")
def shared_locator(make_locator):
    """A locator that no test changes."""
    return make_locator()


@pytest.fixture(scope="session")
def client(shared_locator):
    """Of a server of the shared locator with the usual settings."""
    with serving(shared_locator) as client:
        yield client


@pytest.fixture(scope="session")
def token_client(shared_locator):
    """Of one that wants a token, which the client brings, and with street tiles."""
    with serving(shared_locator, token=TOKEN, tiles="https://tiles.example/{z}/{x}/{y}.png") as client:
        client.headers = {"authorization": f"Bearer {TOKEN}"}
        yield client


@pytest.fixture
def serve(locator):
    """Starts servers of the locator, and ends them."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(serving(locator, **settings))
