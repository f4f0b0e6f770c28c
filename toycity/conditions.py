"""When and with what a query was photographed: light, exposure, colour cast, lens, noise, compression."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from toycity.light import Light, survey_light


@dataclass(frozen=True)
class Difficulty:
    """How strong the nuisances in the queries are; larger is harder.

    Attributes:
        light_shares: how often each light of `LIGHTS` occurs.
        exposure: standard deviation of the exposure, photographic stops.
        colour_cast: standard deviation of the logarithm of the white balance gains.
        contrast: greatest relative change of contrast; gamma: greatest change of its logarithm.
        vignette: greatest darkening of the corners, 0-1.
        noise: greatest sensor noise for a picture in 0-1; blur: greatest radius, pixels.
        occluders: mean number of vehicles and pedestrians in front of the camera.
        turn: greatest difference from the nearest database heading, degrees (at most 22.5).
        roll: greatest roll, degrees; tilt: greatest shift of the horizon, share of the picture height.
        field_of_view: least and greatest, degrees.
        quality: least and greatest JPEG quality.
    """

    light_shares: tuple[tuple[str, float], ...] = (
        ("sunny", 0.34), ("overcast", 0.33), ("evening", 0.20), ("dusk", 0.10), ("night", 0.03),
    )  # fmt: skip
    exposure: float = 0.22
    colour_cast: float = 0.05
    contrast: float = 0.12
    gamma: float = 0.1
    vignette: float = 0.25
    noise: float = 0.015
    blur: float = 0.4
    occluders: float = 1.2
    turn: float = 8.0
    roll: float = 1.5
    tilt: float = 0.03
    field_of_view: tuple[float, float] = (62.0, 74.0)
    quality: tuple[int, int] = (45, 80)


@dataclass(frozen=True)
class Conditions:
    """Everything about one picture but its viewpoint: light, then development from linear light to JPEG."""

    light: Light
    exposure: float  # stops
    gains: tuple[float, float, float]  # white balance
    contrast: float = 1.0
    gamma: float = 1.0
    vignette: float = 0.0
    noise: float = 0.0
    blur: float = 0.0  # pixels
    roll: float = 0.0  # degrees
    quality: int = 90


def survey_conditions(random: np.random.Generator) -> Conditions:
    """The database's daylight with the mild exposure differences between panoramas."""
    return Conditions(survey_light(), exposure=float(random.normal(0, 0.12)), gains=(1.0, 1.0, 1.0))


def draw_conditions(random: np.random.Generator, difficulty: Difficulty) -> Conditions:
    """Conditions of one query."""
    names, shares = zip(*difficulty.light_shares, strict=True)
    name = names[random.choice(len(names), p=np.array(shares) / sum(shares))]
    gains = np.exp(random.normal(0, difficulty.colour_cast, 3))
    return Conditions(
        light=LIGHTS[name](random),
        exposure=float(random.normal(0, difficulty.exposure)),
        gains=tuple((gains / gains.mean()).tolist()),
        contrast=1 + float(random.uniform(-1, 1)) * difficulty.contrast,
        gamma=float(np.exp(random.uniform(-1, 1) * difficulty.gamma)),
        vignette=float(random.uniform(0, difficulty.vignette)),
        noise=float(random.uniform(0.2, 1.0)) * difficulty.noise * (1.6 if name == "night" else 1.0),
        blur=float(random.uniform(0, difficulty.blur)),
        roll=float(random.uniform(-1, 1)) * difficulty.roll,
        quality=int(random.integers(difficulty.quality[0], difficulty.quality[1] + 1)),
    )


def develop(linear: np.ndarray, conditions: Conditions, random: np.random.Generator) -> Image.Image:
    """Expose and develop linear light [rows, width, 3] into an 8-bit picture."""
    rows, width = linear.shape[:2]
    y, x = np.mgrid[0:rows, 0:width].astype(np.float32)
    corner = ((x / width - 0.5) ** 2 + (y / rows - 0.5) ** 2)[..., None] * 2  # 1 in the corners
    exposed = linear * (1 - conditions.vignette * corner) * np.array(conditions.gains, np.float32)
    # The camera meters most of the way to a middle grey; the rest is the conditions' exposure.
    metered = (0.20 / max(float(exposed.mean()), 1e-4)) ** 0.8
    exposed = exposed * np.float32(metered * 2.0**conditions.exposure)
    soft = exposed / (1 + np.maximum(exposed - 0.75, 0))  # highlights roll off instead of clipping
    tone = np.clip(soft, 0, 1) ** np.float32(0.5 * conditions.gamma)
    tone = 0.5 + (tone - 0.5) * np.float32(conditions.contrast)
    picture = Image.fromarray((np.clip(tone, 0, 1) * 255).astype(np.uint8))
    if conditions.blur > 0:
        picture = picture.filter(ImageFilter.GaussianBlur(conditions.blur))
    if conditions.noise > 0:
        noisy = np.asarray(picture, np.float32) + random.normal(0, 255 * conditions.noise, [rows, width, 3])
        picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    return picture


def _azimuth(random: np.random.Generator) -> float:
    # Twelve directions, so that shadow maps can be reused between queries.
    return float(2 * np.pi * random.integers(12) / 12)


def _sunny(random: np.random.Generator) -> Light:
    return Light(
        azimuth=_azimuth(random), elevation=float(np.deg2rad(random.choice([28, 42, 58]))),
        sun=(1.15, 1.08, 0.92), ambient=(0.26, 0.30, 0.38),
        horizon=(0.72, 0.84, 0.98), zenith=(0.18, 0.40, 0.80),
    )  # fmt: skip


def _overcast(random: np.random.Generator) -> Light:
    grey = float(random.uniform(0.5, 0.9))
    return Light(
        azimuth=0.0, elevation=1.0, sun=(0.0, 0.0, 0.0), ambient=(0.50, 0.53, 0.58),
        horizon=(0.86 * grey, 0.89 * grey, 0.93 * grey), zenith=(0.6 * grey, 0.64 * grey, 0.7 * grey),
        clouds=0.8, haze_length=float(random.uniform(90, 300)),
    )  # fmt: skip


def _evening(random: np.random.Generator) -> Light:
    return Light(
        azimuth=_azimuth(random), elevation=float(np.deg2rad(random.choice([12, 20]))),
        sun=(1.35, 0.72, 0.30), ambient=(0.26, 0.22, 0.26),
        horizon=(1.0, 0.62, 0.34), zenith=(0.34, 0.36, 0.55),
        clouds=0.6, lit_share=0.12, glow=0.5, haze_length=300.0,
    )  # fmt: skip


def _dusk(random: np.random.Generator) -> Light:
    return Light(
        azimuth=0.0, elevation=1.0, sun=(0.0, 0.0, 0.0), ambient=(0.10, 0.14, 0.25),
        horizon=(0.30, 0.26, 0.36), zenith=(0.05, 0.09, 0.24), clouds=0.4,
        lit_share=float(random.uniform(0.2, 0.45)), glow=0.45, haze_length=350.0,
    )  # fmt: skip


def _night(random: np.random.Generator) -> Light:
    return Light(
        azimuth=0.0, elevation=1.0, sun=(0.0, 0.0, 0.0), ambient=(0.045, 0.045, 0.06),
        horizon=(0.05, 0.04, 0.05), zenith=(0.008, 0.010, 0.02), clouds=0.1,
        lit_share=float(random.uniform(0.25, 0.5)), glow=0.40, haze_length=600.0,
    )  # fmt: skip


LIGHTS = {"sunny": _sunny, "overcast": _overcast, "evening": _evening, "dusk": _dusk, "night": _night}
