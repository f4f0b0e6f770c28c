"""python -m benchmarks --engines: milliseconds an image of backbones by each inference engine (--backend)."""

import importlib.util
import os
import tempfile
from collections.abc import Iterator

import torch

from benchmarks.measure import time_of
from vpr.common.device import CPU, multiplies_bf16
from vpr.models.engines import CACHE_VARIABLE, ENGINES
from vpr.models.place_model import PlaceModel, build_model
from vpr.models.spec import ModelSpec

BACKBONES = ("tf_efficientnet_lite0", "alexnet", "vgg16", "resnet50", "vit_small_patch16_224")
SIZES, BATCHES = ((320, 320), (480, 640)), (1, 2, 8)  # (height, width) in pixels
MOST_GFLOP = 100.0  # of a batch


def engines_table(repeats: int) -> Iterator[str]:
    """Lines of a table in Markdown. Weights are random, which take as long as real ones."""
    formats = ("fp32", "bf16") if multiplies_bf16(CPU) else ("fp32",)
    engines = {name: engine.formats for name, engine in ENGINES.items() if importlib.util.find_spec(engine.package)}
    ways = [(name, each) for name, known in {"torch": formats, **engines}.items() for each in formats if each in known]
    a, b = torch.randn(2, 2048, 2048)
    rate = 2 * 2048**3 / time_of(lambda: a @ b).low / 1e9
    yield f"ceiling: matrix product in float32, {rate:.0f} GFLOP/s; {torch.get_num_threads()} threads\n"
    yield f"| backbone | pixels | batch | {' | '.join(map(' '.join, ways))} | ceiling |"
    yield "|---" * (4 + len(ways)) + "|"
    with tempfile.TemporaryDirectory() as cache:
        os.environ[CACHE_VARIABLE] = cache
        for arch in BACKBONES:
            models = [_model(arch, *way) for way in ways]
            for height, width in SIZES:
                gflop = models[0].gflop(height, width)
                for batch in (each for each in BATCHES if each == 1 or each * gflop < MOST_GFLOP):
                    times = [_milliseconds(model, (batch, height, width, 3), repeats) for model in models]
                    shown = " | ".join(f"{value:.1f}" for value in (*times, 1000 * gflop / rate))
                    yield f"| {arch} | {width}x{height} | {batch} | {shown} |"


def _model(arch: str, engine: str, precision: str) -> PlaceModel:
    model = build_model(ModelSpec(arch, "none", clusters=2)).to_device(CPU, precision).eval()
    model.infer_by(engine, 1)
    return model


@torch.inference_mode()
def _milliseconds(model: PlaceModel, shape: tuple[int, ...], repeats: int) -> float:
    """An image's share of a batch of the backbone; the least of some repeats."""
    images = torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2)
    return 1000 * time_of(lambda: model.local_descriptors(images), repeats).low / len(images)
