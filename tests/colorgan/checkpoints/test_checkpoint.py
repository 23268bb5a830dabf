"""Checkpoints: whole or not there, exact, readable by any number of ranks, never unpickled."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from colorgan.checkpoints.checkpoint import COMPLETE, Checkpoint, latest_checkpoint, open_checkpoint
from colorgan.checkpoints.writer import CheckpointWriter, save_checkpoint
from colorgan.distributed.ranks import Ranks
from colorgan.errors import CheckpointError

ONE = Ranks.single()
ROLES = {
    "generator": {
        "weight": torch.randn(7, 3),
        "half": torch.randn(5).to(torch.bfloat16),
        "steps": torch.tensor(12345678901),
        "a.longer/name": torch.ones(1),
    },
    "generator_optimizer": {"weight/exp_avg": torch.randn(7, 3), "weight/step": torch.tensor(4.0)},
}


def save(folder: Path, images: int, keep_last: int = 3, keep_every: int = 0) -> Path:
    state = {"images_seen": images, "note": "x"}
    return save_checkpoint(
        folder,
        ranks=ONE,
        roles=ROLES,
        state=state,
        keep_last=keep_last,
        keep_every_images=keep_every,
    )


def check_same(found: Checkpoint) -> None:
    for role, tensors in ROLES.items():
        read = found.tensors(role)
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    save(tmp_path, 640)
    found = latest_checkpoint(tmp_path, ONE, pytest.fail)
    assert found is not None
    assert found.images_seen == 640
    assert found.roles() == ["generator", "generator_optimizer"]
    assert found.shapes("generator")["weight"] == (torch.float32, (7, 3))
    check_same(found)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_shares_of_several_ranks_make_the_whole(tmp_path: Path, world_size: int) -> None:
    from colorgan.checkpoints.writer import _complete, _held, _write_share

    partial, final = tmp_path / ".p", tmp_path / "images-000000000001"
    partial.mkdir()
    files: dict[str, dict[str, object]] = {}
    for rank in range(world_size):
        ranks = Ranks(rank, world_size, torch.device("cpu"))
        files |= _write_share(partial, ranks, _held(ranks, ROLES))
    _complete(partial, final, files, {"images_seen": 1})
    check_same(open_checkpoint(final))


def test_pruning_keeps_the_last_and_the_multiples(tmp_path: Path) -> None:
    for images in (100, 200, 300, 400, 500):
        save(tmp_path, images, keep_last=2, keep_every=200)
    assert sorted(p.name[-3:] for p in tmp_path.iterdir()) == ["200", "400", "500"]


def test_a_damaged_one_is_passed_over_by_name(tmp_path: Path) -> None:
    save(tmp_path, 100)
    newest = save(tmp_path, 200)
    victim = next(newest.glob("generator-*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    said: list[str] = []
    found = latest_checkpoint(tmp_path, ONE, said.append)
    assert found is not None
    assert found.images_seen == 100
    assert len(said) == 1
    assert victim.name in said[0]
    with pytest.raises(CheckpointError, match="sha256 differs"):
        open_checkpoint(newest)


@pytest.mark.parametrize("name", [COMPLETE, "state.json"])
def test_a_missing_part_makes_it_incomplete(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 100)
    (path / name).unlink()
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"none of 1 checkpoints is intact"):
        latest_checkpoint(tmp_path, ONE, lambda text: None)


def test_half_written_ones_are_not_seen_and_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".images-000000000900.partial").mkdir()
    assert latest_checkpoint(tmp_path, ONE, pytest.fail) is None
    save(tmp_path, 100)
    assert [p.name for p in tmp_path.iterdir()] == ["images-000000000100"]


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path("bomb-went-off").touch, ())


def test_a_pickle_in_place_of_any_file_is_refused_unopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(sorted(p.name for p in save(tmp_path / "c", 1).iterdir())):
        path = save(tmp_path / "c", number + 2)
        (path / name).write_bytes(pickle.dumps(_Bomb()))
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
    assert not (tmp_path / "bomb-went-off").exists()


def test_complete_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    path = save(tmp_path, 100)
    listed = json.loads((path / COMPLETE).read_text())
    listed["files"]["../secret"] = {"bytes": 1, "sha256": ""}
    (path / COMPLETE).write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match=r"\.\./secret is missing"):
        open_checkpoint(path)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import colorgan.checkpoints.checkpoint as module

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(
        CheckpointError, match=r"rank 0 could not write a checkpoint: .*No space left"
    ):
        save(tmp_path, 100)
    assert list(tmp_path.iterdir()) == []


def test_what_was_just_saved_stays_and_damaged_later_ones_go(tmp_path: Path) -> None:
    save(tmp_path, 100)
    damaged = save(tmp_path, 200)
    (damaged / "state.json").write_text("{}")
    (tmp_path / "images-000000000100-backup").mkdir()
    assert save(tmp_path, 120, keep_last=1).is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "images-000000000100-backup",
        "images-000000000120",
    ]
    found = latest_checkpoint(tmp_path, ONE, pytest.fail)
    assert found is not None
    assert found.images_seen == 120


def test_a_background_checkpoint_is_what_was_there_when_it_began(tmp_path: Path) -> None:
    import threading

    import colorgan.checkpoints.checkpoint as module

    weight, go_on, sync = torch.zeros(3), threading.Event(), module._sync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_sync", lambda path: (go_on.wait(30), sync(path)))
        writer = CheckpointWriter(tmp_path, ONE, keep_last=2)
        assert writer.start({"generator": {"weight": weight}}, {"images_seen": 8}) == []
        weight += 1
        assert writer.publish_if_written() == []
        assert latest_checkpoint(tmp_path, ONE, pytest.fail) is None
        go_on.set()
        assert writer.finish() == [tmp_path / "images-000000000008"]
    assert writer.start({"generator": {"weight": weight}}, {"images_seen": 16}) == []
    assert writer.start({"generator": {"weight": weight}}, {"images_seen": 24}) == [
        tmp_path / "images-000000000016"
    ]
    writer.finish()
    assert writer.finish() == writer.publish_if_written() == []
    writer.close()
    assert torch.equal(
        open_checkpoint(tmp_path / "images-000000000024").tensors("generator")["weight"],
        torch.ones(3),
    )
