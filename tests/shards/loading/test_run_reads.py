"""Reads by runs: the parts of a shard to prefetch, their prefetch, and unchanged batches."""

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_set import tiny_sample, write_set

from shards import order as order_module
from shards.loading import loader as loader_module
from shards.loading.loader import Loader
from shards.loading.members import BadSampleError, MemberSpec, read_members
from shards.loading.run_reads import RunReads
from shards.loading.shard_set import ShardSet, open_shards
from shards.storage.shard_files import ShardFiles

RUN = 3


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    """Two folders: shards of 8, 8 and 4 samples with masks, and of 5 and 2 without."""
    first = write_set(
        tmp_path / "first",
        [tiny_sample(index) for index in range(20)],
    )
    second = [tiny_sample(index) for index in range(20, 27)]

    return open_shards(
        [
            first,
            write_set(tmp_path / "second", second, samples_per_shard=5, with_masks=False),
        ]
    )


def test_each_run_is_told_once_and_covers_its_samples(shards: ShardSet) -> None:
    reads = RunReads(shards, RUN, ShardFiles())
    told = {}
    rows = shards.rows(np.arange(27))
    first_of_shard = np.searchsorted(
        rows["shard"],
        rows["shard"],
    )
    for index in np.random.default_rng(0).permutation(27):
        row = rows[index]
        run = int(row["shard"]), int(index - first_of_shard[index]) // RUN
        for member in ("image", "label", "mask"):
            if row[f"{member}_size"]:
                span = reads.begin(
                    run[0],
                    int(row[f"{member}_offset"]),
                )
                assert (span is None) == (run in told)
                begin, size = told.setdefault(run, span)
                assert begin <= row[f"{member}_offset"]
                assert row[f"{member}_offset"] + row[f"{member}_size"] <= begin + size

    assert len(told) == 3 + 3 + 2 + 2 + 1

    for (shard, run), (begin, size) in told.items():  # and no byte of the next
        if (shard, run + 1) in told:
            assert begin + size == told[shard, run + 1][0]


def test_runs_are_forgotten_once_they_are_over(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.loading.run_reads._REMEMBERED", 2)
    reads = RunReads(shards, RUN, ShardFiles())
    offsets = shards.rows(np.arange(0, 8, RUN))["image_offset"].tolist()

    assert [
        reads.begin(0, offset) is None for offset in (*offsets[:2], offsets[0], offsets[2])
    ] == [False] * 2 + [
        True,
        False,
    ]

    assert reads.begin(0, offsets[1]) is not None  # the one left alone for longest


def in_page_cache(path: Path, offset: int) -> bool:
    descriptor = os.open(path, os.O_RDONLY)

    try:
        return (
            os.preadv(
                descriptor,
                [bytearray(1)],
                offset,
                os.RWF_NOWAIT,
            )
            == 1
        )
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip("this file system does not say what is in the page cache")
        raise
    finally:
        os.close(descriptor)


def test_the_system_fetches_what_it_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "large"
    files = ShardFiles()
    with path.open("wb") as stream:
        stream.write(os.urandom(8 << 20))
        os.fsync(stream.fileno())
        os.posix_fadvise(
            stream.fileno(),
            0,
            0,
            os.POSIX_FADV_DONTNEED,
        )

    if in_page_cache(path, 6 << 20):
        pytest.skip("this file system keeps its files in memory")

    files.will_need(path, 6 << 20, 1 << 17)

    # The kernel answers at its own pace; pytest's timeout ends a wait for nothing.
    while not in_page_cache(path, 6 << 20):
        time.sleep(0.01)

    assert not in_page_cache(path, 2 << 20)

    for offset, size in ((1 << 40, 100), (0, 0), (-5, 3), (5, -3), (2**63, 5)):
        files.will_need(path, offset, size)  # hints from a strange table are left unheard

    files.close()


def test_strange_tables_spoil_only_their_own_samples(tmp_path: Path) -> None:
    folder = write_set(
        tmp_path / "set",
        [tiny_sample(index) for index in range(8)],
    )
    table = np.load(folder / "samples.npy")
    shards = open_shards([folder])
    table["image_offset"][[1, 4]] = 2**63 + 5, 0
    shards._tables = [table]
    reads = RunReads(shards, RUN, files := ShardFiles())
    for index in (0, 2, 3, 5, 6, 7):
        assert (
            read_members(
                shards,
                table[index],
                MemberSpec(),
                reads.read_at,
            ).image
            == tiny_sample(index).image
        )

    with pytest.raises(BadSampleError):
        read_members(shards, table[4], MemberSpec(), reads.read_at)

    files.close()


def test_same_samples_with_and_without_hints(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large set's path with a small set: two nodes prefetch runs, three read single samples."""
    monkeypatch.setattr(order_module, "SMALL_SET", 10)
    told: list[RunReads] = []
    lock = threading.Lock()

    class Told(RunReads):
        def begin(
            self,
            shard: int,
            offset: int,
        ) -> tuple[int, int] | None:
            span = super().begin(shard, offset)
            with lock:
                told.append(self)
            return span

    monkeypatch.setattr(loader_module, "RunReads", Told)
    seen = []
    earlier: set[int] = set()
    for num_nodes in (1, 2, 3):
        loader = Loader(
            shards,
            image_size=32,
            global_batch_size=6,
            micro_batch_size=3,
            seed=2,
            num_nodes=num_nodes,
        )
        batches = loader.train_batches(5)
        seen.append([batch for _ in range(6) for batch in next(batches)])
        loader.close()
        # Of this loader: a thread of the one before may still begin a run.
        new = {id(reads) for reads in told} - earlier
        earlier |= new
        assert bool(new) == (num_nodes <= 2)
    for other in seen[1:]:
        for ours, theirs in zip(seen[0], other, strict=True):
            assert torch.equal(ours.sample_ids_B, theirs.sample_ids_B)
            assert torch.equal(ours.lab_B3HW, theirs.lab_B3HW)
