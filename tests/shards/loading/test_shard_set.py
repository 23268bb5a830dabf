"""Several packed folders as one numbered set."""

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_set import TinySample, tiny_sample, write_set

from shards.errors import ManifestError
from shards.loading.members import MemberSpec, read_members
from shards.loading.shard_set import open_shards
from shards.storage.shard_files import ShardFiles


@pytest.fixture(scope="module")
def samples() -> list[TinySample]:
    return [tiny_sample(index) for index in range(20)]


@pytest.fixture
def folder(tmp_path: Path, samples: list[TinySample]) -> Path:
    return write_set(tmp_path / "set", samples)


def test_several_folders_are_one_set(
    tmp_path: Path, folder: Path, samples: list[TinySample]
) -> None:
    other = write_set(
        tmp_path / "other", samples[5:11], classes=(), with_masks=False, samples_per_shard=4
    )
    shards = open_shards([folder, other])
    assert shards.num_samples == 26
    assert shards.shard_sizes == [8, 8, 4, 4, 2]
    assert shards.classes == ("cat", "dog", "owl")
    assert not shards.has_masks
    assert not shards.same_classes()

    rows = shards.rows(np.array([25, 0, 20, 19]))
    assert rows["shard"].tolist() == [4, 0, 3, 2]
    files = ShardFiles()
    members = read_members(
        shards,
        rows[0],
        MemberSpec(),
        files.read_at,
    )
    files.close()
    assert members.image == samples[10].image


def test_the_digest_names_contents_and_order(tmp_path: Path, folder: Path) -> None:
    other = write_set(
        tmp_path / "other",
        [tiny_sample(1)],
    )
    digests = {
        open_shards(folders).digest
        for folders in ([folder], [other], [folder, other], [other, folder])
    }

    assert len(digests) == 4


def test_sets_of_one_size_are_recognized(
    tmp_path: Path, folder: Path, samples: list[TinySample]
) -> None:
    as_photos = write_set(tmp_path / "photos", samples, policy="original")
    both = open_shards([folder, as_photos])
    assert both.all_are_square(32)
    assert not both.all_are_square(64)

    mixed = write_set(
        tmp_path / "mixed",
        [*samples, tiny_sample(1, width=33)],
        policy="original",
    )
    assert not open_shards([folder, mixed]).all_are_square(32)


def test_no_folder_or_one_twice_is_refused(folder: Path) -> None:
    with pytest.raises(ManifestError, match="no packed folder given"):
        open_shards([])
    with pytest.raises(ManifestError, match="given twice"):
        open_shards([folder, folder / ".." / folder.name])
