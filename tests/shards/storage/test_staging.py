"""Staging: the copy equals the set, is checked, made once, and linked where there is no room."""

import threading
from pathlib import Path

import pytest
from helpers.tiny_set import tiny_sample, write_set

from shards.errors import ManifestError
from shards.loading.shard_set import ShardSet, Storage, open_shards
from shards.manifest import read_manifest
from shards.storage.staging import stage


def packed(folder: Path) -> Path:
    samples = [tiny_sample(index) for index in range(6)]
    return write_set(folder, samples, samples_per_shard=2)


def test_processes_of_a_node_share_one_checked_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = packed(tmp_path / "packed set")
    scratch = tmp_path / "local disk"
    plain = open_shards([source])
    opened: list[ShardSet] = []

    def open_staged() -> None:
        opened.append(
            open_shards(
                [source],
                Storage(stage_dir=scratch),
            )
        )

    threads = [threading.Thread(target=open_staged) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [each.digest for each in opened] == [plain.digest] * 3
    for path in opened[0].shard_paths:
        assert path.is_relative_to(scratch)
        assert not path.is_symlink()

    text = capsys.readouterr().out
    assert text.count("staged") == 1
    assert "3 of 3 shards" in text

    copied = {path.name for path in opened[0].shard_paths[0].parent.iterdir()}
    shards = {path.name for path in plain.shard_paths}
    assert copied == {"manifest.json", "samples.npy"} | shards


def test_shards_without_room_are_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(packed(tmp_path / "set"))
    copy = stage(
        manifest,
        tmp_path / "scratch",
        limit_bytes=manifest.shards[0].bytes + 1,
    )
    links = [(copy.folder / shard.file).is_symlink() for shard in copy.shards]

    assert links == [False, True, True]
    assert "no room for 2, read where they are" in capsys.readouterr().out


def test_a_shard_that_differs_from_its_manifest_is_named(tmp_path: Path) -> None:
    manifest = read_manifest(packed(tmp_path / "set"))
    shard = manifest.folder / manifest.shards[1].file
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)

    with pytest.raises(ManifestError, match=rf"{shard.name}: its sha256 is"):
        stage(manifest, tmp_path / "scratch")
    assert not (tmp_path / "scratch" / manifest.digest[:16]).exists()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    source = packed(tmp_path / "set")
    below_a_file = source / "manifest.json" / "below"
    with pytest.raises(ManifestError, match="cannot be staged there"):
        open_shards(
            [source],
            Storage(stage_dir=below_a_file),
        )
