"""The end of a packing in words: speed, counts, what was left out and why, and what to run next.

launcher/pack.py prints these lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shards.errors import ManifestError
from shards.manifest import Manifest, read_manifest
from shards.packing.contact_sheet import SHEET_FILE
from shards.packing.indexing import IndexReport
from shards.packing.pack import PackReport
from shards.packing.tally import left_out_by_reason
from shards.packing.verifying import ShardCheck
from shards.rejections import REJECTED_FILE, read_rejections
from shards.summary import LeftOut, Summary, read_summary

NAMED_SHARDS = 4
SHOWN_REASONS = 12
# A training set that is mostly grey teaches no color; this share is worth a look.
MANY_GREY = 0.05


def pack_lines(report: PackReport, out: Path, command: str, next_line: str) -> Iterator[str]:
    """Yield the lines that end a packing.

    Args:
        report: of the call.
        out: the packed folder.
        command: the packing command as its user types it.
        next_line: the command to run next.
    """
    done = report.packed + report.rejected
    if report.was_finished:
        yield f"{out}: packed already with this request; nothing to do."
    if report.touched:
        yield (
            f"{out}: the files of {len(report.touched):,} shards have another time than when they "
            "were packed, though sizes and labels are the same."
        )
    if done:
        kept = f"; {report.kept:,} were packed before" if report.kept else ""
        speed = done / max(report.seconds, 1e-9)
        yield f"read {done:,} pictures in {report.seconds:.1f} s ({speed:,.0f} images/s){kept}"

    if report.manifest is None:
        yield f"{out}: not complete yet. When all parts are packed: {command} --out {out} --merge"
    else:
        yield from manifest_lines(report.manifest, out, next_line)


def index_lines(report: IndexReport, out: Path, next_line: str) -> Iterator[str]:
    """Yield the lines that end an indexing; see `pack_lines`."""
    if report.was_finished:
        outcome = "and still without some shards." if report.unreadable else "nothing to do."
        yield f"{out}: indexed already with this request; {outcome}"
    else:
        megabytes = report.num_bytes / 1e6
        speed = megabytes / max(report.seconds, 1e-9)
        yield f"read {megabytes:,.1f} MB in {report.seconds:.1f} s ({speed:,.0f} MB/s)"

    yield from manifest_lines(report.manifest, out, next_line)
    if report.unreadable:
        yield (
            f"not in the set: {len(report.unreadable):,} of its shards, which could not be read. "
            "The same command tries them again, and adds what it can read:"
        )
        yield from (f"  {each}" for each in report.unreadable[:SHOWN_REASONS])
        if len(report.unreadable) > SHOWN_REASONS:
            more = len(report.unreadable) - SHOWN_REASONS
            yield f"  ... and {more:,} more, named in {out / REJECTED_FILE}"


def manifest_lines(manifest: Manifest, out: Path, next_line: str) -> Iterator[str]:
    """Yield what a finished folder holds, what was left out, and what to run next."""
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    shards = f"{len(manifest.shards):,} shard{'s' if len(manifest.shards) > 1 else ''}"
    classes = f"{len(manifest.classes)} classes" if manifest.classes else "no classes"
    yield (
        f"{out}: {manifest.num_samples:,} samples in {shards}, {megabytes:,.1f} MB, "
        f"{manifest.image_policy}, {classes}, {_masks(manifest)}; digest {manifest.digest[:12]}"
    )

    # The summary has more than the list of rejections; sets of older releases lack it.
    summary = read_summary(out)
    if summary is not None:
        yield from _summary_lines(summary)
        left_out = summary.left_out
    else:
        left_out = left_out_by_reason(read_rejections(out / REJECTED_FILE))

    yield from _reason_lines("left out", left_out)
    if manifest.num_rejected:
        yield f"  each of the {manifest.num_rejected:,} rejected is in {out / REJECTED_FILE}"
        # Neither packing again nor --append opens them any more.
        if not manifest.is_indexed:
            yield "  once such a file can be read, --only NUMBER packs its shard again"
    if (out / SHEET_FILE).exists():
        yield f"look at {out / SHEET_FILE}: some samples with their labels drawn"
    yield f"next: {next_line.replace('OUT', str(out))}"


def _masks(manifest: Manifest) -> str:
    """Return whether there are masks.

    A set counts as one with masks only if each sample has one.
    """
    if manifest.has_masks:
        return "masks"
    count = int(np.count_nonzero(manifest.samples()["mask_size"]))
    return f"masks for {count:,} only, so not for segmentation" if count else "no masks"


def _summary_lines(summary: Summary) -> Iterator[str]:
    if summary.converted:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary.converted.items())
        yield f"converted: {kinds}"
    yield from _reason_lines("labels dropped", summary.labels_dropped)

    if summary.near_grey:
        advice = ""
        # A few grey photos are in every set and harm nothing.
        if summary.grey_share > MANY_GREY:
            advice = "; they teach no color: --min_chroma leaves them out"
        yield f"near-grey: {summary.near_grey:,} ({100 * summary.grey_share:.1f} %){advice}"
    if summary.low_quality:
        yield f"JPEGs with coarse color: {summary.low_quality:,}"
    if summary.smallest is not None and summary.largest is not None:
        small, large = summary.smallest, summary.largest
        yield (
            f"sizes: from {small.width} x {small.height} ({small.source}) to "
            f"{large.width} x {large.height} ({large.source})"
        )


def _reason_lines(title: str, reasons: dict[str, LeftOut]) -> Iterator[str]:
    """Yield a title with the sum, and one line per reason, the commonest first."""
    if not reasons:
        return
    total = sum(each.count for each in reasons.values())
    yield f"{title}: {total:,}"

    # The commonest first: the rest is cut.
    by_count = sorted(reasons.items(), key=lambda item: -item[1].count)
    for reason, each in by_count[:SHOWN_REASONS]:
        more = ", ..." if each.count > len(each.examples) else ""
        yield f"  {each.count:,} {reason} ({', '.join(each.examples)}{more})"
    if len(by_count) > SHOWN_REASONS:
        yield f"  ... and {len(by_count) - SHOWN_REASONS:,} more reasons"


@dataclass
class VerifyTally:
    """Sums over the checks of a packed folder."""

    samples: int = 0
    bad: int = 0
    damaged: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def lines(self, checks: Iterable[ShardCheck]) -> Iterator[str]:
        """Yield a line per fault as the checks come, and count them."""
        for check in checks:
            self.samples += check.samples
            self.bad += len(check.bad_samples)
            # Told apart, as one is a matter of waiting and the other of packing again.
            if check.is_unread:
                self.unread.append(check.shard)
            elif not check.is_good:
                self.damaged.append(check.shard)
            for fault in check.faults:
                yield f"{check.shard}: {fault}"
            yield from map(str, check.bad_samples)

    def raise_if_damaged(self, folder: Path, command: str) -> None:
        """Raise if a file is damaged or could not be read.

        Raises:
            ManifestError: Names the first such files, and what to do.
        """
        sentences = []
        if self.damaged:
            sentences.append(
                f"{len(self.damaged)} of its files are damaged ({_first(self.damaged)}). "
                f"{_remedy(folder, command)}"
            )
        if self.unread:
            sentences.append(
                f"{len(self.unread)} of its shards could not be read, so they were not checked "
                f"({_first(self.unread)}). Once the disk or the network is back, rerun the same "
                "command."
            )
        if sentences:
            raise ManifestError(f"{folder}: {' '.join(sentences)}")


def _first(names: list[str]) -> str:
    return ", ".join(names[:NAMED_SHARDS]) + (", ..." if len(names) > NAMED_SHARDS else "")


def _remedy(folder: Path, command: str) -> str:
    """Return what to do about damaged files: shards made elsewhere cannot be packed again."""
    if read_manifest(folder, check_files=False).is_indexed:
        return (
            f"Get those shards anew, or index what is there into another folder: {command} --index"
        )
    return (
        f"Pack a shard again: {command} --only NUMBER --corpus ... --root ... --split ... "
        f"--out {folder}"
    )
