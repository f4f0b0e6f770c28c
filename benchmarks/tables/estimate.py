"""Image size and epochs by the number of images, and how long the commands take by the first hundred images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables.steps import Step

FIRST, WARM_UP = 100, 4  # images that are timed, and images before them
START = 8.0  # seconds in which a command starts and ends


@dataclass(frozen=True)
class Settings:
    """What the number of images decides, and no clock, so that all machines make the same tables.

    Attributes:
        longest: side of images in pixels, to which larger ones are shrunk.
        distill: images of the distillation after pruning, counted with repetition.
    """

    longest: int
    epochs: int
    distill: int


SMALL, LARGE, MANY = Settings(128, 2, 256), Settings(320, 2, 4096), 10_000


def settings_for(images: int) -> Settings:
    """Half an hour on two cores for a few thousand images; a night for Pittsburgh's 35,000."""
    return SMALL if images < MANY else LARGE


def size_for(image: Path, longest: int) -> tuple[int, int]:
    """Height and width of all images: those of this one, shrunk so far that neither exceeds `longest`."""
    from vpr.data.images import decode

    height, width = decode(image).shape[1:]
    scale = min(1.0, longest / max(height, width))
    return round(scale * height), round(scale * width)


def seconds_per_image(flags: Sequence[str], images: Sequence[Path], size: tuple[int, int]) -> float:
    """Files to descriptors, by a network with random weights, which takes as long as any."""
    import torch

    from vpr.cli.options import parse_options
    from vpr.cli.specs import model_spec, reading
    from vpr.common.device import choose_device
    from vpr.descriptors.describe import describe
    from vpr.models.place_model import build_model

    options = parse_options(["--mode=cluster", *flags, "--fromscratch", "--imageSize", *map(str, size)])
    device = choose_device(options.device)
    torch.manual_seed(0)
    model = build_model(model_spec(options)).to_device(device, "fp32").eval()
    source = reading(options, device).of(images)
    describe(model, source, range(min(WARM_UP, len(images))), None, "warm-up")
    started = time.perf_counter()
    describe(model, source, range(len(images)), None, "first images")
    return (time.perf_counter() - started) / len(images)


def minutes_of(steps: Sequence[Step], seconds: dict[str, float]) -> float:
    """Of steps, by the seconds of an image through each network."""
    return sum(START + seconds[step.network] * step.passes for step in steps) / 60
