"""Run whole steps of a CPU build of torch on fake CUDA tensors: shapes, dtypes, devices.

Import it first, in a process of its own: it changes what torch knows about CUDA for good.

    with fake_cuda.MODE: ...   torch.empty(2, device="cuda") and all that follows

An operator that meets a CPU tensor and a CUDA tensor raises, as on a GPU. Autograd's engine asks
the driver for streams, so there is no backward pass: `fill_gradients` stands in for one.
"""

from __future__ import annotations

import ctypes
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

PROJECT = Path(__file__).resolve().parents[2]

# Places of CUDA and of the meta device in c10::DeviceType.
_CUDA, _META = 1, 14
# Operators that read a value of a device tensor, so that the host waits for all queued work.
_READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique", "masked_select")

# Several modes in turn crash now and then: one for the process.
MODE = FakeTensorMode(allow_non_fake_inputs=True)


def _give_cuda_the_meta_guard() -> None:
    """Let CUDA's device guard, which is missing in a CPU build, be the one that does nothing."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    registry = "_ZN3c104impl26device_guard_impl_registryE"
    guards = (ctypes.c_void_p * 24).in_dll(library, registry)
    guards[_CUDA] = guards[_META]


def _module_to(
    module: nn.Module, *args: Any, memory_format: Any = None, **kwargs: Any
) -> nn.Module:
    """Move a module by new parameters: the in-place swap of `Module.to` refuses fake tensors."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if memory_format is not None:
                # Optimizers hold these very parameters: only their strides change.
                if parameter.dim() == 4:
                    parameter.data = parameter.detach().contiguous(memory_format=memory_format)
                continue
            moved = parameter.detach().to(*args, **kwargs)
            part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None and memory_format is None:
                part._buffers[name] = buffer.to(*args, **kwargs)

    return module


def _deepcopy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Copy a fake tensor: torch's own `__deepcopy__` copies a storage, which fake tensors lack."""
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
    copy: Tensor = memo[id(tensor)]
    return copy


def _tolist(tensor: FakeTensor) -> Any:
    """Read a fake tensor: a copy to the host, which `Work` counts, and zeros for its values."""
    tensor.cpu()
    return np.zeros(tuple(tensor.shape)).tolist()


def fill_gradients(module: nn.Module) -> None:
    """Stand in for a backward pass: every parameter that learns gets a gradient of its shape."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            fresh = torch.empty_like(parameter)
            parameter.grad = fresh if parameter.grad is None else parameter.grad + fresh


class Work(TorchDispatchMode):
    """Counts operators, and by line of the project what makes the host wait for the device.

    Attributes:
        operators: How many operators ran.
        waits: Line -> how often it waited: values read, and copies between devices that are not
            `non_blocking`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        """Run the operator and count it."""
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        self.operators += 1
        if name in _READS or self._is_blocking_copy(name, args, kwargs, output):
            self.waits[f"{name} {_project_line()}"] += 1
        return output

    @staticmethod
    def _is_blocking_copy(name: str, args: Any, kwargs: Any, output: Any) -> bool:
        if name not in ("_to_copy", "copy_"):
            return False
        flat, _ = tree_flatten((args, kwargs, output))
        devices = {value.device.type for value in flat if isinstance(value, Tensor)}
        non_blocking = (kwargs or {}).get("non_blocking", False) or True in args[2:]
        return len(devices) > 1 and not non_blocking


def _project_line() -> str:
    """Return the innermost line of the project's packages on the stack."""
    lines = [
        frame
        for frame in traceback.extract_stack()
        if frame.filename.startswith((f"{PROJECT}/colorgan/", f"{PROJECT}/shards/"))
    ]
    if not lines:
        return "outside the project"

    return f"{Path(lines[-1].filename).relative_to(PROJECT)}:{lines[-1].lineno}"


_give_cuda_the_meta_guard()
torch._C._ensureCUDADeviceGuardSet = lambda: None
torch.cuda._lazy_init = lambda: None
torch.cuda.current_device = lambda: 0
torch.cuda.is_bf16_supported = lambda *_, **__: True
# Else torch.autocast("cuda") switches itself off.
torch.cuda.amp.common.amp_definitely_not_available = lambda: False
nn.Module.to = _module_to
Tensor.__deepcopy__ = _deepcopy
nn.Parameter.__deepcopy__ = _deepcopy
# Pinned memory is the driver's; here the tensor itself serves.
Tensor.pin_memory = lambda self, *_: self
FakeTensor.tolist = _tolist
