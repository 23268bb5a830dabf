"""Write checkpoints atomically, in the background, from all ranks.

Each rank's thread writes the rank's files and then a note with their digests. Rank 0's thread waits
for all notes and publishes: no collective call is needed, so a checkpoint is there as soon as the
last rank has written, also if a rank hangs or is killed right after.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from colorgan.checkpoints.checkpoint import (
    COMPLETE,
    FORMAT_VERSION,
    STATE,
    checkpoint_path,
    file_digest,
    images_of,
    newest_first,
)
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.state import Piece, Roles, rank_slice
from colorgan.errors import CheckpointError
from colorgan.files import read_json, replacing, sync
from colorgan.launchers import saving
from colorgan.models.weights_file import save_tensors

POLL_S = 0.02
CLOSE_S = 2.0  # how long a writer that is closed early waits for the other ranks' notes


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, in a thread while training goes on.

    `start` copies what is to be saved. A checkpoint is on disk once `take_published` or `finish`
    has returned it. All methods but `close` are called on all ranks, at the same points; all ranks
    raise when one could not write.

    Args:
        folder: The run's `checkpoints` folder, shared by all ranks.
        ranks: This process among the ranks.
        keep_last: How many of the newest to keep; older ones are removed.
        keep_every_images: Multiples of this many images are kept for good; 0: none.
        background: False: `start` returns only when the checkpoint is on disk.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        *,
        keep_last: int,
        keep_every_images: int = 0,
        background: bool = True,
    ) -> None:
        self._folder, self._ranks = folder, ranks
        self._keep_last, self._keep_every_images = keep_last, keep_every_images
        self._background = background
        # Two threads: rank 0 waits for notes in one while its own files are written in the other.
        self._thread = ThreadPoolExecutor(2, "checkpoint")
        self._pending: _Pending | None = None

    def start(self, roles: Roles, state: Mapping[str, Any]) -> list[Path]:
        """Begin to write a checkpoint; return those that are published by now.

        These are an earlier one, and this one if nothing is written in the background.

        Args:
            roles: By role and name, whole tensors (the same on every rank; each writes its slice)
                or the pieces that this rank holds. Copied before this returns.
            state: JSON data with at least `images_seen`; saved as it is.

        Raises:
            CheckpointError: A rank could not write (full disk, no permission); nothing half-written
                stays.
        """
        # One at a time: two copies of the weights in host memory would be one too many.
        published = self.finish()
        final = checkpoint_path(self._folder, int(state["images_seen"]))
        partial = self._folder / f".{final.name}.partial"
        self._on_main(lambda: _fresh_folder(partial))

        # Copied before this returns, as the next step changes the weights in place.
        held = _copies(self._ranks, roles)
        pending = _Pending(final, partial, state)
        pending.written = self._thread.submit(_write_pieces, partial, self._ranks, held)
        if self._ranks.main:
            pending.published = self._thread.submit(self._publish, pending)
        self._pending = pending
        return published if self._background else [*published, *self.finish()]

    def take_published(self) -> list[Path]:
        """Return the checkpoint in progress if it has been published; called between steps.

        Raises:
            CheckpointError: As in `start`.
        """
        pending = self._pending
        if pending is None:
            return []

        status = _Status.of(pending, self._ranks)
        statuses = self._ranks.gather(status)
        # `finish` raises on all ranks; here every rank has to come to the same branch.
        if any(each.problem for each in statuses):
            return self.finish()
        return self.finish() if all(each.done for each in statuses) else []

    def finish(self) -> list[Path]:
        """Wait for the checkpoint in progress, if there is one, and return it.

        Raises:
            CheckpointError: As in `start`.
        """
        if self._pending is None:
            return []

        pending, self._pending = self._pending, None
        try:
            self._on_all(pending.written.result)
            self._on_main(pending.published.result)
        except CheckpointError:
            # Rank 0's thread would wait for the failed rank's note forever.
            pending.abandoned.set()
            if self._ranks.main:
                shutil.rmtree(pending.partial, ignore_errors=True)
            raise
        return [pending.final]

    def close(self) -> None:
        """End the threads, after this rank's files are written."""
        if self._pending is not None and self._ranks.main:
            timer = threading.Timer(CLOSE_S, self._pending.abandoned.set)
            timer.daemon = True
            # The other ranks' notes are waited for from when this rank's own files are written.
            self._pending.written.add_done_callback(lambda _: timer.start())
        self._thread.shutdown()

    @saving()
    def _publish(self, pending: _Pending) -> None:
        """Wait for every rank's note, then publish the checkpoint; runs in rank 0's thread."""
        notes = [_note_path(pending.partial, rank) for rank in range(self._ranks.world_size)]
        files: dict[str, Any] = {}
        for note in notes:
            while not note.exists():
                if pending.abandoned.wait(POLL_S):
                    return
                if pending.written.done() and pending.written.exception() is not None:
                    return
            # Bounded and checked like any file: another rank's disk may have written nonsense.
            listed = read_json(note).get("files")
            if not isinstance(listed, dict):
                raise OSError(f"{note} cannot be read")
            files |= listed

        for note in notes:
            # Not part of the checkpoint: COMPLETE lists what is.
            note.unlink()
        _complete(pending.partial, pending.final, files, pending.state)
        _prune(self._folder, pending.final, self._keep_last, self._keep_every_images)

    def _on_main(self, work: Callable[[], object]) -> None:
        self._on_all(work if self._ranks.main else lambda: None)

    def _on_all(self, work: Callable[[], object]) -> None:
        """Run `work` on every rank; when it fails on one, all raise the same sentence."""
        problem = ""
        try:
            work()
        except (OSError, SafetensorError) as error:
            problem = _problem_text(self._ranks, error)

        problems = [each for each in self._ranks.gather(problem) if each]
        if problems:
            raise CheckpointError(problems[0])


@dataclass
class _Pending:
    """A checkpoint in progress: its paths and the threads' results."""

    final: Path
    partial: Path
    state: Mapping[str, Any]
    written: Future[None] = field(default_factory=Future)
    published: Future[None] = field(default_factory=Future)  # rank 0 only
    abandoned: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class _Status:
    """How far a rank is with a checkpoint."""

    done: bool
    problem: bool

    @staticmethod
    def of(pending: _Pending, ranks: Ranks) -> _Status:
        last = pending.published if ranks.main else pending.written
        failed = pending.written.done() and pending.written.exception() is not None
        return _Status(last.done(), failed)


def _problem_text(ranks: Ranks, error: BaseException) -> str:
    return (
        f"rank {ranks.rank} could not write a checkpoint: {error}: free some space, or choose "
        "another --run"
    )


def _fresh_folder(partial: Path) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    # What a run that was killed while saving left behind.
    for left in partial.parent.glob(".images-*.partial"):
        shutil.rmtree(left)
    partial.mkdir()


def _copies(ranks: Ranks, roles: Roles) -> dict[str, dict[str, Piece]]:
    """Return CPU copies of the pieces that this rank writes, by role and name."""
    held: dict[str, dict[str, Piece]] = {}
    for role, tensors in roles.items():
        held[role] = {}
        for name, tensor in tensors.items():
            piece = tensor
            if not isinstance(piece, Piece):
                piece = rank_slice(piece, ranks.rank, ranks.world_size)
            # Small tensors have fewer elements than there are ranks: nothing to write for some.
            if piece.values.numel():
                values = piece.values.detach().to("cpu", copy=True)
                held[role][name] = replace(piece, values=values)
    return held


@saving()
def _write_pieces(partial: Path, ranks: Ranks, held: Mapping[str, Mapping[str, Piece]]) -> None:
    """Write this rank's files and its note; runs in the rank's thread."""
    digests = {}
    for role, pieces in held.items():
        path = partial / f"{role}-{ranks.rank:05d}-of-{ranks.world_size:05d}.safetensors"
        described = {
            name: {"shape": list(piece.shape), "offset": piece.offset}
            for name, piece in pieces.items()
        }
        values = {name: piece.values for name, piece in pieces.items()}
        save_tensors(values, path, metadata={"pieces": json.dumps(described)})
        # To the disk before the note: a note must never speak of bytes still in a cache.
        sync(path)
        digests[path.name] = file_digest(path)

    with replacing(_note_path(partial, ranks.rank)) as note:
        note.write_text(json.dumps({"files": digests}))


def _note_path(partial: Path, rank: int) -> Path:
    return partial / f"written-{rank:05d}.json"


def _complete(
    partial: Path, final: Path, files: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    text = json.dumps({"format_version": FORMAT_VERSION, **state}, indent=1, default=str)
    with replacing(partial / STATE) as path:
        path.write_text(text)

    listed = {"files": {**files, STATE: file_digest(partial / STATE)}}
    # Last, when all it lists is on disk: its presence is the claim that the rest is there.
    with replacing(partial / COMPLETE) as path:
        path.write_text(json.dumps(listed, indent=1))

    if final.exists():  # a damaged one of the same step, skipped when the run was resumed
        shutil.rmtree(final)
    partial.rename(final)
    # The rename itself must survive a power cut, not only the files.
    sync(final.parent)


def _prune(folder: Path, newest: Path, keep_last: int, keep_every_images: int) -> None:
    """Remove what the rule does not keep.

    Later ones than `newest` were skipped as damaged when the run was resumed: they go, too.
    """
    paths = newest_first(folder)
    # Counted from the new one: damaged later ones would push good older ones out.
    kept = paths[paths.index(newest) :][:keep_last]
    for number, path in enumerate(paths):
        lasting = False
        if keep_every_images and path < newest:
            # The first one at or past each multiple: saves fall on whole steps.
            before = images_of(paths[number + 1]) if number + 1 < len(paths) else 0
            lasting = before // keep_every_images < images_of(path) // keep_every_images
        if path not in kept and not lasting:
            # What another process still reads is removed the next time.
            shutil.rmtree(path, ignore_errors=True)
