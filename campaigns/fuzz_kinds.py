"""Twelve kinds of files that the program reads: small sound ones, and how the program itself reads each.

Places are a folder of own images of 64x48 pixels; the model is AlexNet with a few filters and random weights.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import main
from pittsburgh import Places, SpecError, read_places, write_places
from vpr.cli.options import parse_options
from vpr.common.errors import UserError
from vpr.data.places import PlacesSpec
from vpr.data.reader import Reading
from vpr.models.backbones.base import build_backbone
from vpr.models.spec import ModelSpec

CPU = torch.device("cpu")
FILTERS = [4, 6, 6, 6, 8]


@dataclass(frozen=True)
class Kind:
    """Files of a kind.

    Attributes:
        checked: whether a file that was changed has to be refused: it carries a checksum, ours or its format's.
        files: the sound files, as patterns in the folder; mutations go through them in turn.
        prepare: given the folder, a function that reads a file as the program does and returns a hash of what it
            read; the file is one of `files`, at its own place.
    """

    checked: bool
    files: list[str]
    prepare: Callable[[Path], Callable[[Path], str]]


def make_files(folder: Path) -> None:
    """Make the sound files of all kinds by the program's own modes."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for part, count in (("database", 24), ("queries", 6)):
            (folder / "own" / split / part).mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
                east = 585000 + 15 * number + (3 if part == "queries" else 0)
                name = f"@{east}.0@4477000.0@17@T@{split}{number}@.{'png' if number else 'jpg'}"
                coarse.resize((64, 48), Image.Resampling.BICUBIC).save(folder / "own" / split / part / name)
    for number, ending in enumerate(("jpg", "png")):
        image = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        image.resize((64, 48)).save(folder / f"image{number}.{ending}")
    filters = ["--channels", *map(str, FILTERS)]
    new = [*_places(folder), "--arch=alexnet", "--fromscratch", "--num_clusters=2", *filters]
    _run(*new, "--mode=cluster")
    _run(*new, "--mode=train", "--nEpochs=1", "--nNeg=2")
    next((folder / "runs").iterdir()).rename(folder / "run")
    resume = f"--resume={folder / 'run'}"
    old = [*_places(folder), resume]
    _run(*old, "--mode=whiten", "--pcaDim=4")
    _run(resume, "--mode=export", "--ckpt=best", f"--out={folder / 'model.onnx'}")
    _run(*old, "--mode=index", f"--indexFile={folder / 'exact.sqlite'}")
    _run(*old, "--mode=test", "--panels=0", f"--saveDescriptors={folder / 'descriptors.h5'}")
    _run("--dataset=folder", f"--root={folder / 'own'}", "--mode=spec")
    _write_spec(folder / "spec.mat")
    _write_calibration(folder)
    generator = torch.Generator().manual_seed(0)
    torch.save({f"features.{n}.weight": torch.rand(40, generator=generator) for n in range(3)}, folder / "trunk.pth")
    alexnet = build_backbone("alexnet")
    alexnet.initialize(0)
    torch.save(alexnet.state_dict(), folder / "alexnet.pth")
    with contextlib.redirect_stdout(io.StringIO()):
        _cached(folder)  # makes it


def kinds() -> dict[str, Kind]:
    """All kinds by name."""
    return {
        "spec .mat": Kind(False, ["spec.mat"], _spec),
        "checkpoint": Kind(True, ["run/checkpoints/checkpoint.pth.tar"], _checkpoint),
        "flags.json": Kind(False, ["run/flags.json"], _flags),
        "centroids": Kind(True, ["centroids/*.hdf5"], _centroids),
        "ONNX": Kind(True, ["model.onnx"], _onnx),
        "index": Kind(True, ["exact.sqlite", "exact.1.descriptors"], _index),
        "stored descriptors": Kind(True, ["descriptors.h5"], _descriptors),
        "whitening": Kind(True, ["run/checkpoints/whitening_*"], _whitening),
        "calibration": Kind(True, ["calibration_*.h5"], _calibration),
        "image": Kind(False, ["image0.jpg", "image1.png"], _image),
        "trunk cache": Kind(True, ["cache/*.float16", "cache/*.json"], _cache),
        "weights .pth": Kind(True, ["trunk.pth"], _weights),
    }


def content_hash(content: object) -> str:
    """A hash of nested dicts, lists, arrays, tensors and plain values."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, dict):
            for name in sorted(value, key=str):
                digest.update(f"{name!r}:".encode())
                add(value[name])
        elif isinstance(value, (list, tuple)):
            digest.update(f"[{len(value)}".encode())
            for item in value:
                add(item)
        elif isinstance(value, (np.ndarray, torch.Tensor)):
            array = np.asarray(value)
            digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        else:
            digest.update(repr(value).encode())

    add(content)
    return digest.hexdigest()


def _places(folder: Path) -> list[str]:
    return [
        "--dataset=folder", f"--root={folder / 'own'}", "--threads=0", "--device=cpu", "--precision=fp32",
        f"--dataPath={folder / 'centroids'}", f"--runsPath={folder / 'runs'}", f"--cachePath={folder / 'cache'}",
    ]  # fmt: skip


def _run(*flags: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main.main(list(flags))
    if code:
        raise RuntimeError(f"{' '.join(flags)} ended with {code}: {said.getvalue()}")


def _write_spec(path: Path) -> None:
    metres, names = np.arange(12.0).reshape(6, 2), [f"{number:03d}/{number:06d}.jpg" for number in range(6)]
    write_places(path, Places("spec", names, names[:3], metres, metres[:3] + 0.5, 25.0, 10.0))


def _spec(folder: Path) -> Callable[[Path], str]:
    def read(path: Path) -> str:
        try:
            return content_hash(vars(read_places(path)))
        except SpecError as error:  # as the program itself does
            raise UserError(str(error)) from error

    return read


def _checkpoint(folder: Path) -> Callable[[Path], str]:
    from vpr.runs.run import load_checkpoint
    from vpr.runs.stored import load_model

    def read(path: Path) -> str:
        load_model(folder / "run", "latest", whitened=False)
        return content_hash(load_checkpoint(folder / "run", path.parent.name, "latest"))

    return read


def _flags(folder: Path) -> Callable[[Path], str]:
    from vpr.cli.options import flags_of
    from vpr.runs.stored import load_model

    def read(path: Path) -> str:
        options = parse_options([*_places(folder), "--mode=test", f"--resume={path.parent}"])
        load_model(path.parent, whitened=False)
        return content_hash(flags_of(options))

    return read


def _centroids(folder: Path) -> Callable[[Path], str]:
    from vpr.data.places import training_set
    from vpr.models.place_model import build_model
    from vpr.runs.centroids import read_centroids, recipe_for

    model = build_model(ModelSpec("alexnet", "none", channels=tuple(FILTERS), clusters=2))
    wanted = recipe_for(model, *training_set(PlacesSpec("folder", folder / "own")), None)
    return lambda path: content_hash(read_centroids(path, wanted, any_images=False))


def _onnx(folder: Path) -> Callable[[Path], str]:
    from vpr.models.card import card_of
    from vpr.models.onnx_model import OnnxModel

    images = np.arange(2 * 3 * 48 * 64).reshape(2, 3, 48, 64).astype(np.uint8)

    def read(path: Path) -> str:
        card = card_of(path)
        return content_hash([card, OnnxModel(path)(images)])

    return read


def _index(folder: Path) -> Callable[[Path], str]:
    from vpr.database.engine import Source, WantedIndex
    from vpr.database.store.store import Store
    from vpr.database.store.stored_images import StoredImages
    from vpr.database.store.table import RECORD
    from vpr.runs.stored import load_model

    dim = load_model(folder / "run").model.dim

    def read(path: Path) -> str:
        store = Store(folder / "exact.sqlite", dim)
        try:
            images = StoredImages(store, Source("", store.path, "", dim, {}, {}), WantedIndex())
            state = images.state
            if state is None or images.damaged():
                raise UserError(f"{path} is empty or has damaged rows")
            known = store.columns(state.generation, RECORD, 0, state.rows)
            return content_hash([[list(map(str, row)) for row in known], state.gone, images.map])
        finally:
            store.close()

    return read


def _descriptors(folder: Path) -> Callable[[Path], str]:
    from vpr.data.places import load_places
    from vpr.runs.descriptors_file import load_descriptors, recipe_of
    from vpr.runs.stored import load_model

    loaded = load_model(folder / "run")
    loaded.model.to_device(CPU, "fp32")
    images = load_places(PlacesSpec("folder", folder / "own"), "val")
    recipe = recipe_of(loaded.model, images, None)
    return lambda path: content_hash(vars(load_descriptors(path, recipe, images)))


def _whitening(folder: Path) -> Callable[[Path], str]:
    from vpr.models.whitening import load_whitening

    def read(path: Path) -> str:
        stored = load_whitening(path)
        return content_hash([stored.whitening.state_dict(), stored.dim, stored.images, stored.recipe])

    return read


CALIBRATED = {"weights_hash": "0123456789ab", "precision": "fp32", "order": "none"}  # what it serves, in part


def _write_calibration(folder: Path) -> None:
    """As --calibrate writes it, which wants more queries."""
    from vpr.retrieval.calibration import Calibration
    from vpr.retrieval.calibration_file import LearntOn, StoredCalibration, save_calibration

    learnt = Calibration(("lead", "spread"), np.array([0.1, -2.0]), np.ones(2), np.array([1.5, 0.9]), -0.3, 26.5)
    of = LearntOn("folder", "val", "own_val", "0" * 12, "1" * 12, 260, "within 25 m")
    save_calibration(folder, StoredCalibration(learnt, CALIBRATED, of))


def _calibration(folder: Path) -> Callable[[Path], str]:
    from vpr.retrieval.calibration_file import load_calibration

    def read(path: Path) -> str:
        stored = load_calibration(path, list(CALIBRATED))
        return content_hash([vars(stored.calibration), stored.recipe, vars(stored.learnt_on)])

    return read


def _image(folder: Path) -> Callable[[Path], str]:
    from vpr.data.images import decode

    return lambda path: content_hash(decode(path))


def _cache(folder: Path) -> Callable[[Path], str]:
    def read(path: Path) -> str:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            values = _cached(folder)
        if "is used again" not in said.getvalue():
            raise UserError(f"{path} is not used but made anew")
        return content_hash(values)

    return read


def _cached(folder: Path) -> np.ndarray:
    """The trunk cache of the images of val, from its file if that is right."""
    from vpr.descriptors.trunk_cache import cached_source
    from vpr.models.place_model import build_model

    model = build_model(ModelSpec("alexnet", str(folder / "alexnet.pth"), pooling="avg")).to_device(CPU, "fp32").eval()
    files = sorted((folder / "own" / "val").rglob("*.png"))
    return cached_source(Reading().of(files), "val", model, "disk", folder / "cache").values


def _weights(folder: Path) -> Callable[[Path], str]:
    from vpr.models.weights import read_weights_file

    return lambda path: content_hash(read_weights_file(path))
