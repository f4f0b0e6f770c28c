"""Learnt position embeddings of a vision transformer on a grid of another size, by bicubic interpolation.

In two matrix products, by rows and by columns, whose weights are worked out from the size: exporters can follow that
for any size. Two ways are in use: timm's, and that of the authors of DINOv2 (Oquab et al., TMLR 2024) for their models
without registers, whose weights were trained with it.
"""

import contextlib

import torch

OFFSET = 0.1  # of DINOv2, patches: added to the size from which the scale is taken


def resized(positions: torch.Tensor, height: int, width: int, as_dinov2: bool) -> torch.Tensor:
    """Position embeddings [g, g', C] -> [height, width, C], in float32: `as_dinov2` by (h + 0.1) / g, without
    antialiasing, as DINOv2 without registers; else with antialiasing by h / g."""
    device = positions.device
    if as_dinov2:
        rows, columns = dinov2_weights((height, width), (positions.shape[0], positions.shape[1]), device)
    else:
        rows = antialiased_weights(_arange(height, device), positions.shape[0])
        columns = antialiased_weights(_arange(width, device), positions.shape[1])
    lower_precision = device.type != "meta" and torch.is_autocast_enabled(device.type)
    with torch.autocast(device.type, enabled=False) if lower_precision else contextlib.nullcontext():
        return torch.einsum("hi,ijc,wj->hwc", rows, positions.float(), columns)


def dinov2_weights(
    size: tuple[int, int], trained: tuple[int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [h, g] and [w, g'] of DINOv2's way; a grid of the trained size (g, g') stays as it is."""
    lines = _arange(size[0], device), _arange(size[1], device)
    # As tensors, not as numbers that a branch would compare: an exported file serves all sizes.
    other = (lines[0][-1] + 1 - trained[0]).abs() + (lines[1][-1] + 1 - trained[1]).abs()
    offset = OFFSET * other.clamp(max=1.0)
    return interpolation_weights(lines[0], trained[0], offset), interpolation_weights(lines[1], trained[1], offset)


def interpolation_weights(points: torch.Tensor, size: int, offset: torch.Tensor | float) -> torch.Tensor:
    """Bicubic weights [n, size] of n points 0, 1, ... on a line of `size`: by the scale (n + offset) / size.

    Four taps with a = -0.75 (Keys, 1981); beyond the border the outermost value counts.
    """
    scale = (points[-1] + 1 + offset) / size
    at = (points + 0.5) / scale - 0.5
    first = at.floor()
    taps = torch.arange(-1, 3, device=points.device)  # [4]
    weights = cubic(at[:, None] - first[:, None] - taps, -0.75)  # [n, 4]
    where = (first[:, None] + taps).clamp(0, size - 1)
    hits = where[:, :, None] == torch.arange(size, device=points.device)  # [n, 4, size]
    return (weights[:, :, None] * hits).sum(dim=1)


def antialiased_weights(points: torch.Tensor, size: int) -> torch.Tensor:
    """Bicubic weights [n, size] of n points 0, 1, ... on a line of `size`, with a wider kernel where that shrinks.

    a = -0.5; at the border the weights inside are scaled to a sum of 1.
    """
    step = size / (points[-1] + 1)
    centres = (points + 0.5) * step
    inside = torch.arange(size, device=points.device) + 0.5
    weights = cubic((inside - centres[:, None]) / step.clamp(min=1.0), -0.5)
    return weights / weights.sum(dim=1, keepdim=True)


def cubic(distance: torch.Tensor, a: float) -> torch.Tensor:
    """Keys' cubic convolution kernel."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _arange(count: int, device: torch.device) -> torch.Tensor:
    return torch.arange(count, device=device, dtype=torch.float32)
