"""Stages of a vision transformer of timm: embedding, blocks, last norm, map.

Between stages the tokens of an image lie on their grid, [B, h, P + w, C]: the patches of a row after the P tokens ahead
of all patches (class token, registers), which every row repeats; the first row's count. So each stage knows the grid.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vpr.models.backbones.positions import resized


def to_grid(tokens: torch.Tensor, ahead: int, width: int) -> torch.Tensor:
    """Tokens [B, P + h * w, C] -> [B, h, P + w, C]."""
    patches = tokens[:, ahead:].reshape(tokens.shape[0], -1, width, tokens.shape[2])
    if not ahead:
        return patches
    return torch.cat([tokens[:, None, :ahead].expand(-1, patches.shape[1], -1, -1), patches], dim=2)


def to_tokens(grid: torch.Tensor, ahead: int) -> torch.Tensor:
    """[B, h, P + w, C] -> tokens [B, P + h * w, C]."""
    patches = grid[:, :, ahead:].flatten(1, 2)
    return torch.cat([grid[:, 0, :ahead], patches], dim=1) if ahead else patches


def to_multiples(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Images [B, 3, H, W] with sides of the nearest multiples of `multiple` pixels, at least one."""
    height, width = images.shape[2:]
    size = [((2 * side + multiple) // (2 * multiple)) * multiple for side in (height, width)]
    if not torch.compiler.is_exporting() and size == [height, width]:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)  # of equal sizes the same image


class Embedding(nn.Module):
    """Images [B, 3, H, W] -> tokens on their grid: patches, positions, class token and registers."""

    def __init__(self, network: Any, patch: int, as_dinov2: bool) -> None:
        super().__init__()
        self.patch_embed, self.norm_pre = network.patch_embed, network.norm_pre
        self.cls_token, self.reg_token, self.pos_embed = network.cls_token, network.reg_token, network.pos_embed
        self.patch, self.as_dinov2 = patch, as_dinov2
        self.trained_grid = tuple(network.patch_embed.grid_size)
        self.ahead = network.num_prefix_tokens
        self.positions_ahead = 0 if network.no_embed_class else self.ahead

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [B, h, P + w, C]."""
        patches = self.patch_embed.proj(to_multiples(images, self.patch)).permute(0, 2, 3, 1)  # [B, h, w, C]
        patches = self.patch_embed.norm(patches)
        batch, height, width, dim = patches.shape
        ahead = [token.expand(batch, -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        if self.pos_embed is not None:
            grid = self.pos_embed[0, self.positions_ahead :].unflatten(0, self.trained_grid)  # [g, g', C]
            patches = patches + resized(grid, height, width, self.as_dinov2)
            if self.positions_ahead:
                ahead = [torch.cat(ahead, dim=1) + self.pos_embed[:, : self.positions_ahead]]
        tokens = torch.cat([*ahead, patches.reshape(batch, -1, dim)], dim=1)
        return to_grid(self.norm_pre(tokens), self.ahead, width)


class Block(nn.Module):
    """One block of attention; with rotary position embeddings where the network has them."""

    def __init__(self, block: nn.Module, ahead: int, rope: Any = None) -> None:
        super().__init__()
        self.block, self.ahead, self.rope = block, ahead, rope

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        """[B, h, P + w, C] -> the same shape."""
        height, width = grid.shape[1], grid.shape[2] - self.ahead
        tokens = to_tokens(grid, self.ahead)
        if self.rope is None:
            tokens = self.block(tokens)
        else:
            tokens = self.block(tokens, rope=self.rope.get_embed([height, width]))
        return to_grid(tokens, self.ahead, width)


class Rotary(nn.Module):
    """Rotary position embeddings of DINOv3 for a grid, from the periods that timm's layer has.

    The same values as timm's layer gives, in steps that exporters can follow for any size.
    """

    def __init__(self, rope: Any) -> None:
        super().__init__()
        self.rope = rope

    def get_embed(self, shape: list[int]) -> torch.Tensor:
        """(h, w) -> sines, then cosines, [h * w, 2 * dim of a head]."""
        lines = [torch.arange(count, device=self.rope.periods.device, dtype=torch.float32) for count in shape]
        centres = [2 * ((line + 0.5) / (line[-1] + 1)) - 1 for line in lines]  # from -1 to 1
        centres_of_patches = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).flatten(0, 1)  # [h * w, 2]
        angles = 2 * math.pi * centres_of_patches[:, :, None] / self.rope.periods  # [h * w, 2, a quarter of the dim]
        angles = angles.flatten(1)
        angles = torch.cat([angles, angles], 1) if self.rope.rotate_half else angles.repeat_interleave(2, 1)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Facet(nn.Module):
    """Of a block's attention only its queries, keys or values (Keetha et al., AnyLoc, RA-L 2023, section III)."""

    ORDER = ("query", "key", "value")  # in what `qkv` gives

    def __init__(self, block: Any, facet: str) -> None:
        super().__init__()
        self.norm1, self.qkv, self.number = block.norm1, block.attn.qkv, self.ORDER.index(facet)

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        """[B, h, P + w, C] -> the same shape."""
        return self.qkv(self.norm1(grid)).chunk(3, dim=-1)[self.number]


class Map(nn.Module):
    """The patches alone, as a map of local descriptors."""

    def __init__(self, ahead: int) -> None:
        super().__init__()
        self.ahead = ahead

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        """[B, h, P + w, C] -> [B, C, h, w]."""
        return grid[:, :, self.ahead :].permute(0, 3, 1, 2)


class ClassToken(nn.Module):
    """The class token alone, as a map of one position."""

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        """[B, h, P + w, C] -> [B, C, 1, 1]."""
        return grid[:, 0, 0, :, None, None]


class PatchedImages(nn.Module):
    """The first layer of a network that takes multiples of its patches only, behind a resizing of the images."""

    def __init__(self, patch_embed: nn.Module, patch: int) -> None:
        super().__init__()
        self.patch_embed, self.patch = patch_embed, patch

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> what the layer makes of them."""
        return self.patch_embed(to_multiples(images, self.patch))


class ChannelsFirst(nn.Module):
    """A map of a network whose maps lie with channels last."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, h, w, C] -> [B, C, h, w]."""
        return features.permute(0, 3, 1, 2)
