"""Checks of the machine without training: driver, precision, cores, memory, files, disk."""

from __future__ import annotations

import os
import resource
import shutil
import time
from pathlib import Path

import torch

from colorgan.distributed.ranks import MIN_DRIVER, driver_version, has_bf16
from colorgan.doctor.record import Finding

MIN_CAPABILITY = (7, 5)  # Turing, the oldest architecture in CUDA 13's wheels

# DALI's and torch's worker memory; a container's default of 64 MB is too little.
MIN_SHARED_MB = 256
# A shard set keeps up to 256 shards open, each rank its sockets and logs.
MIN_OPEN_FILES = 1024
MIN_FREE_GB = 5.0

BUSY_LOAD = 0.5  # load of other processes, as a share of the cores, that costs measurable speed
READ_MB = 64
MIN_READ_MB_PER_S = 50.0  # 1,000 images of 50 kB per second


def check_driver(device: torch.device) -> Finding:
    """Check the NVIDIA driver against what CUDA 13 needs; on a CPU, that no GPU is overlooked."""
    # From the kernel, not from torch, which is what is in doubt.
    version = driver_version()
    if device.type == "cpu":
        if version is None:
            return Finding(name="GPU", verdict="fine", detail="none here: training runs on the CPU")
        return Finding(
            name="GPU",
            verdict="broken",
            detail=f"driver {version:g} is loaded, but PyTorch {torch.__version__} shows no GPU",
            advice=(
                f"install driver {MIN_DRIVER} or newer, and a CUDA build of torch; unset "
                "CUDA_VISIBLE_DEVICES and ACCELERATE_USE_CPU"
            ),
        )

    names = ", ".join(
        torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
    )
    if version is not None and version < MIN_DRIVER:
        return Finding(
            name="GPU",
            verdict="broken",
            detail=f"{names}; driver {version:g} is older than CUDA 13 needs",
            advice=f"install driver {MIN_DRIVER} or newer",
        )
    shown = f"driver {version:g}" if version is not None else "driver version unknown"
    return Finding(name="GPU", verdict="fine", detail=f"{names}; {shown}")


def check_architecture(device: torch.device) -> Finding:
    """Check that this torch has kernels for the GPU, or name the CPU's matrix units."""
    if device.type == "cpu":
        # `is True`: the table also holds numbers, such as the size of a cache.
        units = [name for name, has in torch.cpu.get_capabilities().items() if has is True]
        shown = ", ".join(unit for unit in units if unit.startswith(("avx512", "amx")))
        return Finding(name="architecture", verdict="fine", detail=shown or "no AVX-512, no AMX")

    capability = torch.cuda.get_device_capability(device)
    built_for = torch.cuda.get_arch_list()
    shown = f"compute capability {capability[0]}.{capability[1]}, torch has {', '.join(built_for)}"
    if capability < MIN_CAPABILITY:
        return Finding(
            name="architecture",
            verdict="broken",
            detail=f"{shown}: no kernels for this GPU",
            advice="use a Turing GPU or newer, or a torch built for CUDA 12",
        )
    return Finding(name="architecture", verdict="fine", detail=shown)


def check_precision(device: torch.device) -> Finding:
    """Say whether bf16 runs on matrix units here."""
    if has_bf16(device):
        return Finding(name="bf16", verdict="fine", detail="native: use --batch.precision bf16")
    return Finding(
        name="bf16",
        verdict="slow",
        detail="this device has no bf16 units and emulates them",
        advice="train with --batch.precision fp32",
    )


def check_cores() -> Finding:
    """Compare cores, threads and the load of other processes."""
    cores = num_cores()
    # While this process sleeps, so that it does not count itself.
    others = load_of_others()
    figures = {"cores": cores, "load": others, "threads": torch.get_num_threads()}
    detail = f"{cores} cores, {torch.get_num_threads()} threads, load by others {others:.1f}"

    if others > BUSY_LOAD * cores:
        return Finding(
            name="cores",
            verdict="slow",
            detail=f"{detail}: other work takes the cores",
            advice="end the other work, or give each rank fewer threads (--launch.torch_threads 1)",
            figures=figures,
        )
    # More threads than cores wait for each other at every operation.
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdigit() and int(limit) > cores:
        return Finding(
            name="cores",
            verdict="slow",
            detail=f"{detail}, but OMP_NUM_THREADS is {limit}",
            advice=f"unset OMP_NUM_THREADS, or set it to {cores} at most",
            figures=figures,
        )
    return Finding(name="cores", verdict="fine", detail=detail, figures=figures)


def check_shared_memory(path: Path = Path("/dev/shm")) -> Finding:
    """Check the room in /dev/shm, which ranks and loaders use to exchange tensors."""
    if not path.is_dir():
        return Finding(
            name="shared memory",
            verdict="broken",
            detail=f"{path} is missing",
            advice="mount a tmpfs there (docker: --shm-size 2g)",
        )
    free_mb = shutil.disk_usage(path).free / 1e6
    detail = f"{free_mb:,.0f} MB free in {path}"
    if free_mb < MIN_SHARED_MB:
        return Finding(
            name="shared memory",
            verdict="broken",
            detail=f"{detail}, {MIN_SHARED_MB} MB are needed",
            advice=f"remove leftover files in {path}, or enlarge it (docker: --shm-size 2g)",
            figures={"free_mb": free_mb},
        )
    return Finding(
        name="shared memory", verdict="fine", detail=detail, figures={"free_mb": free_mb}
    )


def check_open_files() -> Finding:
    """Check the limit of open files per process."""
    # The soft limit holds; the hard one is how far a user may raise it.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MIN_OPEN_FILES:
        return Finding(
            name="open files",
            verdict="broken",
            detail=f"{soft} allowed per process, sets of many shards need {MIN_OPEN_FILES}",
            advice=f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}",
        )
    return Finding(name="open files", verdict="fine", detail=f"{soft} allowed per process")


def check_disk(folder: Path) -> Finding:
    """Check free space and reading speed where runs are written.

    The file that is read is dropped from the page cache first, so that the disk is measured.
    """
    free_gb = shutil.disk_usage(folder).free / 1e9
    rate = _read_rate(folder)
    figures = {"free_gb": free_gb, "read_mb_per_s": rate}
    detail = f"{free_gb:,.0f} GB free in {folder.resolve()}, reads {rate:,.0f} MB/s"

    if free_gb < MIN_FREE_GB:
        return Finding(
            name="disk",
            verdict="broken",
            detail=f"{detail}: checkpoints of a full-size network need {MIN_FREE_GB:g} GB",
            advice="free some space, or run in a folder on another disk",
            figures=figures,
        )
    if rate < MIN_READ_MB_PER_S:
        return Finding(
            name="disk",
            verdict="slow",
            detail=detail,
            advice="copy shards to a local disk first (COLORGAN_STAGE_DIR=/local/folder)",
            figures=figures,
        )
    return Finding(name="disk", verdict="fine", detail=detail, figures=figures)


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def load_of_others(seconds: float = 1.0) -> float:
    """Return how many cores are busy now, by what /proc/stat counts while this process sleeps."""
    before = _busy_seconds()
    time.sleep(seconds)
    return max(0.0, (_busy_seconds() - before) / seconds)


def _busy_seconds() -> float:
    """Return the CPU seconds that all cores have spent at work since boot."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    # Waiting for a disk keeps no core busy.
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _read_rate(folder: Path) -> float:
    """Return the MB/s at which a file that is not in the page cache is read."""
    path = folder / f".doctor-{os.getpid()}"
    # Random: some disks compress, and zeros would be read from nowhere.
    block = os.urandom(1_000_000)
    try:
        with path.open("wb") as file:
            for _ in range(READ_MB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            # Or the page cache would be measured in place of the disk.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        began = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.read(1_000_000):
                pass
        return READ_MB / max(time.perf_counter() - began, 1e-6)
    finally:
        path.unlink(missing_ok=True)
