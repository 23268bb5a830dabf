"""Shards made elsewhere -> a manifest to load them by: `launcher/pack.py --index SHARDS --out DIR`.

Each shard is read once, in workers, and nothing of it is copied; a shard behind a URL is fetched to
a temporary file. A finished shard has its state in `.packing/`, so an interrupted call continues;
the tables are put together from the states, one at a time, so memory does not grow with the set.

A shard that cannot be read costs itself alone: the index is finished without it and names it. The
states stay then, and the same command tries such shards again.
"""

from __future__ import annotations

import errno
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from shards.errors import PackError
from shards.files import replacing
from shards.images.policy import MAX_PIXELS
from shards.manifest import (
    IMAGE_FORMATS,
    INDEXED_POLICY,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    FileInfo,
    Manifest,
    ShardInfo,
    read_manifest,
    write_manifest,
)
from shards.packing.contact_sheet import write_contact_sheet
from shards.packing.fetching import opened_shard
from shards.packing.folder import REQUEST_FILE as PACK_REQUEST_FILE
from shards.packing.folder import locked, remove_work_folder
from shards.packing.foreign_samples import (
    MAX_CLASS_NAMES,
    ForeignShard,
    LabelRule,
    shard_of,
)
from shards.packing.shard_file import WORK_FOLDER
from shards.packing.shard_list import Source, list_shards
from shards.packing.tally import left_out_by_reason
from shards.packing.workers import new_pool
from shards.rejections import (
    PASSED_OVER,
    REJECTED_FILE,
    Rejection,
    read_rejections,
    write_rejections,
)
from shards.samples_table import SAMPLE_DTYPE, SAMPLES_FILE, write_samples
from shards.storage.tar_reader import DamagedTarError
from shards.storage.transfer import TransferError
from shards.summary import Summary, write_summary

REQUEST_FILE = "indexing.json"
UNREADABLE = "the whole shard"  # how the reason of a shard that could not be read begins
NAMED_CLASSES = 4
IN_FLIGHT = 2  # shards per worker: one in work, one waiting
ProgressCallback = Callable[[int, int], None]  # samples done, and those of them left out


class IndexRequest(BaseModel):
    """The content of indexing.json: what an index depends on, beside the shards themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    locations: tuple[str, ...]
    label_format: str
    classes: tuple[str, ...]
    max_pixels: int


@dataclass(frozen=True)
class IndexReport:
    """The result of `index_shards`.

    Attributes:
        manifest: Of the indexed set.
        num_bytes: Read in this call.
        seconds: That the call took.
        was_finished: The folder held this index already, and nothing was added to it.
        unreadable: Location and reason of each shard that could not be read and is not in the set.
    """

    manifest: Manifest
    num_bytes: int = 0
    seconds: float = 0.0
    was_finished: bool = False
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class IndexedShard:
    """Counts of one shard: bytes that were read, samples taken, and samples left out."""

    num_bytes: int
    taken: int
    left_out: int


@dataclass(frozen=True)
class _State:
    """One indexed shard: the content of its state file.

    `unreadable` is the reason if the tar is damaged or cannot be fetched; it has no samples then.
    """

    location: str
    bytes: int
    sha256: str
    rejected: list[Rejection]
    formats: list[str]
    highest_class: int
    class_names: list[str]
    num_grey: int
    num_turned: int
    unreadable: str
    rows: NDArray[np.void] = field(repr=False, compare=False)

    def write(self, path: Path) -> None:
        head = {name: value for name, value in vars(self).items() if name != "rows"}
        head["rejected"] = [asdict(rejection) for rejection in self.rejected]
        with replacing(path) as temporary:
            temporary.write_bytes(json.dumps(head).encode() + b"\n" + self.rows.tobytes())


@dataclass
class _Totals:
    shards: list[ShardInfo] = field(default_factory=list)
    formats: set[str] = field(default_factory=set)
    class_names: set[str] = field(default_factory=set)
    highest_class: int = -1
    num_grey: int = 0
    num_turned: int = 0
    num_bytes: int = 0

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)


def index_shards(
    shards: str,
    out: Path,
    *,
    label_format: str = "",
    classes: tuple[str, ...] = (),
    max_pixels: int = MAX_PIXELS,
    workers: int = 1,
    progress: ProgressCallback | None = None,
) -> IndexReport:
    """Write a manifest of shards made elsewhere, or resume an earlier call that stopped.

    Shards that an earlier call could not read are tried again; what is read now is added to the
    set, which gets another digest.

    Args:
        shards: A folder, a glob, a brace list or URLs; several are joined by `::`.
        out: The folder to write.
        label_format: `cls`, `json:FIELD`, or "" for no labels.
        classes: Class names in the order of their numbers; empty: taken from the labels.
        max_pixels: Larger images are left out.
        workers: Processes, one shard each; 0 works in this one.
        progress: Called after each shard.

    Raises:
        PackError: No shards, another request or another packer in `out`, no usable sample, a disk
            that fails.
    """
    start = time.monotonic()
    # Listed before anything is written: a mistyped pattern leaves no folder behind.
    sources = list_shards(shards)
    request = IndexRequest(
        locations=tuple(source.location for source in sources),
        label_format=label_format,
        classes=classes,
        max_pixels=max_pixels,
    )
    _check_request(out, request)
    is_finished = (out / MANIFEST_FILE).exists()
    missed = _missed_shards(out) if is_finished else set()
    changed = is_finished and _any_has_changed(sources, out)
    if is_finished and not missed and not changed:
        return IndexReport(read_manifest(out), was_finished=True)

    with locked(out):
        if changed:
            # Without it the folder counts as unfinished, should this call stop half-way.
            (out / MANIFEST_FILE).unlink(missing_ok=True)
        _drop_other_states(out, request)
        with replacing(out / REQUEST_FILE) as temporary:
            temporary.write_text(request.model_dump_json(indent=1) + "\n")

        # Every shard's state is on disk by then, so an interruption costs the shards in work.
        num_bytes = _index_all(sources, out, request, workers, progress)
        unreadable = _unreadable(sources, out)
        # Also if a shard that is in the set is away by now.
        is_unchanged = is_finished and not changed and not unreadable.keys() < missed
        if is_unchanged:
            manifest = read_manifest(out)
        else:
            (out / MANIFEST_FILE).unlink(missing_ok=True)
            manifest = _write_tables(sources, out, request)
        # Else they are kept: the same command then reads only what it could not.
        if not unreadable:
            remove_work_folder(out)

    seconds = time.monotonic() - start
    lines = tuple(f"{location}: {reason}" for location, reason in unreadable.items())
    return IndexReport(manifest, num_bytes, seconds, is_unchanged, lines)


def index_shard(source: Source, out: Path, number: int, request: IndexRequest) -> IndexedShard:
    """Index one shard and write its state; done in a worker.

    Raises:
        PackError: The state cannot be written.
    """
    rule = LabelRule(request.label_format, request.classes)
    shard, size, sha256, unreadable = ForeignShard(), 0, "", ""
    try:
        scratch = out / WORK_FOLDER / f"{number:06d}.tar"
        with opened_shard(source.location, scratch) as stream:
            shard, size, sha256 = shard_of(stream, rule, request.max_pixels)
    except (DamagedTarError, TransferError) as error:
        unreadable = str(error)
    except OSError as error:
        # This machine's disk, which holds what is fetched, is at fault, not the shard.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise PackError(
                f"{out}: {error.strerror}; free some space and rerun the same command, which "
                "resumes it."
            ) from error
        unreadable = f"cannot be read ({error.strerror or error})"

    state = _State(
        source.location,
        size,
        sha256,
        [replace(each, shard=number) for each in shard.rejected],
        sorted(shard.formats),
        shard.highest_class,
        sorted(shard.class_names),
        shard.num_grey,
        shard.num_turned,
        unreadable,
        shard.table(),
    )
    state.write(_state_path(out, number))
    return IndexedShard(size, len(state.rows), len(state.rejected))


def _check_request(out: Path, request: IndexRequest) -> None:
    there = _request_there(out)
    if there is None:
        if (out / MANIFEST_FILE).exists() or (out / PACK_REQUEST_FILE).exists():
            raise PackError(f"{out}: holds a packed set; index into another folder.")
        return

    names = [
        name for name in IndexRequest.model_fields if getattr(there, name) != getattr(request, name)
    ]
    # What the classes are may come to light by reading: until the end they may be named.
    if names == ["classes"] and not (out / MANIFEST_FILE).exists():
        return
    if names:
        raise PackError(
            f"{out}: was begun with another request (other {', '.join(names)}); index into another "
            "folder, or remove this one."
        )


def _request_there(out: Path) -> IndexRequest | None:
    """Return the request that a folder was begun with; None if it was not begun.

    Raises:
        PackError: It cannot be read.
    """
    try:
        return IndexRequest.model_validate_json((out / REQUEST_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        raise PackError(
            f"{out / REQUEST_FILE}: cannot be read; index into another folder."
        ) from error


def _drop_other_states(out: Path, request: IndexRequest) -> None:
    """Remove the states that other classes have led to; needs the lock."""
    there = _request_there(out)
    if there is None or there.classes == request.classes:
        return

    for path in (out / WORK_FOLDER).glob("*.index"):
        state = _load(out, int(path.stem), with_rows=False)
        # Read without names, and with none that is missing among them: names change nothing.
        is_same = (
            state is not None
            and not there.classes
            and state.highest_class < len(request.classes)
            and len(state.class_names) < MAX_CLASS_NAMES
            and set(state.class_names) <= set(request.classes)
        )
        if not is_same:
            path.unlink()


def _any_has_changed(sources: list[Source], out: Path) -> bool:
    """Return whether a shard of a finished index has another size, or a time after its reading."""
    sizes = {shard.file: shard.bytes for shard in read_manifest(out, check_files=False).shards}
    # Written before the shards were read.
    read_ns = (out / REQUEST_FILE).stat().st_mtime_ns
    return any(
        source.file in sizes and _has_changed(source, sizes[source.file], read_ns)
        for source in sources
    )


def _has_changed(source: Source, num_bytes: int, read_ns: int) -> bool:
    if source.is_remote:
        return False  # to ask would take a request per shard
    try:
        status = Path(source.location).stat()
    except OSError:
        return False  # away, which is another matter
    return status.st_size != num_bytes or status.st_mtime_ns > read_ns


def _index_all(
    sources: list[Source],
    out: Path,
    request: IndexRequest,
    workers: int,
    progress: ProgressCallback | None,
) -> int:
    """Index the shards that have no state yet; return the bytes read."""
    # States of another order of shards are of no use: each names its location.
    missing = [
        number for number, source in enumerate(sources) if not _is_indexed(source, out, number)
    ]
    num_bytes = samples = left_out = 0

    for shard in _run(missing, sources, out, request, workers):
        num_bytes += shard.num_bytes
        samples += shard.taken + shard.left_out
        left_out += shard.left_out
        if progress is not None:
            progress(samples, left_out)
    return num_bytes


def _run(
    numbers: list[int], sources: list[Source], out: Path, request: IndexRequest, workers: int
) -> Iterator[IndexedShard]:
    if workers == 0:
        yield from (index_shard(sources[number], out, number, request) for number in numbers)
        return

    pending: deque[Future[IndexedShard]] = deque()
    with new_pool(workers) as pool:
        try:
            for number in numbers:
                pending.append(_submit(pool, sources[number], out, number, request))
                # Bounded: a queue of a million futures would take gigabytes.
                if len(pending) >= IN_FLIGHT * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise PackError(
                "a worker process died; look at the free memory, and rerun the same command with "
                "--workers 1: finished shards are kept."
            ) from error


def _submit(
    pool: ProcessPoolExecutor, source: Source, out: Path, number: int, request: IndexRequest
) -> Future[IndexedShard]:
    return pool.submit(index_shard, source, out, number, request)


def _state_path(out: Path, number: int) -> Path:
    return out / WORK_FOLDER / f"{number:06d}.index"


def _is_indexed(source: Source, out: Path, number: int) -> bool:
    state = _load(out, number, with_rows=False)
    if state is None or state.location != source.location or state.unreadable:
        return False
    return not _has_changed(source, state.bytes, _state_path(out, number).stat().st_mtime_ns)


def _load(out: Path, number: int, *, with_rows: bool = True) -> _State | None:
    try:
        with _state_path(out, number).open("rb") as stream:
            # One line of JSON, then the rows: the head can be read without them.
            head: dict[str, Any] = json.loads(stream.readline())
            content = stream.read() if with_rows else b""
        head["rejected"] = [Rejection(**line) for line in head["rejected"]]
        return _State(**head, rows=np.frombuffer(content, SAMPLE_DTYPE))
    # A damaged state counts as none: its shard is read again.
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _missed_shards(out: Path) -> set[str]:
    """Return the locations of the shards that are not in a finished index."""
    rejections = read_rejections(out / REJECTED_FILE)
    return {each.source for each in rejections if each.reason.startswith(UNREADABLE)}


def _unreadable(sources: list[Source], out: Path) -> dict[str, str]:
    """Return the reason why a shard could not be read, by its location."""
    unreadable = {}
    for number, source in enumerate(sources):
        state = _load(out, number, with_rows=False)
        if state is not None and state.unreadable:
            # A TransferError begins with its URL.
            reason = state.unreadable.removeprefix(f"{source.location}: ")
            unreadable[source.location] = reason
    return unreadable


def _states(sources: list[Source], out: Path) -> Iterator[_State]:
    for number in range(len(sources)):
        state = _load(out, number)
        if state is None:
            raise PackError(f"{out}: the state of shard {number} is gone; rerun the same command.")
        yield state


def _write_tables(sources: list[Source], out: Path, request: IndexRequest) -> Manifest:
    # One state at a time, several passes: memory does not grow with the set.
    totals = _totals(sources, out)
    write_rejections(out / REJECTED_FILE, _rejections(sources, out))
    reasons = left_out_by_reason(_rejections(sources, out))
    rejected = (each.count for reason, each in reasons.items() if not reason.endswith(PASSED_OVER))
    num_rejected = sum(rejected)
    if not totals.num_samples:
        shards_words = f"{len(sources):,} shard{'s' if len(sources) > 1 else ''}"
        if not reasons:
            raise PackError(f"{out}: no usable sample in {shards_words}: no image in any of them.")
        raise PackError(
            f"{out}: no usable sample in {shards_words}, most often because of: "
            f"{next(iter(reasons))}; {REJECTED_FILE} in that folder has all reasons."
        )

    size, sha256 = write_samples(out / SAMPLES_FILE, totals.num_samples, _rows(sources, out))
    converted = {"turned by EXIF, used as stored": totals.num_turned} if totals.num_turned else {}
    summary = Summary(
        taken=totals.num_samples,
        converted=converted,
        left_out=reasons,
        near_grey=totals.num_grey,
    )
    write_summary(summary, out)

    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="indexed",
        corpus="webdataset",
        split="all",
        classes=_classes(totals, request, out),
        palette=(),
        has_masks=False,
        image_policy=INDEXED_POLICY,
        jpeg_quality=0,
        chroma_subsampling="",
        image_formats=tuple(name for name in IMAGE_FORMATS if name in totals.formats),
        label_format=request.label_format,
        num_samples=totals.num_samples,
        num_rejected=num_rejected,
        samples_file=FileInfo(file=SAMPLES_FILE, bytes=size, sha256=sha256),
        shards=tuple(totals.shards),
    )
    write_contact_sheet(manifest.model_copy(update={"folder": out}))
    return write_manifest(manifest, out)


def _totals(sources: list[Source], out: Path) -> _Totals:
    totals = _Totals()
    for source, state in zip(sources, _states(sources, out), strict=True):
        totals.formats |= set(state.formats)
        totals.class_names |= set(state.class_names)
        totals.highest_class = max(totals.highest_class, state.highest_class)
        totals.num_grey += state.num_grey
        totals.num_turned += state.num_turned

        if len(state.rows):
            totals.shards.append(_shard_info(source, state, out))
    return totals


def _shard_info(source: Source, state: _State, out: Path) -> ShardInfo:
    # A shard beside the manifest is named by its file alone, so that the folder may move.
    is_beside = source.location == str(out.resolve() / source.file)
    return ShardInfo(
        file=source.file,
        samples=len(state.rows),
        bytes=state.bytes,
        sha256=state.sha256,
        location="" if is_beside else source.location,
    )


def _rows(sources: list[Source], out: Path) -> Iterator[NDArray[np.void]]:
    index = 0
    for state in _states(sources, out):
        # From a buffer, which is read-only.
        rows = state.rows.copy()
        rows["shard"] = index
        yield rows
        # Shards without a sample are not in the manifest and have no number in the table.
        index += len(rows) > 0


def _rejections(sources: list[Source], out: Path) -> Iterator[Rejection]:
    for number, (source, state) in enumerate(zip(sources, _states(sources, out), strict=True)):
        if state.unreadable:
            reason = f"{UNREADABLE} could not be read: {state.unreadable}"
            yield Rejection(number, "", source.location, reason)
        yield from state.rejected


def _classes(totals: _Totals, request: IndexRequest, out: Path) -> tuple[str, ...]:
    if request.classes or not request.label_format:
        return request.classes
    # A name that looks like a number cannot be told from a number.
    if totals.class_names and totals.highest_class >= 0:
        names = ", ".join(sorted(totals.class_names)[:NAMED_CLASSES])
        more = ", ..." if len(totals.class_names) > NAMED_CLASSES else ""
        raise PackError(
            f"{out}: its labels are names in some samples ({names}{more}) and numbers in others "
            f"(up to {totals.highest_class}); name the classes in their order with --classes FILE, "
            "and samples of other labels are left out."
        )
    if totals.class_names:
        # Sorted: the order of the shards must not number the classes.
        return tuple(sorted(totals.class_names))
    return tuple(str(number) for number in range(totals.highest_class + 1))
