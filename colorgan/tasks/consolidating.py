"""From a run folder to its model folder: the checkpoint to take, the result in words, ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from colorgan.checkpoints.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    latest_checkpoint,
    open_checkpoint,
)
from colorgan.checkpoints.consolidation import consolidate, described_model
from colorgan.distributed.ranks import Ranks
from colorgan.errors import CheckpointError, UsageError
from colorgan.files import CARD, replacing
from colorgan.models.export import Format, exported, timm_difference, with_head
from colorgan.models.generator import check_onnx, export_onnx, require_onnx
from colorgan.models.model_config import WEIGHTS, ModelConfig, check_colors
from colorgan.models.model_folder import empty_model, load_model
from colorgan.models.timm_encoder import LuminanceTimmEncoder
from colorgan.models.unet import encoder_of
from colorgan.models.weights_file import save_tensors
from colorgan.tasks.model_card import DRAWN, on_drawn_shapes, write_card

MIB = 2**20

ExportFormat = Format | Literal["onnx"]


@dataclass(frozen=True)
class Consolidated:
    """A model folder that was written.

    Attributes:
        folder: Where it is.
        kind: Of the model: generator, classifier, segmenter or detector.
        has_colors: Whether it colors photos.
        text: Lines about it.
    """

    folder: Path
    kind: str
    has_colors: bool
    text: str


def consolidate_run(
    run: Path,
    out: Path | None = None,
    *,
    checkpoint: str | None = None,
    weights: Literal["raw", "average"] | None = None,
    exports: Sequence[ExportFormat] = (),
    rgb: bool = False,
) -> Consolidated:
    """Turn a run's checkpoint into a model folder.

    Args:
        run: Run folder of a training.
        out: Folder to write; None for `RUN/generator` of pretraining, `RUN/model` of fine-tuning.
        checkpoint: Name of the checkpoint in the run; None for the newest intact one.
        weights: None for the average where there is one.
        exports: What the folder is to be exported as: looked at before it is written.
        rgb: Of these exports, as in `exported`.

    Raises:
        UsageError: The network cannot be exported so.
        ArchitectureError: An export needs a library that is not installed.
        CheckpointError: The run has no intact checkpoint, or not the weights asked for.
        ModelFolderError: The written network's output differs from the run's, or the folder holds
            something else than an older model of this kind.
    """
    source = _find_checkpoint(run, checkpoint)
    described = described_model(source)
    kind = described.kind
    folder = out or run / ("generator" if kind == "generator" else "model")
    for format in exports:
        _check_export(described, folder, format, rgb=rgb)
    # Its check runs the written network: a folder that exists has reproduced the run's output.
    config = consolidate(source, folder, weights)

    side, width = config.picture_size, config.architecture.width
    size_mib = (folder / WEIGHTS).stat().st_size / MIB
    text = (
        f"{folder}: {config.kind} {side}x{side} of width {width}, {config.weights} weights after "
        f"{config.images_seen:,} images, {size_mib:.1f} MiB; its output equals the run's"
    )
    if write_card(folder, run, config):
        text += f"\n{folder / CARD}: a model card, with recipe and scores"
    if config.kind == "generator" and on_drawn_shapes(config):
        text += f"\nNote: {DRAWN}"
    return Consolidated(folder, config.kind, config.target != "luminance", text)


def _check_export(config: ModelConfig, folder: Path, format: ExportFormat, *, rgb: bool) -> None:
    """Refuse an export that the network does not have."""
    if format != "onnx":
        # Without its weights: names and shapes say whether another library has such a network.
        exported(encoder_of(empty_model(config)), format, rgb=rgb)
        return

    require_onnx()
    if config.kind != "generator":
        raise UsageError(f"only generators are exported to ONNX, and {folder} is a {config.kind}")
    check_colors(config, folder)


def export(folder: Path, format: ExportFormat, *, rgb: bool, num_classes: int) -> str:
    """Write what a model folder holds for another library; return lines about it.

    Raises:
        As `export_encoder`; ModelFolderError too where ONNX gives another output.
    """
    if format == "onnx":
        return export_to_onnx(folder)
    return export_encoder(folder, format, rgb=rgb, num_classes=num_classes)


def export_to_onnx(folder: Path) -> str:
    """Write a generator folder's network as model.onnx beside it; return a line about it."""
    path = folder / "model.onnx"
    with replacing(path) as partial:
        export_onnx(folder, partial)
        # Another runtime rounds otherwise; the user is told how far apart the two are.
        difference = check_onnx(partial, folder)
    return f"{path}: luminance to chroma; differs from the network by {difference:.1g} at most"


def export_encoder(folder: Path, format: Format, *, rgb: bool, num_classes: int) -> str:
    """Write the encoder of a model folder for another library, beside the folder.

    timm itself loads what is written for it, and its features are compared with the encoder's.

    Args:
        folder: Of any kind of model.
        format: Whose names the tensors get.
        rgb: Give the first convolution three channels.
        num_classes: Of the classifier that timm's network has, which is not trained; 0 for none.

    Returns:
        A line about the file, and one that loads it.

    Raises:
        UsageError: The library has no network like it.
        ModelFolderError: timm does not load the file, or its features differ from the encoder's.
        ArchitectureError: timm is not installed.
    """
    model, config = load_model(folder)
    encoder = encoder_of(model)
    learned = exported(encoder, format, rgb=rgb)
    weights, checked = learned, ""
    if format == "timm":
        # timm's network has more layers than its features: loading strictly needs them all.
        assert isinstance(encoder, LuminanceTimmEncoder)
        weights = with_head(encoder, learned, num_classes, rgb=rgb)

    whose = "encoder" if format == "safetensors" else format
    path = folder.with_name(f"{folder.name}.{whose}{'-rgb' if rgb else ''}.safetensors")
    with replacing(path) as partial:
        plain = {key: tensor.contiguous() for key, tensor in weights.items()}
        save_tensors(plain, partial, metadata={"format": "pt"})
        if format == "timm":
            assert isinstance(encoder, LuminanceTimmEncoder)
            size = config.architecture.image_size
            difference = timm_difference(encoder, partial, num_classes, size, rgb=rgb)
            checked = f"; timm loads it strictly, features differ by {difference:.1g} at most"

    untrained = [key for key in weights if key not in learned]
    rest = f", untrained: {', '.join(untrained)}" if untrained else ""
    name = config.architecture.encoder
    text = f"{path}: {len(learned)} tensors of the {name} encoder{rest}{checked}"
    return f"{text}\n  {_loading(format, name, path, rgb=rgb, num_classes=num_classes)}"


def _loading(format: Format, name: str, path: Path, *, rgb: bool, num_classes: int) -> str:
    """Return the line of Python that loads an exported file."""
    if format == "safetensors":
        return f"safetensors.torch.load_file('{path}')"
    if format == "timm":
        words = f"in_chans={3 if rgb else 1}, num_classes={num_classes}"
        return f"timm.create_model('{name}', {words}, checkpoint_path='{path}')"

    lacking = "" if rgb else ", and its first convolution replaced by one of one channel"
    # In two statements: what loads the weights is not the network.
    load = f"model.load_state_dict(load_file('{path}'), strict=False)"
    model = f"model = torchvision.models.{name}()"
    return f"{model}; {load}  # without its classifier{lacking}"


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
