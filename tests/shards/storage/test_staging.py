"""Staging: the copy is the set, checked, made once, linked where there is no room."""

import threading
from pathlib import Path

import pytest
from helpers.tiny_set import tiny_sample, write_set

from shards.errors import ManifestError
from shards.loading.shard_set import open_shards
from shards.manifest import read_manifest
from shards.storage import staging


def packed(folder: Path) -> Path:
    samples = [tiny_sample(index) for index in range(6)]
    write_set(folder, samples, samples_per_shard=2)
    return folder


def test_ranks_of_a_node_share_one_checked_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, scratch = packed(tmp_path / "packed set"), tmp_path / "local disk"
    plain = open_shards([source])
    monkeypatch.setenv(staging.STAGE_DIR, str(scratch))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(open_shards([source]))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.digest for each in found] == [plain.digest] * 3
    assert all(
        path.is_relative_to(scratch) and not path.is_symlink() for path in found[0].shard_paths
    )
    text = capsys.readouterr().out
    assert text.count("staged") == 1
    assert "3 of 3 shards" in text
    copied = {path.name for path in found[0].shard_paths[0].parent.iterdir()}
    assert copied == {"manifest.json", "samples.npy"} | {path.name for path in plain.shard_paths}


def test_shards_without_room_are_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(packed(tmp_path / "set"))
    copy = staging.stage(manifest, tmp_path / "scratch", limit_bytes=manifest.shards[0].bytes + 1)
    assert [(copy.folder / shard.file).is_symlink() for shard in copy.shards] == [False, True, True]
    assert "no room for 2, read where they are" in capsys.readouterr().out


def test_a_shard_that_differs_from_its_manifest_is_named(tmp_path: Path) -> None:
    manifest = read_manifest(packed(tmp_path / "set"))
    shard = manifest.folder / manifest.shards[1].file
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ManifestError, match=rf"{shard.name}: its sha256 is"):
        staging.stage(manifest, tmp_path / "scratch")
    assert not (tmp_path / "scratch" / manifest.digest[:16]).exists()


def test_settings_that_make_no_sense_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = packed(tmp_path / "set")
    monkeypatch.setenv(staging.STAGE_DIR, str(tmp_path / "set" / "manifest.json" / "below"))
    with pytest.raises(ManifestError, match="cannot be staged there"):
        open_shards([source])
    monkeypatch.setenv(staging.STAGE_GB, "much")
    with pytest.raises(ManifestError, match="COLORGAN_STAGE_GB=much: not a number"):
        open_shards([source])
