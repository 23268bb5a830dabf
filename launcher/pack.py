"""Pack a corpus into tar shards: `python launcher/pack.py --corpus coco --root DIR --split train --out DIR`.

Reads the corpus where it lies and writes shards, DALI's index, a manifest, and the list of what was left out
and why. Started again with the same line it goes on where it stopped.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

# `datasets` is also the name of an installed library; ours stands beside this script's folder and wins.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from colorgan.cli import parse, run_verb
from datasets.errors import CorpusError
from datasets.records import Corpus
from shards.errors import ShardError
from shards.image_policy import MAX_PIXELS
from shards.manifest import REJECTED_FILE
from shards.packing import MAX_SAMPLES_PER_SHARD, PackReport, ProgressCallback, pack

VERB = "python launcher/pack.py"
NEXT = "accelerate launch launcher/pretrain.py --data.train OUT"
SHOWN_REJECTIONS = 20


class PackSettings(BaseModel):
    """Settings of the verb."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: Literal["coco", "voc", "imagenet", "folder", "sample"] = Field(description="what is to be packed")
    root: Path = Field(description="the folder of the corpus, as its makers lay it out")
    split: str = Field(description="train, val, ... as the corpus names it")
    out: Path = Field(description="the folder to write; made if it is not there")
    image: str = Field("squash:256", description="size policy: original, short:N or squash:N, N in pixels")
    workers: int = Field(len(os.sched_getaffinity(0)), ge=1, le=1024, description="processes that decode and encode")
    jpeg_quality: int = Field(95, ge=1, le=100, description="where pixels are re-encoded")
    chroma_subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = Field("4:4:4", description="where pixels are re-encoded")
    samples_per_shard: int = Field(
        1000, ge=1, le=MAX_SAMPLES_PER_SHARD, description="records a shard; rejected ones leave it smaller"
    )
    max_pixels: int = Field(MAX_PIXELS, ge=1, description="pictures with more pixels are rejected")


def main(argv: list[str]) -> None:
    """Open the corpus, pack it, say what came of it."""
    settings = parse(PackSettings, argv, verb=VERB, description=__doc__ or "", next_line=NEXT)
    corpus = open_corpus(settings)
    with progress_shown(corpus.num_records) as progress:
        report = pack(
            corpus,
            settings.out,
            root=settings.root,
            image_policy=settings.image,
            jpeg_quality=settings.jpeg_quality,
            chroma_subsampling=settings.chroma_subsampling,
            samples_per_shard=settings.samples_per_shard,
            max_pixels=settings.max_pixels,
            workers=settings.workers,
            progress=progress,
        )
    print_report(report, settings)


def open_corpus(settings: PackSettings) -> Corpus:
    """Open the split with its adapter; only that one is imported."""
    adapter = importlib.import_module(f"datasets.{settings.corpus}")
    corpus: Corpus = getattr(adapter, f"open_{settings.corpus}")(settings.root, settings.split)
    return corpus


@contextmanager
def progress_shown(total: int | None) -> Iterator[ProgressCallback]:
    """A progress bar on a terminal, a plain line every ten seconds elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainProgress(total)
        return
    columns = (
        TextColumn("packing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rejected]} rejected"),
    )
    start = time.monotonic()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("packing", total=total, rejected=0, speed="")

        def show(done: int, rejected: int) -> None:
            speed = f"{done / (time.monotonic() - start):,.0f} images/s"
            bar.update(task, completed=done, rejected=rejected, speed=speed)

        yield show


class PlainProgress:
    """Lines for logs and batch jobs."""

    def __init__(self, total: int | None, every_s: float = 10.0) -> None:
        self._of = "" if total is None else f" of {total:,}"
        self._every_s = every_s
        self._told = self._start = time.monotonic()

    def __call__(self, done: int, rejected: int) -> None:
        """Print a line where the last one is old enough."""
        now = time.monotonic()
        if now - self._told >= self._every_s:
            self._told = now
            speed = done / (now - self._start)
            print(f"packed {done:,}{self._of}, {rejected:,} rejected, {speed:,.0f} images/s", flush=True)


def print_report(report: PackReport, settings: PackSettings) -> None:
    """Counts, rejections, speed, and what to run next."""
    manifest = report.manifest
    assert manifest is not None
    if report.was_finished:
        print(f"{settings.out}: packed already with this request; nothing to do.")
    done = report.packed + report.rejected
    if done:
        kept = f", {report.kept:,} were packed before" if report.kept else ""
        rate = done / max(report.seconds, 1e-9)
        print(f"read {done:,} pictures in {report.seconds:.1f} s ({rate:,.0f} images/s){kept}")
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    shards = f"{len(manifest.shards):,} shard{'s' if len(manifest.shards) > 1 else ''}"
    targets = f"{len(manifest.classes)} classes, {'masks' if manifest.has_masks else 'no masks'}"
    print(
        f"{settings.out}: {manifest.num_samples:,} samples in {shards}, {size:,.1f} MB, "
        f"{manifest.image_policy}, {targets}"
    )
    if manifest.num_rejected:
        print_rejected(settings.out / REJECTED_FILE, manifest.num_rejected)
    print(f"next: {NEXT.replace('OUT', str(settings.out))}")


def print_rejected(path: Path, count: int) -> None:
    """The first rejected records with their reasons; the file has them all."""
    print(f"{count:,} rejected (all of them in {path}):")
    with path.open(encoding="utf-8") as lines:
        for line in islice(lines, SHOWN_REJECTIONS):
            entry = json.loads(line)
            print(f"  {entry['source']}: {entry['reason']}")
    if count > SHOWN_REJECTIONS:
        print(f"  ... and {count - SHOWN_REJECTIONS:,} more")


if __name__ == "__main__":
    run_verb(main, ShardError, CorpusError)
