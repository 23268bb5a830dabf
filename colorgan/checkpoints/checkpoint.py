"""Checkpoints: one folder each, written by all ranks, complete or not there, never unpickled.

`<run>/checkpoints/images-000000020000/` holds, per role (generator, generator_optimizer, discriminator, ...) and rank,
one safetensors file of flat pieces of the named tensors; `state.json` (images seen, recipe, data digest); `COMPLETE`
(every file's size and sha256). It is written as `.images-...partial` and renamed when every rank is done.

A piece is a run of a tensor's elements in row-major order. Its file says of each piece the tensor's shape and the
offset, so that any number of ranks can read what any other number wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from colorgan.distributed.ranks import Ranks
from colorgan.errors import CheckpointError

FORMAT_VERSION = 1
COMPLETE = "COMPLETE"
STATE = "state.json"
MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A complete, intact checkpoint on disk."""

    path: Path
    state: dict[str, Any]
    _indices: dict[str, dict[str, list[_Piece]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def images_seen(self) -> int:
        """Images the run had seen when it was saved."""
        return int(self.state["images_seen"])

    def roles(self) -> list[str]:
        """Return the names under which tensors were saved."""
        return sorted({file.name.rsplit("-", 3)[0] for file in self.path.glob("*.safetensors")})

    def tensors(self, role: str) -> dict[str, Tensor]:
        """Return all tensors of a role, whole, on the CPU, with their own dtypes."""
        return dict(self.stream(role))

    def shapes(self, role: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return dtype and shape of every tensor of a role without reading the tensors."""
        return {
            name: (pieces[0].dtype, pieces[0].shape) for name, pieces in self._index(role).items()
        }

    def stream(self, role: str) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole tensor) of a role, one at a time, so that memory holds one tensor."""
        for name, (_, shape) in sorted(self.shapes(role).items()):
            yield name, self.read(role, name).view(shape)

    def read(self, role: str, name: str, offset: int = 0, length: int | None = None) -> Tensor:
        """Return a flat run of a tensor (to its end without `length`), on the CPU; reads no more than that.

        Raises:
            CheckpointError: the tensor, or a part of the run, is not there.
        """
        pieces = self._index(role).get(name)
        if pieces is None:
            raise CheckpointError(f"{self.path}: holds no {name} of {role}")
        return _read_run(self.path, role, name, pieces, offset, length)

    def _index(self, role: str) -> dict[str, list[_Piece]]:
        if role not in self._indices:
            self._indices[role] = _pieces(self.path, role)
        return self._indices[role]


@dataclass(frozen=True)
class _Piece:
    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    length: int


def checkpoint_path(folder: Path, images_seen: int) -> Path:
    """Return where the checkpoint at that many images is, in a run's `checkpoints` folder."""
    return folder / f"images-{images_seen:012d}"


def latest_checkpoint(
    folder: Path, ranks: Ranks, report: Callable[[str], None]
) -> Checkpoint | None:
    """Return the newest complete and intact checkpoint, or None. Called on all ranks.

    Damaged ones are passed over and named through `report`; every file's sha256 is checked, the files shared out
    among the ranks.
    """
    names = ranks.gather([path.name for path in _newest_first(folder)])[0]
    for name in names:
        problems = [
            p for p in ranks.gather(_problem(folder / name, ranks.rank, ranks.world_size)) if p
        ]
        if not problems:
            return Checkpoint(folder / name, _read_json(folder / name / STATE))
        report(f"checkpoint {folder / name} is damaged and passed over: {problems[0]}")
    if names:
        raise CheckpointError(
            f"{folder}: none of {len(names)} checkpoints is intact: remove the folder to start from the beginning"
        )
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open one checkpoint by its folder, every file checked.

    Raises:
        CheckpointError: it is not there, not complete, or damaged; says which file.
    """
    if problem := _problem(path, 0, 1):
        raise CheckpointError(f"{path}: {problem}")
    return Checkpoint(path, _read_json(path / STATE))


def _newest_first(folder: Path) -> list[Path]:
    return sorted(
        (p for p in folder.glob("images-*") if re.fullmatch(r"images-\d{12}", p.name)), reverse=True
    )


def _problem(path: Path, rank: int, world_size: int) -> str:
    """Return what is wrong with a checkpoint, or an empty string; checks every `world_size`-th file."""
    if not path.is_dir():
        return "there is no such checkpoint folder"
    if not (path / COMPLETE).is_file():
        return "it was not finished (no COMPLETE)"
    try:
        files = _read_json(path / COMPLETE)["files"]
        if STATE not in files:
            return f"{COMPLETE} does not name {STATE}"
        for name in sorted(files)[rank::world_size]:
            if Path(name).name != name or not (path / name).is_file():
                return f"{name} is missing"
            if _digest(path / name) != files[name]:
                return f"{name} is not what was written (size or sha256 differs)"
        version = _read_json(path / STATE)["format_version"]
    except (OSError, ValueError, KeyError, TypeError, CheckpointError) as error:
        return f"it cannot be read ({error})"
    return (
        ""
        if version == FORMAT_VERSION
        else f"format {version!r} is not {FORMAT_VERSION}: use a newer colorgan"
    )


def _pieces(path: Path, role: str) -> dict[str, list[_Piece]]:
    """Return every tensor's pieces of a role, in order of offset."""
    found: dict[str, list[_Piece]] = {}
    for file in sorted(path.glob(f"{role}-?????-of-?????.safetensors")):
        with safe_open(file, "pt") as opened:
            for key, entry in json.loads((opened.metadata() or {}).get("pieces", "{}")).items():
                empty = opened.get_slice(key)[:0]
                length = opened.get_slice(key).get_shape()[0]
                piece = _Piece(
                    file, key, empty.dtype, tuple(entry["shape"]), entry["offset"], length
                )
                found.setdefault(key, []).append(piece)
    if not any(path.glob(f"{role}-?????-of-?????.safetensors")):
        raise CheckpointError(f"{path}: holds nothing for {role}")
    return {name: sorted(pieces, key=lambda piece: piece.offset) for name, pieces in found.items()}


def _read_run(
    path: Path, role: str, name: str, pieces: list[_Piece], offset: int, length: int | None
) -> Tensor:
    """Put a run together from the pieces that it lies in."""
    stop = prod(pieces[0].shape) if length is None else offset + length
    run = torch.empty(stop - offset, dtype=pieces[0].dtype)
    position = offset
    for piece in pieces:
        last = min(stop, piece.offset + piece.length)
        if piece.offset <= position < last:
            with safe_open(piece.file, "pt") as opened:
                part = opened.get_slice(piece.key)[position - piece.offset : last - piece.offset]
            run[position - offset : last - offset] = part
            position = last
    if position != stop:
        raise CheckpointError(f"{path}: {role} {name} has a hole at element {position}")
    return run


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
    value = json.loads(path.read_text())
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that a rename never precedes its data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
