"""Pack a corpus into tar shards: streamed, parallel, resumable, byte for byte reproducible.

Called by launcher/pack.py with an adapter's corpus. Shard k holds the records from k *
samples_per_shard on, less the rejected ones: a shard's content depends on nothing that happens to
the others, and shards can be packed in any order, by any number of workers, machines and attempts.

Memory: the records of one shard and 3 chunks per worker, whatever the size of the corpus.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import PIL
from PIL import features

from shards.errors import PackError
from shards.files import printable
from shards.images.policy import MAX_PIXELS, Encoding, parse_image_policy
from shards.manifest import Manifest
from shards.packing.finished import keys_by_shard
from shards.packing.folder import (
    Part,
    Request,
    Total,
    begin,
    check_request,
    finished_manifest,
    locked,
    read_request,
)
from shards.packing.inputs import (
    INPUTS_FILE,
    ShardInputs,
    inputs_now,
    labels_digest,
    read_inputs,
)
from shards.packing.merging import merge
from shards.packing.samples import Job, PackedChunk
from shards.packing.shard_file import ShardWriter, digest_of_inputs, load_state
from shards.packing.workers import Chunk, PackingPool
from shards.records import Corpus, Record
from shards.summary import LeftOut

logger = logging.getLogger("shards")

CHUNK = 16  # records per task of a worker: some 50 ms of work
MAX_SAMPLES_PER_SHARD = 100_000
NAMED_SHARDS = 8
NEW_RECORDS = -1  # in place of a shard number: the set does not have them


# Called now and then with the number of records that are done, and how many of them were rejected.
ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class PackReport:
    """The result of a call of `pack`. `manifest` is None while other parts or shards are missing.

    Attributes:
        manifest: Of the finished set.
        packed: Samples, in this call.
        rejected: Records, in this call.
        kept: Records of shards that were finished before.
        seconds: That the call took.
        touched: Shards of a finished set whose files have another time than when they were packed,
            though labels and sizes are the same.
    """

    manifest: Manifest | None
    packed: int
    rejected: int
    kept: int
    seconds: float
    touched: tuple[int, ...] = ()

    @property
    def was_finished(self) -> bool:
        """True if the folder was packed already, and nothing was done."""
        return self.manifest is not None and self.packed + self.rejected + self.kept == 0


@dataclass(frozen=True)
class Plan:
    """A shard to pack: its number, its records, and a digest of their keys and sources."""

    number: int
    records: Sequence[Record]
    digest: str

    def chunks(self) -> list[Chunk]:
        """Return the records in the pieces that workers take."""
        return [self.records[first : first + CHUNK] for first in range(0, len(self.records), CHUNK)]

    def inputs(self) -> ShardInputs:
        """Return the digests that are known before the files are read."""
        return ShardInputs(self.number, self.digest, labels_digest(self.records))


@dataclass
class Work:
    """One call of the packer: its arguments, and its counts so far."""

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
        """The workers' settings."""
        return Job(self.root, self.request.encoding, len(self.request.classes))

    def count_chunk(self, num_records: int, packed: PackedChunk) -> None:
        """Count a chunk that is written, and pass its decoders' messages on."""
        self.done += num_records
        self.packed += len(packed.keys)
        self.rejected += len(packed.rejected)

        # Here, in the main process: workers' lines would run through the progress bar.
        for message in packed.messages:
            logger.warning("%s", message)
        if self.progress is not None:
            self.progress(self.done, self.rejected)

    def total(self) -> Total:
        """Return how far the corpus goes, once its end is reached."""
        left_out = {
            printable(each.reason): LeftOut(
                count=each.count, examples=tuple(map(printable, each.examples))
            )
            for each in self.corpus.left_out
        }
        return Total(records=self.records, shards=self.shards, left_out=left_out)


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
    min_chroma: float = 0.0,
    workers: int = 1,
    part: Part | None = None,
    progress: ProgressCallback | None = None,
) -> PackReport:
    """Pack a corpus into `out`, or resume an earlier call with the same request.

    Args:
        corpus: The records to pack, in order.
        out: The folder to write; made if it is missing.
        root: The corpus root; sources are named relative to it.
        image_policy: `original`, `short:N` or `squash:N`.
        jpeg_quality: 1 to 100, of images that are re-encoded.
        chroma_subsampling: `4:4:4`, `4:2:2` or `4:2:0`, of images that are re-encoded.
        samples_per_shard: Records per shard; rejected ones leave it smaller.
        max_pixels: Larger images are rejected.
        min_chroma: Photos of less mean chroma are left out, in Lab units.
        workers: Processes; 0 works in this one. The output does not depend on it.
        part: (i, n), i from 1 to n: pack each n-th shard only, beside the other parts; then call
            `merge`.
        progress: Called after each chunk.

    Raises:
        PackError: Settings that make no sense, another request or another packer in `out`, an empty
            corpus, a finished set whose labels or photos have changed since, a disk that fails.
            Single photos never raise: they are listed in rejected.jsonl.
    """
    start = time.monotonic()
    # Checked first: a wrong setting must not leave a folder behind.
    encoding = Encoding(
        parse_image_policy(image_policy),
        jpeg_quality,
        chroma_subsampling,
        max_pixels,
        min_chroma,
    )
    _check_settings(samples_per_shard, workers, part)
    request = request_for(corpus, encoding, samples_per_shard)
    check_request(out, request)
    there = read_request(out)
    # What the folder was begun with: the encoder's version may have changed since.
    request = request if there is None else there

    work = Work(corpus, out, root, request, workers, progress)
    manifest = finished_manifest(out)
    touched: tuple[int, ...] = ()

    if manifest is not None:
        # A finished set is compared with its source rather than taken on trust.
        touched = _check_unchanged(work, manifest)
    else:
        with locked(out, part):
            begin(out, request)
            pack_shards(_plans(work, part or (1, 1)), work)
            # An empty corpus is a wrong path far more often than an empty data set.
            _check_total(work)
            # Parts learn the number of shards from it, whichever comes to the end first.
            work.total().write(out)
            # Parts are merged by one call of their own: none knows when the others have ended.
            manifest = merge(out) if part is None else None

    seconds = time.monotonic() - start
    return PackReport(manifest, work.packed, work.rejected, work.kept, seconds, touched)


def request_for(corpus: Corpus, encoding: Encoding, samples_per_shard: int) -> Request:
    """Return the request for packing a corpus with these settings."""
    return Request(
        corpus=corpus.name,
        split=corpus.split,
        classes=tuple(map(printable, corpus.classes)),
        palette=corpus.palette,
        num_records=corpus.num_records,
        image_policy=str(encoding.policy),
        jpeg_quality=encoding.jpeg_quality,
        chroma_subsampling=encoding.chroma_subsampling,
        samples_per_shard=samples_per_shard,
        max_pixels=encoding.max_pixels,
        # Other versions may encode the same pixels to other bytes.
        encoder=f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}",
        min_chroma=encoding.min_chroma,
    )


def all_plans(work: Work) -> Iterator[Plan]:
    """Yield every shard of the corpus, in order; no photo is opened."""
    records = iter(work.corpus.records())
    for number in count():
        # One shard's records at a time: a corpus may have millions.
        group = list(islice(records, work.request.samples_per_shard))
        if not group:
            return
        yield Plan(number, group, digest_of_inputs(work.root, group))


def plans_as_packed(work: Work, manifest: Manifest | None) -> Iterator[Plan]:
    """Yield the corpus's records as the shards of a set hold them; see `all_plans`.

    In a set that --append has grown, new records are in the last shards wherever they come in the
    corpus.
    """
    if manifest is None or not work.request.appended_from:
        yield from all_plans(work)
        return

    # By key: where a record comes in the corpus says nothing about its shard any more.
    numbers = keys_by_shard(manifest)
    groups: dict[int, list[Record]] = {}
    for record in work.corpus.records():
        groups.setdefault(numbers.get(record.key, NEW_RECORDS), []).append(record)

    for number, records in sorted(groups.items()):
        yield Plan(number, records, digest_of_inputs(work.root, records))


def pack_shards(plans: Iterable[Plan], work: Work) -> None:
    """Pack shards; the workers may already be at the next shard while one is written."""
    under_way: deque[Plan] = deque()

    def chunks() -> Iterator[Chunk]:
        # Chunks of several shards in one stream: workers do not idle at a shard's end.
        for plan in plans:
            under_way.append(plan)
            yield from plan.chunks()

    with PackingPool(work.job, work.workers) as pool:
        results = pool.run(chunks())
        for first in results:
            plan = under_way.popleft()
            with ShardWriter(work.out, work.request.name, plan.number) as writer:
                for number, chunk in enumerate(plan.chunks()):
                    # The loop has taken the shard's first chunk to know that it has begun.
                    packed = first if number == 0 else next(results)
                    writer.add(packed)
                    work.count_chunk(len(chunk), packed)

                writer.finish(len(plan.records), plan.inputs())


def _check_settings(samples_per_shard: int, workers: int, part: Part | None) -> None:
    if not 1 <= samples_per_shard <= MAX_SAMPLES_PER_SHARD:
        raise PackError(f"samples_per_shard {samples_per_shard}: use 1 to {MAX_SAMPLES_PER_SHARD}.")
    if workers < 0:
        raise PackError(
            f"workers {workers}: use 1 or more, or 0 to work in the packer's own process."
        )
    if part is not None and not 1 <= part[0] <= part[1]:
        raise PackError(f"part {part[0]}/{part[1]}: use i/n with i from 1 to n.")


def _check_total(work: Work) -> None:
    if work.records == 0:
        name = f"{work.corpus.name} {work.corpus.split}"
        raise PackError(f"{name} in {work.root}: no pictures, so there is nothing to pack.")


def _plans(work: Work, part: Part) -> Iterator[Plan]:
    """Yield the shards of this part that are still to pack; count the others."""
    for plan in all_plans(work):
        work.shards += 1
        work.records += len(plan.records)
        # Interleaved, not in stretches: photos of one kind often stand together, and differ in
        # size.
        if plan.number % part[1] != part[0] - 1:
            continue

        # Rows are not needed to know that a shard is there.
        state = load_state(work.out, plan.number, with_rows=False)
        if state is None:
            yield plan
            continue

        changed = state.inputs.changes(_inputs_of(plan))
        if "records" in changed:
            raise PackError(
                f"{work.out}: shard {plan.number} was packed from other pictures than the corpus "
                "holds now; remove the folder and pack again."
            )
        if "labels" in changed or "sizes" in changed:
            yield plan  # it changed at its source since: nothing refers to the shard yet
            continue

        work.kept += len(plan.records)
        work.done += len(plan.records)


def _inputs_of(plan: Plan) -> ShardInputs:
    return inputs_now(plan.number, plan.digest, plan.records)


def _check_unchanged(work: Work, manifest: Manifest) -> tuple[int, ...]:
    """Compare a finished set with its source now; return shards whose files were only touched.

    Raises:
        PackError: Labels or photos have changed.
    """
    known = read_inputs(work.out / INPUTS_FILE)
    if not known:
        return ()  # packed by an older release, which kept no digests

    changed: dict[int, list[str]] = {}
    for plan in plans_as_packed(work, manifest):
        then = known.get(plan.number)
        names = then.changes(_inputs_of(plan)) if then is not None else ["records"]
        if names:
            changed[plan.number] = names

    # Times alone change with every copy of the source.
    serious = {number: names for number, names in changed.items() if names != ["times"]}
    if serious:
        raise PackError(_changed_in_words(work.out, serious))
    return tuple(changed)


def _changed_in_words(out: Path, changed: dict[int, list[str]]) -> str:
    names = {name for each in changed.values() for name in each}
    # The gravest change decides the advice.
    if "records" in names:
        what = "other records than the corpus holds now"
    elif "labels" in names:
        what = "labels that have changed since"
    else:
        what = "files that have changed since (their sizes differ)"

    numbers = ", ".join(map(str, list(changed)[:NAMED_SHARDS]))
    more = ", ..." if len(changed) > NAMED_SHARDS else ""
    plural = "s" if len(changed) > 1 else ""
    advice = (
        "remove the folder and pack again, or pack into another one"
        if "records" in names
        else "pack each of them again with --only NUMBER, or pack into another folder"
    )
    return f"{out}: packed already, but shard{plural} {numbers}{more} hold {what}; {advice}."
