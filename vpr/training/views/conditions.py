"""Night, rain and another season: what the light and the weather make of a place."""

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

AUTUMN, SNOW = np.array([1.3, 0.85, 0.4], np.float32), np.array([232, 238, 246], np.float32)


def night(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An image of the day as a camera sees the place at night: dark, with a cast, noise, lamps and JPEG's marks.

    Tones to the power of 1.8 to 4 times 0.15 to 0.5, the sky darker still, a warm or cold cast; noise of photons and
    sensor (Foi et al., 2008; a Gaussian, of brightness), raised with the rest by the exposure to 15 % to 40 % of the
    image's mean, where that is more; up to four lamps, each with a halo and light around it; JPEG of quality 30 to 80.
    """
    from torchvision.transforms.v2 import functional

    power, gain, warmth = generator.uniform((1.8, 0.15, -0.3), (4, 0.5, 0.3))
    tones = np.arange(256, dtype=np.float32) / 255
    light = (gain * tones**power).astype(np.float32)[image] * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    sky = np.minimum.accumulate(image[..., 1], axis=0)  # is what is bright down from the upper edge
    light *= (1 - np.float32(generator.uniform(0, 0.9)) * (5 * tones - 2.5).clip(0, 1))[sky][..., None]
    shot, sensor = generator.uniform((0.0005, 0.002), (0.003, 0.006)).astype(np.float32)
    noise = generator.standard_normal(image.shape[:2], np.float32) * np.sqrt(shot * light[..., 1] + sensor**2)
    exposure = generator.uniform(0.15, 0.4) * image.mean() / 255 / max(light.mean(), 1e-3)
    light = (light + noise[..., None]) * np.float32(max(exposure, 1))
    y, x = (np.arange(side, dtype=np.float32) / len(image) for side in image.shape[:2])
    glow = np.zeros((*image.shape[:2], 1), np.float32)
    for _ in range(int(generator.integers(0, 5))):
        at_x, at_y, radius = generator.uniform((0, 0, 0.02), (x[-1], 0.6, 0.06)).astype(np.float32)
        glow[..., 0] += 1 / (1 + ((x - at_x) / radius) ** 2 + ((y[:, None] - at_y) / radius) ** 2)
    light *= 1 + 2 * glow
    light += glow**2 * generator.uniform((0.6, 0.5, 0.2), (0.9, 0.7, 0.6)).astype(np.float32)
    dark = Image.fromarray((light * 255).clip(0, 255).astype(np.uint8))
    return np.array(functional.jpeg(dark, int(generator.integers(30, 81))))


def night_grey(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """`night` without colour and with an equalised histogram, as images taken at night are often made readable."""
    return np.array(ImageOps.equalize(Image.fromarray(night(image, generator)).convert("L")).convert("RGB"))


def rain(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rain: less contrast and colour, a grey cast, and bright streaks that all lean alike."""
    streaks = Image.new("L", image.shape[1::-1])
    draw = ImageDraw.Draw(streaks)
    length, lean = streaks.height * generator.uniform(0.03, 0.1), generator.uniform(-0.3, 0.3)
    for x, y in (generator.uniform(-0.1, 1.1, (int(generator.integers(100, 400)), 2)) * streaks.size).tolist():
        draw.line((x, y, x + lean * length, y + length), fill=int(generator.integers(50, 140)))
    picture = ImageEnhance.Color(Image.fromarray(image)).enhance(generator.uniform(0.3, 0.7))
    picture = Image.blend(picture, Image.new("RGB", picture.size, (150, 155, 162)), generator.uniform(0.2, 0.45))
    picture.paste((225, 228, 232), mask=streaks.filter(ImageFilter.GaussianBlur(streaks.height / 600)))
    return np.array(picture)


def season(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Autumn or winter: what is greener than it is red or blue turns brown; or it turns white, as the ground does."""
    pixels = image.astype(np.float32)
    green = ((pixels[..., 1] - np.maximum(pixels[..., 0], pixels[..., 2])) / 20).clip(0, 1)[..., None]
    brightness = pixels.mean(axis=2, keepdims=True)
    if generator.uniform() < 0.5:
        changed, share = brightness * AUTUMN, green
    else:  # more snow further down, where the ground is
        ground = np.linspace(-1, generator.uniform(0.3, 1), len(image), dtype=np.float32).clip(0)[:, None, None]
        changed, share = 0.3 * brightness + 0.7 * SNOW, np.maximum(0.7 * green, ground)
    return (pixels + generator.uniform(0.7, 1) * share * (changed - pixels)).clip(0, 255).astype(np.uint8)
