"""The record of a model folder, `config.json`: read and checked without torch, written with it.

Commands that plan or list (studies, reports) read it; `model_folder` builds the network that it
describes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from colorgan.errors import ModelFolderError, UsageError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
UNET = "unet"  # the encoder of our own; others are backbones (colorgan/models/backbones.py)
PAPER_IS_OURS = "inference paper reaches the U-Net's own layers"
# What a generator predicts, and its channels: a and b; the class of ab; luminance itself, the
# control of a study, which colors nothing.
Target = Literal["chroma", "classes", "luminance"]
NUM_COLOR_CLASSES = 313  # as color_classes.py counts them
NUM_OUTPUTS: dict[Target, int] = {"chroma": 2, "classes": NUM_COLOR_CLASSES, "luminance": 1}
MAX_CONFIG_BYTES = 8 << 20
# Of the side of a picture in pixels, and what divides it: the strides of timm's networks.
MAX_INPUT_SIZE, INPUT_SIZE_STEP = 1024, 32


class Architecture(BaseModel):
    """The arguments of the network's constructor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(ge=32, le=512)
    width: int = Field(gt=0, le=1024)
    norm: Literal["batch", "instance"]
    bias_before_norm: bool
    dropout: float = Field(ge=0, lt=1)
    num_outputs: int = Field(2, gt=0, le=100_000)
    head_width: int = Field(4096, gt=0, le=65_536)
    encoder: str = Field(UNET, max_length=100)  # or a backbone (colorgan/models/backbones.py)
    # Photo: an imported encoder, which sees the grey photo (colorgan/models/timm_encoder.py).
    encoder_input: Literal["luminance", "photo"] = "luminance"

    @model_validator(mode="before")
    @classmethod
    def _older_folders(cls, fields: Any) -> Any:
        # Folders of older versions do not name the input: all encoders but ours were imported.
        if isinstance(fields, dict) and fields.get("encoder", UNET) != UNET:
            return {"encoder_input": "photo", **fields}
        return fields


class ModelConfig(BaseModel):
    """The record in `config.json`: the network, its normalisation, where its weights come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    kind: Literal["generator", "encoder", "classifier", "segmenter", "detector"]
    architecture: Architecture
    ab_scale: float = Field(gt=0, allow_inf_nan=False)
    target: Target = "chroma"  # of a generator
    inference: Literal["running", "paper"] = "running"
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    void: Literal["ignore", "background"] = "ignore"
    # Of fine-tuned models: the side of their pictures, if not the architecture's, and how these
    # were made square.
    input_size: int | None = Field(None, ge=32, le=MAX_INPUT_SIZE)
    fit: Literal["squash", "crop", "pad"] = "squash"
    weights: Literal["raw", "average"] = "raw"
    images_seen: int = 0
    data_digest: str = ""
    init_digest: str = ""  # of the weights that fine-tuning began with; none: drawn
    source_version: str = ""
    recipe: dict[str, Any] = {}

    @property
    def picture_size(self) -> int:
        """The side in pixels of the square pictures that the network sees."""
        return self.input_size or self.architecture.image_size

    @model_validator(mode="after")
    def _encoder_fits_kind(self) -> ModelConfig:
        encoder, sees = self.architecture.encoder, self.architecture.encoder_input
        # A generator learns from luminance; what sees a photo was imported, and has no decoder.
        if self.kind == "generator" and sees != "luminance":
            raise ValueError(f"kind generator needs an encoder of luminance, not {encoder!r}")
        if self.kind == "encoder" and (encoder == UNET or sees != "photo"):
            raise ValueError(f"kind encoder needs a network of timm, not {encoder!r}")
        if self.inference == "paper" and encoder != UNET:
            raise ValueError(PAPER_IS_OURS)
        return self

    @model_validator(mode="after")
    def _outputs_fit_target(self) -> ModelConfig:
        outputs, needed = self.architecture.num_outputs, NUM_OUTPUTS[self.target]
        if self.kind == "generator" and outputs != needed:
            raise ValueError(f"a generator of {self.target} has {needed} outputs, not {outputs}")
        # A segmenter has background, too.
        named = len(self.classes) + (self.kind == "segmenter")
        if self.kind in ("classifier", "segmenter", "detector") and outputs != named:
            raise ValueError(
                f"a {self.kind} of {len(self.classes)} classes has {named} outputs, not {outputs}"
            )
        return self


def check_input_size(size: int, folder: str | Path) -> None:
    """Refuse pictures of a size that a pretrained network does not take.

    Raises:
        UsageError: The side is out of range, or no multiple of the encoders' strides.
    """
    if not 32 <= size <= MAX_INPUT_SIZE or size % INPUT_SIZE_STEP:
        raise UsageError(
            f"network.image_size {size}: a network from {folder} takes pictures whose side is a "
            f"multiple of {INPUT_SIZE_STEP} from 32 to {MAX_INPUT_SIZE} pixels"
        )


def check_norms(config: ModelConfig, batch_size: int) -> None:
    """Refuse pictures so small that a norm has a single value per channel to normalize.

    Args:
        config: Of the model.
        batch_size: Images whose statistics are taken together, the fewest.

    Raises:
        UsageError: The deepest level with a norm is a single pixel, and the norm needs more.
    """
    a, size = config.architecture, config.picture_size
    if a.encoder != UNET or size > a.image_size // 2:
        return
    if a.norm == "instance" or batch_size == 1:
        raise UsageError(
            f"pictures of {size} pixels leave single pixels in the deepest levels of a network for "
            f"{a.image_size}, and {a.norm} norm cannot normalize one value: use pictures of more "
            f"than {a.image_size // 2} pixels, or, with batch norm, at least 2 images per "
            "forward pass and running statistics in evaluation"
        )


def check_inference(inference: str | None, architecture: Architecture, folder: str | Path) -> None:
    """Refuse the paper's inference for a network that it would reach only in part.

    Raises:
        UsageError: It is asked for, and the encoder is not the U-Net's own.
    """
    if inference == "paper" and architecture.encoder != UNET:
        raise UsageError(f"{PAPER_IS_OURS}, not those of {folder}: leave inference out")


def check_colors(config: ModelConfig, folder: str | Path) -> None:
    """Refuse a generator that predicts no color.

    Raises:
        ModelFolderError: It is a study's control, which reconstructs luminance.
    """
    if config.target == "luminance":
        raise ModelFolderError(
            f"{folder} holds a generator that reconstructs luminance (loss.target: luminance), a "
            "control for studies of features: it colors nothing; name one that was trained on color"
        )


def read_config(folder: Path) -> ModelConfig:
    """Read and check a model folder's `config.json`.

    Raises:
        ModelFolderError: The folder is not one of ours, or of a newer format.
    """
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise ModelFolderError(
            f"{folder} is not a model folder ({CONFIG} and {WEIGHTS}): make one with "
            "`python launcher/consolidate.py --run DIR` (of weights from elsewhere with "
            "launcher/import_encoder.py)"
        )
    # Before reading: folders come from elsewhere.
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelFolderError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: it is not ours")

    try:
        return ModelConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        # One of pydantic's many lines: the first place is where a user looks.
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ModelFolderError(
            f"{path}: {where}: {first['msg']}: it is of another version, or damaged"
        ) from None


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of a model folder's weights.

    Raises:
        ModelFolderError: It is not a model folder.
    """
    read_config(folder)
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
