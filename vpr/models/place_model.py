"""The model: photos [B, 3, H, W] as bytes -> trunk -> pooling -> descriptors of length 1."""

import copy

import torch
from torch import nn

from netvlad import NetVLAD
from vpr.common.device import compute_dtype, precision_name
from vpr.common.errors import UserError
from vpr.models.backbones.cnn import TRUNKS, build_encoder, initialize_randomly, layer_index
from vpr.models.nnpack import has_fast_convolutions, layout_for, run_layers
from vpr.models.normalization import normalization_of
from vpr.models.poolings.max_avg import GlobalPooling
from vpr.models.spec import ModelSpec
from vpr.models.weights import load_pretrained, weights_label
from vpr.models.whitening import Whitening


class PlaceModel(nn.Module):
    """Describes photos.

    Attributes:
        spec: what it is.
        encoder: the trunk; [B, 3, H, W] -> [B, D, h, w].
        pool: NetVLAD or a global pooling; [B, D, h, w] -> [B, pooled_dim].
        whitening: [B, pooled_dim] -> [B, dim], or None.
        first_trained: layers of the trunk below this one are frozen.
        dtype: the format in which the trunk computes. Weights and pooling are float32 always.
        fast: whether `vpr.convolution` does the trunk's convolutions.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        dim = spec.channels[-1] if spec.channels else TRUNKS[spec.arch].dim
        self.smallest_side = TRUNKS[spec.arch].smallest_side
        self.encoder = build_encoder(spec.arch, spec.channels)
        if spec.pooling == "netvlad":
            self.pool, self.pooled_dim = NetVLAD(spec.clusters, dim, spec.vladv2), spec.clusters * dim
        else:
            self.pool, self.pooled_dim = GlobalPooling(spec.pooling), dim
        self.whitening = None
        self.dtype = torch.float32
        self.fast = False
        self.first_trained = layer_index(self.encoder, spec.arch, spec.train_from) if spec.train_from else 0
        _, normalization = normalization_of(spec.arch, spec.weights, spec.normalization)
        for values, name in ((normalization.mean, "mean"), (normalization.std, "std")):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        for layer in self.encoder[: self.first_trained]:
            layer.requires_grad_(False)

    @property
    def name(self) -> str:
        """Backbone and weights, pooling, dimension, precision: what every recall is labelled with."""
        spec = self.spec
        normalization, _ = normalization_of(spec.arch, spec.weights, spec.normalization)
        kind = spec.pooling
        if kind == "netvlad":
            kind = f"NetVLAD{' v2' if spec.vladv2 else ''} with {spec.clusters} clusters"
        weights = weights_label(spec.arch, spec.weights)
        if spec.channels:
            weights += f" pruned to {'-'.join(map(str, spec.channels))} filters"
        dim = f"{self.dim}-D"
        if self.whitening is not None:
            dim = f"{self.pooled_dim}-D whitened to {dim}"
            dim += f" by {self.whitening.learnt_on}" if self.whitening.learnt_on else ""
        return f"{spec.arch} ({weights}, {normalization} input), {kind}, {dim}, {precision_name(self.dtype)}"

    @property
    def dim(self) -> int:
        """Length of a descriptor."""
        return self.pooled_dim if self.whitening is None else self.whitening.dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    @property
    def parameter_count(self) -> int:
        """Numbers that the model stores, whitening included."""
        return sum(value.numel() for value in self.state_dict().values())

    @property
    def megabytes(self) -> float:
        """Of the numbers that the model stores, in float32."""
        return 4 * self.parameter_count / 1e6

    def to_device(self, device: torch.device, precision: str) -> "PlaceModel":
        """Move to a device and compute there as --precision says."""
        self.dtype = compute_dtype(precision, device)
        self.fast = has_fast_convolutions(device, self.dtype)
        for layer in self.encoder:
            layer.to(memory_format=layout_for([layer], self.fast))
        return self.to(device)

    @property
    def layout(self) -> torch.memory_format:
        """How photos and stored maps lie in memory. Photos come with channels last."""
        return layout_for(self.encoder, self.fast)

    def trunk(self) -> torch.autocast:
        """The context in which layers of the trunk run: in `dtype`, from float32 weights."""
        return torch.autocast(self.mean.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def frozen_features(self, photos: torch.Tensor) -> torch.Tensor:
        """Photos uint8 [B, 3, H, W] -> what the frozen layers make of them [B, C, h, w].

        Raises:
            UserError: the photos are too small to leave a single local descriptor.
        """
        require_size(photos, self.smallest_side)
        # The frozen part needs no graph: that saves most of the memory of a training step.
        with self.trunk(), torch.set_grad_enabled(torch.is_grad_enabled() and self.first_trained == 0):
            return run_layers(self.encoder[: self.first_trained], self.normalized(photos), self.fast)

    def normalized(self, photos: torch.Tensor) -> torch.Tensor:
        """Photos uint8 [B, 3, H, W] -> what the first layer takes, in `dtype`."""
        photos = photos.contiguous(memory_format=self.layout)  # while they are bytes
        return ((photos.float() - self.mean) / self.std).to(self.dtype)

    def frozen_layers_without_data(self) -> nn.Sequential:
        """The frozen layers as shapes only, to ask what they make of a size."""
        return copy.deepcopy(self.encoder[: self.first_trained]).to("meta")

    def local_descriptors(self, photos: torch.Tensor) -> torch.Tensor:
        """Photos uint8 [B, 3, H, W] -> local descriptors [B, D, h, w]."""
        return self.finish_features(self.frozen_features(photos))

    def finish_features(self, features: torch.Tensor) -> torch.Tensor:
        """What `frozen_features` gave, in any float format, [B, C, h', w'] -> local descriptors [B, D, h, w]."""
        with self.trunk():
            return run_layers(self.encoder[self.first_trained :], features.to(self.dtype), self.fast).float()

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Photos uint8 [B, 3, H, W] -> [B, dim] of length 1."""
        return self._pooled(self.local_descriptors(photos))

    def describe_features(self, features: torch.Tensor) -> torch.Tensor:
        """What `frozen_features` gave [B, C, h', w'] -> [B, dim] of length 1."""
        return self._pooled(self.finish_features(features))

    def _pooled(self, local_descriptors: torch.Tensor) -> torch.Tensor:
        descriptors = self.pool(local_descriptors)
        return descriptors if self.whitening is None else self.whitening(descriptors)

    def whiten(self, whitening: Whitening) -> None:
        """Add the last layer.

        Raises:
            UserError: it is of other dimensions.
        """
        if whitening.mean.shape != (self.pooled_dim,):
            raise UserError(f"the whitening is of {len(whitening.mean)}-D descriptors, these have {self.pooled_dim}: "
                            "run --mode=whiten again")  # fmt: skip
        self.whitening = whitening


def require_size(photos: torch.Tensor, smallest_side: int) -> None:
    """Raise a UserError if photos [B, 3, H, W] are too small to leave a single local descriptor."""
    height, width = photos.shape[2:]
    if min(height, width) < smallest_side:
        raise UserError(
            f"a photo is {width}x{height} pixels, the backbone needs at least {smallest_side} each way: "
            "leave it out or give a larger --imageSize"
        )


def build_model(spec: ModelSpec, pretrained: bool = True) -> PlaceModel:
    """The model of a spec.

    Args:
        pretrained: fill in the backbone's weights; False where a checkpoint follows.

    Raises:
        UserError: the weights are unknown, missing or do not fit.
    """
    model = PlaceModel(spec)
    if not pretrained:
        return model
    if spec.from_scratch:
        initialize_randomly(model.encoder, spec.seed)
    else:
        load_pretrained(model.encoder, spec.arch, spec.weights)
    return model
