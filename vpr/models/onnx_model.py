"""Exported models: one .onnx file from images as bytes to descriptors, run by ONNX Runtime.

ONNX and ONNX Runtime are optional (requirements-deploy.txt); they are imported where they are used.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vpr.common.device import CPU, Device
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.models.backbones import BACKBONES
from vpr.models.card import import_optional, open_session
from vpr.models.describer import require_size
from vpr.models.engines import ENGINES, Session
from vpr.models.local_projection import LocalProjection
from vpr.models.spec import ModelSpec

GPU = "CUDAExecutionProvider"
LOCAL_OUTPUT = "local_descriptors"  # of files that give them, float32 [B, d, h, w]


class OnnxModel:
    """An exported model: uint8 [B, 3, H, W] -> float32 [B, dim]. Answers the protocol `Describer`."""

    device = CPU  # of what goes in and comes out; ONNX Runtime moves it by itself

    def __init__(self, path: Path):
        self.session, self.card = open_session(path)  # the card is what the file says of itself
        self.runs_on = self.device  # on which ONNX Runtime computes: the CPU, before `to_device`
        self.path, self.engine = path, ENGINES["onnxruntime"]
        self.opened: Session | None = None
        self.dim, self.pooled_dim = int(self.card["dimension"]), int(self.card["pooled_dimension"])
        self.smallest_side = int(self.card["smallest_side"])
        digest = hashlib.sha256(b"file_digest" + hashlib.sha256(path.read_bytes()).digest()).hexdigest()[:12]
        # The number format is of what comes out; what it computes in is the file's affair.
        own = {"dimension": str(self.dim), "weights_hash": digest, "precision": "fp32"}
        self.recipe = {**(self.card.get("recipe") or _recipe_of_flags(self.card["flags"])), **own}

    @property
    def name(self) -> str:
        return f"{self.card['model']} by {self.engine.title}" if self.opened else self.card["model"]

    @property
    def parameter_count(self) -> int:
        """Before its export."""
        return int(self.card["parameters"])

    @property
    def megabytes(self) -> float:
        return self.path.stat().st_size / 1e6

    def gflop(self, height: int, width: int) -> float:
        """Arithmetic for one image of the model that was exported, whatever the number format; see `Describer`."""
        import torch  # it counts by PyTorch's operations

        from vpr.models.flops import count_gflop
        from vpr.models.place_model import PlaceModel, PlainPlaceModel

        with torch.device("meta"):
            model = PlainPlaceModel(PlaceModel(ModelSpec.from_flags({"weights": "none", **self.card["flags"]})))
        image = torch.empty(1, height, width, 3, dtype=torch.uint8, device="meta")
        whitening = 2 * self.pooled_dim * self.dim if self.dim != self.pooled_dim else 0
        return count_gflop(model, image) + whitening / 1e9

    def bytes_per_image(self, height: int, width: int) -> None:
        """What an image takes inside ONNX Runtime is not known."""
        return None

    def to_device(self, device: Device, precision: str) -> "OnnxModel":
        """Compute on a device, or on the CPU where this ONNX Runtime has none of its kind."""
        if device.type == "cuda" and GPU in import_optional("onnxruntime").get_available_providers():
            of_gpu = {"device_id": device.number, "use_tf32": 0}  # float32 is float32, as in `choose_device`
            self.session.set_providers([GPU, "CPUExecutionProvider"], [of_gpu, {}])
        # Without the GPU's libraries ONNX Runtime falls back by itself: what it has taken is asked for.
        self.runs_on = device if self.session.get_providers()[0] == GPU else self.device
        if self.runs_on.type != device.type:
            say(f"{self.path} runs on the {self.runs_on}: this ONNX Runtime computes on no {device.type}")
        return self

    def infer_by(self, backend: str, images: int) -> None:
        """See `Describer`; auto is ONNX Runtime, whatever the number of images."""
        if backend == "torch":
            say(f"{self.path}: PyTorch runs no ONNX files, ONNX Runtime does")
        elif backend == "openvino" and self.runs_on.type == "cpu":
            import_optional("openvino")
            self.engine = ENGINES[backend]
            self.opened = self.engine.open(self.path, "fp32")

    def eval(self) -> "OnnxModel":
        """It describes as in a test always."""
        return self

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 [B, 3, H, W] -> [B, dim]."""
        return self._run(images, ["descriptors"])[0]

    def describe(self, images: np.ndarray, frozen: bool = False) -> np.ndarray:
        assert not frozen  # it has no layers of its own whose output could be kept
        return self(images).astype(np.float16)

    def describe_with_local(
        self, images: np.ndarray, projection: LocalProjection | None, frozen: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Descriptors and local descriptors of images, if the file gives them; see `Describer`."""
        if LOCAL_OUTPUT not in (output.name for output in self.session.get_outputs()):
            raise UserError(
                f"{self.path} gives no local descriptors: export it with --localDescriptors, or drop --rerank"
            )
        descriptors, local = self._run(images, ["descriptors", LOCAL_OUTPUT])
        return descriptors.astype(np.float16), local

    def _run(self, images: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        """Outputs for images, by their names."""
        height, width = images.shape[2:]
        require_size(height, width, self.smallest_side)  # ONNX Runtime would crash
        pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        if self.opened:
            return self.opened(pixels, outputs)
        return self.session.run(outputs, {self.session.get_inputs()[0].name: pixels})


def _recipe_of_flags(flags: Mapping[str, Any]) -> dict[str, str]:
    """What a file of an earlier version is taken for, which does not say more; UserError if no model has such flags."""
    spec = ModelSpec.from_flags(flags)
    normalization = "features" if spec.weights == "IMAGENET1K_FEATURES" else "torchvision"
    if spec.arch not in BACKBONES:
        from vpr.models.normalization import normalization_of

        normalization, _ = normalization_of(spec.arch, spec.weights, None)
    return {"arch": spec.backbone_name, "pooling": spec.pooling, "normalization": normalization}
