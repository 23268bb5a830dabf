"""Models on disk: a folder of `model.safetensors` and `config.json`, which is all that later verbs take.

    checkpoint -> consolidate -> generator/ -> fine-tuning, evaluation, colorize
    fine-tuning -> model/ -> evaluation

`kind` is generator (luminance to chroma), classifier or segmenter. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from colorgan import checkpoint as checkpoints
from colorgan.errors import GeneratorError, NetworkError
from colorgan.networks import Classifier, UNet, evaluating

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_CONFIG_BYTES = 8 << 20
PROBE_TOLERANCE = 1e-3  # of outputs of order 1; a GPU's convolutions differ from the CPU's by about 1e-4
_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
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


class ModelConfig(BaseModel):
    """`config.json`: what the weights are, how colour is normalised, and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    kind: Literal["generator", "classifier", "segmenter"]
    architecture: Architecture
    ab_scale: float = Field(gt=0)
    inference: Literal["running", "paper"] = "running"
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    void: Literal["ignore", "background"] = "ignore"
    weights: Literal["raw", "average"] = "raw"
    images_seen: int = 0
    data_digest: str = ""
    source_version: str = ""
    recipe: dict[str, Any] = {}


def build_model(config: ModelConfig) -> nn.Module:
    """Return the network of a config, on the CPU, with undefined weights."""
    a = config.architecture
    common: dict[str, Any] = {
        "image_size": a.image_size,
        "width": a.width,
        "norm": a.norm,
        "bias_before_norm": a.bias_before_norm,
    }
    if config.kind == "classifier":
        return Classifier(**common, num_classes=a.num_outputs, hidden_width=a.head_width)
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
            "`python launcher/consolidate.py --run DIR`"
        )
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise GeneratorError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: it is not ours")
    try:
        return ModelConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise GeneratorError(f"{path}: {where}: {first['msg']}: it is of another version, or damaged") from None


def load_model(folder: Path, kind: str | None = None) -> tuple[nn.Module, ModelConfig]:
    """Return the network (on the CPU, in eval mode) and config of a model folder.

    Raises:
        GeneratorError: not a model folder, another kind than asked for, or weights that do not fit the config.
    """
    config = read_config(folder)
    if kind is not None and config.kind != kind:
        raise GeneratorError(f"{folder} holds a {config.kind}, a {kind} is needed here")
    try:
        module = build_model(config)
        module.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, NetworkError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise GeneratorError(f"{folder / WEIGHTS} does not fit {CONFIG}: {reason}") from None
    return module.eval(), config


def probe(module: nn.Module, image_size: int, device: torch.device) -> Tensor:
    """Return the network's eval-mode output, on the CPU, for a fixed luminance pattern of one image."""
    row = torch.linspace(-1.0, 1.0, image_size)
    pattern = torch.sin(9.0 * row)[:, None] * torch.cos(7.0 * row)[None, :] * 0.9
    with evaluating(module), torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        output: Tensor = module(pattern[None, None].to(device)).float().cpu()
    return output


def consolidate(
    source: checkpoints.Checkpoint, out: Path, weights: Literal["raw", "average"] | None = None
) -> ModelConfig:
    """Turn a checkpoint into a model folder, one tensor in memory at a time, dtypes kept; return its config.

    The weights are the average where there is one, unless `raw` is asked for. The loaded result is run on the probe
    input and compared with what the run recorded when it saved.

    Raises:
        CheckpointError: the checkpoint lacks the weights asked for.
        GeneratorError: the probe's output differs from the recorded one.
    """
    roles = source.roles()
    role = str(source.state["model_role"])
    which = weights or ("average" if f"{role}_average" in roles else "raw")
    config = ModelConfig.model_validate({**source.state["model"], "weights": which})
    stored = f"{role}_average" if which == "average" else role
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    write_safetensors(partial / WEIGHTS, source.shapes(stored), lambda: source.stream(stored))
    (partial / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")
    _check_probe(partial, source.tensors("probe")[which])
    _replace_folder(partial, out)
    return config


def _check_probe(folder: Path, recorded: Tensor) -> None:
    module, config = load_model(folder)
    difference = float((probe(module, config.architecture.image_size, torch.device("cpu")) - recorded).abs().max())
    if not difference <= PROBE_TOLERANCE:
        raise GeneratorError(
            f"{folder}: the network's output differs by {difference:.2g} from what the run recorded "
            f"(at most {PROBE_TOLERANCE:.0e}): the checkpoint and this version of colorgan do not belong together"
        )


def _replace_folder(partial: Path, out: Path) -> None:
    """Put `partial` in the place of `out`; only files of ours are removed from an old one."""
    if out.exists():
        for name in (WEIGHTS, CONFIG):
            (partial / name).replace(out / name)
        partial.rmdir()
    else:
        partial.rename(out)


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    stream: Callable[[], Iterator[tuple[str, Tensor]]],
) -> None:
    """Write a safetensors file from tensors that come one at a time, in the order of sorted names.

    Format: 8 bytes little-endian header length, JSON header, data (huggingface/safetensors README, "Format").
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(shapes):
        dtype, shape = shapes[name]
        size = dtype.itemsize * torch.Size(shape).numel()
        header[name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in stream():
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def source_version() -> str:
    """Return the commit of this source tree, or the installed version where it is no git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "0.1.0"
