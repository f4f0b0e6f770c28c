"""A backbone's trunk by each way of computing it, in one run, and by what is chosen on this processor."""

from collections.abc import Callable
from unittest.mock import patch

import torch

from benchmarks.measure import compare_all
from benchmarks.report import Row
from benchmarks.stages import Bench
from vpr.common.device import precision_name, vector_widths
from vpr.models import nnpack as convolution
from vpr.models.place_model import PlaceModel
from vpr.models.spec import ModelSpec

EVERYWHERE = convolution.Rule(area=400, kernels=0, sides=(3, 5))  # NNPACK for all that it does well on AVX2


def trunk(bench: Bench, arch: str, size: tuple[int, int], batch: int) -> list[Row]:
    """Random images of (height, width) pixels in memory to local descriptors: a row for each way."""
    spec = bench.spec(arch)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    models = {
        name: bench.model(spec).to_device(bench.device, precision)
        for name, precision in (("fp32, as chosen here", "fp32"), ("bf16", "bf16"), ("--precision=auto", "auto"))
    }
    works = {name: _work(model, images.to(bench.device)) for name, model in models.items()}
    plain = bench.model(spec).to_device(bench.device, "fp32")
    plain.backbone.fast = False
    plain.encoder.to(memory_format=torch.channels_last)
    works["fp32, channels last"] = _work(plain, images.to(bench.device))
    if models["fp32, as chosen here"].backbone.fast:
        works["fp32, NNPACK"] = _by_nnpack(bench, spec, images)
    timings = dict(
        zip(works, compare_all(list(works.values()), bench.repeats, synchronize=bench.synchronize), strict=True)
    )
    best = min(timing.median for name, timing in timings.items() if name in ("fp32, channels last", "fp32, NNPACK"))
    rows = []
    for name, timing in timings.items():
        limit = f"{1000 * timing.median / batch:.3g} ms an image, {timing.median / best:.2f} of the better in fp32"
        if name == "--precision=auto":
            limit += f"; auto is {precision_name(models[name].dtype)} here, vectors {vector_widths()}"
        rows.append(Row(f"trunk, {arch}", f"{batch} images at {size[1]}x{size[0]}, {name}", None, timing, limit=limit))
    return rows


def _work(model: PlaceModel, images: torch.Tensor) -> Callable:
    return torch.no_grad()(lambda: model.local_descriptors(images))


def _by_nnpack(bench: Bench, spec: ModelSpec, images: torch.Tensor) -> Callable:
    """The trunk with NNPACK wherever it can be had, whatever the processor."""

    def everywhere():
        return patch.object(convolution, "rule", lambda: EVERYWHERE)

    with everywhere():
        model = bench.model(spec).to_device(bench.device, "fp32")

    def work() -> torch.Tensor:
        with everywhere(), torch.no_grad():
            return model.local_descriptors(images)

    return work
