"""The doctor's work: all checks in turn, the table, doctor.json, and a suggested recipe."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from colorgan.distributed.ranks import has_bf16
from colorgan.doctor import checks, machine
from colorgan.doctor.record import Examination, Finding, table
from colorgan.doctor.settings import IMAGE_SIZE, DoctorSettings
from colorgan.launchers import wants_cpu
from colorgan.runs.provenance import device_name, source_version, versions


def examine(settings: DoctorSettings, data: Path) -> Examination:
    """Run every check, print each finding as it comes, and write doctor.json.

    Args:
        settings: From the command line.
        data: Packed images of IMAGE_SIZE, for the checks that read data.
    """
    began = time.monotonic()
    on_cpu = settings.device == "cpu" or wants_cpu() or not torch.cuda.is_available()
    device = torch.device("cpu") if on_cpu else torch.device("cuda", 0)
    # Two on a CPU: enough to see ranks talk.
    world_size = 2 if on_cpu else torch.cuda.device_count()
    bench = checks.Bench(data, IMAGE_SIZE, on_cpu, world_size)

    findings: list[Finding] = []
    # Needed before the first check, which measures this disk.
    settings.out.mkdir(parents=True, exist_ok=True)
    for finding in _examinations(settings, device, bench):
        # One by one: some checks take a minute, and a hang shows where it is.
        print(table((finding,)), flush=True)
        findings.append(finding)

    # Last, as it is the longest and says least about what is broken.
    steps, batch = _measure(settings, device, bench)
    findings += steps
    print(table(tuple(steps)), flush=True)

    examination = Examination(
        device=device_name(device),
        versions=versions(source_version()),
        findings=tuple(findings),
        suggested=_suggested(batch, device),
        gflop_per_s=checks.best_rates(steps),
        seconds=time.monotonic() - began,
    )
    path = examination.write(settings.out)
    print(_summary(examination, path))
    return examination


def _examinations(
    settings: DoctorSettings, device: torch.device, bench: checks.Bench
) -> Iterator[Finding]:
    """Yield the findings, the quick ones first."""
    quick: tuple[Callable[[], Finding], ...] = (
        lambda: machine.check_driver(device),
        lambda: machine.check_architecture(device),
        lambda: machine.check_precision(device),
        machine.check_cores,
        machine.check_shared_memory,
        machine.check_open_files,
        lambda: machine.check_disk(settings.out),
    )
    for check in quick:
        yield check()

    yield checks.check_decoding(bench)
    yield checks.check_all_reduce(bench)
    yield checks.check_error_on_one_rank(bench)
    with tempfile.TemporaryDirectory(dir=settings.out, prefix=".doctor-") as folder:
        yield checks.check_resume(bench, Path(folder))
    yield checks.check_deepspeed(bench)
    yield checks.check_loader(bench, 32, settings.seconds)


def _measure(
    settings: DoctorSettings, device: torch.device, bench: checks.Bench
) -> tuple[list[Finding], dict[str, Any]]:
    on_gpu = device.type == "cuda"
    width = settings.width or (64 if on_gpu else 16)
    network = {"image_size": IMAGE_SIZE, "width": width}
    # A CPU gains nothing from a larger batch.
    batches = [32, 128] if on_gpu else [32]
    return checks.measure_steps(bench, network, batches, has_bf16(device), settings.seconds)


def _suggested(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return recipe keys for this machine, from what was fastest."""
    suggested: dict[str, Any] = {f"batch.{key}": value for key, value in batch.items()}
    # Several GPUs need a launcher; one does not.
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        suggested["launch profile"] = "launcher/configs/accelerate/ddp.yaml"
    return suggested


def _summary(examination: Examination, path: Path) -> str:
    """Return the closing lines: how many of each verdict, the suggestion, where the record is."""
    counts: dict[str, int] = {}
    for finding in examination.findings:
        counts[finding.verdict] = counts.get(finding.verdict, 0) + 1
    shown = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()))
    words = " ".join(
        f"--{key} {str(value).lower()}"
        for key, value in examination.suggested.items()
        if key.startswith("batch.")
    )
    return (
        f"{examination.device}: {shown}; {examination.seconds:.0f} s\n"
        f"Fastest here: {words or 'nothing was measured'}\nWritten: {path}"
    )
