"""Pack a corpus into tar shards: `pack.py --corpus coco --root DIR --split train --out DIR`.

Reads the corpus in place and writes shards, DALI's index, a manifest, and the list of what was left
out and why. Rerunning the same command resumes it. Also:

    ... --part 3/8               pack each 8th shard only: parts run side by side, on any machines
    --out DIR --merge            put the manifest together when all parts are packed
    ... --append                 add the new pictures of a grown corpus to a packed folder
    ... --only 12                pack one shard again, with the settings of the folder
    --index SHARDS --out DIR     use shards made elsewhere where they are: a folder, a glob, a brace
                                 list or URLs; nothing is copied
    --verify DIR                 check every sample of a packed folder, and name the bad ones
    ... --stratify 70,20,10      pack OUT/train, OUT/val and OUT/test, each with the same classes
    ... --download               fetch the official archives of COCO or VOC into --root first
"""

import os
import re
import sys
import time
from pathlib import Path
from typing import Literal, Self, TypeVar

# `datasets` is also the name of an installed library; ours wins. It is beside this script's folder,
# in the wheel in a folder `corpora` there.
sys.path.insert(
    0,
    str(
        Path(__file__).resolve().parents[1] / "corpora"
        if (Path(__file__).resolve().parents[1] / "corpora").is_dir()
        else Path(__file__).resolve().parents[1]
    ),
)

from pydantic import BaseModel, ConfigDict, Field, model_validator

from colorgan.config.command import command_text, run_command
from colorgan.config.command_line import parse
from colorgan.config.progress import bytes_shown, images_shown
from datasets.corpora.splits import parse_shares, stratify, write_lists
from datasets.errors import CorpusError
from datasets.opening import CorpusName, fetch_corpus, open_corpus
from shards.errors import ShardError
from shards.foreign_labels import read_names
from shards.images.policy import MAX_PIXELS, MAX_PIXELS_LIMIT
from shards.packing.appending import append_records, check_as_packed
from shards.packing.indexing import index_shards
from shards.packing.merging import merge_parts
from shards.packing.pack import MAX_SAMPLES_PER_SHARD, PackReport, pack
from shards.packing.rebuilding import rebuild_shard
from shards.packing.report import VerifyTally, index_lines, manifest_lines, pack_lines
from shards.packing.verifying import verify
from shards.records import Corpus

NEXT = f"{command_text('pretrain')} --data.train OUT"
HELD_OUT = {"val", "valid", "validation", "dev", "test"}
FOLDER_SETTINGS = {
    "image",
    "jpeg_quality",
    "chroma_subsampling",
    "samples_per_shard",
    "max_pixels",
    "min_chroma",
}
SOURCE = ("corpus", "root", "split", "out")
# The settings that each mode requires; without a mode, all of SOURCE.
MODES: dict[str, tuple[str, ...]] = {
    "part": SOURCE,
    "only": SOURCE,
    "append": SOURCE,
    "merge": ("out",),
    "index": ("out",),
    "verify": (),
}
T = TypeVar("T")


class PackSettings(BaseModel):
    """Settings of the command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: CorpusName | None = Field(None, description="kind of the corpus")
    root: Path | None = Field(None, description="its folder, as its makers lay it out")
    split: str | None = Field(
        None, description="train, val, ... as the corpus names it; all: every picture of a folder"
    )
    out: Path | None = Field(None, description="the folder to write; made if it is missing")
    image: str = Field(
        "squash:256", description="size policy: original, short:N or squash:N, N in pixels"
    )
    workers: int = Field(
        len(os.sched_getaffinity(0)), ge=1, le=1024, description="processes that decode and encode"
    )
    jpeg_quality: int = Field(95, ge=1, le=100, description="if pixels are re-encoded")
    chroma_subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = Field(
        "4:4:4", description="if pixels are re-encoded"
    )
    samples_per_shard: int = Field(
        1000,
        ge=1,
        le=MAX_SAMPLES_PER_SHARD,
        description="records per shard; rejected ones leave it smaller",
    )
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, le=MAX_PIXELS_LIMIT, description="pictures with more pixels are rejected"
    )
    min_chroma: float = Field(
        0.0, ge=0, le=100, description="pictures of less mean chroma are left out, in Lab units"
    )
    mask_threshold: int | None = Field(
        None,
        ge=1,
        le=255,
        description="for --corpus folder: mask values from this one on are the one class",
    )
    part: str | None = Field(
        None,
        pattern="^[0-9]{1,6}/[0-9]{1,6}$",
        description="i/n, i from 1 to n: pack each n-th shard only",
    )
    merge: bool = Field(
        False, description="put the manifest of packed parts together; needs --out alone"
    )
    append: bool = Field(False, description="pack what a finished folder does not have yet")
    index: str | None = Field(
        None, description="shards made elsewhere: a folder, a glob, a brace list or URLs"
    )
    labels: str | None = Field(
        None,
        pattern="^(cls|json:.{1,200})$",
        description="for --index: read classes from the cls members, or from json:FIELD",
    )
    classes: Path | None = Field(
        None, description="for --index: text file, one class name per line, in the labels' order"
    )
    only: int | None = Field(None, ge=0, description="number of the one shard to pack again")
    verify: Path | None = Field(None, description="a packed folder to check; needs nothing else")
    stratify: str | None = Field(
        None,
        description="percent for train,val,test or train,val: pack these parts by class (photos "
        "without labels: at random); 8+2,90 draws train and val together, as 10,90 draws train",
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
        # 0 of --only is a shard: only None and False count as not given.
        modes = [name for name in MODES if getattr(self, name) not in (None, False)]
        if len(modes) > 1:
            raise ValueError(f"--{modes[0]} and --{modes[1]} do not go together; give one of them")

        needed = MODES[modes[0]] if modes else SOURCE
        if self.download and not modes:
            needed = ("corpus", "root", "split")
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            words = ", ".join(f"--{name}" for name in missing)
            # What a key is for, where one alone was forgotten.
            about = type(self).model_fields[missing[0]].description
            meaning = f" ({about})" if len(missing) == 1 else ""
            raise ValueError(f"{words}: required, not given{meaning}")

        if self.index is None and (self.labels or self.classes):
            raise ValueError("--labels and --classes are for --index")
        if self.mask_threshold is not None and self.corpus not in (None, "folder"):
            raise ValueError("--mask_threshold is for --corpus folder")
        if self.stratify is not None:
            # Parsed here too, so that its mistake is shown with all others.
            parse_shares(self.stratify)
            if self.only is not None or self.append:
                raise ValueError(
                    "--stratify goes with neither --only nor --append; remove the part's folder "
                    "and pack again"
                )
        return self


def main(argv: list[str]) -> None:
    """Fetch, pack, append, pack a part or one shard, merge, or verify."""
    command = command_text("pack")
    settings = parse(PackSettings, argv, command=command, description=__doc__ or "", next_line=NEXT)
    if settings.verify is not None:
        verify_folder(settings.verify, settings.workers)
    elif settings.index is not None:
        index_into(given(settings.out), settings)
    elif settings.merge:
        out = given(settings.out)
        manifest = merge_parts(out)
        print(*manifest_lines(manifest, out, next_command(manifest.split)), sep="\n")
    else:
        if settings.download:
            download_corpus(settings)
        if settings.out is not None:
            pack_corpus(settings)


def next_command(split: str) -> str:
    """Return the command that a packed split is for; nothing is trained on a held-out one.

    Args:
        split: As the corpus names it: `train2017`, `2012-seg-val`.
    """
    words = set(re.split("[^a-z]+", split.lower()))
    data = "--data.train DIR --data.val OUT" if words & HELD_OUT else "--data.train OUT"
    if "seg" in words:
        return f"{command_text('finetune')} --task segment --init RUN/generator {data}"
    return f"{command_text('pretrain')} {data}"


def given(value: T | None) -> T:
    """Return a setting that the schema has required."""
    assert value is not None
    return value


def download_corpus(settings: PackSettings) -> None:
    """Fetch and unpack the official archives that the split needs and the root has not."""
    root, split = given(settings.root), given(settings.split)
    with bytes_shown() as progress:
        names = fetch_corpus(given(settings.corpus), root, split, settings.mirror, progress)
    done = f"{', '.join(names)} fetched and unpacked" if names else "all there, nothing to fetch"
    print(f"{root}: {done}")


def pack_corpus(settings: PackSettings) -> None:
    """Open the corpus and pack it, or each part that it is to be split into."""
    root, out = given(settings.root), given(settings.out)
    name: CorpusName = given(settings.corpus)
    split = given(settings.split)
    corpus = open_corpus(name, root, split, settings.mask_threshold)
    if corpus.note:
        print(f"{root}: {corpus.note}")

    # A part of `--stratify` is named by its folder: train, val, ...
    parts, splits = {out: corpus}, {out: split}
    if settings.stratify is not None:
        stratified = stratify(corpus, parse_shares(settings.stratify), settings.seed)
        write_lists(out, stratified)
        parts = {out / name: part.corpus for name, part in stratified.items()}
        splits = {out / name: name for name in stratified}

    for folder, each in parts.items():
        # One after the other: each uses all workers.
        report = pack_into(folder, each, settings)
        next_line = next_command(splits[folder])
        print(*pack_lines(report, folder, command_text("pack"), next_line), sep="\n")


def pack_into(out: Path, corpus: Corpus, settings: PackSettings) -> PackReport:
    """Pack a corpus, one part or shard of it, or what is new in it."""
    root, workers = given(settings.root), settings.workers
    if settings.append or settings.only is not None:
        asked = settings.model_dump(include=FOLDER_SETTINGS & settings.model_fields_set)
        check_as_packed(out, asked)
    # One shard's records are not counted beforehand.
    total = corpus.num_records if settings.only is None else None
    with images_shown(total) as progress:
        if settings.only is not None:
            return rebuild_shard(
                corpus, out, settings.only, root=root, workers=workers, progress=progress
            )
        if settings.append:
            return append_records(corpus, out, root=root, workers=workers, progress=progress)
        return pack(
            corpus,
            out,
            root=root,
            image_policy=settings.image,
            jpeg_quality=settings.jpeg_quality,
            chroma_subsampling=settings.chroma_subsampling,
            samples_per_shard=settings.samples_per_shard,
            max_pixels=settings.max_pixels,
            min_chroma=settings.min_chroma,
            workers=workers,
            part=part_of(settings.part),
            progress=progress,
        )


def index_into(out: Path, settings: PackSettings) -> None:
    """Write a manifest of shards made elsewhere, and print what they hold."""
    names = read_names(settings.classes) if settings.classes else ()
    with images_shown(None) as progress:
        report = index_shards(
            given(settings.index),
            out,
            label_format=settings.labels or "",
            classes=names,
            max_pixels=settings.max_pixels,
            workers=settings.workers,
            progress=progress,
        )
    print(*index_lines(report, out, next_command(out.name)), sep="\n")


def part_of(text: str | None) -> tuple[int, int] | None:
    """Return `3/8` as numbers."""
    if text is None:
        return None
    index, _, count = text.partition("/")
    return int(index), int(count)


def verify_folder(folder: Path, workers: int) -> None:
    """Check a packed folder and print its faults; an error if there is any."""
    start = time.monotonic()
    tally = VerifyTally()
    for line in tally.lines(verify(folder, workers=workers)):
        print(line, flush=True)

    speed = tally.samples / max(time.monotonic() - start, 1e-9)
    print(f"{folder}: {tally.samples:,} samples checked at {speed:,.0f}/s, {tally.bad:,} bad")
    tally.raise_if_damaged(folder, command_text("pack"))


if __name__ == "__main__":
    run_command(main, ShardError, CorpusError)
