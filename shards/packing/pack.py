"""Pack a corpus into tar shards: streamed, in parallel, resumable, and byte for byte the same each time.

Called by launcher/pack.py with what an adapter of `datasets` gives. Shard k holds the records from
k * samples_per_shard on, less the rejected ones: what is in a shard depends on nothing that happens to the
others, and shards can be packed in any order, by any number of workers, machines and attempts.

Memory: the records of one shard and 3 chunks a worker, whatever the size of the corpus.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import PIL
from PIL import features

from shards.errors import PackError
from shards.images.policy import MAX_PIXELS, Encoding, parse_image_policy
from shards.manifest import Manifest
from shards.packing.folder import (
    Part,
    Request,
    begin,
    check_request,
    finished_manifest,
    locked,
    save_total,
)
from shards.packing.merging import merge
from shards.packing.samples import Job
from shards.packing.shard_file import ShardWriter, digest_of_inputs, load_state
from shards.packing.workers import Chunk, PackingPool
from shards.records import Corpus, Record

CHUNK = 16  # records a worker takes at a time: some 50 ms of work
MAX_SAMPLES_PER_SHARD = 100_000


# Told now and then how many records are behind the packer, and how many of them were rejected.
ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class PackReport:
    """What a call of `pack` has done. `manifest` is None where other parts or shards are still missing."""

    manifest: Manifest | None
    packed: int  # samples, in this call
    rejected: int  # records, in this call
    kept: int  # records of shards that were finished before
    seconds: float

    @property
    def was_finished(self) -> bool:
        """The folder was packed already, and nothing was done."""
        return self.manifest is not None and self.packed + self.rejected + self.kept == 0


@dataclass(frozen=True)
class Plan:
    """A shard to pack: its number, its records, and a digest of which they are."""

    number: int
    records: Sequence[Record]
    inputs: str

    def chunks(self) -> list[Chunk]:
        """The records in the pieces that workers take."""
        return [self.records[first : first + CHUNK] for first in range(0, len(self.records), CHUNK)]


@dataclass
class Work:
    """One call of the packer: where, what, with how many hands, and what has come of it so far."""

    corpus: Corpus
    out: Path
    root: Path
    request: Request
    workers: int
    progress: ProgressCallback | None
    done: int = 0
    packed: int = 0
    rejected: int = 0
    kept: int = 0
    records: int = 0
    shards: int = 0

    @property
    def job(self) -> Job:
        """What the workers need to know of it."""
        return Job(self.root, self.request.encoding, len(self.request.classes))


def pack(
    corpus: Corpus,
    out: Path,
    *,
    root: Path,
    image_policy: str = "squash:256",
    jpeg_quality: int = 95,
    chroma_subsampling: str = "4:4:4",
    samples_per_shard: int = 1000,
    max_pixels: int = MAX_PIXELS,
    workers: int = 1,
    part: Part | None = None,
    progress: ProgressCallback | None = None,
) -> PackReport:
    """Pack a corpus into `out`, or go on where an earlier call with the same request has stopped.

    Args:
        root: The corpus root; sources are named relative to it.
        image_policy: `original`, `short:N` or `squash:N`.
        workers: Processes; 0 works in this one. The output does not depend on it.
        part: (i, n), i from 1 to n: pack each n-th shard only, beside the other parts; then call `merge`.
        progress: Called after each chunk.

    Raises:
        PackError: Settings that make no sense, another request or another packer in `out`, an empty corpus,
            a disk that fails. Single pictures never raise: they end in rejected.jsonl.
    """
    start = time.monotonic()
    encoding = Encoding(
        parse_image_policy(image_policy), jpeg_quality, chroma_subsampling, max_pixels
    )
    _check_settings(samples_per_shard, workers, part)
    request = _request(corpus, encoding, samples_per_shard)
    check_request(out, request)
    work, manifest = Work(corpus, out, root, request, workers, progress), finished_manifest(out)
    if manifest is None:
        with locked(out, part):
            begin(out, request)
            pack_shards(_plans(work, part or (1, 1)), work)
            _check_total(work)
            save_total(out, work.records, work.shards)
            manifest = merge(out) if part is None else None
    return PackReport(manifest, work.packed, work.rejected, work.kept, time.monotonic() - start)


def _check_total(work: Work) -> None:
    if work.records == 0:
        name = f"{work.corpus.name} {work.corpus.split}"
        raise PackError(f"{name} in {work.root}: no pictures, so there is nothing to pack.")


def _check_settings(samples_per_shard: int, workers: int, part: Part | None) -> None:
    if not 1 <= samples_per_shard <= MAX_SAMPLES_PER_SHARD:
        raise PackError(f"samples_per_shard {samples_per_shard}: use 1 to {MAX_SAMPLES_PER_SHARD}.")
    if workers < 0:
        raise PackError(
            f"workers {workers}: use 1 or more, or 0 to work in the packer's own process."
        )
    if part is not None and not 1 <= part[0] <= part[1]:
        raise PackError(f"part {part[0]}/{part[1]}: use i/n with i from 1 to n.")


def _request(corpus: Corpus, encoding: Encoding, samples_per_shard: int) -> Request:
    return Request(
        corpus=corpus.name,
        split=corpus.split,
        classes=corpus.classes,
        palette=corpus.palette,
        num_records=corpus.num_records,
        image_policy=str(encoding.policy),
        jpeg_quality=encoding.jpeg_quality,
        chroma_subsampling=encoding.chroma_subsampling,
        samples_per_shard=samples_per_shard,
        max_pixels=encoding.max_pixels,
        encoder=f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}",
    )


def _plans(work: Work, part: Part) -> Iterator[Plan]:
    """The shards of this part that are still to pack; counts those that are not."""
    for plan in all_plans(work):
        work.shards += 1
        work.records += len(plan.records)
        if plan.number % part[1] != part[0] - 1:
            continue
        state = load_state(work.out, plan.number, with_rows=False)
        if state is None:
            yield plan
            continue
        if state.inputs != plan.inputs:
            raise PackError(
                f"{work.out}: shard {plan.number} was packed from other pictures than the corpus holds now; "
                "remove the folder and pack again."
            )
        work.kept += len(plan.records)
        work.done += len(plan.records)


def all_plans(work: Work) -> Iterator[Plan]:
    """Every shard of the corpus, in order; no picture is opened."""
    records = iter(work.corpus.records())
    for number in count():
        group = list(islice(records, work.request.samples_per_shard))
        if not group:
            return
        yield Plan(number, group, digest_of_inputs(work.root, group))


def pack_shards(plans: Iterable[Plan], work: Work) -> None:
    """Pack shards; the workers may already be at the next shard while one is written."""
    under_way: deque[Plan] = deque()

    def chunks() -> Iterator[Chunk]:
        for plan in plans:
            under_way.append(plan)
            yield from plan.chunks()

    with PackingPool(work.job, work.workers) as pool:
        results = pool.run(chunks())
        for first in results:
            plan = under_way.popleft()
            with ShardWriter(work.out, work.request.name, plan.number) as writer:
                for number, chunk in enumerate(plan.chunks()):
                    packed = first if number == 0 else next(results)
                    writer.add(packed)
                    work.done += len(chunk)
                    work.packed += len(packed.keys)
                    work.rejected += len(packed.rejected)
                    if work.progress is not None:
                        work.progress(work.done, work.rejected)
                writer.finish(len(plan.records), plan.inputs)
