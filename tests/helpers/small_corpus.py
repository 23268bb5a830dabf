"""A corpus to pack in tests: small images of several kinds, masks, boxes, some broken."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.corpora.masks import IndexMask
from shards.records import Corpus, Record

NUM_GOOD = 30
BROKEN = {"r06empty": b"", "r19text": b"no picture", "r25cut": b"\xff\xd8\xff\xe0\0\x10JFIF"}
BOX = [4.0, 2.0, 12.0, 10.0]


@dataclass(frozen=True)
class DeadlyMask:
    """Reading it ends the process, as a crash in a decoder's C code would."""

    def read(self) -> NDArray[np.uint8]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def draw_corpus(root: Path) -> Corpus:
    """NUM_GOOD good records, the BROKEN ones and one with a mask of another size, sorted."""
    random = np.random.default_rng(7)
    kinds = ("png", "jpg", "tif")

    for number in range(NUM_GOOD):
        size = (
            int(random.integers(16, 40)),
            int(random.integers(16, 40)),
        )
        colors = random.integers(0, 256, (2, 2, 3), np.uint8)
        picture = Image.fromarray(colors).resize(
            size,
            Image.Resampling.BICUBIC,
        )
        picture.save(
            root / f"r{number:02d}.{kinds[number % 3]}",
            exif=orientation(1 + number % 8),
        )
        mask = random.choice([0, 1, 2, 255], size[::-1]).astype(np.uint8)
        Image.fromarray(mask).save(root / f"r{number:02d}.mask.png")

    for key, content in BROKEN.items():
        (root / f"{key}.jpg").write_bytes(content)
    Image.new("RGB", (16, 16)).save(root / "r11odd.png")
    Image.new("L", (17, 16)).save(root / "r11odd.mask.png")
    return Corpus(
        "small",
        "train",
        ("cat", "dog"),
        ((0, 0, 0),) * 3,
        None,
        records_of(root),
    )


def orientation(value: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = value
    return tags


def records_of(root: Path) -> Callable[[], Iterator[Record]]:
    """Streams the pictures of a folder in the order of their names."""

    def records() -> Iterator[Record]:
        for path in sorted(root.iterdir()):
            if ".mask" not in path.name:
                label: dict[str, Any] = {
                    "classes": [0],
                    "objects": [{"class": 0, "box": BOX}],
                }
                mask = root / f"{path.stem}.mask.png"
                yield Record(
                    path.stem,
                    path,
                    label,
                    IndexMask(mask, 2) if mask.exists() else None,
                )

    return records


def digests(folder: Path) -> dict[str, str]:
    """Return sha256 of each file of a folder, hidden ones too, except inputs.jsonl (times)."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "inputs.jsonl"]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
