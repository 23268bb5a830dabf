"""Opening packed folders from a recipe's settings and the job script's environment."""

from pathlib import Path

import pytest
from helpers.tiny_set import tiny_sample, write_set

from colorgan.data import open_set
from colorgan.distributed.ranks import Ranks
from shards.errors import ManifestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(
        tmp_path / "set",
        [tiny_sample(index) for index in range(4)],
    )


def test_the_job_scripts_staging_folder_is_read_from(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = Ranks.single()
    assert open_set([folder], None, 1.0, ranks).shard_paths[0].parent == folder

    scratch = tmp_path / "scratch"
    monkeypatch.setenv("COLORGAN_STAGE_DIR", str(scratch))
    staged = open_set([folder], None, 1.0, ranks).shard_paths[0]
    assert staged.is_relative_to(scratch)
    assert not staged.is_symlink()

    monkeypatch.setenv(
        "COLORGAN_STAGE_DIR",
        str(tmp_path / "without room"),
    )
    monkeypatch.setenv("COLORGAN_STAGE_GB", "0")
    assert open_set([folder], None, 1.0, ranks).shard_paths[0].is_symlink()


@pytest.mark.parametrize("gigabytes", ["much", "-1", "inf", "nan"])
def test_a_strange_room_for_staging_is_refused(
    folder: Path, gigabytes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLORGAN_STAGE_GB", gigabytes)
    with pytest.raises(ManifestError, match=f"COLORGAN_STAGE_GB={gigabytes}: not a number"):
        open_set([folder], None, 1.0, Ranks.single())
