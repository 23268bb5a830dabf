"""Joining ranks: which device is used, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from colorgan.devices import exact_float32
from colorgan.distributed import ranks as module
from colorgan.distributed.ranks import (
    chosen_device,
    is_lost_rank,
    joined_ranks,
    nccl_fault,
    open_ranks,
)
from colorgan.errors import LaunchError


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what the shell of the tests may have set."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert torch.get_num_threads() == threads


def show_gpu(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    built_for: list[str],
) -> None:
    """Pretend that torch sees one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)


@pytest.mark.parametrize(
    ("capability", "built_for"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_120", "compute_120"]),
        ((8, 0), ["sm_86", "sm_90a"]),
    ],
)
def test_a_gpu_without_kernels_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    built_for: list[str],
) -> None:
    show_gpu(monkeypatch, capability, built_for)
    with pytest.raises(LaunchError, match=r"V100\) has compute capability .*this PyTorch is built"):
        open_ranks(timeout_s=1)


@pytest.mark.parametrize(
    "capability",
    [
        (7, 5),
        (8, 0),
        (8, 9),
        (9, 0),
        (12, 0),
        (12, 1),
        (13, 0),
    ],
)
def test_a_gpu_with_kernels_is_used(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    show_gpu(monkeypatch, capability, ["sm_75", "sm_80", "sm_90", "sm_120", "compute_120"])
    assert open_ranks(timeout_s=1).device == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [(None, "built for CPUs only"), ("13.0", "NVIDIA driver 570.86; .*update the driver")],
)
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, reason: str
) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Release\n")
    monkeypatch.setattr(module, "NVIDIA_DEVICE", version)
    monkeypatch.setattr(module, "NVIDIA_VERSION", version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LaunchError, match=rf"has an NVIDIA GPU, but .*{reason}"):
        open_ranks(timeout_s=1)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert open_ranks(timeout_s=1).device.type == "cpu"


def test_a_new_driver_is_not_to_be_updated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  590.44.01  Release\n")
    monkeypatch.setattr(module, "NVIDIA_VERSION", version)
    monkeypatch.setattr(module, "NVIDIA_DEVICE", version)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LaunchError, match=r"driver 590.44\); PyTorch's warning says why"):
        open_ranks(timeout_s=1)

    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(LaunchError, match=r"this job may not open .*: ask for a GPU"):
        open_ranks(timeout_s=1)


def test_one_visible_gpu_is_a_tasks_own_only_where_the_task_is_the_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    show_gpu(monkeypatch, (9, 0), ["sm_90"])
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert chosen_device("auto", 1) == torch.device("cuda", 0)

    monkeypatch.setenv("SLURM_LOCALID", "0")
    with pytest.raises(LaunchError, match="local rank 1 has no GPU"):
        chosen_device("auto", 1)


NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:93, {}, NCCL version 2.28.9"
)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            f"{NCCL.format('invalid usage (run with NCCL_DEBUG=WARN for details)')}\n"
            "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
            "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device ac000",
            "Duplicate GPU detected",
        ),
        (
            f"{NCCL.format('unhandled cuda error')}\nLast error:\nCuda failure 2 'out of memory'",
            "Cuda failure 2",
        ),
        (
            f"{NCCL.format('unhandled system error')}\nLast error:\n"
            "Error while creating shared memory segment /dev/shm/nccl-x (size 9637888), error: "
            "No space left on device (28)",
            "creating shared memory segment",
        ),
        (
            f"{NCCL.format('unhandled system error')}\nLast error:\n"
            "socketProgress: Connection closed by remote peer node7<39021>",
            "",
        ),
        (f"{NCCL.format('remote process exited or there was a network error')}", ""),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7) timed out", ""),
    ],
)
def test_a_fault_of_this_machines_gpus_is_no_lost_rank(text: str, cause: str) -> None:
    error = torch.distributed.DistBackendError(text)
    assert is_lost_rank(error) == (not cause)
    assert cause in nccl_fault(error)
    if cause:
        with pytest.raises(LaunchError, match=cause), joined_ranks(timeout_s=1):
            raise error


def test_a_kernel_that_timed_out_is_no_lost_rank() -> None:
    error = RuntimeError("CUDA error: the launch timed out and was terminated")
    assert not is_lost_rank(error)


def test_a_command_that_fails_does_not_leave_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[bool] = []
    monkeypatch.setattr(module, "close_ranks", lambda: left.append(True))

    with pytest.raises(KeyError), joined_ranks(timeout_s=1):
        raise KeyError
    assert not left

    with joined_ranks(timeout_s=1):
        pass
    assert left == [True]


def test_tf32_is_for_training_only() -> None:
    before = torch.backends.cudnn.allow_tf32

    try:
        with joined_ranks(timeout_s=1):
            assert not torch.backends.cudnn.allow_tf32
        with joined_ranks(timeout_s=1, tf32=True):
            with exact_float32():
                assert not torch.backends.cudnn.allow_tf32
            assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_the_cpu_can_be_asked_for_and_a_missing_gpu_is_said() -> None:
    assert chosen_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(LaunchError, match="PyTorch finds no GPU"):
            chosen_device("cuda")


def test_a_slurm_job_with_gpus_does_not_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "NVIDIA_DEVICE", Path("/nowhere"))
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    with pytest.raises(LaunchError, match=r"given this job 4 GPUs .* would run on the CPU"):
        open_ranks(timeout_s=1)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # asked for
    assert open_ranks(timeout_s=1).device == torch.device("cpu")
