"""Packing speed: one and two workers beside the webdataset library's ShardWriter, same photos.

    python benchmarks/pack.py --photos ../shared/data/coco/unlabeled2017 [--image squash:128]
    [--times 10] [--repeats 5]

All three decode, resize and encode alike (shards/images/conversion.py), in alternated repeats; the
table gives medians, because a shared machine is noisy. CPU ms a picture, of a packer and all its
workers from their start on, hang less on what else the machine does. Ours also writes the index,
checksums and the manifest.
"""

import argparse
import importlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shards.images.conversion import convert_picture
from shards.images.policy import Encoding, parse_image_policy
from shards.packing.pack import pack
from shards.records import Corpus, Record


def photos_of(folder: Path, times: int) -> Corpus:
    """Return the photos in a folder, repeated so that start-up counts little."""
    paths = sorted(folder.glob("*.jpg"))

    def records() -> Iterator[Record]:
        for turn in range(times):
            for path in paths:
                yield Record(f"{turn}-{path.stem}", path, {"classes": [], "objects": []})

    return Corpus("photos", "all", (), (), len(paths) * times, records)


def ours(photos: Corpus, root: Path, out: Path, policy: str, workers: int) -> int:
    """Pack with our packer; returns the number of samples."""
    return pack(
        photos,
        out,
        root=root,
        image_policy=policy,
        workers=workers,
    ).packed


def shard_writer(photos: Corpus, out: Path, policy: str) -> int:
    """Pack as the webdataset library does: one process that converts and writes."""
    # Here, because our workers import this file and the library imports torch: 1.2 s for each.
    import webdataset

    encoding, count = Encoding(parse_image_policy(policy)), 0
    out.mkdir()
    with webdataset.ShardWriter(f"{out}/photos-%06d.tar", maxcount=1000, verbose=0) as writer:
        for photo in photos.records():
            # The same conversion: what is compared is the writing and the workers.
            jpeg = convert_picture(Path(str(photo.image)).read_bytes(), encoding).jpeg
            writer.write({"__key__": photo.key, "jpg": jpeg, "json": photo.label})
            count += 1
    return count


@dataclass
class Rival:
    """A packer, and what its repeats have given."""

    work: Callable[[Path], int]
    speeds: list[float] = field(default_factory=list)  # images a second
    cpu_ms: list[float] = field(default_factory=list)  # a picture

    def run(self) -> None:
        """Pack into a fresh folder."""
        # Fresh each time: packing into a finished folder would do nothing.
        folder = Path(tempfile.mkdtemp())
        # With the children's times, which count once they have ended.
        start, cpu = time.monotonic(), sum(os.times()[:4])
        count = self.work(folder / "out")
        self.speeds.append(count / (time.monotonic() - start))
        self.cpu_ms.append(1000 * (sum(os.times()[:4]) - cpu) / count)
        # At once: later repeats must not find a full disk or cache.
        shutil.rmtree(folder)


def main() -> None:
    """Run the repeats and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEG photos")
    parser.add_argument("--image", default="squash:128", help="image policy")
    parser.add_argument(
        "--times", type=int, default=4, help="how often the photos are taken in one packing"
    )
    parser.add_argument("--repeats", type=int, default=5, help="alternated repeats")
    settings = parser.parse_args()
    photos = photos_of(settings.photos, settings.times)
    peer = Rival(lambda out: shard_writer(photos, out, settings.image))
    one = Rival(lambda out: ours(photos, settings.photos, out, settings.image, 1))
    two = Rival(lambda out: ours(photos, settings.photos, out, settings.image, 2))
    importlib.import_module("webdataset")  # not in the first repeat's time
    for _ in range(settings.repeats):
        # In turn, so that each ratio is of repeats within the same minute.
        for rival in (peer, one, two):
            rival.run()
    cores, count = len(os.sched_getaffinity(0)), photos.num_records
    print(
        f"{count:,} photos, {settings.image}, {cores} cores, {settings.repeats} repeats, "
        "median (range)"
    )
    for name, rival in (
        ("webdataset ShardWriter", peer),
        ("ours, 1 worker", one),
        ("ours, 2 workers", two),
    ):
        low, middle, high = min(rival.speeds), statistics.median(rival.speeds), max(rival.speeds)
        cpu_ms = statistics.median(rival.cpu_ms)
        print(
            f"{name:24} {middle:7.0f} images/s ({low:.0f} to {high:.0f}), "
            f"{cpu_ms:.2f} ms CPU per image"
        )
    print(
        f"one worker against ShardWriter: {ratio(one, peer):.2f}x (median of paired repeats), "
        "to reach 1.0x"
    )
    print(f"two workers against one:        {ratio(two, one):.2f}x, to reach 1.7x")


def ratio(rival: Rival, other: Rival) -> float:
    """How many times as fast, by the median of the repeats taken in pairs."""
    # In pairs: the load of the machine falls out of each ratio.
    return statistics.median(a / b for a, b in zip(rival.speeds, other.speeds, strict=True))


if __name__ == "__main__":
    main()
