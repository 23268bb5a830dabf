"""A folder being packed: the request and the locks. shards/packing/merging.py ends the work.

<out>/packing.json           the request; packing again with another one is refused
<out>/.packing/NNNNNN.state  a finished shard (shards/packing/shard_file.py)
<out>/.packing/total.json    how many records and shards there are, once a packer has seen all
<out>/.packing/append.json   the folder was finished, and more shards are being added to it
<out>/.packing/lock          held by the packer of the whole set, and by parts while they start
<out>/.packing/lock-part-*   held by the packer of a part
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shards import files
from shards.errors import PackError
from shards.files import disk_errors_reported, replacing
from shards.images.policy import Encoding, parse_image_policy
from shards.manifest import MANIFEST_FILE, Manifest, read_manifest
from shards.packing.shard_file import WORK_FOLDER
from shards.summary import LeftOut

REQUEST_FILE = "packing.json"
TOTAL_FILE = "total.json"
APPEND_FILE = "append.json"
# A part holds the folder's own lock only while it takes its part's; a whole packer keeps it.
PART_START_S = 1.0
ADDED_FIELDS = ("min_chroma", "appended_from")
Part = tuple[int, int]  # i of n, i from 1


class Request(BaseModel):
    """The content of packing.json: all that a packed set's bytes depend on, except the photos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    split: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    num_records: int | None  # None if the corpus cannot tell before the end
    image_policy: str
    jpeg_quality: int
    chroma_subsampling: str
    samples_per_shard: int
    max_pixels: int
    encoder: str  # library versions; compared only while the set is unfinished
    # Written only if they differ from the default: older releases do not know them.
    min_chroma: float = 0.0
    appended_from: tuple[int, ...] = ()  # the first shard of each --append

    @property
    def name(self) -> str:
        """The stem of the shards' file names."""
        return re.sub(r"[^A-Za-z0-9_-]+", "_", f"{self.corpus}-{self.split}")

    @property
    def encoding(self) -> Encoding:
        """The workers' part of it."""
        policy = parse_image_policy(self.image_policy)
        return Encoding(
            policy, self.jpeg_quality, self.chroma_subsampling, self.max_pixels, self.min_chroma
        )

    def difference(self, asked: "Request", *, finished: bool) -> list[str]:
        """Return lines `key: old, new`; empty if nothing that matters differs."""
        there = self.model_dump(exclude={"appended_from"})
        here = asked.model_dump(exclude={"appended_from"})

        keys = [key for key in there if there[key] != here[key]]
        # A finished set stays what it is; only its missing shards could mix encoders.
        if finished and "encoder" in keys:
            keys.remove("encoder")

        return [f"{key}: {_short(there[key])} there, {_short(here[key])} asked for" for key in keys]

    def write(self, out: Path) -> None:
        """Write packing.json whole or not at all."""
        # Only what is used, so that older releases go on reading folders that do not need it.
        added = {name for name in ADDED_FIELDS if not getattr(self, name)}
        with replacing(out / REQUEST_FILE) as temporary:
            temporary.write_text(self.model_dump_json(indent=1, exclude=added) + "\n")


def read_request(out: Path) -> Request | None:
    """Return the request that a folder was begun with; None if it was not begun.

    Raises:
        PackError: packing.json is damaged.
    """
    try:
        return Request.model_validate_json((out / REQUEST_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        raise PackError(
            f"{out / REQUEST_FILE}: cannot be read; pack into another folder."
        ) from error


class Total(BaseModel):
    """The content of total.json: how far the corpus goes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    records: int = Field(ge=0)
    shards: int = Field(ge=0)
    left_out: dict[str, LeftOut] = {}

    def write(self, out: Path) -> None:
        """Write total.json whole or not at all."""
        with replacing(out / WORK_FOLDER / TOTAL_FILE) as temporary:
            temporary.write_text(self.model_dump_json())


def read_total(out: Path) -> Total | None:
    """Return how far the corpus goes; None if no packer has come to its end yet."""
    try:
        return Total.model_validate_json((out / WORK_FOLDER / TOTAL_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


class AppendMark(BaseModel):
    """The content of append.json: the number of the first shard that is being added."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    first: int = Field(ge=0)

    def write(self, out: Path) -> None:
        """Write append.json whole or not at all."""
        with replacing(out / WORK_FOLDER / APPEND_FILE) as temporary:
            temporary.write_text(self.model_dump_json())


def read_append_mark(out: Path) -> AppendMark | None:
    """Return the mark of an --append under way; None if there is none."""
    try:
        return AppendMark.model_validate_json((out / WORK_FOLDER / APPEND_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def check_request(out: Path, asked: Request) -> None:
    """Refuse to pack into a folder that was begun or finished with another request.

    Raises:
        PackError: The folder holds another set, or a manifest that the packer did not write.
    """
    there = read_request(out)
    finished = (out / MANIFEST_FILE).exists()

    # A manifest without a request: indexed, or packed by another tool.
    if there is None and finished:
        raise PackError(
            f"{out}: holds a {MANIFEST_FILE} that this packer did not write; pack elsewhere."
        )
    if there is None:
        return

    differences = there.difference(asked, finished=finished)
    if differences:
        raise PackError(_other_request(out, differences, finished))


def _other_request(out: Path, differences: list[str], finished: bool) -> str:
    state = "finished" if finished else "begun"
    grown = finished and all(line.startswith("num_records") for line in differences)
    advice = (
        "add the new records with --append, or pack into another folder"
        if grown
        else "pack into another folder, or remove this one"
    )
    return f"{out}: was {state} with another request ({'; '.join(differences)}); {advice}."


def begin(out: Path, asked: Request) -> None:
    """Save the request; needs the lock, and so sees for certain what others have done before.

    Raises:
        PackError: Another packer has finished the set, or began it with another request.
    """
    check_request(out, asked)
    if (out / MANIFEST_FILE).exists():
        raise PackError(f"{out}: another packer has just finished it; nothing is left to do.")
    if read_request(out) is None:
        asked.write(out)


@contextmanager
def locked(out: Path, part: Part | None = None) -> Iterator[None]:
    """Hold a folder against other packers, across machines if the file system has locks.

    Args:
        out: The folder; made if it is missing.
        part: Share the folder with the other parts of the set, and hold this part alone.

    Raises:
        PackError: Another packer holds it, or it cannot be made or written.
    """
    work = out / WORK_FOLDER
    with ExitStack() as stack:
        with disk_errors_reported(out):
            work.mkdir(parents=True, exist_ok=True)
            if part is None:
                _lock_all(work, stack)
                _remove_leftovers(out)
            else:
                _lock_part(work, part, stack)
        yield


def _lock_all(work: Path, stack: ExitStack) -> None:
    # No waiting: a packer works for hours.
    stack.enter_context(_lock(work / "lock", 0.0))
    # Parts that were begun before hold these; each is taken once to see that nobody does.
    for path in work.glob("lock-part-*"):
        with _lock(path, 0.0):
            pass


def _lock_part(work: Path, part: Part, stack: ExitStack) -> None:
    # A moment's wait: other parts hold it just as briefly while they start.
    with _lock(work / "lock", PART_START_S):
        stack.enter_context(_lock(work / f"lock-part-{part[0]}-of-{part[1]}", 0.0))


@contextmanager
def _lock(path: Path, timeout_s: float) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(files.locked(path, timeout_s))
        except TimeoutError as error:
            raise PackError(
                f"{path.parents[1]}: another packer works in this folder; wait for it, or stop it "
                "first."
            ) from error
        yield


def _remove_leftovers(out: Path) -> None:
    """Remove the temporary files of killed packers; the lock guarantees that none is at work."""
    # Only under the lock of the whole folder: a part must not remove another part's files.
    for folder in (out, out / WORK_FOLDER):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def remove_work_folder(out: Path) -> None:
    """Remove the states of a finished set; needs the lock, and is the last step under it."""
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)


def finished_manifest(out: Path) -> Manifest | None:
    """Return the manifest of a finished folder, None for an unfinished one.

    Removes what a kill at the very end has left.

    Raises:
        PackError: More shards are being added to it.
        ManifestError: The manifest is damaged.
    """
    if not (out / MANIFEST_FILE).exists():
        return None

    if (out / WORK_FOLDER / APPEND_FILE).exists():
        raise PackError(
            f"{out}: more shards are being added to it; rerun the --append command to finish that."
        )
    # A packer was killed between the manifest and its last step.
    if (out / WORK_FOLDER).exists():
        with locked(out):
            remove_work_folder(out)

    return read_manifest(out)


def _short(value: Any) -> str:
    # A list of a thousand classes would bury the message.
    text = json.dumps(value)
    if len(text) <= 60:
        return text
    return f"{text[:50]}... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"
