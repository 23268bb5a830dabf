"""Models on disk: a folder of `model.safetensors` and `config.json`, which is all that later verbs take.

    checkpoint -> consolidate -> generator/ -> fine-tuning, evaluation, colorize
    fine-tuning -> model/ -> evaluation
    timm's or torchvision's weights -> import_encoder -> encoder/ -> fine-tuning

`kind` is generator (luminance to chroma), encoder, classifier, segmenter or detector. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from colorgan.errors import GeneratorError, NetworkError, UsageError
from colorgan.models.detector import Detector
from colorgan.models.timm_encoder import Backbone, TimmEncoder
from colorgan.models.unet import Classifier, UNet, evaluating, using_inference

UNET = "unet"  # the encoder that is ours
PAPER_IS_OURS = "inference paper reaches the U-Net's own layers"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_CONFIG_BYTES = 8 << 20
MAX_HEADER_BYTES = 16 << 20
DTYPES = {
    "F32": torch.float32,
    "F64": torch.float64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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
    encoder: str = Field(UNET, max_length=100)  # or a network of timm (colorgan/models/timm_encoder.py)


class ModelConfig(BaseModel):
    """`config.json`: what the weights are, how colour is normalised, and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    kind: Literal["generator", "encoder", "classifier", "segmenter", "detector"]
    architecture: Architecture
    ab_scale: float = Field(gt=0)
    inference: Literal["running", "paper"] = "running"
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    void: Literal["ignore", "background"] = "ignore"
    weights: Literal["raw", "average"] = "raw"
    images_seen: int = 0
    data_digest: str = ""
    init_digest: str = ""  # of the weights that fine-tuning began with; none: drawn
    source_version: str = ""
    recipe: dict[str, Any] = {}

    @model_validator(mode="after")
    def _encoder_fits_kind(self) -> ModelConfig:
        ours = self.architecture.encoder == UNET
        if self.kind in ("generator", "encoder") and ours != (self.kind == "generator"):
            needed = "the U-Net's own encoder" if self.kind == "generator" else "a network of timm"
            raise ValueError(f"kind {self.kind} needs {needed}, not {self.architecture.encoder!r}")
        if self.inference == "paper" and not ours:
            raise ValueError(PAPER_IS_OURS)
        return self


def check_inference(inference: str | None, architecture: Architecture, folder: str | Path) -> None:
    """Refuse the paper's inference for a network that it would reach in part.

    Raises:
        UsageError: it is asked for, and the encoder is from elsewhere.
    """
    if inference == "paper" and architecture.encoder != UNET:
        raise UsageError(f"{PAPER_IS_OURS}, not those of {folder}: leave inference out")


def build_model(config: ModelConfig) -> nn.Module:
    """Return the network of a config, on the CPU, with undefined weights."""
    a = config.architecture
    common: dict[str, Any] = {
        "image_size": a.image_size,
        "width": a.width,
        "norm": a.norm,
        "bias_before_norm": a.bias_before_norm,
        "encoder": None if a.encoder == UNET else TimmEncoder(a.encoder),
    }
    if config.kind == "encoder":
        return Backbone(common["encoder"])
    if config.kind == "classifier":
        return Classifier(**common, num_classes=a.num_outputs, hidden_width=a.head_width)
    if config.kind == "detector":
        return Detector(**common, dropout=a.dropout, num_classes=a.num_outputs)
    return UNet(**common, dropout=a.dropout, num_outputs=a.num_outputs, tanh=config.kind == "generator")


def read_config(folder: Path) -> ModelConfig:
    """Read and check a model folder's `config.json`.

    Raises:
        GeneratorError: the folder is not one of ours, or of a newer format; says what is wrong.
    """
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise GeneratorError(
            f"{folder} is not a model folder ({CONFIG} and {WEIGHTS}): make one with "
            "`python launcher/consolidate.py --run DIR` (of weights from elsewhere with launcher/import_encoder.py)"
        )
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise GeneratorError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: it is not ours")
    try:
        return ModelConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise GeneratorError(f"{path}: {where}: {first['msg']}: it is of another version, or damaged") from None


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of a model folder's weights.

    Raises:
        GeneratorError: it is no model folder.
    """
    read_config(folder)
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class WeightsFile:
    """A safetensors file, opened with its header checked and no tensor read. It never unpickles.

    Raises:
        GeneratorError: on opening, when the file is no safetensors file or promises what it does not hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "pt"):  # checks that the parts follow each other and fill the file exactly
                pass
            self._file: BinaryIO = path.open("rb")
            self._entries, self._start = _read_header(self._file)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise GeneratorError(f"{path} is no file of weights: {str(error).splitlines()[0][:200]}") from None

    def check_fits(self, module: nn.Module) -> None:
        """Compare names, shapes and kinds of number with those of a network, before anything is read.

        Raises:
            GeneratorError: they differ; names the first tensor that does.
        """
        wanted = module.state_dict()
        for name in sorted(wanted.keys() | self._entries.keys()):
            if name not in wanted or name not in self._entries:
                where = CONFIG if name not in wanted else "the file"
                raise GeneratorError(f"{self.path} does not fit {CONFIG}: {where} knows no {name[:200]}")
            entry, tensor = self._entries[name], wanted[name]
            same_kind = entry.dtype.is_floating_point == tensor.dtype.is_floating_point
            if entry.shape != tuple(tensor.shape) or not same_kind:
                raise GeneratorError(
                    f"{self.path} does not fit {CONFIG}: {name} is {entry.dtype} of {list(entry.shape)}, "
                    f"{tensor.dtype} of {list(tensor.shape)} is needed"
                )

    def read(self, name: str) -> Tensor:
        """Return one tensor, in memory of its own, with the dtype of the file."""
        entry = self._entries[name]
        buffer = torch.empty(entry.size, dtype=torch.uint8)
        self._file.seek(self._start + entry.offset)
        if self._file.readinto(buffer.numpy().data) != entry.size:  # type: ignore[attr-defined]
            raise GeneratorError(f"{self.path} has become shorter while it was read")
        return buffer.view(entry.dtype).view(entry.shape)

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Entry(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size: int


def _read_header(file: BinaryIO) -> tuple[dict[str, _Entry], int]:
    """Return what each tensor of a safetensors file is, and where its data begins."""
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    entries = {}
    for name, part in header.items():
        if part["dtype"] not in DTYPES:
            raise ValueError(f"{name[:200]} is of type {part['dtype']}")
        start, stop = part["data_offsets"]
        entries[name] = _Entry(DTYPES[part["dtype"]], tuple(part["shape"]), start, stop - start)
    return entries, 8 + length


def empty_model(config: ModelConfig) -> nn.Module:
    """Return the network of a config on the meta device: shapes without memory.

    Raises:
        GeneratorError: the config asks for sizes that the network cannot have.
    """
    try:
        with torch.device("meta"):
            return build_model(config)
    except (NetworkError, RuntimeError) as error:
        raise GeneratorError(f"{CONFIG}: {str(error).splitlines()[0]}") from None


def load_model(folder: Path, *kinds: str) -> tuple[nn.Module, ModelConfig]:
    """Return the network (on the CPU, in eval mode) and config of a model folder.

    Weights are given memory only after the file was found to hold them; bfloat16 ones become float32.

    Raises:
        GeneratorError: not a model folder, of none of the kinds asked for, or weights that do not fit the config.
    """
    config = read_config(folder)
    if kinds and config.kind not in kinds:
        raise GeneratorError(f"{folder} holds a {config.kind}, a {' or '.join(kinds)} is needed here")
    try:
        module = empty_model(config)
    except NetworkError as error:
        raise GeneratorError(f"{folder / CONFIG}: {error}") from None
    with WeightsFile(folder / WEIGHTS) as file, torch.no_grad():
        file.check_fits(module)
        # Networks of timm may have buffers that are in no file: they are built again, with memory.
        module = module.to_empty(device="cpu") if config.architecture.encoder == UNET else build_model(config)
        for name, tensor in module.state_dict().items():
            tensor.copy_(file.read(name))
    return module.eval(), config


def save_model(out: Path, module: nn.Module, config: ModelConfig) -> None:
    """Write a network and its config as a model folder, whole or not at all.

    Raises:
        GeneratorError: `out` cannot be such a folder.
    """
    partial = partial_folder(out)
    write_model(partial, module, config)
    replace_folder(partial, out)


def write_model(folder: Path, module: nn.Module, config: ModelConfig) -> None:
    """Write the two files of a model folder into a folder that is there."""
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in module.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")


def partial_folder(out: Path) -> Path:
    """Make and return the folder in which a model folder is written before it takes its name, beside it.

    Raises:
        GeneratorError: `out` cannot be a model folder.
    """
    out = out.resolve()
    if not out.name or out.is_file():
        raise GeneratorError(f"{out} cannot be the folder of a model: name one that is new, or an older model's")
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    return partial


def replace_folder(partial: Path, out: Path) -> None:
    """Put `partial` in the place of `out`; only files of ours are removed from an old one."""
    if out.exists():
        for name in (WEIGHTS, CONFIG):
            (partial / name).replace(out / name)
        partial.rmdir()
    else:
        partial.rename(out)


def probe(module: nn.Module, image_size: int, device: torch.device) -> Tensor:
    """Return the network's output with running statistics, on the CPU, for a fixed luminance pattern of one image."""
    row = torch.linspace(-1.0, 1.0, image_size)
    pattern = torch.sin(9.0 * row)[:, None] * torch.cos(7.0 * row)[None, :] * 0.9
    with (
        evaluating(module),
        using_inference(module, "running"),
        torch.no_grad(),
        torch.backends.cudnn.flags(allow_tf32=False),
    ):
        output: Tensor = module(pattern[None, None].to(device)).float().cpu()
    return output


def source_version() -> str:
    """Return the commit of this source tree, or the installed version where it is no git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "0.1.0"
