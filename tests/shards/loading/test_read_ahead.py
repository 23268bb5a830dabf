"""Reads ahead in threads: few open files; slow or broken readers cost only their samples."""

import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_set import TinySample, tiny_sample, write_set

from shards.loading.members import BadSampleError, Members, MemberSpec
from shards.loading.read_ahead import ReadAhead
from shards.loading.shard_set import ShardSet, open_shards
from shards.storage.retries import RetryPolicy
from shards.storage.shard_files import ShardFiles


@pytest.fixture(scope="module")
def samples() -> list[TinySample]:
    return [tiny_sample(index) for index in range(20)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, samples: list[TinySample]) -> ShardSet:
    return open_shards(
        [
            write_set(
                tmp_path_factory.mktemp("set"),
                samples,
            )
        ]
    )


def test_few_files_stay_open_under_many_threads(
    shards: ShardSet, samples: list[TinySample]
) -> None:
    files = ShardFiles(max_open=2)
    num_threads, most = 4, 0

    def counting(path: Path, offset: int, size: int) -> bytes:
        nonlocal most
        data = files.read_at(path, offset, size)
        most = max(most, files.num_open)
        return data

    reads = ReadAhead(
        shards,
        MemberSpec(),
        num_threads,
        counting,
    )
    ids = np.random.default_rng(0).integers(0, 20, 400)
    results = reads.read(ids).collect()
    reads.close()

    for sample_id, result in zip(ids, results, strict=True):
        assert isinstance(result, Members)
        assert result.image == samples[sample_id].image
    assert most <= 2 + num_threads  # a file that is being read is not closed
    files.close()
    assert files.num_open == 0


def test_stalled_read_is_given_up_and_the_others_go_on(shards: ShardSet) -> None:
    files = ShardFiles()
    release = threading.Event()
    stalled = int(shards.rows(np.array([2]))["image_offset"][0])

    def stalling(path: Path, offset: int, size: int) -> bytes:
        if offset == stalled and path == shards.shard_paths[0]:
            release.wait()
        return files.read_at(path, offset, size)

    spec = MemberSpec(retry=RetryPolicy(stall_s=0.3))
    reads = ReadAhead(shards, spec, 1, stalling)
    # Returns although `release` is never set before: the test hangs otherwise.
    results = reads.read(np.arange(8)).collect()
    release.set()
    reads.close()

    assert isinstance(results[2], BadSampleError)
    assert "nothing read for 0.3 s" in str(results[2])
    assert all(isinstance(results[index], Members) for index in range(8) if index != 2)
    files.close()


def test_reader_that_raises_anything_is_a_bad_sample(shards: ShardSet) -> None:
    def broken(path: Path, offset: int, size: int) -> bytes:
        raise RuntimeError("disk on fire")

    reads = ReadAhead(
        shards,
        MemberSpec(),
        2,
        broken,
    )
    (result,) = reads.read(np.array([0])).collect()
    reads.close()
    assert isinstance(result, BadSampleError)
    assert "disk on fire" in str(result)
