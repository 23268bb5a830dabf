"""The states of finished shards -> samples.npy, rejected.jsonl, summary; last, manifest.json.

The last step of shards/packing/pack.py, and `launcher/pack.py --merge` after parts packed side by
side. Only the states are read, one at a time: memory does not grow with the set.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import PackError
from shards.manifest import FileInfo, Manifest, ShardInfo, write_manifest
from shards.packing.contact_sheet import write_contact_sheet
from shards.packing.folder import (
    Request,
    finished_manifest,
    locked,
    read_request,
    read_total,
    remove_work_folder,
)
from shards.packing.inputs import INPUTS_FILE, write_inputs
from shards.packing.shard_file import WORK_FOLDER, ShardState, load_state
from shards.packing.tally import Tally, left_out_by_reason
from shards.rejections import REJECTED_FILE, Rejection, read_rejections, write_rejections
from shards.samples_table import SAMPLES_FILE, write_samples
from shards.summary import LeftOut, read_summary, write_summary

COMMONEST_REASONS = 3
States = Callable[[], Iterator[ShardState]]


@dataclass
class _Totals:
    """Sums over the shards of a set."""

    shards: list[ShardInfo] = field(default_factory=list)
    num_masks: int = 0
    tally: Tally = field(default_factory=Tally)
    knows_tallies: bool = True

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)


def merge_parts(out: Path) -> Manifest:
    """Put the manifest of parts together; return the existing one if the set is finished already.

    Raises:
        PackError: Nothing has been packed there, parts are missing, or a packer is still at work.
    """
    # Asked twice, --merge answers the same.
    finished = finished_manifest(out)
    if finished is not None:
        return finished

    if not (out / WORK_FOLDER).is_dir():
        raise PackError(f"{out}: nothing to merge: no part has been packed here yet.")

    with locked(out):
        return merge(out)


def merge(out: Path) -> Manifest:
    """Put the manifest together from the states of all shards; needs the folder's lock.

    Raises:
        PackError: Shards are missing, or nothing could be packed at all.
    """
    request = read_request(out)
    total = read_total(out)
    if request is None or total is None:
        raise PackError(
            f"{out}: nothing to merge: no packer has come to the end of the corpus here yet."
        )

    # Before anything is written: what is missing is named all at once.
    _check_states(out, total.shards)
    manifest = write_tables(out, request, lambda: _states(out, total.shards), total.left_out)
    # Last: until then a killed merge is simply run again.
    remove_work_folder(out)
    return manifest


def write_tables(
    out: Path,
    request: Request,
    states: States,
    left_out: dict[str, LeftOut] | None = None,
    *,
    samples_file: str = SAMPLES_FILE,
) -> Manifest:
    """Write everything beside the shards, the manifest last.

    Args:
        out: The folder that holds the finished shards.
        request: What was packed, with which settings.
        states: Starts a pass over all shards in order.
        left_out: Inputs of the corpus that became no record, by reason; None if that is not known.
        samples_file: Name of the table of samples.

    Raises:
        PackError: Nothing could be packed at all, or the disk fails.
    """
    # A pass per table: states are read from disk each time, and memory holds one.
    totals = _totals(states())
    num_rejected = write_rejections(out / REJECTED_FILE, _rejections(states()))
    reasons = left_out_by_reason(_rejections(states()))
    if not totals.shards:
        raise PackError(_all_rejected(out, num_rejected, reasons))

    size, sha256 = write_samples(out / samples_file, totals.num_samples, _rows(states()))
    write_inputs(out / INPUTS_FILE, (state.inputs for state in states()))
    # Shards of an older release have no counts; a summary of the rest would mislead.
    if totals.knows_tallies:
        # A rebuilt shard knows nothing of what the corpus left out: that is taken over.
        before = {} if left_out is not None else _left_out_before(out)
        counts = totals.tally.summary(totals.num_samples, {**before, **(left_out or {}), **reasons})
        write_summary(counts, out)

    manifest = Manifest(
        name=request.name,
        corpus=request.corpus,
        split=request.split,
        classes=request.classes,
        palette=request.palette,
        # Every sample or none: a batch of masks cannot have holes.
        has_masks=totals.num_masks == totals.num_samples,
        image_policy=request.image_policy,
        jpeg_quality=request.jpeg_quality,
        chroma_subsampling=request.chroma_subsampling,
        num_samples=totals.num_samples,
        num_rejected=num_rejected,
        samples_file=FileInfo(file=samples_file, bytes=size, sha256=sha256),
        shards=tuple(totals.shards),
    )
    # Before the manifest, whose presence says that all else is there.
    write_contact_sheet(manifest.model_copy(update={"folder": out}))
    return write_manifest(manifest, out)


def _check_states(out: Path, num_shards: int) -> None:
    numbers = range(num_shards)
    missing = [number for number in numbers if load_state(out, number, with_rows=False) is None]
    if not missing:
        return

    first = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    raise PackError(
        f"{out}: {len(missing)} of {num_shards} shards are not packed yet ({first}); run their "
        "parts, or run python launcher/pack.py without --part to pack what is missing."
    )


def _states(out: Path, num_shards: int) -> Iterator[ShardState]:
    for number in range(num_shards):
        state = load_state(out, number)
        if state is None:
            raise PackError(
                f"{out}: shard {number} has changed while its manifest was written; rerun the same "
                "command."
            )
        yield state


def _totals(states: Iterator[ShardState]) -> _Totals:
    totals = _Totals()
    for state in states:
        totals.knows_tallies &= state.inputs.tally is not None
        totals.tally.add(Tally.from_json(state.inputs.tally or {}))
        totals.num_masks += int(np.count_nonzero(state.rows["mask_size"]))

        if state.samples:
            info = ShardInfo(
                file=state.file, samples=state.samples, bytes=state.bytes, sha256=state.sha256
            )
            totals.shards.append(info)

    return totals


def _rejections(states: Iterator[ShardState]) -> Iterator[Rejection]:
    for state in states:
        yield from state.rejected


def _rows(states: Iterator[ShardState]) -> Iterator[NDArray[np.void]]:
    """Yield each shard's rows with its index in the manifest, which leaves out empty shards."""
    index = 0
    for state in states:
        # The states' rows are views of their files' bytes, and read-only.
        rows = state.rows.copy()
        rows["shard"] = index
        yield rows
        index += state.samples > 0


def _left_out_before(out: Path) -> dict[str, LeftOut]:
    """Return what the corpus itself left out, from the summary that is there."""
    before = read_summary(out)
    if before is None:
        return {}
    rejected = left_out_by_reason(read_rejections(out / REJECTED_FILE))
    return {name: each for name, each in before.left_out.items() if name not in rejected}


def _all_rejected(out: Path, count: int, reasons: dict[str, LeftOut]) -> str:
    counts = Counter({reason: left_out.count for reason, left_out in reasons.items()})
    commonest = counts.most_common(COMMONEST_REASONS)
    in_words = "; ".join(f"{number:,}: {reason}" for reason, number in commonest)
    return (
        f"{out}: all {count} records were rejected; {REJECTED_FILE} in that folder has the "
        f"reasons. The commonest are {in_words}."
    )
