"""At ImageNet's size: a first batch soon, in little memory that does not grow with samples."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_set import TinySample, tiny_sample, without_quantization, write_set

from shards.manifest import FileInfo, Manifest, ShardInfo, write_manifest
from shards.samples_table import SAMPLE_DTYPE

NUM_SAMPLES, PER_SHARD = 1_281_167, 1000
ROOT = Path(__file__).parents[3]

FIRST_BATCH = """
import os, resource, sys
from pathlib import Path
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import numpy, torch, numba, nvidia.dali
import shards.loading.stream
libraries = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from shards.loading.loader import Loader
from shards.loading.shard_set import ShardSet, open_shards
num_rows, rows = 0, ShardSet.rows
def counting(self, ids):
    global num_rows
    num_rows += len(ids)
    return rows(self, ids)
ShardSet.rows = counting
loader = Loader(
    open_shards([Path(sys.argv[1])]),
    image_size=32,
    global_batch_size=64,
    micro_batch_size=64,
    flip=True,
)
batch = next(loader.train_batches(900_000_000))[0]
loader.close()
assert len(set(batch.sample_ids_B.tolist())) == 64
print(num_rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - libraries) / 1024)
"""

FLAT_MEMORY = """
import gc, sys
from pathlib import Path
from shards.loading.loader import Loader
from shards.loading.shard_set import open_shards

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

loader = Loader(
    open_shards([Path(sys.argv[1])]),
    image_size=32,
    global_batch_size=64,
    micro_batch_size=64,
    flip=True,
    random_crop_min_area=0.5, max_bad_share=0.1,
)
batches = loader.train_batches(0)
seen = []
for step in range(int(sys.argv[2]) // 64):
    next(batches)
    if step % 20 == 19:
        seen.append(resident_mb())
loader.close()
third = len(seen) // 3
print(max(seen[-third:]) - max(seen[third:2 * third]), len(loader.replaced))
"""


def run(program: str, *arguments: str) -> list[float]:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=300
    )
    return [float(word) for word in done.stdout.split()]


@pytest.fixture(scope="module")
def imagenet_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,282 sparse shards of which every sample is the same picture, at the offset of its own."""
    folder = tmp_path_factory.mktemp("imagenet")
    one = write_set(tmp_path_factory.mktemp("one"), [tiny_sample(0)], with_masks=False)
    row = np.load(one / "samples.npy")[0]
    source = (one / "tiny-train-000000.tar").read_bytes()
    rows = np.full(NUM_SAMPLES, row, SAMPLE_DTYPE)
    rows["shard"] = np.arange(NUM_SAMPLES) // PER_SHARD
    shards = []
    for first in range(0, NUM_SAMPLES, PER_SHARD):
        path = folder / f"big-train-{first // PER_SHARD:06d}.tar"
        with path.open("wb") as stream:
            stream.write(source)
            stream.truncate(120_000_000)
        number = min(PER_SHARD, NUM_SAMPLES - first)
        shards.append(ShardInfo(file=path.name, samples=number, bytes=120_000_000, sha256="0" * 64))

    np.save(folder / "samples.npy", rows)
    table = (folder / "samples.npy").read_bytes()
    manifest = Manifest(
        name="big-train",
        corpus="imagenet",
        split="train",
        classes=("a", "b", "c"),
        palette=(),
        has_masks=False,
        image_policy="squash:32",
        jpeg_quality=95,
        chroma_subsampling="4:4:4",
        num_samples=NUM_SAMPLES,
        num_rejected=0,
        samples_file=FileInfo(
            file="samples.npy", bytes=len(table), sha256=hashlib.sha256(table).hexdigest()
        ),
        shards=tuple(shards),
    )

    write_manifest(manifest, folder)

    return folder


def test_first_batch_at_imagenet_size(imagenet_size: Path) -> None:
    """Little memory, and few samples looked at: the work does not grow with the set."""
    num_rows, megabytes = run(FIRST_BATCH, str(imagenet_size))
    assert num_rows < 100_000
    assert megabytes < 300


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Bad samples among them; one fails only in the decoder and ends the first pipeline."""
    samples: list[TinySample] = [tiny_sample(index) for index in range(200)]
    samples[7].image = without_quantization(samples[7].image)
    samples[60].image = b"garbage"
    folder = write_set(tmp_path / "set", samples, with_masks=False)
    growth, num_replaced = run(FLAT_MEMORY, str(folder), "12000")
    assert num_replaced >= 100
    assert growth < 3  # MB, over 4,000 samples; 128 float tensors of them would be 150
