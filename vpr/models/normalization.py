"""What a backbone expects of its input."""

import math
from dataclasses import dataclass

from vpr.common.errors import UserError
from vpr.common.files import is_file
from vpr.models.backbones.base import IMAGENET, own_pixels, published

Colour = tuple[float, float, float]  # R, G, B


@dataclass(frozen=True)
class Normalization:
    """What a network expects of its input: (pixel - mean) / std per channel R, G, B, pixels 0 to 255."""

    mean: Colour
    std: Colour


def _of_unit_range(mean: Colour, std: Colour) -> Normalization:
    """From the mean and standard deviation of pixels between 0 and 1."""
    return Normalization(*((255 * red, 255 * green, 255 * blue) for red, green, blue in (mean, std)))


NORMALIZATIONS = {
    # torchvision's networks: of its documentation of the ImageNet transforms.
    "torchvision": _of_unit_range(*IMAGENET),
    # Oxford's networks as published: the mean colour of ImageNet, no scaling.
    "caffe": Normalization((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    # torchvision's VGG16_Weights.IMAGENET1K_FEATURES: Oxford's network with the mean as torchvision gives it.
    "features": _of_unit_range((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)),
    "unit": Normalization((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
}


def mean_colour(text: str) -> Normalization:
    """A normalisation by its mean colour alone, written R,G,B; UserError unless these are three finite numbers."""
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        red = green = blue = math.nan
    if not all(map(math.isfinite, (red, green, blue))):
        raise UserError(
            f"normalization={text[:60]!r}: wanted one of {', '.join(NORMALIZATIONS)}, or a mean colour R,G,B such as "
            "123.68,116.779,103.939"
        )
    return Normalization((red, green, blue), (1.0, 1.0, 1.0))


def normalization_of(arch: str, weights: str, named: str | None) -> tuple[str, Normalization]:
    """Name and values of the input normalisation that weights were trained with.

    What the user says of a file's or random weights is `named`, a key of NORMALIZATIONS or R,G,B; None takes what is
    known of the backbone's other weights.
    """
    unpublished = weights == "none" or is_file(weights)
    found = own_pixels(arch) if unpublished else published(arch, weights)
    if found is None or (named and unpublished):
        name = named or "torchvision"
        return name, NORMALIZATIONS[name] if name in NORMALIZATIONS else mean_colour(name)
    values = _of_unit_range(found.mean, found.std)
    name = next((name for name, known in NORMALIZATIONS.items() if known == values), "own")
    return name, values
