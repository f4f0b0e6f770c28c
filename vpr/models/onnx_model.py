"""Exported models: one .onnx file from photos as bytes to descriptors, run by ONNX Runtime.

ONNX and ONNX Runtime are optional (requirements-deploy.txt); they are imported where they are used.
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from netvlad import SMALLEST_NORM, NetVLAD
from vpr.common.errors import UserError
from vpr.models.card import _check, _import, read_card
from vpr.models.place_model import PlaceModel, require_size

GPU = "CUDAExecutionProvider"


class PlainPlaceModel(nn.Module):
    """A `PlaceModel` in plain operations, as exporters want it: uint8 [B, H, W, 3] -> [B, dim]."""

    def __init__(self, model: PlaceModel):
        super().__init__()
        self.encoder, self.whitening = model.encoder, model.whitening
        self.pool = PlainNetVLAD(model.pool) if isinstance(model.pool, NetVLAD) else model.pool
        self.register_buffer("mean", model.mean)
        self.register_buffer("scale", 1 / model.std)

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """The whole way of a photo."""
        values = (photos.permute(0, 3, 1, 2).float() - self.mean) * self.scale  # [B, 3, H, W]
        descriptors = self.pool(self.encoder(values))
        return descriptors if self.whitening is None else self.whitening(descriptors)


class PlainNetVLAD(nn.Module):
    """`NetVLAD` without a backward pass of its own: [B, D, H, W] -> [B, K * D]."""

    def __init__(self, layer: NetVLAD):
        super().__init__()
        self.normalize_input = layer.normalize_input
        self.register_buffer("weight", layer.conv.weight.detach().flatten(1))  # [K, D]
        bias = torch.zeros(layer.num_clusters) if layer.conv.bias is None else layer.conv.bias.detach()
        self.register_buffer("bias", bias[:, None])
        self.register_buffer("centroids", layer.centroids.detach())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Equation 4 and both normalisations."""
        features = features.flatten(2)  # [B, D, P]
        if self.normalize_input:
            features = F.normalize(features, dim=1, eps=SMALLEST_NORM)
        assignment = (self.weight @ features + self.bias).softmax(dim=1)  # [B, K, P]
        residuals = assignment @ features.transpose(1, 2) - assignment.sum(dim=2)[:, :, None] * self.centroids
        return F.normalize(F.normalize(residuals, dim=2).flatten(1), dim=1)


class OnnxModel(nn.Module):
    """An exported model where a `PlaceModel` is expected: uint8 [B, 3, H, W] -> float32 [B, dim].

    Attributes:
        card: what the file says of itself.
        file_digest: of the file, so that two models are told apart by what they hold, as others are.
        device: on which ONNX Runtime computes: the CPU, before `place`.
    """

    first_trained = 0
    dtype = torch.float32

    def __init__(self, path: Path):
        super().__init__()
        runtime = _import("onnxruntime")
        sealed = _check(path)
        try:
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises kinds of its own on damaged files
            raise UserError(f"{path} cannot be read as an ONNX model ({str(error).splitlines()[0]})") from error
        digest = hashlib.sha256(path.read_bytes()).digest()
        self.register_buffer("file_digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.device = torch.device("cpu")
        self.path = path
        self.card = read_card(path, self.session.get_modelmeta().custom_metadata_map, sealed)
        self.dim, self.pooled_dim = int(self.card["dimension"]), int(self.card["pooled_dimension"])

    @property
    def name(self) -> str:
        """What every recall is labelled with, as its card has it."""
        return self.card["model"]

    @property
    def parameter_count(self) -> int:
        """Numbers that the model stored before its export, whitening included."""
        return int(self.card["parameters"])

    @property
    def megabytes(self) -> float:
        """Of the file."""
        return self.path.stat().st_size / 1e6

    def to_device(self, device: torch.device, precision: str) -> "OnnxModel":
        """Compute on a device, or on the CPU where this ONNX Runtime has none of its kind."""
        if device.type == "cuda" and GPU in _import("onnxruntime").get_available_providers():
            self.session.set_providers([GPU, "CPUExecutionProvider"], [{"device_id": device.index or 0}, {}])
        # Without the GPU's libraries ONNX Runtime falls back by itself: what it has taken is asked for.
        self.device = device if self.session.get_providers()[0] == GPU else torch.device("cpu")
        return self

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Describe photos.

        Raises:
            UserError: the photos are too small for the model.
        """
        require_size(values, int(self.card["smallest_side"]))  # ONNX Runtime would crash
        photos = values.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        (descriptors,) = self.session.run(None, {self.session.get_inputs()[0].name: photos})
        return torch.from_numpy(descriptors).to(values.device)
