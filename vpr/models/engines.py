"""Inference engines: PyTorch, ONNX Runtime or OpenVINO computes a backbone where no gradients are wanted (--backend).

An engine gets the network that PyTorch has, as an ONNX file: uint8 [B, H, W, 3] -> float32 maps [B, C, h, w]. The file
is exported when it is first wanted, compared with PyTorch, and kept by a hash of its weights and code.

`python -m benchmarks --engines` measures what is fastest; its table is in benchmarks/RESULTS.md. On AMD Zen 4 OpenVINO
takes two thirds of PyTorch's time in float32 and 0.4 to 0.9 of it in bf16, ONNX Runtime 10 % more than OpenVINO. VGG16
and AlexNet in float32 stay with PyTorch, whose NNPACK has Winograd's transform (`vpr/models/nnpack.py`).
"""

import contextlib
import hashlib
import importlib
import json
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vpr.common.device import compute_threads
from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.progress import say
from vpr.common.provenance import check_onnx, seal_onnx
from vpr.models.card import INSTALL

if TYPE_CHECKING:  # engines of exported models do without
    from torch import nn

CACHE_VARIABLE = "XDG_CACHE_HOME"  # of the XDG Base Directory Specification
OPSET = 18
EXAMPLE, CHECKED = (160, 192), ((160, 192), (193, 225))  # (height, width) in pixels to trace with, and to compare at
LEAST_COSINE = 0.99999
# Exporting takes some seconds and opening an exported network half of one: so many images make up for it.
FEWEST_TO_EXPORT, FEWEST_TO_OPEN = 500, 50

# Images uint8 [B, H, W, 3], and the names of outputs -> these outputs.
Session = Callable[[np.ndarray, list[str]], list[np.ndarray]]


@dataclass(frozen=True)
class Engine:
    """A program that computes an ONNX file on the processor."""

    title: str  # in result lines
    package: str  # that has to be installed
    formats: tuple[str, ...]  # number formats that it computes a network of float32 in
    open: Callable[[Path, str], Session]  # gives the session of a file in one of them


def _onnx_runtime(path: Path, precision: str) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = compute_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels, outputs: session.run(outputs, {name: pixels})


def _openvino(path: Path, precision: str) -> Session:
    import openvino

    wanted = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": compute_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # several processes would pin their threads to the same cores
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", wanted)
    own = threading.local()  # a request computes one batch at a time

    def run(pixels: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        found = own.request.infer([pixels], share_inputs=True)
        return [found[compiled.output(name)] for name in outputs]

    return run


ENGINES = {
    "onnxruntime": Engine("ONNX Runtime", "onnxruntime", ("fp32",), _onnx_runtime),
    "openvino": Engine("OpenVINO", "openvino", ("fp32", "bf16"), _openvino),
}
AUTO = {"bf16": ("openvino",), "fp32": ("openvino", "onnxruntime")}  # what is tried in turn before PyTorch


@dataclass(frozen=True)
class Network:
    """A backbone that an engine shall compute."""

    layers: "nn.Module"  # in plain operations, from images uint8 [B, H, W, 3] to local descriptors float32 [B, D, h, w]
    name: str  # for files and messages
    flags: dict[str, object]  # of the model
    precision: str  # number format to compute in
    smallest_side: int  # pixels that an image must have in height and width
    has_winograd: bool  # whether PyTorch's own way is faster than any engine's
    multiple: int = 1  # of pixels, which height and width must be


@dataclass(frozen=True)
class BackboneEngine:
    """An engine with a backbone: uint8 images [B, 3, H, W] -> local descriptors float32 [B, D, h, w]."""

    title: str
    session: Session

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.session(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), ["maps"])[0]  # as the reader has them


def engine_for(network: Network, backend: str, images: int) -> BackboneEngine | None:
    """The engine that --backend names with a backbone that will describe so many images, or None for PyTorch.
    What cannot be had becomes one line and PyTorch."""
    automatic = () if network.has_winograd else AUTO.get(network.precision, ())
    for name in automatic if backend == "auto" else (backend,):
        if name == "torch":
            break
        try:
            return _opened(network, ENGINES[name], images if backend == "auto" else None)
        except ImportError as error:
            if backend == name:
                say(f"--backend={name} is not installed ({error}): PyTorch computes; {INSTALL}")
        except Exception as error:  # exporters and engines raise kinds of their own
            reason = str(error).strip().partition("\n")[0][:200]
            say(f"{ENGINES[name].title} cannot compute {network.name} ({reason}): PyTorch computes")
    return None


def _opened(network: Network, engine: Engine, images: int | None) -> BackboneEngine | None:
    """An engine with a backbone; None where so few images are not worth it (`images` None: they are)."""
    if network.precision not in engine.formats:
        raise UserError(f"it computes in {' or '.join(engine.formats)}, not in {network.precision}")
    if images is not None and images < FEWEST_TO_OPEN:
        return None
    importlib.import_module(engine.package)
    path = cache_folder() / f"{network.name.replace('/', '-')}-{_digest(network)[:16]}.onnx"
    if images is not None and images < FEWEST_TO_EXPORT and not path.is_file():
        return None
    if not (path.is_file() and _is_whole(path)):
        _export(network, path, engine)
    return BackboneEngine(engine.title, engine.open(path, network.precision))


def cache_folder() -> Path:
    """Where exported backbones are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache") / "netvlad-vpr"


def _digest(network: Network) -> str:
    """A hash of what an exported backbone depends on: weights, flags, this code and the versions of what runs it."""
    versions = [version(name) for name in ("torch", "timm", "onnx")]
    digest = hashlib.sha256(json.dumps([versions, network.flags]).encode())
    for file in (Path(__file__), *sorted(Path(__file__).parent.glob("backbones/*.py"))):
        digest.update(file.read_bytes())
    for name, value in network.layers.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_whole(path: Path) -> bool:
    try:
        return check_onnx(path, "it is made again")
    except UserError as error:
        say(str(error))
        return False


def _export(network: Network, path: Path, engine: Engine) -> None:
    """Write a backbone as an ONNX file that an engine has computed as PyTorch does.

    Tracing takes 2 s where torch.export takes half a minute for timm's convolutions with TensorFlow's padding, and
    comes first; where it made one size fast in the file, or an operation is not to be had, the comparison finds it.
    Raises a UserError: it cannot be written, or gives other values.
    """
    with atomic_write(path) as temporary:
        try:
            _write(network, temporary, by_tracing=True)
            _compare(network, engine.open(temporary, "fp32"))
        except Exception:
            _write(network, temporary, by_tracing=False)
            _compare(network, engine.open(temporary, "fp32"))
        temporary.write_bytes(seal_onnx(temporary.read_bytes()))
    say(f"wrote {path}: the backbone for {engine.title}")


def _write(network: Network, path: Path, by_tracing: bool) -> None:
    """Write a backbone as an ONNX file for any number, height and width of images."""
    import torch

    height, width = (max(side, network.smallest_side) for side in EXAMPLE)
    inputs, outputs = ("batch", "height", "width"), {0: "batch", 2: "rows", 3: "columns"}
    free: dict[str, Any] = {"dynamic_axes": {"photos": dict(enumerate(inputs)), "maps": outputs}}
    if not by_tracing:
        shapes = {number: torch.export.Dim(name) for number, name in enumerate(inputs)}
        free = {"dynamic_shapes": (shapes,), "external_data": False}
    with warnings.catch_warnings(), contextlib.redirect_stdout(None), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own inner workings
        torch.onnx.export(
            network.layers, (torch.zeros(2, height, width, 3, dtype=torch.uint8),), str(path), dynamo=not by_tracing,
            input_names=["photos"], output_names=["maps"], opset_version=OPSET, verbose=False, **free,
        )  # fmt: skip


def _compare(network: Network, session: Session) -> None:
    """Raise a UserError unless a session gives a backbone's maps, at two sizes."""
    import torch

    for size in CHECKED:
        height, width = (max(side // network.multiple * network.multiple, network.smallest_side) for side in size)
        images = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, generator=torch.Generator())
        found = torch.from_numpy(session(images.numpy(), ["maps"])[0])
        with torch.no_grad():
            wanted = network.layers(images)
        if found.shape != wanted.shape:
            raise UserError(f"its maps of {width}x{height} pixels are {tuple(found.shape)}, not {tuple(wanted.shape)}")
        cosine = float(torch.nn.functional.cosine_similarity(wanted.double(), found.double(), dim=1).min())
        if not cosine >= LEAST_COSINE:
            raise UserError(f"its local descriptors have a cosine of {cosine:.6f} to PyTorch's, wanted {LEAST_COSINE}")
