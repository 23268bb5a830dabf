"""Models on disk: a folder of `model.safetensors` and `config.json`, all that commands need.

    checkpoint -> consolidate -> generator/ -> fine-tuning, evaluation, colorize
    fine-tuning -> model/ -> evaluation
    timm's or torchvision's weights -> import_encoder -> encoder/ -> fine-tuning

`kind` is generator (luminance to chroma), encoder, classifier, segmenter or detector. Nothing is
ever unpickled.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from colorgan.devices import exact_float32
from colorgan.errors import ArchitectureError, ModelFolderError, UsageError
from colorgan.files import replacing_folder, what_is
from colorgan.models.backbones import UNET, luminance_encoder
from colorgan.models.color_classes import NUM_CLASSES
from colorgan.models.detector import Detector
from colorgan.models.modes import evaluating, using_inference
from colorgan.models.timm_encoder import Backbone, TimmEncoder
from colorgan.models.unet import Classifier, ClassUNet, Encoder, FeaturePyramid, UNet
from colorgan.models.weights_file import CONFIG, WEIGHTS, WeightsFile, save_tensors

PAPER_IS_OURS = "inference paper reaches the U-Net's own layers"
# What a generator predicts, and its channels: a and b; the class of ab; luminance itself, the
# control of a study, which colors nothing.
Target = Literal["chroma", "classes", "luminance"]
NUM_OUTPUTS: dict[Target, int] = {"chroma": 2, "classes": NUM_CLASSES, "luminance": 1}
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
    ab_scale: float = Field(gt=0)
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
    """Refuse pictures so small that a norm has a single value per channel to normalise.

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
            f"{a.image_size}, and {a.norm} norm cannot normalise one value: use pictures of more "
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


def build_model(config: ModelConfig) -> nn.Module:
    """Return the network of a config, on the CPU, with undefined weights.

    Raises:
        ArchitectureError: It cannot have these sizes, or its encoder is not known.
    """
    a = config.architecture
    # Encoder first in every network: `initialise` draws in this order, so seeds keep their meaning.
    encoder = build_encoder(a)
    decoding: dict[str, Any] = {
        "norm": a.norm,
        "bias_before_norm": a.bias_before_norm,
        "dropout": a.dropout,
    }
    match config.kind:
        case "encoder":
            return Backbone(encoder)
        case "classifier":
            return Classifier(encoder, num_classes=a.num_outputs, hidden_width=a.head_width)
        case "detector":
            return Detector(encoder, head_width=4 * a.width, num_classes=a.num_outputs, **decoding)
        case "generator" if config.target == "classes":
            return ClassUNet(encoder, ab_scale=config.ab_scale, **decoding)
        case "generator":
            skips = config.target != "luminance"
            return UNet(encoder, num_outputs=a.num_outputs, tanh=True, skips=skips, **decoding)
        case "segmenter":
            return UNet(encoder, num_outputs=a.num_outputs, tanh=False, **decoding)


def build_encoder(a: Architecture) -> FeaturePyramid:
    """Return the encoder of an architecture, on the CPU, with undefined weights.

    Raises:
        ArchitectureError: It cannot have these sizes, or is not known.
    """
    if a.encoder != UNET:
        return (
            TimmEncoder(a.encoder) if a.encoder_input == "photo" else luminance_encoder(a.encoder)
        )
    return Encoder(
        image_size=a.image_size, width=a.width, norm=a.norm, bias_before_norm=a.bias_before_norm
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


def empty_model(config: ModelConfig) -> nn.Module:
    """Return the network of a config on the meta device: shapes without memory.

    Raises:
        ModelFolderError: The config asks for sizes that the network cannot have.
    """
    try:
        # A config may ask for terabytes; shapes alone are compared with the file first.
        with torch.device("meta"):
            return build_model(config)
    except (ArchitectureError, RuntimeError) as error:
        raise ModelFolderError(f"{CONFIG}: {str(error).splitlines()[0]}") from None


def load_model(folder: Path, *kinds: str) -> tuple[nn.Module, ModelConfig]:
    """Return the network (on the CPU, in eval mode) and config of a model folder.

    Memory is allocated only after the file was found to hold the weights; bfloat16 ones become
    float32.

    Args:
        folder: The model folder.
        kinds: Kinds that are accepted; none given: any.

    Raises:
        ModelFolderError: Not a model folder, of another kind, or weights that do not fit the
            config.
    """
    config = read_config(folder)
    if kinds and config.kind not in kinds:
        raise ModelFolderError(
            f"{folder} holds a {config.kind}, a {' or '.join(kinds)} is needed here"
        )

    try:
        module = empty_model(config)
    except ArchitectureError as error:
        raise ModelFolderError(f"{folder / CONFIG}: {error}") from None

    file = WeightsFile(folder / WEIGHTS)
    file.check_fits(module)
    with torch.no_grad():
        if config.architecture.encoder == UNET:
            module = module.to_empty(device="cpu")
        else:
            # Networks from elsewhere may have buffers that are in no file: build them again, with
            # memory.
            module = build_model(config)
        for name, tensor in module.state_dict().items():
            tensor.copy_(file.read(name))
    return module.eval(), config


def save_model(out: Path, module: nn.Module, config: ModelConfig) -> None:
    """Write a network and its config as a model folder, whole or not at all.

    Raises:
        ModelFolderError: `out` cannot be a model folder.
    """
    check_model_folder(out, config.kind)
    with replacing_folder(out) as folder:
        write_model(folder, module, config)


def write_model(folder: Path, module: nn.Module, config: ModelConfig) -> None:
    """Write the two files of a model folder into an existing folder."""
    # Row-major: safetensors stores no strides, and NHWC weights would come back transposed.
    weights = {
        name: tensor.detach().contiguous().cpu() for name, tensor in module.state_dict().items()
    }
    save_tensors(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")


def check_model_folder(out: Path, kind: str) -> None:
    """Refuse to write a model over something else than an older model of its kind.

    Args:
        out: The folder to write: new, empty, or with an older model.
        kind: Of the model that is written.

    Raises:
        ModelFolderError: `out` holds something else.
    """
    out = out.resolve()
    if not out.name or out.is_file():
        raise ModelFolderError(
            f"{out} cannot be the folder of a model: name one that is new, or an older model's"
        )
    if (out / CONFIG).is_file():
        old = read_config(out)
        if old.kind != kind:
            raise ModelFolderError(
                f"{out} holds a {old.kind} and is not replaced by a {kind}: choose another --out"
            )
    elif out.is_dir() and any(out.iterdir()):
        held = what_is(out) or "other files than a model's"
        raise ModelFolderError(f"{out} holds {held}: choose another --out")


def probe(module: nn.Module, image_size: int, device: torch.device) -> Tensor:
    """Return the network's output for a fixed luminance pattern, with running statistics.

    Float32 on the CPU, of one image.

    Args:
        module: On `device`; left in the mode it was in.
        image_size: Side of the pattern.
        device: Where to compute.
    """
    # A smooth pattern without randomness: any version of torch makes the same one.
    row = torch.linspace(-1.0, 1.0, image_size)
    pattern = torch.sin(9.0 * row)[:, None] * torch.cos(7.0 * row)[None, :] * 0.9
    with (
        evaluating(module),
        # The batch's own statistics of a single image would hide differences in the running ones.
        using_inference(module, "running"),
        torch.no_grad(),
        exact_float32(),
    ):
        output: Tensor = module(pattern[None, None].to(device)).float().cpu()
    return output
