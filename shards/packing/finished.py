"""A finished set read back: the states of its shards, and which record is in which shard.

For packing one shard again (rebuilding.py), adding shards (appending.py), and noticing changes at
the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np

from shards.errors import ManifestError, PackError
from shards.manifest import Manifest, ShardInfo
from shards.packing.inputs import INPUTS_FILE, ShardInputs, read_inputs
from shards.packing.shard_file import ShardState
from shards.rejections import REJECTED_FILE, Rejection, read_rejections
from shards.samples_table import SAMPLE_DTYPE


def shard_number(file: str) -> int:
    """Return the number in a shard's file name.

    Raises:
        PackError: The packer has not named this file.
    """
    match = re.search(r"-([0-9]{6,})\.tar$", file)
    if match is None:
        raise PackError(
            f"{file}: not a shard that this packer has named, so its number is not known."
        )
    return int(match[1])


def finished_states(manifest: Manifest) -> dict[int, ShardState]:
    """Return a finished set's states by shard number, also of shards with only rejected records.

    Raises:
        PackError: The set was not packed by this packer.
        ManifestError: One of its tables is damaged.
    """
    infos = {shard_number(info.file): info for info in manifest.shards}
    # Rows lie in shard order, so a running sum tells where each shard's begin.
    starts = dict(
        zip(infos, accumulate((i.samples for i in infos.values()), initial=0), strict=False)
    )
    rejected = _rejected(manifest)
    inputs = read_inputs(manifest.folder / INPUTS_FILE)
    table = manifest.samples()

    states = {}
    # A shard whose records were all rejected has no tar, but its number and its reasons.
    for number in sorted(infos.keys() | rejected.keys()):
        info = infos.get(number)
        first = starts.get(number, 0)
        rows = table[first : first + info.samples] if info else np.zeros(0, SAMPLE_DTYPE)
        known = inputs.get(number, ShardInputs(number))
        states[number] = _state(number, info, known, rejected.get(number, []), rows)
    return states


def keys_by_shard(manifest: Manifest) -> dict[str, int]:
    """Return the shard number of every record of a finished set, rejected ones included, by key.

    Raises:
        ManifestError: DALI's index of a shard is missing or damaged.
    """
    # Rejected records are known too: --append must not try them again.
    numbers = {rejection.key: rejection.shard for rejection in _all_rejections(manifest)}
    for info in manifest.shards:
        number = shard_number(info.file)
        for key in _indexed_keys(manifest.folder / info.file):
            numbers[key] = number
    return numbers


def _indexed_keys(tar: Path) -> Iterator[str]:
    index = tar.with_suffix(".idx")
    try:
        # From DALI's index, a thousandth of the tar's size.
        lines = index.read_text().splitlines()[1:]
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(
            f"{index}: cannot be read ({error}), so the records of its shard are not known; pack "
            "the shard again with --only."
        ) from error

    for line in lines:
        # "jpg OFFSET SIZE KEY.jpg json ...": keys have no dots and no blanks
        yield line.split(" ", 4)[3].partition(".")[0]


def _state(
    number: int,
    info: ShardInfo | None,
    inputs: ShardInputs,
    rejected: list[Rejection],
    rows: np.ndarray,
) -> ShardState:
    if info is None:
        return ShardState(number, "", 0, 0, "", 0, inputs, rejected, rows)
    return ShardState(
        number, info.file, info.samples, info.bytes, info.sha256, 0, inputs, rejected, rows
    )


def _rejected(manifest: Manifest) -> dict[int, list[Rejection]]:
    by_shard: dict[int, list[Rejection]] = {}
    for rejection in _all_rejections(manifest):
        by_shard.setdefault(rejection.shard, []).append(rejection)
    return by_shard


def _all_rejections(manifest: Manifest) -> Iterator[Rejection]:
    return read_rejections(manifest.folder / REJECTED_FILE)
