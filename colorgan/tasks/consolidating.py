"""From a run folder to its model folder: the checkpoint to take, the result in words, ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from colorgan.checkpoints.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    latest_checkpoint,
    open_checkpoint,
)
from colorgan.checkpoints.consolidation import consolidate
from colorgan.distributed.ranks import Ranks
from colorgan.errors import CheckpointError
from colorgan.models.weights_file import WEIGHTS

MIB = 2**20


@dataclass(frozen=True)
class Consolidated:
    """A model folder that was written.

    Attributes:
        folder: Where it is.
        kind: Of the model: generator, classifier, segmenter or detector.
        text: A line about it.
    """

    folder: Path
    kind: str
    text: str


def consolidate_run(
    run: Path,
    out: Path | None = None,
    *,
    checkpoint: str | None = None,
    weights: Literal["raw", "average"] | None = None,
) -> Consolidated:
    """Turn a run's checkpoint into a model folder.

    Args:
        run: Run folder of a training.
        out: Folder to write; None for `RUN/generator` of pretraining, `RUN/model` of fine-tuning.
        checkpoint: Name of the checkpoint in the run; None for the newest intact one.
        weights: None for the average where there is one.

    Raises:
        CheckpointError: The run has no intact checkpoint, or not the weights asked for.
        ModelFolderError: The written network's output differs from the run's, or the folder holds
            something else than an older model of this kind.
    """
    source = _find_checkpoint(run, checkpoint)
    kind = str(source.state["model"]["kind"])
    folder = out or run / ("generator" if kind == "generator" else "model")
    # Its check runs the written network: a folder that exists has reproduced the run's output.
    config = consolidate(source, folder, weights)

    side, width = config.picture_size, config.architecture.width
    size_mib = (folder / WEIGHTS).stat().st_size / MIB
    text = (
        f"{folder}: {config.kind} {side}x{side} of width {width}, {config.weights} weights after "
        f"{config.images_seen:,} images, {size_mib:.1f} MiB; its output equals the run's"
    )
    return Consolidated(folder, config.kind, text)


def export_to_onnx(folder: Path) -> str:
    """Write a generator folder's network as model.onnx beside it; return a line about it."""
    from colorgan.models.generator import check_onnx, export_onnx  # seconds to import

    path = folder / "model.onnx"
    export_onnx(folder, path)
    # Another runtime rounds otherwise; the user is told how far apart the two are.
    difference = check_onnx(path, folder)
    return f"{path}: luminance to chroma; differs from the network by {difference:.1g} at most"


def _find_checkpoint(run: Path, name: str | None) -> Checkpoint:
    folder = run / CHECKPOINTS
    # A checkpoint asked for by name is not replaced by another one, even if it is damaged.
    if name is not None:
        return open_checkpoint(folder / name)

    # Damaged ones are named and passed over: an older network is better than none.
    newest = latest_checkpoint(folder, Ranks.single(), print)
    if newest is None:
        raise CheckpointError(f"{folder} holds no checkpoint: is {run} the --run of a training?")
    return newest
