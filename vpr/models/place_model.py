"""The model: images [B, 3, H, W] as bytes -> backbone -> pooling -> whitening -> descriptors of length 1."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vpr.common.device import Device, compute_dtype, precision_name
from vpr.common.errors import UserError
from vpr.common.files import is_file
from vpr.common.progress import say
from vpr.models.backbones import BACKBONES
from vpr.models.backbones.base import Backbone, build_backbone, published
from vpr.models.describer import require_size
from vpr.models.engines import BackboneEngine, Network, engine_for
from vpr.models.flops import count_gflop, largest_step
from vpr.models.local_projection import LocalProjection
from vpr.models.normalization import normalization_of
from vpr.models.pca import ProjectionLayer
from vpr.models.poolings import POOLINGS
from vpr.models.poolings.base import Pooling, build_pooling
from vpr.models.spec import ModelSpec
from vpr.models.weights import load_pretrained, weights_hash, weights_label
from vpr.models.whitening import Whitening


class PlaceModel(nn.Module):
    """Describes images. Answers the protocol `Describer`, which says what its properties and methods are."""

    encoder: Backbone  # by its name in checkpoints; [B, 3, H, W] -> [B, D, h, w]
    pool: Pooling  # [B, D, h, w] -> [B, pooled_dim]
    whitening: Whitening | None  # [B, pooled_dim] -> [B, dim]
    mean: torch.Tensor  # [1, 3, 1, 1], of pixels from 0 to 255, as the backbone expects them
    std: torch.Tensor  # likewise

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec  # what it is
        class_token = spec.pooling in POOLINGS and POOLINGS[spec.pooling].class_token
        self.encoder = build_backbone(spec.arch, spec.channels, spec.cut, spec.facet, class_token)
        self.encoder.train_batch_norm = spec.train_batch_norm
        self.pool = build_pooling(spec.pooling, self.encoder.dim, spec)
        self.whitening = None
        self.dtype = torch.float32  # in which the backbone computes; weights and pooling are float32 always
        self.engine: BackboneEngine | None = None  # computes the backbone where no gradients are wanted; None: PyTorch
        _, normalization = normalization_of(spec.arch, spec.weights, spec.normalization)
        for values, name in ((normalization.mean, "mean"), (normalization.std, "std")):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.encoder.train_from(spec.first_trained)

    @property
    def backbone(self) -> Backbone:
        """The backbone: [B, 3, H, W] -> [B, D, h, w]."""
        return self.encoder

    @property
    def name(self) -> str:
        """Backbone and weights, pooling, dimension, number format: what every recall is labelled with."""
        spec = self.spec
        normalization, _ = normalization_of(spec.arch, spec.weights, spec.normalization)
        weights = weights_label(spec.arch, spec.weights)
        if spec.channels:
            weights += f" pruned to {'-'.join(map(str, spec.channels))} filters"
        dim = f"{self.dim}-D"
        if self.whitening is not None:
            dim = f"{self.pooled_dim}-D {'adapted' if self.whitening.projection is None else 'whitened'} to {dim}"
            dim += f" by {self.whitening.learnt_on}" if self.whitening.learnt_on else ""
        engine = self.engine.title if self.engine else "PyTorch"
        backbone = f"{spec.backbone_name} ({weights}, {normalization} input)"
        return f"{backbone}, {self.pool.label}, {dim}, {precision_name(self.dtype)} by {engine}"

    @property
    def recipe(self) -> dict[str, str]:
        spec, precision = self.spec, precision_name(self.dtype)
        normalization, _ = normalization_of(spec.arch, spec.weights, spec.normalization)
        return {
            "arch": spec.backbone_name, "pooling": spec.pooling, "dimension": str(self.dim),
            "weights_hash": weights_hash(self), "normalization": normalization, "precision": precision,
        }  # fmt: skip

    @property
    def dim(self) -> int:
        return self.pooled_dim if self.whitening is None else self.whitening.dim

    @property
    def pooled_dim(self) -> int:
        return self.pool.out_dim

    @property
    def smallest_side(self) -> int:
        return self.backbone.smallest_side

    @property
    def device(self) -> Device:
        return Device(self.mean.device)

    runs_on = device

    @property
    def parameter_count(self) -> int:
        return sum(value.numel() for value in self.state_dict().values())

    @property
    def megabytes(self) -> float:
        """Of the numbers that the model stores, in float32."""
        return 4 * self.parameter_count / 1e6

    def gflop(self, height: int, width: int) -> float:
        """Arithmetic for one image as designed, whatever the number format; see `Describer`."""
        return count_gflop(PlainPlaceModel(self), torch.empty(1, height, width, 3, dtype=torch.uint8, device="meta"))

    def bytes_per_image(self, height: int, width: int) -> int:
        """Memory that an image takes in the backbone: the largest input and output of a layer; see `Describer`."""
        require_size(height, width, self.smallest_side)
        pixels = torch.empty(1, 3, height, width, device="meta")
        return max(4 * pixels.numel(), largest_step(self.backbone, pixels) * self.dtype.itemsize)

    def to_device(self, device: Device, precision: str) -> "PlaceModel":
        self.dtype = compute_dtype(precision, device)
        self.backbone.set_up(device, self.dtype)
        return self.to(device)

    def infer_by(self, backend: str, images: int) -> None:
        """See `Describer`; from here on the backbone's weights stay as they are."""
        self.engine = None
        if self.device.type == "cpu":
            name, precision, side = self.spec.backbone_name, precision_name(self.dtype), self.smallest_side
            has_winograd = self.backbone.fast and self.spec.arch in BACKBONES
            layers = PlainBackbone(self).eval()
            network = Network(layers, name, self.spec.flags(), precision, side, has_winograd)
            self.engine = engine_for(network, backend, images)

    def autocast(self) -> torch.autocast:
        """The context in which the backbone computes: in `dtype`, from float32 weights."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        """Images uint8 [B, 3, H, W] -> what the first layer takes, in `dtype`."""
        images = images.contiguous(memory_format=self.backbone.layout)  # while they are bytes
        return ((images.float() - self.mean) / self.std).to(self.dtype)

    def _require_size(self, images: torch.Tensor) -> None:
        """Raise a UserError if images [B, 3, H, W] are too small; say so if the backbone resizes them."""
        require_size(images.shape[2], images.shape[3], self.smallest_side)
        if any(side % self.backbone.multiple for side in images.shape[2:]):
            say_of_multiples(self.backbone.multiple)

    def frozen_features(self, images: torch.Tensor) -> torch.Tensor:
        """Images uint8 [B, 3, H, W] -> what the frozen layers make of them [B, C, h, w]; UserError if too small."""
        self._require_size(images)
        first_trained = self.backbone.first_trained
        # The frozen part needs no graph: that saves most of the memory of a training step.
        with self.autocast(), torch.set_grad_enabled(torch.is_grad_enabled() and first_trained == 0):
            return self.backbone.run(self.normalized(images), stop=first_trained)

    def finish_features(self, features: torch.Tensor) -> torch.Tensor:
        """What `frozen_features` gave, in any float format, [B, C, h', w'] -> local descriptors [B, D, h, w]."""
        with self.autocast():
            return self.backbone.run(features.to(self.dtype), start=self.backbone.first_trained).float()

    def local_descriptors(self, images: torch.Tensor) -> torch.Tensor:
        """Images uint8 [B, 3, H, W] -> local descriptors [B, D, h, w]."""
        if self.engine and not torch.is_grad_enabled():
            self._require_size(images)
            return torch.from_numpy(self.engine(images.numpy()))
        return self.finish_features(self.frozen_features(images))

    def pooled(self, local_descriptors: torch.Tensor) -> torch.Tensor:
        """Local descriptors [B, D, h, w] -> [B, dim] of length 1."""
        descriptors = self.pool(local_descriptors)
        return descriptors if self.whitening is None else self.whitening(descriptors)

    def forward(self, images: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """Images uint8 [B, 3, H, W], or what `frozen_features` gave of them -> [B, dim] of length 1."""
        return self.pooled(self.finish_features(images) if frozen else self.local_descriptors(images))

    def tensor_of(self, values: np.ndarray) -> torch.Tensor:
        """An array as a tensor where the model computes."""
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    @torch.no_grad()
    def of_array(self, compute: Callable[[torch.Tensor], torch.Tensor], values: np.ndarray) -> np.ndarray:
        """What the model computes of an array, in main memory."""
        return compute(self.tensor_of(values)).cpu().numpy()

    def describe(self, images: np.ndarray, frozen: bool = False) -> np.ndarray:
        return self.of_array(lambda values: self(values, frozen).half(), images)

    @torch.no_grad()
    def describe_with_local(
        self, images: np.ndarray, projection: LocalProjection | None, frozen: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        assert projection is not None  # a model in PyTorch brings none
        values, project = self.tensor_of(images), ProjectionLayer(projection).to(self.device)
        local = self.finish_features(values) if frozen else self.local_descriptors(values)
        return self.pooled(local).half().cpu().numpy(), project(local).cpu().numpy()

    def whiten(self, whitening: Whitening) -> None:
        """Add the last layer; UserError if it is of other dimensions."""
        if whitening.mean.shape != (self.pooled_dim,):
            raise UserError(
                f"the whitening is of {len(whitening.mean)}-D descriptors, these have {self.pooled_dim}: "
                "run --mode=whiten again"
            )
        self.whitening = whitening


class PlainBackbone(nn.Module):
    """The backbone of a `PlaceModel` in plain operations: uint8 [B, H, W, 3] -> local descriptors [B, D, h, w]."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, model: PlaceModel) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.register_buffer("mean", model.mean)
        self.register_buffer("scale", 1 / model.std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The first part of an image's way."""
        return self.encoder((images.permute(0, 3, 1, 2).float() - self.mean) * self.scale)


class PlainPlaceModel(PlainBackbone):
    """A `PlaceModel` in plain operations, for exporters and for counting: uint8 [B, H, W, 3] -> [B, dim].

    With a projection also -> projected local descriptors [B, d, h, w].
    """

    def __init__(self, model: PlaceModel, projection: LocalProjection | None = None) -> None:
        super().__init__(model)
        self.projection = ProjectionLayer(projection) if projection else None
        self.whitening, self.pool = model.whitening, model.pool.plain()

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """The whole way of an image."""
        local = super().forward(images)
        pooled = self.pool(local)
        descriptors = pooled if self.whitening is None else self.whitening(pooled)
        return descriptors if self.projection is None else (descriptors, self.projection(local))


@functools.cache  # said once
def say_of_multiples(multiple: int) -> None:
    say(f"images whose sides are no multiples of {multiple} pixels are resized to the nearest ones in the model")


def build_model(spec: ModelSpec, pretrained: bool = True) -> PlaceModel:
    """The model of a spec; not `pretrained` where a checkpoint follows that fills in the backbone's weights.
    Raises a UserError: the weights are unknown, missing or do not fit."""
    model = PlaceModel(spec)
    if not pretrained:
        return model
    if spec.from_scratch:
        model.backbone.initialize(spec.seed)
    else:
        load_pretrained(model.backbone, spec.arch, spec.weights)
        _say_of_weights(model)
    return model


def _say_of_weights(model: PlaceModel) -> None:
    """What timm says of the weights of one of its networks: their licence, and the pixels that they expect."""
    spec, from_file = model.spec, is_file(model.spec.weights)
    licence = "the file's own" if from_file else published(spec.arch, spec.weights).licence
    if not licence:
        return
    mean, std = (" ".join(f"{value:.4g}" for value in each.flatten().tolist()) for each in (model.mean, model.std))
    taken = "" if spec.normalization else "; --normalization names others"
    pixels = f"; pixels 0-255 minus {mean}, over {std}{taken}" if from_file else ""
    say(f"weights of {spec.arch}: {Path(spec.weights).name}, licence {licence}{pixels}")
