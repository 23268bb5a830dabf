"""Checks that run the product itself, each in its own processes: decoding, ranks, resume, speed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from colorgan.doctor import machine
from colorgan.doctor.jobs import JobResult, run_job
from colorgan.doctor.record import Finding
from colorgan.doctor.worker import FAILURE
from colorgan.errors import ExitStatus
from colorgan.training.work import form_text

# Normalised units: 1/128 is one level of 8 bits. DALI's CPU decoder is libjpeg-turbo, as Pillow's;
# a GPU's differs by up to three levels per channel at sharp edges.
MAX_MEDIAN_DIFFERENCE = 0.004
MAX_HIGH_DIFFERENCE = 0.06
MAX_SHIFT = 0.002  # of a plane's mean: a quarter of a level
MAX_END_S = 10.0  # for all ranks to end after an error on one of them
ZERO_2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
SLOW_LINK_GB_PER_S = 1.0  # the full-size gradients (0.25 GB) then take longer than a step


@dataclass(frozen=True)
class Bench:
    """What all checks here share.

    Attributes:
        data: Packed folder of small images.
        image_size: Their side in pixels.
        on_cpu: No GPU is used.
        world_size: Ranks on this machine: one per GPU, or two on a CPU.
        timeout_s: Seconds per job.
    """

    data: Path
    image_size: int
    on_cpu: bool
    world_size: int
    timeout_s: float = 90.0

    def run(
        self,
        name: str,
        *,
        world_size: int = 1,
        environment: Mapping[str, str] = MappingProxyType({}),
        **settings: Any,
    ) -> JobResult:
        """Run a job with its keyword arguments `settings`."""
        return run_job(
            name,
            settings,
            world_size=world_size,
            on_cpu=self.on_cpu,
            timeout_s=self.timeout_s,
            environment=environment,
        )


def check_decoding(bench: Bench) -> Finding:
    """Compare the device's decoder and Lab conversion with Pillow and float arithmetic."""
    job = bench.run("decode", data=str(bench.data), image_size=bench.image_size)
    if job.failed:
        return _broken("decoding", job, "reinstall nvidia-dali-cuda130 and torch as pinned")
    # The last line: a job may print more on the way.
    figures = job.results[-1]
    detail = (
        f"{figures['images']} images against Pillow: median difference {figures['median']:.1e}, "
        f"99.9 % under {figures['high']:.1e}, shift {figures['shift']:.1e} (one level of 8 bits is "
        "7.8e-03)"
    )
    # A wrong conversion moves the median, a wrong upsampling the high end, another brightness or
    # range of one plane its mean.
    limits = {"median": MAX_MEDIAN_DIFFERENCE, "high": MAX_HIGH_DIFFERENCE, "shift": MAX_SHIFT}
    if any(figures[name] > limit for name, limit in limits.items()):
        return Finding(
            name="decoding",
            verdict="broken",
            detail=f"{detail}: the decoder gives other pixels",
            advice=(
                "do not train here: reinstall nvidia-dali-cuda130 as pinned, and set "
                "--data.hardware_decoder_share 0 if it stays"
            ),
            figures=figures,
        )
    return Finding(name="decoding", verdict="fine", detail=detail, figures=figures)


def check_all_reduce(bench: Bench) -> Finding:
    """Measure the bandwidth at which ranks share gradients."""
    backend = "gloo" if bench.on_cpu else "NCCL"
    if bench.world_size == 1:
        return Finding(name="all-reduce", verdict="not checked", detail="one GPU, so one rank")
    # 32 MB: large enough for bandwidth to rule over latency.
    job = bench.run("allreduce", world_size=bench.world_size, megabytes=32, repeats=5)
    if job.failed or not job.results[-1]["right"]:
        return _broken(
            "all-reduce",
            job,
            "try NCCL_P2P_DISABLE=1, and NCCL_DEBUG=INFO for the reason" if backend == "NCCL"
            else "look for a firewall on the loopback device",
        )  # fmt: skip
    rate = job.results[-1]["gb_per_s"]
    detail = f"{backend}, {bench.world_size} ranks: {rate:.2f} GB/s"
    if rate < SLOW_LINK_GB_PER_S and not bench.on_cpu:
        return Finding(
            name="all-reduce",
            verdict="slow",
            detail=f"{detail}: slow links between the GPUs",
            advice="accumulate (a smaller --batch.micro_batch_size): gradients are sent less often",
            figures={"gb_per_s": rate},
        )
    return Finding(name="all-reduce", verdict="fine", detail=detail, figures={"gb_per_s": rate})


def check_error_on_one_rank(bench: Bench) -> Finding:
    """Let one rank fail: all must end in seconds, and the reason must be on the screen."""
    if bench.world_size == 1:
        return Finding(name="error on a rank", verdict="not checked", detail="one GPU, so one rank")
    job = bench.run("fail", world_size=bench.world_size)
    said = any(FAILURE in text for text in job.errors)
    alive = [rank for rank, status in enumerate(job.statuses) if status is None]
    failed_at = next((each["failed_at"] for each in job.results if "failed_at" in each), None)
    if failed_at is None:
        return _broken("error on a rank", job, "the ranks did not start: see the error")

    # From the failure on: starting torch takes longer than ending it.
    seconds = job.ended - failed_at
    if said and not alive and job.statuses[1]:
        slow = seconds > MAX_END_S
        return Finding(
            name="error on a rank",
            verdict="slow" if slow else "fine",
            detail=f"all ranks ended {seconds:.1f} s after it, with the reason",
            advice="the machine was too busy to end them sooner: examine it again" if slow else "",
            figures={"seconds": seconds},
        )
    return Finding(
        name="error on a rank",
        verdict="broken",
        detail=(
            f"ranks {alive} did not end within {bench.timeout_s:.0f} s"
            if alive
            else "the reason was not printed"
        ),
        advice="a failing run would hold all GPUs: keep --launch.timeout_s low and report this",
    )


def check_resume(bench: Bench, folder: Path) -> Finding:
    """Stop and resume a small run in the memory format that trains fastest; nothing may differ."""
    differences = {}
    # Both formats: optimizer states have strides in one of them.
    for name, batch in (("fp32", {}), ("channels_last", {"channels_last": True})):
        job = bench.run("resume", data=str(bench.data), folder=str(folder / name), batch=batch)
        if job.failed:
            return _broken("resume", job, "do not rely on resuming here, and report this")
        differences[name] = job.results[-1]["difference"]

    shown = ", ".join(f"{name} {value:g}" for name, value in differences.items())
    if any(differences.values()):
        return Finding(
            name="resume",
            verdict="broken",
            detail=f"a resumed run differs from an uninterrupted one: {shown}",
            advice="keep launch.deterministic on; if it is, report this",
            figures=differences,
        )
    return Finding(
        name="resume",
        verdict="fine",
        detail=f"equals the uninterrupted run; largest difference {shown}",
        figures=differences,
    )


def check_loader(bench: Bench, batch: int, seconds: float) -> Finding:
    """Measure the loader alone, on images that are in the page cache."""
    job = bench.run(
        "loader",
        data=str(bench.data),
        image_size=bench.image_size,
        batch=batch,
        seconds=seconds,
    )
    if job.failed:
        return _broken("loader", job, "reinstall nvidia-dali-cuda130 as pinned")
    rate = job.results[-1]["images_per_s"]
    return Finding(
        name="loader",
        verdict="fine",
        detail=f"{rate:,.0f} images/s at {bench.image_size} px, batch {batch}",
        figures={"images_per_s": rate},
    )


def check_deepspeed(bench: Bench) -> Finding:
    """Train two steps under ZeRO-2 on one rank."""
    if importlib.util.find_spec("deepspeed") is None:
        return Finding(
            name="DeepSpeed",
            verdict="not checked",
            detail="not installed; only the zero1, zero2 and zero3 profiles need it",
        )
    job = bench.run(
        "steps",
        environment=ZERO_2,
        data=str(bench.data),
        # Tiny: the question is whether it runs at all.
        network={"image_size": bench.image_size, "width": 8},
        settings=[{"global_batch_size": 8}],
        seconds=0.1,
    )
    if job.failed:
        return _broken("DeepSpeed", job, "reinstall deepspeed as pinned, or use ddp.yaml")
    return Finding(name="DeepSpeed", verdict="fine", detail="trains under ZeRO-2")


def measure_steps(
    bench: Bench, network: dict[str, Any], batches: list[int], with_bf16: bool, seconds: float
) -> tuple[list[Finding], dict[str, Any]]:
    """Measure the training step over batch size, precision and memory format.

    Returns:
        A finding per setting, and the recipe's `batch` group that was fastest.
    """
    settings = []
    for batch in batches:
        settings.append({"global_batch_size": batch, "precision": "fp32", "channels_last": False})
        if with_bf16:
            for channels_last in (False, True):
                settings.append(
                    {
                        "global_batch_size": batch,
                        "precision": "bf16",
                        "channels_last": channels_last,
                    }
                )

    job = bench.run(
        "steps", data=str(bench.data), network=network, settings=settings, seconds=seconds
    )
    if job.failed and not job.results:
        return [_broken("training step", job, "the step fails on this device: see the error")], {}

    findings = [_step_finding(each) for each in job.results]
    # A crash ends the job: what it did not reach is said to be unmeasured.
    for missing in settings[len(job.results) :]:
        findings.append(Finding(name=_step_name(missing), verdict="not checked", detail=job.reason))
    measured = [each for each in job.results if each["images_per_s"]]
    if not measured:
        return findings, {}
    best = max(measured, key=lambda each: float(each["images_per_s"]))
    return findings, {key: best[key] for key in ("global_batch_size", "precision", "channels_last")}


def _step_finding(measured: dict[str, Any]) -> Finding:
    name = _step_name(measured)
    if not measured["images_per_s"]:
        return Finding(
            name=name,
            verdict="broken",
            detail=measured["problem"],
            advice="use a smaller --batch.micro_batch_size",
        )
    rate = measured["images_per_s"]
    memory = measured.get("memory_gib")
    detail = f"{rate:,.1f} images/s" + (f", {memory:.1f} GiB" if memory else "")
    figures = {"images_per_s": rate, "gflop_per_s": rate * measured["gflop"]}
    return Finding(name=name, verdict="fine", detail=detail, figures=figures)


def best_rates(findings: Iterable[Finding]) -> dict[str, float]:
    """Return the GFLOP/s of the training step by precision and memory format, the best of each."""
    rates: dict[str, float] = {}
    for finding in findings:
        _, _, form = finding.name.rpartition(", ")  # as `_step_name` writes it
        rate = finding.figures.get("gflop_per_s", 0.0)
        if rate > rates.get(form, 0.0):
            rates[form] = rate
    return rates


def _step_name(batch: dict[str, Any]) -> str:
    form = form_text(batch["precision"], channels_last=batch["channels_last"])
    return f"step, batch {batch['global_batch_size']}, {form}"


def _broken(name: str, job: JobResult, advice: str) -> Finding:
    """Return what a failed job means; one that ran out of time on a busy machine means nothing."""
    load = machine.load_of_others() if None in job.statuses else 0.0
    cores = machine.num_cores()
    if load > machine.BUSY_LOAD * cores:
        return Finding(
            name=name,
            verdict="not checked",
            detail=f"{job.reason}, while other work takes {load:.1f} of {cores} cores",
            advice="examine the machine again when it is free",
        )
    if ExitStatus.MISTAKE in job.statuses:
        # A sentence of ours about this machine, which says what to do; nothing else is broken.
        detail = job.reason.partition("Error: ")[2] or job.reason
        advice = "mend that, then examine the machine again"
        return Finding(name=name, verdict="broken", detail=detail, advice=advice)
    return Finding(name=name, verdict="broken", detail=job.reason or "no result", advice=advice)
