"""What several tests share: small places on disk, and the real data beside the repository if it is there.

--auto says what --precision=auto means in this run of the tests, in them and in the programs they start.
"""

import importlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import main
from vpr import toycity
from vpr.artifacts.runs import newest_run
from vpr.common.device import AUTO_VARIABLE, compute_dtype, precision_name

SHARED = Path(__file__).resolve().parents[2] / "shared"
# Tests of these files describe no photo by a trunk whose number format --precision=auto decides.
WITHOUT_A_TRUNK = {
    "test_convolution", "test_folders", "test_images", "test_mining_and_loss", "test_netvlad", "test_pittsburgh",
    "test_report", "test_report_in_browser", "test_search_and_recall", "test_toycity",
}  # fmt: skip


def pytest_addoption(parser):
    parser.addoption(
        "--auto", choices=("native", "other", "fp32", "bf16"), default="native",
        help="what --precision=auto means in the tests: as the processor has it (native), the other way, or this",
    )  # fmt: skip


def pytest_configure(config):
    asked = config.getoption("--auto")
    os.environ.pop(AUTO_VARIABLE, None)
    if asked != "native":
        native = auto_here()
        os.environ[AUTO_VARIABLE] = {"fp32": "bf16", "bf16": "fp32"}[native] if asked == "other" else asked


def auto_here() -> str:
    return precision_name(compute_dtype("auto", torch.device("cpu")))


def pytest_report_header():
    return f"--precision=auto means {auto_here()} on the processor in these tests"


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem not in WITHOUT_A_TRUNK:
            item.add_marker(pytest.mark.number_format)


def skip_or_fail(reason: str) -> None:
    """Skip a test for want of a program or package; where CI is set, which installs them all, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"CI is set, and {reason}")
    pytest.skip(reason)


@pytest.fixture
def chromium() -> str:
    """The browser that shows the report."""
    found = shutil.which("chromium")
    if found is None:
        skip_or_fail("chromium is not installed: nothing shows the page (Debian: apt-get install chromium)")
    return found


@pytest.fixture
def pillow_heif():
    """Pillow's plugin for HEIC, which is optional."""
    try:
        return importlib.import_module("pillow_heif")
    except ImportError:
        skip_or_fail("pillow-heif is not installed: python -m pip install -r requirements-dev.txt")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real specs, weights and photos."""
    if not SHARED.is_dir():
        pytest.skip("the folder with real specs, weights and photos is not beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def tiny_city(tmp_path_factory) -> Path:
    """A toy city of 6 panoramas and 12 queries in each quarter."""
    folder = tmp_path_factory.mktemp("tiny") / "city"
    toycity.make_toy_city(folder, panoramas=6, queries=12)
    return folder


@pytest.fixture(scope="session")
def train_toy_run(tiny_city):
    """Clusters and trains a small model for an epoch in a folder; gives the flags that name the places, and the run."""

    def train(folder):
        places = [
            "--dataset=toy", f"--root={tiny_city}", "--threads=0", "--device=cpu", f"--dataPath={folder}",
            f"--runsPath={folder / 'runs'}",
        ]  # fmt: skip
        model = ["--arch=alexnet", "--fromscratch", "--num_clusters=4"]
        assert main.main([*places, *model, "--mode=cluster"]) == 0
        assert main.main([*places, *model, "--mode=train", "--nEpochs=1"]) == 0
        return places, newest_run(folder / "runs")

    return train


def _cells(names):
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    return cells


@pytest.fixture(scope="session")
def write_spec():
    """Writes a dbStruct .mat in the layout of the public ones; extra fields replace or join the usual ones."""

    def write(path, database_names, database_positions, query_names, query_positions, **extra_fields):
        fields = {
            "whichSet": "val",
            "dbImageFns": _cells(database_names),
            "utmDb": np.asarray(database_positions, dtype=float).T,
            "qImageFns": _cells(query_names),
            "utmQ": np.asarray(query_positions, dtype=float).T,
            "numImages": np.uint16(len(database_names)),
            "numQueries": np.uint16(len(query_names)),
            "posDistThr": np.uint8(25),
            "posDistSqThr": np.uint16(625),
            "nonTrivPosDistSqThr": np.uint8(100),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"dbStruct": {**fields, **extra_fields}})
        return path

    return write


@pytest.fixture
def tiny_places(tmp_path, write_spec) -> Path:
    """Pittsburgh's layout with 12 database photos and 5 queries of 64x48 pixels in train and in val."""
    root, random = tmp_path / "places", np.random.default_rng(0)
    for number, split in enumerate(("train", "val")):
        database_names = [f"{number:03d}/{index:06d}.jpg" for index in range(12)]
        query_names = [f"{number:03d}/{index:06d}_query.jpg" for index in range(5)]
        for folder, names in ((root, database_names), (root / "queries_real", query_names)):
            (folder / f"{number:03d}").mkdir(parents=True, exist_ok=True)
            for name in names:
                coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((64, 48), Image.Resampling.NEAREST).save(folder / name)
        positions = np.stack([20.0 * np.arange(12), np.zeros(12)], axis=1)
        spec = root / "datasets" / f"pitts30k_{split}.mat"
        write_spec(spec, database_names, positions, query_names, positions[:5] + [3.0, 4.0])
    return root
