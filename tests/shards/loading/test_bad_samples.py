"""Bad samples in a set of thousands: a few are replaced, many stop the run with the list."""

import hashlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_set import tiny_sample, write_set

from shards.errors import LoadError
from shards.loading.loader import Loader
from shards.loading.shard_set import open_shards
from shards.order import Order, replacement

NUM_SAMPLES = 20_000
NUM_SHARDS = 20
BATCH = 200
SETTINGS: dict[str, Any] = {
    "image_size": 32,
    "global_batch_size": BATCH,
    "micro_batch_size": BATCH,
    "seed": 5,
}


def write_thousands(folder: Path, bad: list[int]) -> Path:
    """Write a set of equal samples in equal shards; the table's checksums of `bad` are wrong."""
    write_set(folder, [tiny_sample(0)] * NUM_SHARDS, samples_per_shard=1, with_masks=False)
    rows = np.repeat(np.load(folder / "samples.npy"), NUM_SAMPLES // NUM_SHARDS)
    rows["image_crc"][bad] ^= 1
    np.save(folder / "samples.npy", rows)
    manifest = json.loads((folder / "manifest.json").read_text())
    table = (folder / "samples.npy").read_bytes()
    manifest |= {"num_samples": NUM_SAMPLES}
    manifest["samples_file"] |= {
        "bytes": len(table),
        "sha256": hashlib.sha256(table).hexdigest(),
    }
    for shard in manifest["shards"]:
        shard["samples"] = NUM_SAMPLES // NUM_SHARDS

    (folder / "manifest.json").write_text(json.dumps(manifest))

    return folder


def bad_samples(share: float) -> list[int]:
    rng = np.random.default_rng(1)

    return sorted(
        rng.choice(
            NUM_SAMPLES,
            round(share * NUM_SAMPLES),
            replace=False,
        ).tolist()
    )


def test_a_run_with_one_bad_sample_in_2000_ends_in_the_announced_order(tmp_path: Path) -> None:
    bad = bad_samples(0.0005)
    loader = Loader(
        open_shards([write_thousands(tmp_path / "set", bad)]),
        **SETTINGS,
    )
    steps = islice(loader.train_batches(0), NUM_SAMPLES // BATCH)
    seen = [i for step in steps for batch in step for i in batch.sample_ids_B.tolist()]
    order = (
        Order(
            [NUM_SAMPLES // NUM_SHARDS] * NUM_SHARDS,
            SETTINGS["seed"],
        )
        .sample_ids(0, NUM_SAMPLES)
        .tolist()
    )

    expected = [
        replacement(SETTINGS["seed"], 0, i, 1, NUM_SAMPLES) if i in bad else i for i in order
    ]

    assert len(bad) == 10
    assert not set(bad) & set(expected)
    assert seen == expected

    loader.close()
    replaced = {fault.sample_id for fault in loader.replaced if fault.position < NUM_SAMPLES}

    assert replaced == set(bad)


def test_a_run_with_one_bad_sample_in_100_stops_with_the_list(tmp_path: Path) -> None:
    bad = bad_samples(0.01)
    loader = Loader(
        open_shards([write_thousands(tmp_path / "set", bad)]),
        **SETTINGS,
    )
    with pytest.raises(
        LoadError, match=r"9 of the first [\d,]+ samples cannot be used, .* share of 0.10%"
    ) as stopped:
        for _ in islice(loader.train_batches(0), NUM_SAMPLES // BATCH):
            pass

    loader.close()
    named = [fault.sample_id for fault in loader.replaced]

    assert len(set(named)) == 9
    assert set(named) <= set(bad)
    assert all(f"sample {sample} (tiny-train-" in str(stopped.value) for sample in named)
