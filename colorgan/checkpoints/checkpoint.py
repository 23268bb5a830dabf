"""Read checkpoints: one folder each, written by all ranks, complete or absent, never unpickled.

`<run>/checkpoints/images-000000020000/` has, per role (generator, generator_optimizer, ...) and
rank, one safetensors file of flat pieces of the named tensors; `state.json` (images seen, recipe,
data digest); `COMPLETE` (size and sha256 of every file). It is written as `.images-...partial` and
renamed when every rank has written its files (`writer.py`).

A piece is a slice of a tensor's elements in row-major order. The file's metadata has each tensor's
shape and each piece's offset, so that any number of ranks can read what any other number wrote.
(torch's own distributed checkpoints keep that index in a pickle.)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from colorgan.errors import CheckpointError
from colorgan.files import whole

# Not at run time: what lists checkpoints needs no torch.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from colorgan.distributed.ranks import Ranks

CHECKPOINTS = "checkpoints"  # in a run folder
FORMAT_VERSION = 1
COMPLETE = "COMPLETE"
STATE = "state.json"
MAX_JSON_BYTES = 64 << 20

# What reading a damaged or hostile file may raise.
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    SafetensorError,
)


@dataclass(frozen=True)
class Checkpoint:
    """A complete, intact checkpoint on disk."""

    path: Path
    state: dict[str, Any]
    _indices: dict[str, dict[str, list[_StoredPiece]]] = field(
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
        index = self._index(role)
        return {name: (pieces[0].dtype, pieces[0].shape) for name, pieces in index.items()}

    def stream(self, role: str) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor of a role with its name, so that memory holds one tensor at a time."""
        # Sorted by name: every reader sees one order, whatever order the ranks wrote in.
        for name, (_, shape) in sorted(self.shapes(role).items()):
            yield name, self.read(role, name).view(shape)

    def read(self, role: str, name: str, offset: int = 0, length: int | None = None) -> Tensor:
        """Return a flat slice of a tensor (to its end without `length`), on the CPU.

        Reads no more than that from the disk.

        Raises:
            CheckpointError: The tensor, or a part of the slice, is not in the checkpoint.
        """
        pieces = self._index(role).get(name)
        if pieces is None:
            raise CheckpointError(f"{self.path} does not contain {name} of {role}")

        # All pieces carry the whole tensor's shape; `_read_index` has compared them.
        stop = prod(pieces[0].shape) if length is None else offset + length
        try:
            return _read_slice(pieces, offset, stop)
        except DAMAGE as error:
            raise CheckpointError(
                f"{self.path}: {role} {name} cannot be read ({_one_line(error)})"
            ) from None

    def _index(self, role: str) -> dict[str, list[_StoredPiece]]:
        if role not in self._indices:
            self._indices[role] = _read_index(self.path, role)
        return self._indices[role]


@dataclass(frozen=True)
class _StoredPiece:
    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    length: int


def images_of(path: Path) -> int:
    """Return the images seen of a checkpoint, from its folder's name."""
    return int(path.name.rpartition("-")[2])


def checkpoint_path(folder: Path, images_seen: int) -> Path:
    """Return the path of the checkpoint at that many images, in a run's `checkpoints` folder."""
    return folder / f"images-{images_seen:012d}"


def latest_checkpoint(
    folder: Path, ranks: Ranks, report: Callable[[str], None]
) -> Checkpoint | None:
    """Return the newest complete and intact checkpoint, or None. Called on all ranks.

    Damaged ones are skipped and named through `report`. The sha256 of every file is checked; the
    ranks share the files among them.

    Raises:
        CheckpointError: There are checkpoints, but none is intact.
    """
    # Rank 0's listing for all: a network file system may show a new folder to some ranks later.
    names = ranks.gather([path.name for path in newest_first(folder)])[0]
    for name in names:
        path = folder / name
        problems = ranks.gather(_problem(path, ranks.rank, ranks.world_size))
        # One rank's finding counts for all, or ranks would resume from different checkpoints.
        problem = next((each for each in problems if each), "")
        if not problem:
            return Checkpoint(path, _read_json(path / STATE))
        report(f"checkpoint {path} is damaged and skipped: {problem}")

    if names:
        raise CheckpointError(
            f"{folder}: none of {len(names)} checkpoints is intact: remove the folder to start "
            "from the beginning"
        )
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open one checkpoint by its folder, every file checked.

    Raises:
        CheckpointError: It is missing, incomplete, or damaged; names the file.
    """
    if problem := _problem(path, 0, 1):
        raise CheckpointError(f"{path}: {problem}")
    return Checkpoint(path, _read_json(path / STATE))


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoint folders in a run's `checkpoints` folder, intact or not."""
    # A fixed width: names sort as numbers do, and editors' copies are left alone.
    paths = [path for path in folder.glob("images-*") if re.fullmatch(r"images-\d{12}", path.name)]
    return sorted(paths, reverse=True)


def file_digest(path: Path) -> dict[str, Any]:
    """Return a file's size and sha256, as `COMPLETE` lists them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _problem(path: Path, rank: int, world_size: int) -> str:
    """Return what is wrong with a checkpoint, or ""; checks every `world_size`-th file."""
    if not path.is_dir():
        return "there is no such checkpoint folder"
    if not (path / COMPLETE).is_file():
        return "it was not finished (it has no COMPLETE)"

    try:
        # Files first: state.json is parsed only once its digest is right.
        return _file_problem(path, rank, world_size) or _state_problem(_read_json(path / STATE))
    except (*DAMAGE, CheckpointError) as error:
        return f"it cannot be read ({_one_line(error)})"


def _file_problem(path: Path, rank: int, world_size: int) -> str:
    files = _read_json(path / COMPLETE)["files"]
    if STATE not in files:
        return f"{COMPLETE} does not list {STATE}"

    for name in sorted(files)[rank::world_size]:
        # A name with a folder in it would lead out of the checkpoint.
        if Path(name).name != name or not (path / name).is_file():
            return f"{name} is missing"
        if file_digest(path / name) != files[name]:
            return f"{name} is not what was written (size or sha256 differs)"
    return ""


def _state_problem(state: dict[str, Any]) -> str:
    version = state["format_version"]
    if version != FORMAT_VERSION:
        return f"format {version!r} is not {FORMAT_VERSION}: use a newer colorgan"
    if whole(state.get("images_seen")) is None:
        return f"{STATE} has no images_seen"
    return ""


def _read_index(path: Path, role: str) -> dict[str, list[_StoredPiece]]:
    """Return every tensor's pieces of a role, in order of offset, from the files' metadata."""
    # Not `*` behind the role, which would take generator_average for generator.
    files = sorted(path.glob(f"{role}-?????-of-?????.safetensors"))
    if not files:
        raise CheckpointError(f"{path} contains nothing for {role}")

    index: dict[str, list[_StoredPiece]] = {}
    for file in files:
        try:
            stored = _stored_pieces(file)
        except DAMAGE as error:
            raise CheckpointError(f"{file} cannot be read ({_one_line(error)})") from None
        for piece in stored:
            index.setdefault(piece.key, []).append(piece)

    for name, pieces in index.items():
        # Reading walks through them once, from left to right.
        pieces.sort(key=lambda piece: piece.offset)
        if len({(piece.dtype, piece.shape) for piece in pieces}) > 1:
            raise CheckpointError(f"{path}: the pieces of {role} {name} are not of one tensor")
    return index


def _stored_pieces(file: Path) -> list[_StoredPiece]:
    pieces = []
    with safe_open(file, "pt") as opened:
        described = json.loads((opened.metadata() or {}).get("pieces", "{}"))
        for key, entry in described.items():
            values = opened.get_slice(key)
            shape = tuple(entry["shape"])
            offset = whole(entry["offset"])
            # JSON may hold 1e400, -1 or text here: slices of those would read the wrong elements.
            if offset is None or any(whole(side) is None for side in shape):
                raise ValueError(f"{key[:100]} has no valid shape and offset")
            pieces.append(
                _StoredPiece(file, key, values[:0].dtype, shape, offset, values.get_shape()[0])
            )
    return pieces


def _read_slice(pieces: list[_StoredPiece], offset: int, stop: int) -> Tensor:
    """Assemble elements `offset` to `stop` from the pieces that contain them.

    Raises:
        ValueError: An element is in none of them.
    """
    # Checked before memory is taken: a damaged shape may promise any number of elements.
    parts = []
    position = offset
    for piece in pieces:
        last = min(stop, piece.offset + piece.length)
        if piece.offset <= position < last:
            parts.append((piece, position, last))
            position = last
    if position != stop:
        raise ValueError(f"element {position} is missing")

    import torch

    values = torch.empty(stop - offset, dtype=pieces[0].dtype)
    for piece, first, last in parts:
        with safe_open(piece.file, "pt") as opened:
            part = opened.get_slice(piece.key)[first - piece.offset : last - piece.offset]
        values[first - offset : last - offset] = part
    return values


def _read_json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        # One byte over the bound proves that the file is longer, whatever its size claims to be.
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB")

    value = json.loads(data)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    # Some libraries put a whole file into their message.
    return lines[0][:200]
