"""How pictures are stored: size policies, JPEG settings, and where a picture's points go.

Pure and small; shards/images/conversion.py does the pixels, shards/packing/pack.py hands the
settings down.
"""

import re
from dataclasses import dataclass
from typing import Literal, cast

from shards.errors import PackError

MAX_PIXELS = 100_000_000  # 300 MB decoded
MAX_PIXELS_LIMIT = 178_956_970  # above it PIL takes a picture for a decompression bomb
MAX_CHROMA = 100.0
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}  # to PIL's numbers


@dataclass(frozen=True)
class ImagePolicy:
    """How large a picture is stored; `size` in pixels is unused for `original`."""

    kind: Literal["original", "short", "squash"]
    size: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "original" else f"{self.kind}:{self.size}"

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Return the stored width and height. `short` never enlarges: more bytes, no detail."""
        if self.kind == "squash":
            return self.size, self.size
        short = min(width, height)
        if self.kind == "original" or short <= self.size:
            return width, height
        scale = self.size / short
        return max(1, round(width * scale)), max(1, round(height * scale))


def parse_image_policy(text: str) -> ImagePolicy:
    """Read `original`, `short:N` or `squash:N`, N from 8 to 8192 pixels.

    Raises:
        PackError: Anything else.
    """
    match = re.fullmatch(r"(short|squash):([0-9]{1,9})", text)
    if text == "original":
        return ImagePolicy("original")
    # Nine digits at most in the pattern: int() of a million digits takes minutes.
    if match is None or not 8 <= int(match[2]) <= 8192:
        raise PackError(
            f"image policy {text!r}: use original, short:N (short side N, never enlarged) or "
            "squash:N (N x N pixels), with N from 8 to 8192; for example squash:256."
        )
    return ImagePolicy(cast(Literal["short", "squash"], match[1]), int(match[2]))


@dataclass(frozen=True)
class Encoding:
    """How images are stored; `jpeg_quality` and `chroma_subsampling` apply to re-encoded ones.

    Photos of less mean chroma than `min_chroma` (Lab units) are left out; 0 keeps all.
    """

    policy: ImagePolicy
    jpeg_quality: int = 95
    chroma_subsampling: str = "4:4:4"
    max_pixels: int = MAX_PIXELS
    min_chroma: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 100:
            raise PackError(f"jpeg_quality {self.jpeg_quality}: use 1 to 100; 95 is the default.")
        if self.chroma_subsampling not in SUBSAMPLINGS:
            known = ", ".join(SUBSAMPLINGS)
            raise PackError(f"chroma_subsampling {self.chroma_subsampling!r}: use one of {known}.")
        if not 0.0 <= self.min_chroma <= MAX_CHROMA:
            raise PackError(
                f"min_chroma {self.min_chroma}: use 0 to {MAX_CHROMA}, in Lab units; 1.5 leaves "
                "grey photos out."
            )
        if not 1 <= self.max_pixels <= MAX_PIXELS_LIMIT:
            raise PackError(
                f"max_pixels {self.max_pixels}: use 1 to {MAX_PIXELS_LIMIT}; {MAX_PIXELS} is the "
                "default."
            )


@dataclass(frozen=True)
class Geometry:
    """From the picture as its file stores it to the picture in the shard."""

    stored_width: int  # in the source file, before its EXIF orientation
    stored_height: int
    orientation: int  # EXIF, 1 to 8
    width: int  # in the shard
    height: int

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of the source once it stands upright."""
        # Orientations 5 to 8 lie on their side (EXIF 2.3, tag 0x0112).
        size = self.stored_width, self.stored_height
        return size[::-1] if self.orientation >= 5 else size

    def move_box(self, box: tuple[float, float, float, float]) -> list[float]:
        """Map `[x0, y0, x1, y1]` of the stored source to the shard's image, both half-open."""
        (x0, y0), (x1, y1) = (self._move_point(x, y) for x, y in (box[:2], box[2:]))
        return [
            min(x0, x1),
            min(y0, y1),
            max(x0, x1),
            max(y0, y1),
        ]

    def _move_point(self, x: float, y: float) -> tuple[float, float]:
        # Mirrored before the sides are exchanged, as the transposes of photo.py do it.
        if self.orientation in (2, 3, 7, 8):
            x = self.stored_width - x
        if self.orientation in (3, 4, 6, 7):
            y = self.stored_height - y
        if self.orientation >= 5:
            x, y = y, x
        width, height = self.upright
        return x * self.width / width, y * self.height / height
