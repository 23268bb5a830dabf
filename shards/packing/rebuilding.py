"""Pack one shard of a set again: `launcher/pack.py --only K`, after a damage or a change at the source.

Where the bytes come out as the manifest says, only the shard and its index are replaced; else the tables and
the manifest are rewritten too, and the set has a new digest.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path

from shards.errors import PackError
from shards.manifest import MANIFEST_FILE, Manifest, read_manifest
from shards.packing.folder import locked, read_request, remove_work_folder
from shards.packing.merging import write_tables
from shards.packing.pack import PackReport, ProgressCallback, Work, all_plans, pack_shards
from shards.packing.shard_file import ShardState, load_state, state_path
from shards.records import Corpus
from shards.rejections import REJECTED_FILE, Rejection, read_rejections


def rebuild_shard(
    corpus: Corpus,
    out: Path,
    number: int,
    *,
    root: Path,
    workers: int = 1,
    progress: ProgressCallback | None = None,
) -> PackReport:
    """Pack shard `number` of a packed (or half-packed) folder again, with the settings that stand in it.

    Returns:
        A report whose manifest has another digest than before where the bytes differ; without a manifest
        where the set is not finished yet.

    Raises:
        PackError: No packed folder, another corpus, or no such shard.
    """
    start = time.monotonic()
    request = read_request(out)
    if request is None:
        raise PackError(
            f"{out}: nothing has been packed here yet, so there is no shard to pack again."
        )
    if (corpus.name, corpus.split) != (request.corpus, request.split):
        raise PackError(
            f"{out}: holds {request.corpus} {request.split}, not {corpus.name} {corpus.split}; "
            "give the same --corpus and --split."
        )
    work = Work(corpus, out, root, request, workers, progress)
    with locked(out):
        manifest = read_manifest(out, check_files=False) if (out / MANIFEST_FILE).exists() else None
        plan = next((plan for plan in all_plans(work) if plan.number == number), None)
        if plan is None:
            raise PackError(f"{out}: the corpus has no records for a shard {number}.")
        pack_shards([plan], work)
        if manifest is not None:
            manifest = _take_in(manifest, out, number)
    return PackReport(manifest, work.packed, work.rejected, 0, time.monotonic() - start)


def _take_in(manifest: Manifest, out: Path, number: int) -> Manifest:
    """Bring the tables of a finished set in line with its new shard."""
    state = load_state(out, number)
    request = read_request(out)
    if state is None or request is None:
        raise PackError(
            f"{state_path(out, number)}: has gone while it was needed; run the same line again."
        )
    old = next((info for info in manifest.shards if _number(info.file) == number), None)
    if (old.sha256 if old is not None else "") != state.sha256:
        manifest = write_tables(out, request, lambda: _states(manifest, state))
    remove_work_folder(out)
    return manifest


def _states(manifest: Manifest, new: ShardState) -> Iterator[ShardState]:
    """The states of a finished set, in order, told from its tables; `new` takes the place of its shard."""
    rejected = _rejected(manifest)
    infos = {_number(info.file): info for info in manifest.shards}
    rows, first = manifest.samples(), 0
    for number in sorted(infos.keys() | rejected.keys() | {new.number}):
        info = infos.get(number)
        samples = info.samples if info is not None else 0
        if number == new.number:
            yield new
        else:
            file, size, sha256 = (
                (info.file, info.bytes, info.sha256) if info is not None else ("", 0, "")
            )
            own = rows[first : first + samples]
            yield ShardState(
                number, file, samples, size, sha256, 0, "", rejected.get(number, []), own
            )
        first += samples


def _number(file: str) -> int:
    match = re.search(r"-([0-9]{6,})\.tar$", file)
    if match is None:
        raise PackError(
            f"{file}: not a shard that this packer has named, so its number is not known."
        )
    return int(match[1])


def _rejected(manifest: Manifest) -> dict[int, list[Rejection]]:
    """Return the lines of rejected.jsonl by shard."""
    by_shard: dict[int, list[Rejection]] = {}
    for rejection in read_rejections(manifest.folder / REJECTED_FILE):
        by_shard.setdefault(rejection.shard, []).append(rejection)
    return by_shard
