"""Checkpoints: whole or not there, exact, readable by any number of ranks, never unpickled."""

import json
import pickle
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import save_checkpoint, thread_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from colorgan.checkpoints import writer as writer_module
from colorgan.checkpoints.checkpoint import (
    COMPLETE,
    Checkpoint,
    checkpoint_path,
    latest_checkpoint,
    open_checkpoint,
)
from colorgan.checkpoints.writer import CheckpointWriter
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


def write_on_threads(folder: Path, world_size: int) -> list[CheckpointWriter]:
    """Begin a checkpoint at 1 image on every rank; return the ranks' writers."""
    writers = [CheckpointWriter(folder, ranks, keep_last=1) for ranks in thread_ranks(world_size)]
    with ThreadPoolExecutor(world_size) as pool:
        list(pool.map(lambda writer: writer.start(ROLES, {"images_seen": 1}), writers))
    return writers


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_slices_of_several_ranks_make_the_whole(tmp_path: Path, world_size: int) -> None:
    writers = write_on_threads(tmp_path, world_size)
    with ThreadPoolExecutor(world_size) as pool:
        published = list(pool.map(lambda writer: writer.finish(), writers))
    assert published == [[checkpoint_path(tmp_path, 1)]] * world_size
    check_same(open_checkpoint(published[0][0]))
    for writer in writers:
        writer.close()


def test_it_is_published_when_the_last_rank_has_written(tmp_path: Path) -> None:
    """Without a call on any rank: one that hangs after its save loses nothing."""
    writers = write_on_threads(tmp_path, 2)
    final = checkpoint_path(tmp_path, 1)
    until = time.monotonic() + 60
    while not final.exists() and time.monotonic() < until:
        time.sleep(0.01)
    check_same(open_checkpoint(final))
    for writer in writers:
        writer.close()


def test_one_rank_that_cannot_write_stops_all_with_its_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_on_rank_1(values: object, path: Path, **kwargs: object) -> None:
        if "-00001-of" in path.name:
            raise OSError(28, "No space left on device")
        save_file(values, path, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(writer_module, "save_tensors", full_on_rank_1)
    writers = write_on_threads(tmp_path, 2)

    def sentence(writer: CheckpointWriter) -> str:
        with pytest.raises(CheckpointError) as caught:
            writer.finish()
        writer.close()
        return str(caught.value)

    with ThreadPoolExecutor(2) as pool:
        sentences = set(pool.map(sentence, writers))
    assert len(sentences) == 1
    assert sentences.pop().startswith("rank 1 could not write a checkpoint: ")
    assert list(tmp_path.iterdir()) == []


def test_pruning_keeps_the_last_and_the_multiples(tmp_path: Path) -> None:
    for images in (100, 200, 300, 400, 500):
        save(tmp_path, images, keep_last=2, keep_every=200)
    assert sorted(p.name[-3:] for p in tmp_path.iterdir()) == ["200", "400", "500"]


def test_pruning_keeps_the_first_past_each_multiple(tmp_path: Path) -> None:
    """Saves fall on whole steps: of batches of 48 few are at a multiple of 200."""
    for images in (96, 192, 240, 288, 384, 432, 480, 624):
        save(tmp_path, images, keep_last=1, keep_every=200)
    assert sorted(p.name[-3:] for p in tmp_path.iterdir()) == ["240", "432", "624"]


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
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module, "save_tensors", full)
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


def test_a_background_checkpoint_is_what_was_there_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, resume = torch.zeros(3), threading.Event()

    def wait_and_save(values: object, path: Path, **kwargs: object) -> None:
        resume.wait(30)
        save_file(values, path, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(writer_module, "save_tensors", wait_and_save)
    writer = CheckpointWriter(tmp_path, ONE, keep_last=2)
    assert writer.start({"generator": {"weight": weight}}, {"images_seen": 8}) == []
    weight += 1
    assert writer.take_published() == []
    assert latest_checkpoint(tmp_path, ONE, pytest.fail) is None
    resume.set()
    assert writer.finish() == [tmp_path / "images-000000000008"]
    assert torch.equal(
        open_checkpoint(tmp_path / "images-000000000008").tensors("generator")["weight"],
        torch.zeros(3),
    )

    assert writer.start({"generator": {"weight": weight}}, {"images_seen": 16}) == []
    earlier = writer.start({"generator": {"weight": weight}}, {"images_seen": 24})
    assert earlier == [tmp_path / "images-000000000016"]
    writer.finish()
    assert writer.finish() == writer.take_published() == []
    writer.close()


def test_a_slice_is_read_alone_and_a_hole_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path, 1))
    weight = ROLES["generator"]["weight"].flatten()
    assert torch.equal(checkpoint.read("generator", "weight", 5, 9), weight[5:14])
    with pytest.raises(CheckpointError, match="element 21 is missing"):
        checkpoint.read("generator", "weight", 20, 2)
    with pytest.raises(CheckpointError, match="does not contain bias of generator"):
        checkpoint.read("generator", "bias")
    with pytest.raises(CheckpointError, match="contains nothing for critic"):
        checkpoint.shapes("critic")


def rewrite_header(path: Path, header: bytes) -> None:
    """Put another header before a safetensors file's data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(entry=JSON | st.fixed_dictionaries({"shape": JSON, "offset": JSON}), whole=st.booleans())
def test_any_index_is_read_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, entry: object, whole: bool
) -> None:
    """The index of a checkpoint whose digests fit, written by someone else."""
    folder = tmp_path_factory.mktemp("fuzz") / "images-000000000001"
    folder.mkdir()
    pieces = json.dumps({"weight": entry} if whole else entry)
    file = folder / "generator-00000-of-00001.safetensors"
    save_file({"weight": torch.zeros(6)}, file, metadata={"pieces": pieces})
    checkpoint = Checkpoint(folder, {"images_seen": 1})
    try:
        for tensor in checkpoint.tensors("generator").values():
            assert tensor.numel() <= 6
    except CheckpointError as error:
        assert "cannot be read" in str(error) or "not of one tensor" in str(error)


@settings(max_examples=150, deadline=None)
@given(header=st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_safetensors_header_is_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, header: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "images-000000000001"
    folder.mkdir()
    file = folder / "generator-00000-of-00001.safetensors"
    save_file({"weight": torch.zeros(6)}, file, metadata={"pieces": "{}"})
    rewrite_header(file, header)
    checkpoint = Checkpoint(folder, {"images_seen": 1})
    try:
        assert checkpoint.tensors("generator") == {}
    except CheckpointError as error:
        assert "cannot be read" in str(error)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from([COMPLETE, "state.json"]), value=JSON)
def test_any_json_in_a_checkpoint_is_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    path = save(tmp_path_factory.mktemp("fuzz"), 1)
    (path / name).write_text(json.dumps(value))
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
