"""This process among the ranks of a run: joining them, talking to them, its device.

A launcher (`accelerate launch`, torchrun, SLURM) starts one process per rank and sets RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; `joined_ranks` joins them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from colorgan.distributed.launch_profile import (
    DATA_PARALLEL,
    LaunchProfile,
    check_launch,
    launch_profile,
)
from colorgan.distributed.rendezvous import meet, read_place
from colorgan.errors import LaunchError, LostRankError
from colorgan.launchers import wants_cpu

NVIDIA_DEVICE = Path("/dev/nvidia0")
NVIDIA_VERSION = Path("/proc/driver/nvidia/version")
MIN_DRIVER = 580  # for CUDA 13
DeviceName = Literal["auto", "cuda", "cpu"]

# What torch's collectives raise as RuntimeError when a peer is gone (gloo) or did not come in time.
LOST = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|[Tt]imed out|NCCL|gloo|Socket", re.ASCII
)
# What NCCL raises for a fault on this side, such as two ranks on one GPU or no shared memory; its
# system errors are of either side.
OWN_FAULT = re.compile(r"invalid (usage|argument)|unhandled cuda error|internal error", re.ASCII)
SYSTEM_ERROR, LAST_ERROR = "unhandled system error", "Last error:"

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run.

    `control` is a gloo group for small CPU tensors and objects, also beside NCCL; None with one
    rank. `timeout_s` is how long a collective call waits; each further group needs it, too.
    """

    rank: int
    world_size: int
    device: torch.device
    control: Any = None
    profile: LaunchProfile = DATA_PARALLEL
    timeout_s: int = 600

    @staticmethod
    def single() -> Ranks:
        """Return the ranks of a command that runs in one process on the CPU."""
        return Ranks(0, 1, torch.device("cpu"))

    @property
    def main(self) -> bool:
        """True on rank 0, which alone logs and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank. Called on all ranks."""
        if self.control is not None:
            dist.barrier(group=self.control)

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value`, in rank order. Called on all ranks; values are small."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        # Over gloo also beside NCCL: objects would go through GPU memory and stall its stream.
        dist.all_gather_object(values, value, group=self.control)
        return values

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Do `work` on every rank; when it raises on one, every rank raises, so that none waits.

        Raises:
            LaunchError: It raised on another rank only; names the rank and its error.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as caught:
            error = caught

        # Before raising: a rank that left early would leave the others waiting in this gather.
        problems = self.gather(f"{type(error).__name__}: {error}" if error else "")
        if error is not None:
            # A rank's own error keeps its type and traceback; the others learn of it by text.
            raise error
        for rank, problem in enumerate(problems):
            if problem:
                raise LaunchError(f"rank {rank} failed: {problem}")
        return result  # type: ignore[return-value]


def is_lost_rank(error: BaseException) -> bool:
    """Return whether an error is what a collective call raises when another rank is gone."""
    if not isinstance(error, RuntimeError) or nccl_fault(error):
        return False
    # A kernel of this GPU may time out, too.
    is_cuda = str(error).startswith("CUDA error")
    return isinstance(error, dist.DistError) or (bool(LOST.search(str(error))) and not is_cuda)


def nccl_fault(error: BaseException) -> str:
    """Return what NCCL says of a fault on this side, such as a GPU that two ranks use; else ""."""
    text = str(error)
    if "NCCL" not in text:
        return ""

    # The first line says of which kind it is; its cause comes behind C++'s explanations.
    cause = text.partition(LAST_ERROR)[2].strip()
    is_system = SYSTEM_ERROR in text and bool(cause) and not LOST.search(cause)
    if not OWN_FAULT.search(first_line(error)) and not is_system:
        return ""
    return " ".join(cause.split())[:300] or first_line(error)


def first_line(error: BaseException) -> str:
    """Return the beginning of an error's text; torch's go on with the stack of C++."""
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


class LaggedAny:
    """Agree on a flag that any rank may raise, one call late and without waiting for slow ranks.

    Each call starts a small asynchronous sum and returns the result of the one before, which has
    usually arrived meanwhile. All ranks get the same answer at the same call. With one rank there
    is no lag.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._pending: tuple[torch.Tensor, Any] | None = None

    def update(self, flag: bool) -> bool:
        """Pass on this rank's flag; return whether any rank's was up at the call before.

        Called on all ranks.
        """
        if self._ranks.control is None:
            return flag

        raised = self.finish()
        # On the CPU over the control group: asking about a signal never waits for the GPU.
        total = torch.tensor([int(flag)])
        work = dist.all_reduce(total, group=self._ranks.control, async_op=True)
        self._pending = total, work
        return raised

    def finish(self) -> bool:
        """Wait for the sum in progress; return its answer. Called on all ranks."""
        if self._pending is None:
            return False
        total, work = self._pending
        self._pending = None
        work.wait()
        return bool(total.item())


@contextmanager
def joined_ranks(
    *,
    timeout_s: int,
    torch_threads: int = 0,
    deterministic: bool = True,
    tf32: bool = False,
    device: DeviceName = "auto",
) -> Iterator[Ranks]:
    """Join the process group and choose the GPU's algorithms; leave the group if all goes well.

    Every command that runs on several ranks begins with it. Called once, on all ranks.

    After an error the group is not left: NCCL's shutdown waits for the peers, and they wait for
    this rank in a collective call. The process must end instead
    (`colorgan.config.command.run_command` does that); the launcher then ends the others.

    Args:
        timeout_s: Seconds after which a collective call without an answer ends the run.
        torch_threads: Compute threads of this rank; 0 shares the machine's cores among its ranks.
        deterministic: As in `set_determinism`.
        tf32: Allow TF32 (10 bits of mantissa) in a GPU's float32 convolutions. Training allows it;
            scoring does not, so that a model's scores agree between a GPU and a CPU. Matrix
            products never use it.
        device: As in `open_ranks`.

    Raises:
        LaunchError: As in `open_ranks`.
        LostRankError: A collective call failed because another rank is gone.
    """
    try:
        ranks = open_ranks(timeout_s=timeout_s, torch_threads=torch_threads, device=device)
        set_determinism(deterministic)
        torch.backends.cudnn.allow_tf32 = tf32
        yield ranks
    except RuntimeError as error:
        if cause := nccl_fault(error):
            raise LaunchError(
                f"NCCL cannot connect this machine's GPUs: {cause}; `python launcher/doctor.py` "
                "examines them, NCCL_DEBUG=WARN says more"
            ) from error
        # A run names the rank itself (colorgan/runs/run.py); this is for all that is outside of it.
        if read_place().world_size > 1 and is_lost_rank(error):
            raise LostRankError(
                f"another rank ended or cannot be reached: {first_line(error)}; its own output "
                "says why"
            ) from error
        raise
    # Not in a `finally`: see above.
    close_ranks()


def open_ranks(*, timeout_s: int, torch_threads: int = 0, device: DeviceName = "auto") -> Ranks:
    """Join the process group that the launcher prepared. Called once, on all ranks.

    Args:
        timeout_s: Seconds after which a collective call without an answer ends the run.
        torch_threads: Compute threads of this rank; 0 shares the machine's cores among its ranks.
        device: "auto" takes a GPU where the launch profile does not ask for the CPU.

    Raises:
        LaunchError: A rank did not join, the launcher's variables contradict each other, or its
            profile does not fit this machine.
    """
    place = read_place()
    world_size, rank = place.world_size, place.rank
    # Before the group is joined: a launcher's mistake would show as a timeout there.
    check_launch()
    profile = launch_profile()
    torch.set_num_threads(torch_threads or cores_a_rank())
    own_device = chosen_device(device, place.local_rank)
    # No process group, no port: a single process runs where networking is not allowed.
    if world_size == 1:
        return Ranks(0, 1, own_device, profile=profile)

    # By the device that was chosen, not by what torch was built with.
    backend = "nccl" if own_device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    device_id = own_device if own_device.type == "cuda" else None
    store = meet(place)
    store.set_timeout(timeout)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device_id,
    )

    control = dist.group.WORLD
    if backend == "nccl":
        # NCCL takes tensors on GPUs only; objects and flags go through this one.
        control = dist.new_group(backend="gloo", timeout=timeout)
    return Ranks(rank, world_size, own_device, control, profile, timeout_s)


def close_ranks() -> None:
    """Leave the process group. Called on all ranks, and only when all went well."""
    if dist.is_initialized():
        dist.destroy_process_group()


def cores_a_rank(local_world_size: int | None = None) -> int:
    """Return how many of this machine's cores one rank may use, at least 1."""
    size = local_world_size or int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # The affinity, not the machine's count: SLURM and containers give a job a part of the cores.
    return max(1, len(os.sched_getaffinity(0)) // size)


def num_nodes(world_size: int) -> int:
    """Return how many machines the ranks run on, if each has as many as this one."""
    return max(1, world_size // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def has_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies in bfloat16 itself.

    Ampere and later GPUs do (Turing emulates it, slowly), and CPUs with AMX or AVX-512 BF16.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    units = torch.cpu.get_capabilities()
    return bool(units.get("amx_bf16") or units.get("avx512_bf16"))


def chosen_device(name: DeviceName, local_rank: int = 0) -> torch.device:
    """Return the device that a process computes on.

    Args:
        name: "auto" takes a GPU where the launch profile does not ask for the CPU.
        local_rank: Number of the process on its machine, and of its GPU.

    Raises:
        LaunchError: "cuda" was asked for and PyTorch finds no GPU, or "auto" would compute on the
            CPU of a machine whose GPU PyTorch cannot use.
    """
    if name == "cpu":
        return torch.device("cpu")

    device = _device(local_rank)
    if name == "cuda" and device.type != "cuda":
        raise LaunchError(
            "--device cuda: PyTorch finds no GPU here, or the launch profile asks for the CPU"
        )
    return device


def _device(local_rank: int) -> torch.device:
    # First: a CPU profile on a GPU machine is a wish, not a mistake.
    if wants_cpu():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        _refuse_hidden_gpu()
        _refuse_idle_gpus()
        return torch.device("cpu")

    # srun --gpus-per-task shows each task its own GPU only. Not so where a task has several ranks.
    is_task = "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_LOCALID") == str(local_rank)
    if torch.cuda.device_count() == 1 and is_task:
        local_rank = 0
    if local_rank >= torch.cuda.device_count():
        raise LaunchError(
            f"local rank {local_rank} has no GPU: this machine has {torch.cuda.device_count()}; "
            "start as many processes as there are GPUs (--num_processes)"
        )
    # Before any tensor is put there: the first kernel would fail with a message about kernels.
    _check_architecture(local_rank)
    # NCCL and DALI take the current device, which would be GPU 0 on every rank.
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _refuse_hidden_gpu() -> None:
    """Raise if the machine has an NVIDIA GPU that this PyTorch cannot use.

    Training would run on the CPU, which nobody who has a GPU wants.
    """
    if not NVIDIA_DEVICE.exists():
        return

    version = driver_version()
    found = f"PyTorch's CUDA {torch.version.cuda} finds no usable device"
    if torch.version.cuda is None:
        reason = f"PyTorch {torch.__version__} is built for CPUs only: install its CUDA build"
    elif version is not None and version < MIN_DRIVER:
        reason = (
            f"{found} (NVIDIA driver {version:g}; CUDA 13 needs {MIN_DRIVER} or newer): update the "
            "driver"
        )
    elif not os.access(NVIDIA_DEVICE, os.R_OK | os.W_OK):
        reason = f"{found}, and this job may not open {NVIDIA_DEVICE}: ask for a GPU"
    else:
        reason = f"{found} (NVIDIA driver {version or 'unknown'}); PyTorch's warning says why"
    raise LaunchError(
        f"this machine has an NVIDIA GPU, but {reason}; to train on the CPU, set "
        "CUDA_VISIBLE_DEVICES=-1"
    )


def _refuse_idle_gpus() -> None:
    """Raise if SLURM has given the job GPUs that PyTorch cannot use."""
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    if gpus.isdigit() and int(gpus) > 0:
        raise LaunchError(
            f"SLURM has given this job {gpus} GPUs on this node, but PyTorch {torch.__version__} "
            "sees none: the job would run on the CPU. Install PyTorch's CUDA build and load the "
            "driver, or set CUDA_VISIBLE_DEVICES=-1 to run on the CPU"
        )


def driver_version() -> float | None:
    """Return the loaded NVIDIA driver's major and minor version; None without a driver."""
    try:
        text = NVIDIA_VERSION.read_text()
    except OSError:
        return None
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+\.\d+)", text)
    return float(found[1]) if found else None


def _check_architecture(index: int) -> None:
    """Raise if this PyTorch has no kernels for the GPU; its first layer would fail unexplained.

    Kernels of one architecture also run on later ones of the same major version; PTX runs on all
    later ones.
    """
    major, minor = torch.cuda.get_device_capability(index)
    names = torch.cuda.get_arch_list()
    for name in names:
        kind, _, number = name.partition("_")
        digits = re.match(r"\d+", number)
        if digits is None:
            continue
        built_major, built_minor = divmod(int(digits[0]), 10)
        if kind == "compute" and (built_major, built_minor) <= (major, minor):
            return
        if kind == "sm" and built_major == major and built_minor <= minor:
            return
    raise LaunchError(
        f"GPU {index} ({torch.cuda.get_device_name(index)}) has compute capability "
        f"{major}.{minor}, but this PyTorch is built for {', '.join(names)}: use a newer GPU or "
        "another build of PyTorch, or set CUDA_VISIBLE_DEVICES=-1 to train on the CPU"
    )


def set_determinism(deterministic: bool = True) -> None:
    """Choose cuDNN's algorithms: the same numbers every time, or the fastest ones measured.

    Called once, before networks are built.
    """
    torch.backends.cudnn.deterministic = deterministic
    # Measuring picks by time, so two runs may compute with different algorithms.
    torch.backends.cudnn.benchmark = not deterministic
