"""A folder that is being packed: what was asked for, and who holds it. shards/packing/merging.py ends the work.

<out>/packing.json           the request; packing again with another one is refused
<out>/.packing/NNNNNN.state  a finished shard (shards/packing/shard_file.py)
<out>/.packing/total.json    how many records and shards there are, once a packer has seen the last record
<out>/.packing/lock          held by a packer; the parts of a set share it and hold one of their own each
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shards.errors import PackError
from shards.files import replacing, telling_disk_errors
from shards.images.policy import Encoding, parse_image_policy
from shards.manifest import MANIFEST_FILE, Manifest, read_manifest
from shards.packing.shard_file import WORK_FOLDER

REQUEST_FILE = "packing.json"
TOTAL_FILE = "total.json"
Part = tuple[int, int]  # i of n, i from 1


class Request(BaseModel):
    """Everything that the bytes of a packed set depend on, beside the pictures themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    split: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    num_records: int | None  # None where the corpus cannot tell before the end
    image_policy: str
    jpeg_quality: int
    chroma_subsampling: str
    samples_per_shard: int
    max_pixels: int
    encoder: str  # library versions; counts only while the set is unfinished

    @property
    def name(self) -> str:
        """What the shards are named after; safe as a file name."""
        return re.sub(r"[^A-Za-z0-9_-]+", "_", f"{self.corpus}-{self.split}")

    @property
    def encoding(self) -> Encoding:
        """What the workers need of it."""
        policy = parse_image_policy(self.image_policy)
        return Encoding(policy, self.jpeg_quality, self.chroma_subsampling, self.max_pixels)

    def difference(self, asked: "Request", *, finished: bool) -> list[str]:
        """Lines `key: there -> asked`, empty where nothing that matters differs."""
        there, here = self.model_dump(), asked.model_dump()
        keys = [
            key for key in there if there[key] != here[key] and not (finished and key == "encoder")
        ]
        return [f"{key}: {_short(there[key])} there, {_short(here[key])} asked for" for key in keys]


def _short(value: object) -> str:
    text = json.dumps(value)
    return (
        text
        if len(text) <= 60
        else f"{text[:50]}... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"
    )


def read_request(out: Path) -> Request | None:
    """The request that a folder was begun with; None where there is none."""
    try:
        return Request.model_validate_json((out / REQUEST_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        raise PackError(
            f"{out / REQUEST_FILE}: cannot be read; pack into another folder."
        ) from error


def check_request(out: Path, asked: Request) -> None:
    """Refuse to pack into a folder that was begun or finished with another request."""
    there = read_request(out)
    finished = (out / MANIFEST_FILE).exists()
    if there is None:
        if finished:
            raise PackError(
                f"{out}: holds a {MANIFEST_FILE} that this packer has not written; pack elsewhere."
            )
        return
    differences = there.difference(asked, finished=finished)
    if differences:
        state = "finished" if finished else "begun"
        raise PackError(
            f"{out}: was {state} with another request ({'; '.join(differences)}); pack into another folder, "
            "or remove this one."
        )


def begin(out: Path, asked: Request) -> None:
    """Save the request; needs the lock, and so tells for certain what others have done before."""
    check_request(out, asked)
    if (out / MANIFEST_FILE).exists():
        raise PackError(f"{out}: another packer has just finished it; nothing is left to do.")
    if read_request(out) is None:
        with replacing(out / REQUEST_FILE) as temporary:
            temporary.write_text(asked.model_dump_json(indent=1) + "\n")


@contextmanager
def locked(out: Path, part: Part | None = None) -> Iterator[None]:
    """Hold a folder against other packers, across machines where the file system has locks.

    Args:
        part: Share the folder with the other parts of the set, and hold this part alone.

    Raises:
        PackError: Another packer holds it, or it cannot be made or written.
    """
    work = out / WORK_FOLDER
    with ExitStack() as stack:
        with telling_disk_errors(out):
            work.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(work / "lock", shared=part is not None))
            if part is not None:
                stack.enter_context(_lock(work / f"lock-part-{part[0]}-of-{part[1]}", shared=False))
            else:
                _remove_leftovers(out)
        yield


@contextmanager
def _lock(path: Path, *, shared: bool) -> Iterator[None]:
    """Hold `path` until the block ends or the process dies."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            # Its last holder may have removed the file in between; then the lock is on nothing.
            current = path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino
        except BlockingIOError as error:
            os.close(descriptor)
            raise PackError(
                f"{path.parents[1]}: another packer works in this folder; wait for it, or stop it first."
            ) from error
        except OSError:  # a file system without locks: go on without
            current = True
        if current:
            break
        os.close(descriptor)
        path.parent.mkdir(exist_ok=True)
    try:
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(out: Path) -> None:
    """Remove what killed packers have left under temporary names; the lock says that none is at work."""
    for folder in (out, out / WORK_FOLDER):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def remove_work_folder(out: Path) -> None:
    """Remove the states of a finished set; needs the lock, and is the last thing done under it."""
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)


def save_total(out: Path, records: int, shards: int) -> None:
    """Note that the corpus ends after so many records and shards."""
    with replacing(out / WORK_FOLDER / TOTAL_FILE) as temporary:
        temporary.write_text(json.dumps({"records": records, "shards": shards}))


def finished_manifest(out: Path) -> Manifest | None:
    """The manifest of a folder whose packing has come to its end; clears what a kill at the very end has left."""
    if not (out / MANIFEST_FILE).exists():
        return None
    if (out / WORK_FOLDER).exists():
        with locked(out):
            remove_work_folder(out)
    return read_manifest(out)
