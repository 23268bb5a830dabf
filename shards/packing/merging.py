"""The states of finished shards -> samples.npy, rejected.jsonl and, last of all, manifest.json.

The last step of shards/packing/pack.py, and `launcher/pack.py --merge` after parts packed side by side.
Nothing is read but the states, one at a time: memory does not grow with the set.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from shards.errors import PackError
from shards.files import replacing, telling_disk_errors
from shards.manifest import (
    MANIFEST_FILE,
    REJECTED_FILE,
    SAMPLE_DTYPE,
    SAMPLES_FILE,
    FileInfo,
    Manifest,
    ShardInfo,
    write_manifest,
)
from shards.packing.folder import (
    TOTAL_FILE,
    Request,
    finished_manifest,
    locked,
    read_request,
    remove_work_folder,
)
from shards.packing.shard_file import WORK_FOLDER, ShardState, load_state


def merge_parts(out: Path) -> Manifest:
    """Put the manifest of parts together; the manifest that is there where the set is finished already.

    Raises:
        PackError: Nothing has been packed there, parts are missing, or a packer is still at work.
    """
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
    total_path = out / WORK_FOLDER / TOTAL_FILE
    if request is None or not total_path.is_file():
        raise PackError(
            f"{out}: nothing to merge: no packer has come to the end of the corpus here yet."
        )
    num_shards: int = json.loads(total_path.read_text())["shards"]
    _check_states(out, num_shards)
    manifest = write_tables(out, request, lambda: _states(out, num_shards))
    remove_work_folder(out)
    return manifest


def write_tables(
    out: Path, request: Request, states: Callable[[], Iterator[ShardState]]
) -> Manifest:
    """Write samples.npy, rejected.jsonl and manifest.json; `states` starts a pass over all shards in order."""
    shards, num_rejected = _summary(states())
    with replacing(out / REJECTED_FILE) as temporary:
        _write_rejected(states(), temporary)
    if not shards:
        raise PackError(
            f"{out}: all {num_rejected} records were rejected; {REJECTED_FILE} in that folder says why."
        )
    num_samples = sum(shard.samples for shard in shards)
    with replacing(out / SAMPLES_FILE) as temporary:
        samples_file, num_masks = _write_samples(states(), num_samples, temporary)
    manifest = Manifest(
        name=request.name,
        corpus=request.corpus,
        split=request.split,
        classes=request.classes,
        palette=request.palette,
        has_masks=num_masks == num_samples,
        image_policy=request.image_policy,
        jpeg_quality=request.jpeg_quality,
        chroma_subsampling=request.chroma_subsampling,
        num_samples=num_samples,
        num_rejected=num_rejected,
        samples_file=samples_file,
        shards=tuple(shards),
    )
    with telling_disk_errors(out / MANIFEST_FILE):
        return write_manifest(manifest, out)


def _check_states(out: Path, num_shards: int) -> None:
    missing = [n for n in range(num_shards) if load_state(out, n, with_rows=False) is None]
    if missing:
        first = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise PackError(
            f"{out}: {len(missing)} of {num_shards} shards are not packed yet ({first}); run their parts, "
            "or run python launcher/pack.py without --part to pack what is missing."
        )


def _states(out: Path, num_shards: int) -> Iterator[ShardState]:
    for number in range(num_shards):
        state = load_state(out, number)
        if state is None:
            raise PackError(
                f"{out}: shard {number} has changed while its manifest was written; run it again."
            )
        yield state


def _summary(states: Iterator[ShardState]) -> tuple[list[ShardInfo], int]:
    """The shards that hold samples, and the number of rejected records in all."""
    shards, num_rejected = [], 0
    for state in states:
        num_rejected += len(state.rejected)
        if state.samples:
            shards.append(
                ShardInfo(
                    file=state.file, samples=state.samples, bytes=state.bytes, sha256=state.sha256
                )
            )
    return shards, num_rejected


def _write_samples(
    states: Iterator[ShardState], num_samples: int, path: Path
) -> tuple[FileInfo, int]:
    """Write samples.npy shard by shard; also returns the number of samples with a mask."""
    header = {"descr": SAMPLE_DTYPE.descr, "fortran_order": False, "shape": (num_samples,)}
    index, num_masks = 0, 0
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for state in states:
            rows = state.rows.copy()
            rows["shard"] = index
            num_masks += int(np.count_nonzero(rows["mask_size"]))
            stream.write(rows.tobytes())
            index += state.samples > 0
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    return FileInfo(
        file=SAMPLES_FILE, bytes=path.stat().st_size, sha256=digest.hexdigest()
    ), num_masks


def _write_rejected(states: Iterator[ShardState], path: Path) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for state in states:
            for line in state.rejected:
                stream.write(json.dumps({"shard": state.number, **line}) + "\n")
