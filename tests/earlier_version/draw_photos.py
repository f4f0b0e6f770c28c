"""Draws the photos of this folder anew: python draw_photos.py FOLDER."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def draw(root: Path) -> None:
    """In train and in val 8 database photos 40 m apart; 4 queries 3 m beside, moved by 3 pixels and noisier."""
    random = np.random.default_rng(7)
    for split in ("train", "val"):
        for place in range(8):
            coarse = random.integers(0, 256, (6, 8, 3)).astype(np.float64)
            clean = np.kron(coarse, np.ones((8, 8, 1)))  # [48, 64, 3]
            for role, shift, noise in (("database", 0, 4), ("queries", 3, 25)):
                if role == "queries" and place % 2:
                    continue
                pixels = np.roll(clean, shift, axis=1) + random.normal(0, noise, clean.shape)
                path = root / split / role / f"@{500000 + 40 * place + shift}@4500000@17@T@{place}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=60)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
