"""Pack a corpus into tar shards: `python launcher/pack.py --corpus coco --root DIR --split train --out DIR`.

Reads the corpus where it lies and writes shards, DALI's index, a manifest, and the list of what was left out
and why. Started again with the same line it goes on where it stopped. Also:

    ... --part 3/8               pack each 8th shard only: the parts of a set run side by side, on any machines
    --out DIR --merge            put the manifest together when all parts are packed
    ... --only 12                pack one shard again, with the settings of the folder
    --verify DIR                 check every sample of a packed folder, and name the bad ones
    ... --stratify 70,20,10      pack OUT/train, OUT/val and OUT/test, each with the same share of every class
    ... --download               fetch the official archives of COCO or VOC into --root first
"""

import importlib
import json
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Literal, Self, TypeVar

# `datasets` is also the name of an installed library; ours stands beside this script's folder and wins.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pydantic import BaseModel, ConfigDict, Field, model_validator

from colorgan.config.command import run_command
from colorgan.config.command_line import parse
from colorgan.config.progress import bytes_shown, images_shown
from datasets.corpora.splits import parse_shares, stratify, write_lists
from datasets.download.archives import archives_for
from datasets.download.download import download
from datasets.errors import CorpusError
from shards.errors import ManifestError, ShardError
from shards.images.policy import MAX_PIXELS, MAX_PIXELS_LIMIT
from shards.manifest import Manifest
from shards.packing.merging import merge_parts
from shards.packing.pack import MAX_SAMPLES_PER_SHARD, PackReport, pack
from shards.packing.rebuilding import rebuild_shard
from shards.packing.verifying import verify
from shards.records import Corpus
from shards.rejections import REJECTED_FILE

COMMAND = "python launcher/pack.py"
NEXT = "accelerate launch launcher/pretrain.py --data.train OUT"
SHOWN_REJECTIONS = 20
# What each way of working needs to be told.
MODES = {
    "part": ("corpus", "root", "split", "out"),
    "only": ("corpus", "root", "split", "out"),
    "merge": ("out",),
    "verify": (),
}
T = TypeVar("T")


class PackSettings(BaseModel):
    """Settings of the command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: Literal["coco", "voc", "imagenet", "folder", "sample"] | None = Field(
        None, description="what is to be packed"
    )
    root: Path | None = Field(
        None, description="the folder of the corpus, as its makers lay it out"
    )
    split: str | None = Field(None, description="train, val, ... as the corpus names it")
    out: Path | None = Field(None, description="the folder to write; made if it is not there")
    image: str = Field(
        "squash:256", description="size policy: original, short:N or squash:N, N in pixels"
    )
    workers: int = Field(
        len(os.sched_getaffinity(0)), ge=1, le=1024, description="processes that decode and encode"
    )
    jpeg_quality: int = Field(95, ge=1, le=100, description="where pixels are re-encoded")
    chroma_subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = Field(
        "4:4:4", description="where pixels are re-encoded"
    )
    samples_per_shard: int = Field(
        1000,
        ge=1,
        le=MAX_SAMPLES_PER_SHARD,
        description="records a shard; rejected ones leave it smaller",
    )
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, le=MAX_PIXELS_LIMIT, description="pictures with more pixels are rejected"
    )
    part: str | None = Field(
        None,
        pattern="^[0-9]{1,6}/[0-9]{1,6}$",
        description="i/n, i from 1 to n: pack each n-th shard only",
    )
    merge: bool = Field(
        False, description="put the manifest of packed parts together; needs --out alone"
    )
    only: int | None = Field(None, ge=0, description="number of the one shard to pack again")
    verify: Path | None = Field(None, description="a packed folder to check; needs nothing else")
    stratify: str | None = Field(
        None,
        description="percent for train,val,test or train,val: pack these parts, stratified by class",
    )
    seed: int = Field(0, ge=0, description="of the draws of --stratify")
    download: bool = Field(
        False,
        description="fetch what the split needs into the root first; without --out, do only that",
    )
    mirror: str | None = Field(
        None,
        pattern="^https?://",
        description="fetch <mirror>/<file name> instead of the official host's",
    )

    @model_validator(mode="after")
    def _enough_is_given(self) -> Self:
        modes = [name for name in MODES if getattr(self, name) not in (None, False)]
        if len(modes) > 1:
            raise ValueError(f"--{modes[0]} and --{modes[1]} do not go together; give one of them")
        needed = MODES[modes[0]] if modes else ("corpus", "root", "split", "out")
        if self.download and not modes:
            needed = ("corpus", "root", "split")
        missing = [f"--{name}" for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{', '.join(missing)}: required, not given")
        if self.stratify is not None:
            parse_shares(self.stratify)
            if self.only is not None:
                raise ValueError(
                    "--only and --stratify do not go together; remove the part's folder and pack again"
                )
        return self


def main(argv: list[str]) -> None:
    """Do what the settings say: fetch, pack, pack a part or one shard, merge, or verify."""
    settings = parse(PackSettings, argv, command=COMMAND, description=__doc__ or "", next_line=NEXT)
    if settings.verify is not None:
        verify_folder(settings.verify, settings.workers)
    elif settings.merge:
        out = given(settings.out)
        print_manifest(merge_parts(out), out)
    else:
        if settings.download:
            download_corpus(settings)
        if settings.out is not None:
            pack_corpus(settings)


def download_corpus(settings: PackSettings) -> None:
    """Fetch and unpack the official archives that the split needs and the root has not."""
    root = given(settings.root)
    archives = archives_for(given(settings.corpus), given(settings.split))
    with bytes_shown() as progress:
        names = download(archives, root, mirror=settings.mirror, progress=progress)
    print(
        f"{root}: {', '.join(names)} fetched and unpacked"
        if names
        else f"{root}: all there, nothing to fetch"
    )


def given(value: T | None) -> T:
    """A setting that the schema has required."""
    assert value is not None
    return value


def pack_corpus(settings: PackSettings) -> None:
    """Open the corpus and pack it, or each part that it is to be split into."""
    corpus, out = open_corpus(settings), given(settings.out)
    if corpus.note:
        print(f"{settings.root}: {corpus.note}")
    if settings.stratify is None:
        pack_into(out, corpus, settings)
        return
    parts = stratify(corpus, parse_shares(settings.stratify), settings.seed)
    write_lists(out, parts)
    for name, part in parts.items():
        pack_into(out / name, part.corpus, settings)


def pack_into(out: Path, corpus: Corpus, settings: PackSettings) -> None:
    """Pack a corpus or what is asked for of it, and say what came of it."""
    root = given(settings.root)
    with images_shown(corpus.num_records if settings.only is None else None) as progress:
        if settings.only is not None:
            report = rebuild_shard(
                corpus, out, settings.only, root=root, workers=settings.workers, progress=progress
            )
        else:
            report = pack(
                corpus,
                out,
                root=root,
                image_policy=settings.image,
                jpeg_quality=settings.jpeg_quality,
                chroma_subsampling=settings.chroma_subsampling,
                samples_per_shard=settings.samples_per_shard,
                max_pixels=settings.max_pixels,
                workers=settings.workers,
                part=part_of(settings.part),
                progress=progress,
            )
    print_report(report, out)


def part_of(text: str | None) -> tuple[int, int] | None:
    """`3/8` as numbers."""
    if text is None:
        return None
    index, _, count = text.partition("/")
    return int(index), int(count)


def verify_folder(folder: Path, workers: int) -> None:
    """Check a packed folder and print what is wrong with it; an error where anything is."""
    start, samples, bad, damaged = time.monotonic(), 0, 0, []
    for check in verify(folder, workers=workers):
        samples += check.samples
        bad += len(check.bad_samples)
        for line in (*(f"{check.shard}: {fault}" for fault in check.faults), *check.bad_samples):
            print(line, flush=True)
        if not check.is_good:
            damaged.append(check.shard)
    speed = samples / max(time.monotonic() - start, 1e-9)
    print(f"{folder}: {samples:,} samples checked at {speed:,.0f} a second, {bad:,} bad")
    if damaged:
        raise ManifestError(
            f"{folder}: {len(damaged)} of its files are damaged ({', '.join(damaged[:4])}"
            f"{', ...' if len(damaged) > 4 else ''}). Pack a shard again: {COMMAND} --only NUMBER --corpus ... "
            f"--root ... --split ... --out {folder}"
        )


def open_corpus(settings: PackSettings) -> Corpus:
    """Open the split with its adapter; only that one is imported."""
    module = (
        "datasets.sample.corpus"
        if settings.corpus == "sample"
        else f"datasets.corpora.{settings.corpus}"
    )
    adapter = importlib.import_module(module)
    corpus: Corpus = getattr(adapter, f"open_{settings.corpus}")(settings.root, settings.split)
    return corpus


def print_report(report: PackReport, out: Path) -> None:
    """Speed, counts, rejections, and what to run next."""
    done = report.packed + report.rejected
    if report.was_finished:
        print(f"{out}: packed already with this request; nothing to do.")
    if done:
        kept = f"; {report.kept:,} were packed before" if report.kept else ""
        rate = done / max(report.seconds, 1e-9)
        print(f"read {done:,} pictures in {report.seconds:.1f} s ({rate:,.0f} images/s){kept}")
    if report.manifest is None:
        print(f"{out}: not complete yet. When all parts are packed: {COMMAND} --out {out} --merge")
    else:
        print_manifest(report.manifest, out)


def print_manifest(manifest: Manifest, out: Path) -> None:
    """What a finished folder holds, what was left out, and what to run next."""
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    shards = f"{len(manifest.shards):,} shard{'s' if len(manifest.shards) > 1 else ''}"
    classes = f"{len(manifest.classes)} classes" if manifest.classes else "no classes"
    print(
        f"{out}: {manifest.num_samples:,} samples in {shards}, {size:,.1f} MB, {manifest.image_policy}, "
        f"{classes}, {masks_in_words(manifest)}; digest {manifest.digest[:12]}"
    )
    if manifest.num_rejected:
        print_rejected(out / REJECTED_FILE, manifest.num_rejected)
    print(f"next: {NEXT.replace('OUT', str(out))}")


def masks_in_words(manifest: Manifest) -> str:
    """Masks count only where each sample has one; else say how many there are, so that nobody wonders."""
    if manifest.has_masks:
        return "masks"
    count = int((manifest.samples()["mask_size"] > 0).sum())
    return f"masks for {count:,} only, so not for segmentation" if count else "no masks"


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
    run_command(main, ShardError, CorpusError)
