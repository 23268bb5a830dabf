"""Damaged headers, many at a time: what the header check lets through never ends the process.

DALI's threads crash on headers that its parsers refuse (shards/images/headers.py), so the check
must be at least as strict as they are. A crash would end pytest too: the batches are decoded in a
process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]

PROGRAM = """
import io, sys
import numpy as np
from PIL import Image
from helpers.tiny_set import picture
from shards.decoding.spec import DecodeSpec
from shards.decoding.decoder import DecodeError, Decoder, EncodedBatch
from shards.images.headers import image_header

TURNED = "0100 1201 0300 0100 0000 0600 0000 0000 0000"  # one entry: orientation 6
EXIF = b"Exif\\0\\0II*\\0\\x08\\0\\0\\0" + bytes.fromhex(TURNED)
OPTIONS = {
    "jpeg": dict(format="JPEG", exif=EXIF),
    "png": dict(format="PNG", exif=EXIF),
    "webp": dict(format="WEBP", quality=90, exif=EXIF),
    "lossless": dict(format="WEBP", lossless=True),
}
BATCH, NUM_BATCHES = 64, 40

def encoded(index, **options):
    stream = io.BytesIO()
    Image.fromarray(picture(index, 32, 32)).save(stream, **options)
    return stream.getvalue()

def damaged(image, rng):
    data = bytearray(image)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, min(len(data), 100)))
        kind = rng.integers(3)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif len(data) > 60:
            data = data[: int(rng.integers(60, len(data)))]
    return bytes(data)

rng = np.random.default_rng(0)
whole = encoded(1, **OPTIONS[sys.argv[1]])
good = [encoded(index, format="JPEG") for index in range(BATCH)]
decoder = Decoder(DecodeSpec(32), BATCH, 2, "cpu")
num_passed = num_errors = 0
for _ in range(NUM_BATCHES):
    images = list(good)
    for position in rng.integers(0, BATCH, 8):
        image = damaged(whole, rng)
        header = image_header(image)
        if header and header.bits <= 8 and header.channels in (1, 3):
            if header.width * header.height < 1 << 20:
                images[position] = image
                num_passed += 1
    flat = np.zeros(BATCH, np.int32)
    try:
        decoder.decode(EncodedBatch(images, np.zeros((BATCH, 4), np.int32), flat))
    except DecodeError:
        num_errors += 1
print(num_passed, num_errors)
"""


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "lossless"])
def test_damaged_headers_never_end_the_process(kind: str) -> None:
    path = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path},
        cwd=PROJECT,
    )
    assert done.returncode == 0, done.stderr[-500:]

    num_passed, _ = map(int, done.stdout.split())
    assert num_passed > 20  # else nothing was tried
