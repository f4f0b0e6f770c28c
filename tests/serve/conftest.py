"""A small random model with ten images, and a server of them on a free port."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from asking import serving
from drawing import draw_image

from vpr.data.reader import Reading
from vpr.database.engine import Hits
from vpr.database.records import joined, no_records
from vpr.descriptors.describe import describe
from vpr.models.place_model import build_model
from vpr.models.spec import ModelSpec
from vpr.retrieval.locator import Locator
from vpr.runs.model import LoadedModel
from vpr.search.exact import search_exactly

SPEC = ModelSpec(arch="alexnet", weights="none", pooling="avg")


class PlainEngine:
    """An engine that keeps all in memory and searches by an exact index."""

    name, measures, approximate, local, projection = "plain, exact", True, "", None, None

    def __init__(self, records, descriptors):
        self.records, self.descriptors, self.provenance = records, descriptors, {}

    def search(self, queries, count, wanted=None):
        there = np.array([bool(name) for name in self.records.names])
        rows = np.flatnonzero(there if wanted is None else there & wanted.mask(self.records))
        found, distances = search_exactly(self.descriptors[rows], queries, count)
        return Hits(rows[found], distances, self.records)

    def count(self):
        return sum(map(bool, self.records.names))

    def add(self, records, descriptors, local=None):
        self.remove(records.names)
        self.records = joined(self.records, records)
        self.descriptors = torch.cat([self.descriptors, descriptors])

    def remove(self, names):
        self.records = replace(self.records, names=["" if n in names else n for n in self.records.names])

    def finish(self):
        pass

    close = check = finish


@pytest.fixture(scope="session")
def model():
    return build_model(SPEC).to_device(torch.device("cpu"), "fp32")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Ten database images in two folders."""
    folder = tmp_path_factory.mktemp("database")
    return folder, [draw_image(folder / f"{'ab'[n // 5]}/{n}.png", (80, 64), [3, n]) for n in range(10)]


@pytest.fixture
def locator(model, images, tmp_path):
    """A locator that a test may change."""
    return locator_of(model, images, tmp_path)


@pytest.fixture(scope="session")
def shared_locator(model, images, tmp_path_factory):
    """A locator that no test changes."""
    return locator_of(model, images, tmp_path_factory.mktemp("model"))


def locator_of(model, images, folder_of_model):
    """Of the ten images, 30 m apart on a line, with a column that says whether they were taken at night."""
    folder, files = images
    reader = Reading().of(files)
    descriptors, _ = describe(model, reader, range(len(files)))
    positions = np.array([[585000.0 + 30 * n, 4477000.0] for n in range(10)])
    records = replace(
        no_records("17N"), names=[file.relative_to(folder).as_posix() for file in files], positions=positions,
        sizes=np.zeros(10, np.int64), modified=np.zeros(10, np.int64), hashes=np.zeros((10, 32), np.uint8),
        folders=[""] * 10, columns={"night": ["yes" if n > 6 else "no" for n in range(10)]},
    )  # fmt: skip
    loaded = LoadedModel(model, SPEC, {}, folder_of_model)
    return Locator(loaded, PlainEngine(records, descriptors), Reading(), folder, lambda how: None)


@pytest.fixture
def serve(locator):
    """Starts servers of the locator, and ends them."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(serving(locator, **settings))
