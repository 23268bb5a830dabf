"""The README's picture, docs/photos.jpg: free photos grey, colored by a generator, and as taken.

    python benchmarks/photos.py --generator runs/best_64px/generator

The photos are scikit-image's, in the public domain or CC0: the astronaut (NASA), Chelsea the cat,
coffee and rocket (SpaceX). Each is colored at its own size, then all are shown at one height.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

from colorgan.models.generator import Generator

PHOTOS = ("chelsea", "coffee", "rocket", "astronaut")
HEIGHT, GAP = 200, 6
OUT = Path(__file__).resolve().parent.parent / "docs" / "photos.jpg"


def column(generator: Generator, photo_HW3: np.ndarray) -> list[Image.Image]:
    """Return a photo grey, colored and as taken, at one height."""
    photo_3HW = torch.from_numpy(photo_HW3).permute(2, 0, 1)
    colored_3HW = generator.color(photo_3HW).clamp(0, 1)
    colored_HW3 = (colored_3HW.permute(1, 2, 0) * 255).round().byte().numpy()

    original = Image.fromarray(photo_HW3)
    pictures = [original.convert("L").convert("RGB"), Image.fromarray(colored_HW3), original]
    size = (round(HEIGHT * original.width / original.height), HEIGHT)
    return [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", required=True, help="generator folder")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()

    generator = Generator.from_pretrained(arguments.generator)
    columns = [column(generator, getattr(skimage.data, name)()) for name in PHOTOS]

    width = sum(each[0].width for each in columns) + GAP * (len(columns) - 1)
    sheet = Image.new("RGB", (width, 3 * HEIGHT + 2 * GAP), "white")
    left = 0
    for pictures in columns:
        for row, picture in enumerate(pictures):
            sheet.paste(picture, (left, row * (HEIGHT + GAP)))
        left += pictures[0].width + GAP

    # Colors at full resolution: they are what the picture shows.
    sheet.save(arguments.out, quality=85, subsampling=0, optimize=True)
    print(f"{arguments.out}: {', '.join(PHOTOS)}; from above: grey, colored, original")


if __name__ == "__main__":
    main()
