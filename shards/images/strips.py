"""Large images rebuilt strip by strip, so that no second copy of them is in memory.

Pillow takes four bytes per pixel: 400 MB of 100 megapixels. Where every pixel is needed anew, the
strips wait in a temporary file until the old image has been closed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

from PIL import Image

# Below, two copies are cheaper than a file.
BIG_PIXELS = 32_000_000
STRIP_PIXELS = 1_000_000


def is_big(image: Image.Image) -> bool:
    """Return whether an image is too large for two copies."""
    return image.width * image.height > BIG_PIXELS


def row_strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes (left, top, right, bottom) of whole rows that cover an image, from the top."""
    width, height = size
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def mapped(
    image: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Return a new image with each strip of an image changed; both are in memory.

    Args:
        image: Decoded; stays as it is.
        mode: Of the new image.
        change: From a strip to one of that mode and the same size.
    """
    result = Image.new(mode, image.size)
    for box in row_strips(image.size):
        result.paste(change(image.crop(box)), box)
    return result


def replaced(
    image: Image.Image,
    mode: str,
    size: tuple[int, int],
    strip: Callable[[tuple[int, int, int, int]], Image.Image],
) -> Image.Image:
    """Return a new image in an old one's place; the old one is closed before the new one is made.

    Args:
        image: Decoded; its memory is released.
        mode: Of the new image.
        size: Width and height of the new image.
        strip: From a box of the new image to its pixels, of that mode.
    """
    with tempfile.TemporaryFile() as waiting:
        for box in row_strips(size):
            waiting.write(strip(box).tobytes())
        image.close()

        waiting.seek(0)
        result = Image.new(mode, size)
        num_bands = len(result.getbands())
        for box in row_strips(size):
            width, height = box[2] - box[0], box[3] - box[1]
            pixels = waiting.read(width * height * num_bands)
            result.paste(Image.frombytes(mode, (width, height), pixels), box)
    return result
