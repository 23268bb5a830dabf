"""Pack one shard of a set again (`launcher/pack.py --only K`) after damage or a changed source.

If the bytes come out as the manifest promises, only the shard and its index are replaced; else the
tables and the manifest are rewritten too, and the set has a new digest.
"""

import time
from pathlib import Path

from shards.errors import PackError
from shards.manifest import MANIFEST_FILE, Manifest, read_manifest
from shards.packing.finished import finished_states
from shards.packing.folder import Request, locked, read_request, remove_work_folder
from shards.packing.inputs import INPUTS_FILE, write_inputs
from shards.packing.merging import write_tables
from shards.packing.pack import PackReport, ProgressCallback, Work, pack_shards, plans_as_packed
from shards.packing.shard_file import load_state, state_path
from shards.records import Corpus


def rebuild_shard(
    corpus: Corpus,
    out: Path,
    number: int,
    *,
    root: Path,
    workers: int = 1,
    progress: ProgressCallback | None = None,
) -> PackReport:
    """Pack shard `number` of a packed (or half-packed) folder again, with the folder's settings.

    Returns:
        A report whose manifest has another digest than before if the bytes differ; without a
        manifest if the set is not finished yet.

    Raises:
        PackError: Not a packed folder, another corpus, or no such shard.
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

    _check_number_of_records(corpus, out, request)

    work = Work(corpus, out, root, request, workers, progress)
    with locked(out):
        # Unchecked: a missing or short shard is why this was called.
        manifest = read_manifest(out, check_files=False) if (out / MANIFEST_FILE).exists() else None
        plans = plans_as_packed(work, manifest)
        # Records are listed up to that shard only.
        plan = next((plan for plan in plans if plan.number == number), None)
        if plan is None:
            raise PackError(f"{out}: the corpus has no records for a shard {number}.")

        # The same path as packing: same records, same bytes.
        pack_shards([plan], work)
        if manifest is not None:
            manifest = _take_in(manifest, out, number)

    return PackReport(manifest, work.packed, work.rejected, 0, time.monotonic() - start)


def _check_number_of_records(corpus: Corpus, out: Path, request: Request) -> None:
    """Refuse a corpus that is not the one that was packed: its shards would have other records.

    Raises:
        PackError: It has grown or shrunk since.
    """
    # A set that has grown knows its shards by the records' keys; some corpora cannot be counted.
    if request.appended_from or None in (corpus.num_records, request.num_records):
        return
    if corpus.num_records == request.num_records:
        return
    raise PackError(
        f"{out}: was packed from {request.num_records} records and the corpus has "
        f"{corpus.num_records} now, so a shard would get other records: add new ones with --append "
        "first, or bring the corpus back to what it was."
    )


def _take_in(manifest: Manifest, out: Path, number: int) -> Manifest:
    """Bring the tables of a finished set in line with its new shard."""
    new = load_state(out, number)
    request = read_request(out)
    if new is None or request is None:
        raise PackError(
            f"{state_path(out, number)}: has gone while it was needed; rerun the same command."
        )

    states = finished_states(manifest)
    old = states.get(number)
    states[number] = new
    in_order = [states[each] for each in sorted(states)]

    # Equal bytes leave the manifest alone, and runs on the set may resume.
    if old is None or old.sha256 != new.sha256:
        manifest = write_tables(out, request, lambda: iter(in_order))
    # The source was touched: the digests follow, or the next call would ask for this again.
    elif old.inputs != new.inputs:
        write_inputs(out / INPUTS_FILE, (state.inputs for state in in_order))

    remove_work_folder(out)
    return manifest
