"""Packing speed: ours with one and two workers beside the webdataset library's ShardWriter, on the same photos.

    python benchmarks/pack.py --photos ../shared/data/coco/unlabeled2017 [--image squash:128] [--repeats 5]

All three decode, resize and encode alike (shards/image.py), in alternated repeats; the table gives medians,
because a shared machine is noisy. Ours also writes the index, checksums and the manifest.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import webdataset

from shards.image import convert_picture
from shards.image_policy import Encoding, parse_image_policy
from shards.packing import pack


@dataclass(frozen=True)
class Photo:
    """A record for the packer."""

    key: str
    image: Path
    label: dict[str, Any]
    mask: None = None


@dataclass(frozen=True)
class Photos:
    """A corpus of the photos in a folder, taken several times over so that start-up counts little."""

    folder: Path
    times: int
    name: str = "photos"
    split: str = "all"
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    num_records: int | None = None

    def records(self) -> Iterator[Photo]:
        """One pass."""
        paths = sorted(self.folder.glob("*.jpg"))
        for turn in range(self.times):
            for path in paths:
                yield Photo(f"{turn}-{path.stem}", path, {"classes": [], "objects": []})


def ours(photos: Photos, out: Path, policy: str, workers: int) -> int:
    """Pack with our packer; returns the number of samples."""
    return pack(photos, out, root=photos.folder, image_policy=policy, workers=workers).packed


def shard_writer(photos: Photos, out: Path, policy: str) -> int:
    """The webdataset library's way: one process that converts and writes."""
    encoding, count = Encoding(parse_image_policy(policy)), 0
    out.mkdir()
    with webdataset.ShardWriter(f"{out}/photos-%06d.tar", maxcount=1000, verbose=0) as writer:
        for photo in photos.records():
            jpeg = convert_picture(photo.image.read_bytes(), encoding).jpeg
            writer.write({"__key__": photo.key, "jpg": jpeg, "json": photo.label})
            count += 1
    return count


def timed(work: Callable[[Path], int]) -> float:
    """Images a second of one packing into a fresh folder."""
    folder = Path(tempfile.mkdtemp())
    start = time.monotonic()
    count = work(folder / "out")
    seconds = time.monotonic() - start
    shutil.rmtree(folder)
    return count / seconds


def main() -> None:
    """Run the repeats and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEG photos")
    parser.add_argument("--image", default="squash:128", help="image policy")
    parser.add_argument("--times", type=int, default=4, help="how often the photos are taken in one packing")
    parser.add_argument("--repeats", type=int, default=5, help="alternated repeats")
    settings = parser.parse_args()
    photos = Photos(settings.photos, settings.times)
    rivals: dict[str, Callable[[Path], int]] = {
        "webdataset ShardWriter": lambda out: shard_writer(photos, out, settings.image),
        "ours, 1 worker": lambda out: ours(photos, out, settings.image, 1),
        "ours, 2 workers": lambda out: ours(photos, out, settings.image, 2),
    }
    speeds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(settings.repeats):
        for name, work in rivals.items():
            speeds[name].append(timed(work))
    print(f"{settings.image}, {len(os.sched_getaffinity(0))} cores, {settings.repeats} repeats, median (range)")
    base = statistics.median(speeds["webdataset ShardWriter"])
    for name, values in speeds.items():
        middle = statistics.median(values)
        print(f"{name:24} {middle:7.0f} images/s ({min(values):.0f} to {max(values):.0f})  {middle / base:.2f}x")
    ratio = statistics.median(b / a for a, b in zip(speeds["ours, 1 worker"], speeds["ours, 2 workers"], strict=True))
    print(f"two workers against one: {ratio:.2f}x (median of paired repeats)")


if __name__ == "__main__":
    main()
