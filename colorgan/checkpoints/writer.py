"""Write one in the background, atomically."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from colorgan.checkpoints.checkpoint import (
    COMPLETE,
    FORMAT_VERSION,
    STATE,
    _digest,
    _newest_first,
    _sync,
    checkpoint_path,
)
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.state import Piece, Roles, rank_slice
from colorgan.errors import CheckpointError


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, in a thread while training goes on.

    `start` copies what is to be saved; a checkpoint is there once `publish_if_written` or `finish` has returned it. All
    methods are called on all ranks, at the same points; all raise when one rank could not write.

    Args:
        folder: the run's `checkpoints` folder.
        keep_last: how many of the newest to keep; older ones are removed, but for
        keep_every_images: multiples of this many images, which stay for good (0: none).
        background: False: `start` does not return before the checkpoint is there.
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
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: _Pending | None = None

    def start(self, roles: Roles, state: Mapping[str, Any]) -> list[Path]:
        """Begin to write a checkpoint; return those that are there now (an earlier one, or this one at once).

        Args:
            roles: by role and name, whole tensors (the same on every rank; each writes its share) or the pieces that
                this rank holds. Copied before this returns.
            state: JSON data with at least `images_seen`; saved as it is.

        Raises:
            CheckpointError: a rank could not write (full disk, no permission); nothing half-written stays.
        """
        published = self.finish()
        final = checkpoint_path(self._folder, int(state["images_seen"]))
        partial = self._folder / f".{final.name}.partial"
        _on_main(self._ranks, lambda: _fresh_folder(partial))
        held = _held(self._ranks, roles)
        written = self._thread.submit(_write_share, partial, self._ranks, held)
        self._pending = _Pending(final, partial, state, written)
        return published if self._background else [*published, *self.finish()]

    def publish_if_written(self) -> list[Path]:
        """Return the checkpoint under way if every rank has written its share, so that it is there now."""
        if self._pending is None or self._ranks.any(not self._pending.written.done()):
            return []
        return self.finish()

    def finish(self) -> list[Path]:
        """Wait for the checkpoint under way, if there is one, and return it; errors as in `start`."""
        if self._pending is None:
            return []
        pending, self._pending = self._pending, None
        digests = _on_all(self._ranks, pending.written.result, cleanup=pending.partial)
        files = {name: entry for rank_slice in digests for name, entry in rank_slice.items()}
        _on_main(
            self._ranks,
            lambda: _complete(pending.partial, pending.final, files, pending.state),
            cleanup=pending.partial,
        )
        _on_main(
            self._ranks,
            lambda: _prune(self._folder, pending.final, self._keep_last, self._keep_every_images),
        )
        return [pending.final]

    def close(self) -> None:
        """Let the thread go, after what it is writing."""
        self._thread.shutdown()


def save_checkpoint(
    folder: Path,
    *,
    ranks: Ranks,
    roles: Roles,
    state: Mapping[str, Any],
    keep_last: int,
    keep_every_images: int = 0,
) -> Path:
    """Write one checkpoint, wait for it, and return its folder; arguments and errors as in `CheckpointWriter`."""
    writer = CheckpointWriter(
        folder, ranks, keep_last=keep_last, keep_every_images=keep_every_images, background=False
    )
    try:
        return writer.start(roles, state)[-1]
    finally:
        writer.close()


@dataclass(frozen=True)
class _Pending:
    final: Path
    partial: Path
    state: Mapping[str, Any]
    written: Future[dict[str, dict[str, Any]]]


def _on_main(ranks: Ranks, work: Callable[[], None], cleanup: Path | None = None) -> None:
    _on_all(ranks, work if ranks.main else lambda: None, cleanup=cleanup)


def _on_all(ranks: Ranks, work: Callable[[], Any], cleanup: Path | None = None) -> list[Any]:
    """Run `work` on every rank and return all results; when one rank fails, all raise the same sentence."""
    result, problem = None, ""
    try:
        result = work()
    except (OSError, SafetensorError) as error:
        problem = f"rank {ranks.rank} could not write a checkpoint: {error}: free space or choose another --run"
    problems = [p for p in ranks.gather(problem) if p]
    if problems:
        if cleanup is not None and ranks.main:
            shutil.rmtree(cleanup, ignore_errors=True)
        raise CheckpointError(problems[0])
    return ranks.gather(result)


def _fresh_folder(partial: Path) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    for left in partial.parent.glob(".images-*.partial"):  # of a run that was killed while saving
        shutil.rmtree(left)
    partial.mkdir()


def _held(ranks: Ranks, roles: Roles) -> dict[str, dict[str, Piece]]:
    """Return copies, on the CPU, of the pieces that this rank writes, by role and name."""
    held: dict[str, dict[str, Piece]] = {}
    for role, tensors in roles.items():
        held[role] = {}
        for name, tensor in tensors.items():
            piece = (
                tensor
                if isinstance(tensor, Piece)
                else rank_slice(tensor, ranks.rank, ranks.world_size)
            )
            if piece.values.numel():
                held[role][name] = replace(piece, values=piece.values.detach().to("cpu", copy=True))
    return held


def _write_share(
    partial: Path, ranks: Ranks, held: Mapping[str, Mapping[str, Piece]]
) -> dict[str, dict[str, Any]]:
    written = {}
    for role, pieces in held.items():
        path = partial / f"{role}-{ranks.rank:05d}-of-{ranks.world_size:05d}.safetensors"
        described = {
            name: {"shape": list(piece.shape), "offset": piece.offset}
            for name, piece in pieces.items()
        }
        values = {name: piece.values for name, piece in pieces.items()}
        save_file(values, path, metadata={"pieces": json.dumps(described)})
        _sync(path)
        written[path.name] = _digest(path)
    return written


def _complete(
    partial: Path, final: Path, files: dict[str, dict[str, Any]], state: Mapping[str, Any]
) -> None:
    (partial / STATE).write_text(
        json.dumps({"format_version": FORMAT_VERSION, **state}, indent=1, default=str)
    )
    _sync(partial / STATE)
    files = {**files, STATE: _digest(partial / STATE)}
    (partial / COMPLETE).write_text(json.dumps({"files": files}, indent=1))
    _sync(partial / COMPLETE)
    if (
        final.exists()
    ):  # a damaged one of the same step, passed over when the run was taken up again
        shutil.rmtree(final)
    partial.rename(final)
    _sync(final.parent)


def _prune(folder: Path, newest: Path, keep_last: int, keep_every_images: int) -> None:
    """Remove what the rule does not keep. Later ones than `newest` were passed over as damaged: they go, too."""
    paths = _newest_first(folder)
    kept = paths[paths.index(newest) :][:keep_last]
    for path in paths:
        images = int(path.name.removeprefix("images-"))
        lasting = path < newest and keep_every_images and images % keep_every_images == 0
        if path not in kept and not lasting:
            shutil.rmtree(path)
