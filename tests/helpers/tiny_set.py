"""Tiny packed folders for tests of loading: members, manifest and table, without the packer."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.manifest import FileInfo, Manifest, ShardInfo, write_manifest
from shards.samples_table import SAMPLE_DTYPE


@dataclass
class TinySample:
    """One sample's members, ready to be written."""

    image: bytes
    label: bytes
    mask: bytes
    width: int
    height: int


def jpeg(rgb_HW3: NDArray[np.uint8], quality: int = 95) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgb_HW3).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def cut_in_the_pixels(image: bytes) -> bytes:
    """Return a JPEG with an intact header whose pixels end early."""
    scan = image.index(b"\xff\xda")
    return image[: scan + (len(image) - scan) // 2]


def without_quantization(image: bytes) -> bytes:
    """Return a JPEG with an intact header and no quantization table: only decoding fails."""
    table = image.index(b"\xff\xdb")
    end = image.index(b"\xff\xc0")
    return image[:table] + image[end:]


def png(mask_HW: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(mask_HW).save(stream, "PNG")
    return stream.getvalue()


def picture(index: int, height: int, width: int) -> NDArray[np.uint8]:
    """Smooth colours that differ from one index to the next."""
    # Smooth: JPEG changes such pictures by little, so that tests can compare pixels.
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        np.sin((x * (1 + channel) + y * (index % 7)) / 9 + index + channel) for channel in range(3)
    ]
    return (127.5 + 127 * np.stack(waves, -1)).astype(np.uint8)


def tiny_sample(index: int, height: int = 32, width: int = 32, num_classes: int = 3) -> TinySample:
    # By the index: a test knows each sample's class without reading it.
    one = index % num_classes
    objects = [
        {
            "class": one,
            "box": [0.0, 0.0, 1.0, 1.0],
            "difficult": index % 5 == 0,
            "crowd": False,
        }
    ]
    label = {
        "classes": [one],
        "objects": objects,
        "key": f"k{index:05d}",
        "width": width,
        "height": height,
    }
    # 0 is background.
    mask = np.full((height, width), one + 1, np.uint8)
    # Half void, as void is what losses and scores must leave out.
    mask[: height // 2] = 255
    image = jpeg(picture(index, height, width))

    return TinySample(
        image,
        json.dumps(label).encode(),
        png(mask),
        width,
        height,
    )


def write_set(
    folder: Path,
    samples: Sequence[TinySample],
    *,
    samples_per_shard: int = 8,
    policy: str = "squash:32",
    classes: tuple[str, ...] = ("cat", "dog", "owl"),
    with_masks: bool = True,
) -> Path:
    """Write the samples as a packed folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.zeros(len(samples), SAMPLE_DTYPE)
    shards = []

    for shard, begin in enumerate(range(0, len(samples), samples_per_shard)):
        # The last shard may be shorter, as in real sets.
        chosen = range(begin, min(begin + samples_per_shard, len(samples)))
        path = folder / f"tiny-train-{shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in chosen:
                _add(
                    tar,
                    rows[index : index + 1],
                    index,
                    shard,
                    samples[index],
                    with_masks,
                )
        data = path.read_bytes()
        shards.append(
            ShardInfo(
                file=path.name,
                samples=len(chosen),
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
            )
        )

    np.save(folder / "samples.npy", rows)
    # Read back: the checksum must be that of the file.
    table = (folder / "samples.npy").read_bytes()
    manifest = Manifest(
        name="tiny-train",
        corpus="tiny",
        split="train",
        classes=classes,
        palette=tuple((i, i, i) for i in range(len(classes) + 1)),
        has_masks=with_masks,
        image_policy=policy,
        jpeg_quality=95,
        chroma_subsampling="4:4:4",
        num_samples=len(samples),
        num_rejected=0,
        samples_file=FileInfo(
            file="samples.npy", bytes=len(table), sha256=hashlib.sha256(table).hexdigest()
        ),
        shards=tuple(shards),
    )
    # Last, as packing does: a manifest says that all else is there.
    write_manifest(manifest, folder)
    return folder


def _add(
    tar: tarfile.TarFile,
    row: NDArray[np.void],
    index: int,
    shard: int,
    sample: TinySample,
    masks: bool,
) -> None:
    row["shard"], row["width"], row["height"] = shard, sample.width, sample.height
    members = [("image", "jpg", sample.image), ("label", "json", sample.label)]
    if masks and sample.mask:
        members.append(("mask", "png", sample.mask))

    for name, ending, data in members:
        # Written by Python's own tar, so that ours is not tested by itself.
        info = tarfile.TarInfo(f"k{index:05d}.{ending}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
        # Back from the end: tar pads each member to blocks of 512 bytes.
        row[f"{name}_offset"] = tar.offset - (-(-len(data) // 512) * 512)
        row[f"{name}_size"], row[f"{name}_crc"] = len(data), zlib.crc32(data)
