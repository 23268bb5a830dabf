"""From a run folder to its model folder: the checkpoint to take, the result in words, ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from colorgan.checkpoints.checkpoint import Checkpoint, latest_checkpoint, open_checkpoint
from colorgan.checkpoints.consolidation import consolidate
from colorgan.distributed.ranks import Ranks
from colorgan.errors import CheckpointError
from colorgan.models.weights_file import WEIGHTS

MIB = 2**20


def consolidate_run(
    run: Path,
    out: Path,
    *,
    checkpoint: str | None = None,
    weights: Literal["raw", "average"] | None = None,
) -> str:
    """Turn a run's checkpoint into a model folder; return a line about it.

    Args:
        run: Run folder of a training.
        out: Folder to write.
        checkpoint: Name of the checkpoint in the run; None for the newest intact one.
        weights: None for the average where there is one.

    Raises:
        CheckpointError: The run has no intact checkpoint, or not the weights asked for.
        ModelFolderError: The written network's output differs from the run's.
    """
    source = _find_checkpoint(run, checkpoint)
    config = consolidate(source, out, weights)

    side, width = config.architecture.image_size, config.architecture.width
    size_mib = (out / WEIGHTS).stat().st_size / MIB
    return (
        f"{out}: {config.kind} {side}x{side} of width {width}, {config.weights} weights after "
        f"{config.images_seen:,} images, {size_mib:.1f} MiB; its output equals the run's"
    )


def export_to_onnx(folder: Path) -> str:
    """Write a generator folder's network as model.onnx beside it; return a line about it."""
    from colorgan.models.generator import check_onnx, export_onnx  # seconds to import

    path = folder / "model.onnx"
    export_onnx(folder, path)
    difference = check_onnx(path, folder)
    return f"{path}: luminance to chroma; differs from the network by {difference:.1g} at most"


def _find_checkpoint(run: Path, name: str | None) -> Checkpoint:
    folder = run / "checkpoints"
    if name is not None:
        return open_checkpoint(folder / name)

    newest = latest_checkpoint(folder, Ranks.single(), print)
    if newest is None:
        raise CheckpointError(f"{folder} holds no checkpoint: is {run} the --run of a training?")
    return newest
