"""Small things that depend on the device: copies that do not wait for it, exact float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on a device.

    The host does not wait for a GPU's queue, as a copy of pageable memory would.

    Args:
        tensor: On the CPU, or already on the device, where it is returned as it is.
        device: Where it is needed.
    """
    if device.type != "cuda" or tensor.device == device:
        return tensor.to(device)
    # Pinned first: from pageable memory the copy waits for all that is queued on the GPU.
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def exact_float32() -> Iterator[None]:
    """While open, convolutions and matrix products of a GPU are computed in float32, not in TF32.

    TF32 keeps 10 bits of the mantissa: scores of one model then differ from the CPU's in the fourth
    digit.
    """
    # Two switches: cuDNN's default is on, that of matrix products is off.
    convolutions = torch.backends.cudnn.allow_tf32
    products = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.matmul.allow_tf32 = products
