"""What several tests share: small places on disk, and the real data beside the repository if it is there.

--auto says what --precision=auto means in this run of the tests, in them and in the programs they start; --gpu-on where
those run that are marked gpu.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import draw_image
from scipy.io import savemat

import main
import toycity
from vpr.common.device import AUTO_VARIABLE, compute_dtype, precision_name
from vpr.runs.run import newest_run

SHARED = Path(__file__).resolve().parents[2] / "shared"
# Tests of these files describe no image by a backbone whose number format --precision=auto decides.
WITHOUT_A_BACKBONE = {
    "test_convolution", "test_folders", "test_images", "test_reader", "test_mining", "test_losses", "test_rules",
    "test_netvlad", "test_pittsburgh", "test_report", "test_report_in_browser", "test_search_and_recall",
    "test_toycity", "test_caffe", "test_matlab_file", "test_matlab_network", "test_vocabulary",
    "test_frames", "test_sequences", "test_exclusion", "test_search_frames", "test_in_order", "test_rerank",
    "test_matches", "test_certainty", "test_certainty_plots", "test_precision_recall", "test_calibration_error",
    "test_calibrate", "test_answer_features", "test_regions", "test_timm_names", "test_program", "test_killing",
    "test_how_sure", "test_reranking_files", "test_interactive", "test_map_in_browser", "test_page",
    "test_batching", "test_decoders", "test_guard", "test_keeping", "test_locating", "test_malformed", "test_places",
    "test_training_places", "test_place_sets",
    "test_conditions", "test_conditions_in_modes",
    "test_plain_folder", "test_hub_model", "test_client", "test_deploy", "test_ros_example",
    "test_server", "test_stream", "test_changing", "test_sessions", "test_uploads", "test_page_routes", "test_store",
    "test_faiss_engine", "test_index", "test_filters", "test_milvus", "test_milvus_server", "test_on_disk",
    "test_engine_recall", "test_engines_in_modes", "test_modes_of_flags", "test_help", "test_options", "test_packaging",
    "test_removed_directions", "test_adapting", "test_adapt",
    "test_calibration", "test_local_file", "test_provenance", "test_files", "test_whole_networks", "test_on_cuda",
    "test_device", "test_position_table", "test_zones", "test_index_zones",
    "test_image_files", "test_names", "test_weights_file", "test_matlab_v73", "test_openapi", "test_sharing",
    "test_architecture", "test_engine_table",
    "test_guarantee", "test_session", "test_head", "test_verification", "test_verification_in_modes", "test_verified",
    "test_settings", "test_without_torch", "test_tables", "test_page_by_axe", "test_report_by_axe",
}  # fmt: skip
# Minutes of every mode with every backbone, and damaged files: in the format that the processor has, not once more.
LONG = {"test_timm_backbones", "test_fuzz"}
NO_CUDA = "no CUDA here"


def pytest_addoption(parser):
    parser.addoption(
        "--auto", choices=("native", "other", "fp32", "bf16"), default="native",
        help="what --precision=auto means in the tests: as the processor has it (native), the other way, or this",
    )  # fmt: skip
    parser.addoption(
        "--gpu-on", choices=("cuda", "cpu"), default="cuda",
        help="where tests marked gpu run: cuda, without which they are skipped, or cpu, to try what they do",
    )  # fmt: skip


def pytest_configure(config):
    asked = config.getoption("--auto")
    os.environ.pop(AUTO_VARIABLE, None)
    os.environ["TORCH_HOME"] = os.devnull  # weights that somebody has downloaded change no test
    if asked != "native":
        native = auto_here()
        os.environ[AUTO_VARIABLE] = {"fp32": "bf16", "bf16": "fp32"}[native] if asked == "other" else asked


def auto_here() -> str:
    return precision_name(compute_dtype("auto", torch.device("cpu")))


def pytest_report_header():
    return f"--precision=auto means {auto_here()} on the processor in these tests"


def pytest_collection_modifyitems(config, items):
    no_gpu = config.getoption("--gpu-on") == "cuda" and not torch.cuda.is_available()
    for item in items:
        if no_gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"{NO_CUDA}: a test marked gpu"))
        if item.path.stem not in WITHOUT_A_BACKBONE | LONG:
            item.add_marker(pytest.mark.number_format)
        if "toy_run" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter):
    """Tests on a GPU are never left out without a word."""
    left_out = [report for report in terminalreporter.stats.get("skipped", []) if NO_CUDA in str(report.longrepr)]
    if left_out:
        terminalreporter.write_line(f"{NO_CUDA}: {len(left_out)} tests marked gpu not run")


@pytest.fixture(scope="session")
def gpu(pytestconfig) -> str:
    """Where tests marked gpu compute: cuda, or what --gpu-on names instead."""
    return pytestconfig.getoption("--gpu-on")


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
def browse(chromium, tmp_path):
    """Gives the page at an address after a browser has run it for some seconds of its own clock."""

    def run(address: str, seconds: float = 3) -> str:
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            f"--virtual-time-budget={1000 * seconds:.0f}",
        ]
        folder = f"--user-data-dir={tmp_path / 'profile'}"
        done = subprocess.run([chromium, *flags, folder, address], capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.decode("utf-8")

    return run


# JavaScript: a promise of what axe-core finds wrong on a page, a line each.
VIOLATIONS = """
const violations = async () => (await axe.run()).violations.flatMap(({ id, impact, nodes }) =>
  nodes.map(({ target, failureSummary }) => `${impact}: ${id}: ${target}: ${failureSummary}`));
"""


@pytest.fixture
def axe() -> str:
    """A script with axe-core, which judges a page, and `violations()`."""
    file = Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"
    if not file.is_file():
        skip_or_fail(f"axe-core is not installed: nothing judges the page (npm install --prefix {sys.prefix} axe-core)")
    return file.read_text(encoding="utf-8") + VIOLATIONS


@pytest.fixture
def figures(monkeypatch) -> list:
    """Matplotlib's figures as they are saved from now on: what was handed to a plot, whatever its pixels are."""
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig

    def save_and_keep(figure, *rest, **named):
        saved.append(figure)
        return save(figure, *rest, **named)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    return saved


@pytest.fixture
def pillow_heif():
    """Pillow's plugin for HEIC, which is optional."""
    try:
        return importlib.import_module("pillow_heif")
    except ImportError:
        skip_or_fail("pillow-heif is not installed: python -m pip install -r requirements-dev.txt")


@pytest.fixture
def mat_io():
    """mat-io, which reads MATLAB files with objects of classes; optional."""
    if sys.version_info < (3, 11):
        pytest.skip("mat-io needs Python 3.11")
    try:
        return importlib.import_module("matio")
    except ImportError:
        skip_or_fail("mat-io is not installed: python -m pip install -r requirements-deploy.txt")


@pytest.fixture
def onnx_packages():
    """What exports and runs ONNX files; optional."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            skip_or_fail(f"{package} is not installed: python -m pip install -r requirements-deploy.txt")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real specs, weights and images."""
    if not SHARED.is_dir():
        pytest.skip("the folder with real specs, weights and images is not beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def xfeat_tensors() -> dict[str, torch.Tensor]:
    """Random weights of the network for keypoints, by which some keypoints are found in any image."""
    for package in ("kornia", "cv2"):
        if importlib.util.find_spec(package) is None:
            skip_or_fail(f"{package} is not installed: python -m pip install -r requirements-keypoints.txt")
    from kornia.feature import XFeat

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = {name: value.clone() for name, value in XFeat().net.state_dict().items()}
    # Else nothing of the image is left behind so many layers, and no pixel is above the least score of a keypoint.
    factors = {name: 3.0 for name in tensors if "block" in name and name.endswith("layer.0.weight")}
    factors["keypoint_head.3.weight"] = 100.0
    return {name: factors.get(name, 1) * value for name, value in tensors.items()}


@pytest.fixture(scope="session")
def xfeat_file(xfeat_tensors, tmp_path_factory) -> Path:
    """The file of these."""
    file = tmp_path_factory.mktemp("xfeat") / "xfeat.pt"
    torch.save(xfeat_tensors, file)
    return file


@pytest.fixture(scope="session")
def tiny_city(tmp_path_factory) -> Path:
    """A toy city of 6 panoramas and 12 queries in each quarter."""
    folder = tmp_path_factory.mktemp("tiny") / "city"
    toycity.make_toy_city(folder, panoramas=6, queries=12)
    return folder


@dataclass(frozen=True)
class ToyRun:
    """A small model, clustered and trained for an epoch on the tiny city."""

    folder: Path  # holds centroids/ and runs/
    places: list[str]  # the flags that name images, machine and folders
    model: list[str]  # those that name the model off the shelf

    @property
    def run(self) -> Path:
        """The newest run."""
        return newest_run(self.folder / "runs")


def toy_run_in(folder: Path, city: Path) -> ToyRun:
    """How a run on the tiny city is addressed that lies in `folder`."""
    places = [
        "--dataset=toy", f"--root={city}", "--threads=0", "--device=cpu", f"--dataPath={folder / 'centroids'}",
        f"--runsPath={folder / 'runs'}",
    ]  # fmt: skip
    return ToyRun(folder, places, ["--arch=alexnet", "--fromscratch", "--num_clusters=4"])


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of each file."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def toy_run(tiny_city, tmp_path_factory):
    """The run that tests start from, clustered and trained once a session. To be read only: others want it too."""
    made = toy_run_in(tmp_path_factory.mktemp("toy_run"), tiny_city)
    assert main.main([*made.places, *made.model, "--mode=cluster"]) == 0
    assert main.main([*made.places, *made.model, "--mode=train", "--nEpochs=1"]) == 0
    before = contents(made.folder)
    yield made
    assert contents(made.folder) == before, "a test wrote into the run that all start from"


@pytest.fixture(scope="session")
def copy_toy_run(toy_run, tiny_city):
    """Copies that run with its centroids into a folder, where a test may do with it what it likes."""

    def copy(folder: Path) -> ToyRun:
        copied = toy_run_in(folder, tiny_city)
        for name in ("centroids", "runs"):
            shutil.copytree(toy_run.folder / name, folder / name)
        stored = (copied.run / "flags.json").read_text()
        (copied.run / "flags.json").write_text(stored.replace(str(toy_run.folder), str(folder)))
        return copied

    return copy


@pytest.fixture(scope="session")
def exported_toy_run(toy_run, tmp_path_factory) -> Path:
    """That run's model as an ONNX file in float32, exported once a session. To be read only."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            skip_or_fail(f"{package} is not installed: python -m pip install -r requirements-deploy.txt")
    file = tmp_path_factory.mktemp("exported") / "fp32.onnx"
    assert main.main([*toy_run.places, "--mode=export", f"--resume={toy_run.run}", f"--out={file}"]) == 0
    return file


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
    """Pittsburgh's layout with 12 database images and 5 queries of 64x48 pixels in train and in val."""
    root = tmp_path / "places"
    for number, split in enumerate(("train", "val")):
        database_names = [f"{number:03d}/{index:06d}.jpg" for index in range(12)]
        query_names = [f"{number:03d}/{index:06d}_query.jpg" for index in range(5)]
        for folder, names in ((root, database_names), (root / "queries_real", query_names)):
            for place, name in enumerate(names):
                draw_image(folder / name, (64, 48), [number, len(names), place])
        positions = np.stack([20.0 * np.arange(12), np.zeros(12)], axis=1)
        spec = root / "datasets" / f"pitts30k_{split}.mat"
        write_spec(spec, database_names, positions, query_names, positions[:5] + [3.0, 4.0])
    return root
