"""A safetensors file read and written tensor by tensor."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from colorgan.errors import ModelFolderError

RUN_ELEMENTS = 4 << 20  # copied at a time: 16 MiB of float32


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    read: Callable[[str, int, int], Tensor],
) -> None:
    """Write a safetensors file from tensors that are read in runs: `read(name, offset, length)`, in elements.

    Format: 8 bytes little-endian header length, JSON header, data (huggingface/safetensors README,
    "Format").
    """
    names = {code: name for name, code in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(shapes):
        dtype, shape = shapes[name]
        size = dtype.itemsize * torch.Size(shape).numel()
        header[name] = {
            "dtype": names[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(shapes):
            count = torch.Size(shapes[name][1]).numel()
            for start in range(0, count, RUN_ELEMENTS):
                run = read(name, start, min(RUN_ELEMENTS, count - start))
                file.write(run.contiguous().view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


WEIGHTS, CONFIG = "model.safetensors", "config.json"


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


class WeightsFile:
    """A safetensors file, opened with its header checked and no tensor read. It never unpickles.

    Raises:
        ModelFolderError: on opening, when the file is no safetensors file or promises what it does
            not hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(
                path, "pt"
            ):  # checks that the parts follow each other and fill the file exactly
                pass
            self._file: BinaryIO = path.open("rb")
            self._entries, self._start = _read_header(self._file)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise ModelFolderError(
                f"{path} is no file of weights: {str(error).splitlines()[0][:200]}"
            ) from None

    def check_fits(self, module: nn.Module) -> None:
        """Compare names, shapes and kinds of number with those of a network, before anything is read.

        Raises:
            ModelFolderError: they differ; names the first tensor that does.
        """
        wanted = module.state_dict()
        for name in sorted(wanted.keys() | self._entries.keys()):
            if name not in wanted or name not in self._entries:
                where = CONFIG if name not in wanted else "the file"
                raise ModelFolderError(
                    f"{self.path} does not fit {CONFIG}: {where} knows no {name[:200]}"
                )
            entry, tensor = self._entries[name], wanted[name]
            same_kind = entry.dtype.is_floating_point == tensor.dtype.is_floating_point
            if entry.shape != tuple(tensor.shape) or not same_kind:
                raise ModelFolderError(
                    f"{self.path} does not fit {CONFIG}: {name} is {entry.dtype} of {list(entry.shape)}, "
                    f"{tensor.dtype} of {list(tensor.shape)} is needed"
                )

    def read(self, name: str) -> Tensor:
        """Return one tensor, in memory of its own, with the dtype of the file."""
        entry = self._entries[name]
        buffer = torch.empty(entry.size, dtype=torch.uint8)
        self._file.seek(self._start + entry.offset)
        if self._file.readinto(buffer.numpy().data) != entry.size:  # type: ignore[attr-defined]
            raise ModelFolderError(f"{self.path} has become shorter while it was read")
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
