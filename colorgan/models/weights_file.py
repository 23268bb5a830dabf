"""A safetensors file, written and read tensor by tensor. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from colorgan.errors import ModelFolderError
from colorgan.models.model_config import CONFIG

# Elements that are copied at a time: 16 MiB of float32.
BLOCK_ELEMENTS = 4 << 20
# By the format's names.
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


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors in memory as a safetensors file with the permissions that other files get.

    Raises:
        OSError: It cannot be written.
        SafetensorError: Likewise, as safetensors reports it.
    """
    # safetensors makes its files readable by their owner alone; one that Python makes has the
    # umask's permissions. The umask itself can only be read by changing it, for all threads.
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(dict(tensors), path, metadata=metadata)
    path.chmod(mode)


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    read: Callable[[str, int, int], Tensor],
) -> None:
    """Write a safetensors file block by block, so that no tensor is ever whole in memory.

    Format: 8 bytes little-endian header length, JSON header, data (huggingface/safetensors README,
    "Format").

    Args:
        path: The file to write.
        shapes: Type and shape of each tensor.
        read: `read(name, offset, length)` returns elements of a tensor; offsets ascend.
    """
    header = _header(shapes)
    with path.open("wb") as file:
        # Written by hand: safetensors' own writer wants all tensors in memory.
        file.write(struct.pack("<Q", len(header)) + header)
        for name in sorted(shapes):
            count = torch.Size(shapes[name][1]).numel()
            for start in range(0, count, BLOCK_ELEMENTS):
                block = read(name, start, min(BLOCK_ELEMENTS, count - start))
                file.write(block.contiguous().view(-1).view(torch.uint8).numpy().data)

        file.flush()
        # The folder is renamed next; its name must not survive a power cut that its bytes do not.
        os.fsync(file.fileno())


def _header(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    codes = {dtype: code for code, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(shapes):
        dtype, shape = shapes[name]
        end = offset + dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {
            "dtype": codes[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end

    text = json.dumps(entries, separators=(",", ":")).encode()
    # The data begins at a multiple of 8 bytes.
    return text + b" " * (-len(text) % 8)


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightsFile:
    """A safetensors file, opened with its header checked and no tensor read.

    Raises:
        ModelFolderError: On opening, when the file is not a safetensors file or its header names
            more data than the file has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Checks that the tensors follow each other and fill the file exactly.
            with safe_open(path, "pt") as file:
                self._entries = {name: _entry(file, name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            raise ModelFolderError(f"{path} is not a file of weights: {reason}") from None

    def check_fits(self, module: nn.Module) -> None:
        """Compare names, shapes and kinds of number with a network's, before anything is read.

        Raises:
            ModelFolderError: They differ; names the first tensor that does.
        """
        # Of a network on the meta device as a rule: nothing is allocated before the file has
        # passed.
        needed = module.state_dict()
        for name in sorted(needed.keys() | self._entries.keys()):
            if name not in needed:
                raise ModelFolderError(
                    f"{self.path} does not fit {CONFIG}: {CONFIG} has no {name[:200]}"
                )
            if name not in self._entries:
                raise ModelFolderError(
                    f"{self.path} does not fit {CONFIG}: the file has no {name[:200]}"
                )

            entry, tensor = self._entries[name], needed[name]
            # bf16 for float32 is welcome; integers for floats are a mistake.
            same_kind = entry.dtype.is_floating_point == tensor.dtype.is_floating_point
            if entry.shape != tuple(tensor.shape) or not same_kind:
                raise ModelFolderError(
                    f"{self.path} does not fit {CONFIG}: {name} is {entry.dtype} of "
                    f"{list(entry.shape)}, {tensor.dtype} of {list(tensor.shape)} is needed"
                )

    def read(self, name: str) -> Tensor:
        """Return one tensor, in memory of its own, with the dtype of the file.

        The file is opened for it alone: a mapping that stays open would count every tensor read so
        far as this process's memory.

        Raises:
            ModelFolderError: The file can no longer be read.
        """
        try:
            with safe_open(self.path, "pt") as file:
                tensor: Tensor = file.get_tensor(name).clone()
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0][:200]
            raise ModelFolderError(f"{self.path} can no longer be read: {reason}") from None
        return tensor


def _entry(file: Any, name: str) -> _Entry:
    part = file.get_slice(name)
    code = part.get_dtype()
    if code not in DTYPES:
        raise ValueError(f"{name[:200]} is of type {code}")
    return _Entry(DTYPES[code], tuple(part.get_shape()))
