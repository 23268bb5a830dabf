"""DeepSpeed's flat buffers by parameter and offset, to save and load them as named pieces.

DeepSpeed's own checkpoints cannot do that: they hold pickles and depend on the number of ranks. The
attributes read here are not public: the version of DeepSpeed is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from colorgan.distributed.state import Piece
from colorgan.errors import LaunchError


@dataclass(frozen=True)
class Owned:
    """Elements of a parameter within a flat buffer that this rank's optimizer updates."""

    name: str
    shape: tuple[int, ...]
    offset: int  # in the parameter
    start: int  # in the buffer
    length: int  # 0: no element of this parameter is in the buffer


@dataclass(frozen=True)
class FlatBuffer:
    """A buffer that the optimizer updates, and the parameters' elements in it, in order."""

    values: Tensor
    owned: list[Owned]


def flat_buffers(engine: Any, module: nn.Module) -> list[FlatBuffer]:
    """Return an engine's flat buffers on this rank.

    Raises:
        LaunchError: This version of DeepSpeed keeps its state differently.
    """
    # By identity, as DeepSpeed's lists hold the parameters without their names.
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    optimizer, rank = engine.optimizer, dist.get_rank()
    try:
        # An attribute of stage 3 alone.
        if hasattr(optimizer, "fp32_partitioned_groups_flat"):
            return _stage_3(optimizer, names, rank)
        return _stages_1_2(optimizer, names, rank)
    except AttributeError as error:
        raise LaunchError(
            f"this version of DeepSpeed keeps its state differently from 0.19.8 ({error}): install "
            "that version"
        ) from None


def _stages_1_2(optimizer: Any, names: dict[int, str], rank: int) -> list[FlatBuffer]:
    """Read stages 1 and 2: a group's parameters in one buffer, cut into as many parts as ranks."""
    buffers = []
    for group, flat in enumerate(optimizer.single_partition_of_fp32_groups):
        # The group's parameters lie end to end, and each rank owns one stretch across their
        # borders.
        first, last = rank * flat.numel(), (rank + 1) * flat.numel()
        parameters = optimizer.round_robin_bit16_groups[group]
        begins = optimizer.round_robin_bit16_offsets[group]

        owned: list[Owned] = []
        for parameter, begin in zip(parameters, begins, strict=True):
            start = max(begin, first)
            stop = min(begin + parameter.numel(), last)
            owned.append(
                Owned(
                    names[id(parameter)],
                    tuple(parameter.shape),
                    offset=start - begin,
                    start=start - first,
                    length=max(0, stop - start),
                )
            )
        buffers.append(FlatBuffer(flat, owned))
    return buffers


def _stage_3(optimizer: Any, names: dict[int, str], rank: int) -> list[FlatBuffer]:
    """Read stage 3: each parameter cut into equal parts, the last padded; a buffer per rank."""
    buffers = []
    for group, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
        owned: list[Owned] = []
        position = 0
        for parameter in optimizer.fp16_groups[group]:
            name, each = names[id(parameter)], parameter.ds_tensor.ds_numel
            length = _partition_length(parameter, rank)
            owned.append(Owned(name, tuple(parameter.ds_shape), rank * each, position, length))
            # The padded length: the buffer holds the padding, too.
            position += each
        buffers.append(FlatBuffer(flat, owned))
    return buffers


def partition(parameter: Any, rank: int) -> Piece:
    """Return the part of a weight on this rank in stage 3, as a view."""
    each = parameter.ds_tensor.ds_numel
    values = parameter.ds_tensor.data.view(-1)[: _partition_length(parameter, rank)]
    return Piece(values, tuple(parameter.ds_shape), rank * each)


def _partition_length(parameter: Any, rank: int) -> int:
    """Return the number of elements of a rank's part, without the padding of the last part."""
    each: int = parameter.ds_tensor.ds_numel
    # Zero for the last ranks of a small parameter, which hold nothing but padding.
    return max(0, min(each, int(parameter.ds_numel) - rank * each))
