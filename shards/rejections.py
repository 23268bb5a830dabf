"""rejected.jsonl: the inputs that were left out, one JSON line each with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.errors import ManifestError
from shards.files import replacing

REJECTED_FILE = "rejected.jsonl"
MAX_LINE_BYTES = 1 << 20
# Members of tars made elsewhere that are no sample and that a user may miss. The manifest's count,
# which is part of the set's digest, is that of samples.
SECOND_IMAGE = "a second image of one sample"
NO_ENDING = "a file without an ending, such as .jpg, in its name"
NO_DATA = " in the tar, which has no data of its own to read"
PASSED_OVER = (SECOND_IMAGE, NO_ENDING, NO_DATA)


@dataclass(frozen=True)
class Rejection:
    """One input that was left out.

    Attributes:
        shard: Number of the shard it would be in.
        key: Its key.
        source: Its file, relative to the corpus root.
        reason: Why, in words.
    """

    shard: int
    key: str
    source: str
    reason: str


def write_rejections(path: Path, rejections: Iterable[Rejection]) -> int:
    """Write rejected.jsonl whole or not at all; return the number of lines."""
    count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for rejection in rejections:
            stream.write(json.dumps(asdict(rejection)) + "\n")
            count += 1
    return count


def read_rejections(path: Path) -> Iterator[Rejection]:
    """Yield the lines of rejected.jsonl.

    Raises:
        ManifestError: The file cannot be read, or a line is not such a record.
    """
    try:
        with path.open("rb") as stream:
            # Bounded lines: a file without a newline would be read whole.
            while line := stream.readline(MAX_LINE_BYTES):
                yield _parsed(json.loads(line))
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(
            f"{path}: cannot be read ({error}); pack the set again into another folder."
        ) from error


def _parsed(line: Any) -> Rejection:
    if not isinstance(line, dict):
        raise ValueError("a line is not a JSON object")

    shard, key, source, reason = (line.get(name) for name in ("shard", "key", "source", "reason"))
    texts_are_good = all(isinstance(text, str) for text in (key, source, reason))
    # `type`, not isinstance: True is an int.
    if type(shard) is not int or shard < 0 or not texts_are_good:
        raise ValueError("a line lacks shard, key, source or reason")

    return Rejection(shard, str(key), str(source), str(reason))
