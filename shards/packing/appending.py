"""Add the new records of a grown corpus to a packed set: `launcher/pack.py --append`.

The shards that are there stay as they are, byte for byte; new ones follow behind them. A record is
new if the set does not know its key. So the samples of the old shards keep their numbers, and the
rule of order stays: an epoch's order is a function of the shard sizes, the seed and the epoch, over
all samples alike. It is another order than before, and the set has another digest: a run on the old
set is not resumed on the new one.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.errors import PackError
from shards.files import printable
from shards.images.policy import parse_image_policy
from shards.manifest import MANIFEST_FILE, Manifest, read_manifest
from shards.packing.finished import finished_states, keys_by_shard, shard_number
from shards.packing.folder import (
    AppendMark,
    Request,
    locked,
    read_append_mark,
    read_request,
    remove_work_folder,
)
from shards.packing.merging import write_tables
from shards.packing.pack import PackReport, Plan, ProgressCallback, Work, all_plans, pack_shards
from shards.packing.shard_file import ShardState, load_state
from shards.records import Corpus, Record


def append_records(
    corpus: Corpus,
    out: Path,
    *,
    root: Path,
    workers: int = 1,
    progress: ProgressCallback | None = None,
) -> PackReport:
    """Pack the records that a finished set lacks into new shards, with the folder's settings.

    Rerunning it after an interruption continues it.

    Raises:
        PackError: Not a finished folder, another corpus, split or classes, another packer, a disk
            that fails.
    """
    start = time.monotonic()
    request = _request(corpus, out)

    with locked(out):
        manifest, request = _continued(out, request, corpus.num_records)
        work = Work(corpus, out, root, request, workers, progress)
        # Under the lock: another --append may just have added them.
        known = keys_by_shard(manifest)
        # Behind the highest number that was ever used, also by a shard whose records were all
        # rejected.
        first = max([*known.values(), *(shard_number(info.file) for info in manifest.shards)]) + 1
        # Before the first new shard: a call that stops half-way leaves the folder marked as
        # growing.
        AppendMark(first=first).write(out)

        work.corpus = replace(corpus, records=lambda: _new_records(corpus, known))
        pack_shards(_plans(work, first), work)
        # Without new records nothing is rewritten, so that the digest stays.
        if work.shards:
            request = _with_addition(request, first)
            # Before the manifest: from then on shards are packed again by their keys.
            request.write(out)
            grown = request.model_copy(update={"num_records": corpus.num_records})
            manifest = _finish(manifest, out, grown, range(first, first + work.shards))
        # All that is new is there already: an earlier call ended before it said so.
        elif request.appended_from and (corpus.num_records or 0) > (request.num_records or 0):
            request.model_copy(update={"num_records": corpus.num_records}).write(out)
        remove_work_folder(out)

    seconds = time.monotonic() - start
    return PackReport(manifest, work.packed, work.rejected, work.kept, seconds)


def check_as_packed(out: Path, asked: dict[str, Any]) -> None:
    """Refuse settings that are not the folder's own, which its shards are packed by.

    Args:
        out: The folder.
        asked: Those that were asked for, by the names of `pack`; `image` is its image policy.

    Raises:
        PackError: Names the first such setting.
    """
    request = read_request(out)
    for name, value in sorted(asked.items()) if request is not None else ():
        there = getattr(request, "image_policy" if name == "image" else name)
        value = str(parse_image_policy(value)) if name == "image" else value
        if value != there:
            raise PackError(
                f"{out}: is packed with --{name} {there}, so its shards cannot have --{name} "
                f"{value}; leave the option out, or pack into another folder."
            )


def _request(corpus: Corpus, out: Path) -> Request:
    request = read_request(out)
    if request is None or not (out / MANIFEST_FILE).exists():
        raise PackError(
            f"{out}: not a finished set, so nothing can be added to it; pack it without --append "
            "first."
        )

    # Labels are indices into the classes: one list must hold for old and new shards.
    classes = tuple(map(printable, corpus.classes))
    asked = (corpus.name, corpus.split, classes, corpus.palette)
    if asked != (request.corpus, request.split, request.classes, request.palette):
        raise PackError(
            f"{out}: was packed from {request.corpus} {request.split} with {len(request.classes)} "
            f"classes; {corpus.name} {corpus.split} with {len(corpus.classes)} classes cannot be "
            "added. Pack it into another folder: training takes several folders at once."
        )
    return request


def _continued(out: Path, request: Request, num_records: int | None) -> tuple[Manifest, Request]:
    """Return manifest and request; bring an earlier call to its end that had grown the manifest."""
    manifest = read_manifest(out)
    mark = read_append_mark(out)
    if mark is None or all(shard_number(info.file) < mark.first for info in manifest.shards):
        return manifest, request

    # First of all: without the mark, and without new records, nothing would lead here again.
    request = _with_addition(request, mark.first)
    request = request.model_copy(update={"num_records": num_records})
    request.write(out)
    # States of shards that are in the manifest: their numbers would be given out again.
    for path in (out / ".packing").glob("*.state"):
        path.unlink()
    return manifest, request


def _with_addition(request: Request, first: int) -> Request:
    """Return the request of a set that has grown from shard `first` on, noted once."""
    added = dict.fromkeys((*request.appended_from, first))
    return request.model_copy(update={"appended_from": tuple(added)})


def _new_records(corpus: Corpus, known: dict[str, int]) -> Iterator[Record]:
    return (record for record in corpus.records() if record.key not in known)


def _plans(work: Work, first: int) -> Iterator[Plan]:
    """Yield the new shards that are still to pack, numbered from `first`; count the others."""
    for plan in all_plans(work):
        # Numbered anew: the corpus counts its new records from 0.
        plan = replace(plan, number=first + plan.number)
        work.shards += 1
        work.records += len(plan.records)

        state = load_state(work.out, plan.number, with_rows=False)
        if state is None or state.inputs.records != plan.digest:
            yield plan
            continue
        work.kept += len(plan.records)
        work.done += len(plan.records)


def _finish(manifest: Manifest, out: Path, request: Request, numbers: range) -> Manifest:
    old = finished_states(manifest)

    def states() -> Iterator[ShardState]:
        # Old shards first, in their order: samples keep their numbers.
        yield from old.values()
        for number in numbers:
            state = load_state(out, number)
            if state is None:
                raise PackError(
                    f"{out}: shard {number} has gone while its manifest was written; rerun the "
                    "same command."
                )
            yield state

    # A table of its own: until the manifest is replaced, the old one must find its old table.
    table = f"samples-{numbers[-1]:06d}.npy"
    grown = write_tables(out, request, states, samples_file=table)
    # After the manifest, which is what readers go by.
    request.write(out)
    (out / manifest.samples_file.file).unlink(missing_ok=True)
    return grown
