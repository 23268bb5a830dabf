"""ImageNet's class tars as they are distributed: their images are packed in place, not unpacked.

    train/n02123597.tar              one tar per class
    ILSVRC2012_img_train.tar         the tar of these tars; beside or in the split's folder

Only headers are read here, once per pass over the records: 512 bytes per image.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.corpora.files import is_picture, list_folder
from datasets.errors import CorpusError
from shards.records import TarMember

TAR_NAME = re.compile(r"(n\d{8})\.tar")
SET_NAME = "ILSVRC2012_img_{split}.tar"


@dataclass(frozen=True, slots=True)
class ClassTar:
    """The tar of one class.

    Attributes:
        wnid: of the class.
        file: that holds it: a tar of its own, or the tar of all class tars.
        start: where it begins in the file, in bytes.
    """

    wnid: str
    file: Path
    start: int = 0

    def images(self) -> Iterator[TarMember]:
        """Yield the images in the order of the tar.

        Raises:
            CorpusError: the tar cannot be read.
        """
        for name, offset, size in _members(self.file, self.start):
            # By its own name: folders within may have dots.
            if is_picture(name.rpartition("/")[2]):
                yield TarMember(self.file, name, offset, size)


def find_class_tars(root: Path, folder: Path, split: str) -> list[ClassTar]:
    """Return the class tars of a split, sorted by wnid; empty if it has none.

    Raises:
        CorpusError: the tar of tars cannot be read, or holds a class twice.
    """
    # Tars beside each other first: they are what most users have unpacked.
    found = []
    for entry in list_folder(folder):
        match = TAR_NAME.fullmatch(entry.name)
        if match:
            found.append(ClassTar(match[1], Path(entry.path)))

    whole = next(
        (path for path in _places(root, folder, split) if path.is_file()),
        None,
    )
    if not found and whole is not None:
        for name, offset, _ in _members(whole, 0):
            match = TAR_NAME.fullmatch(name)
            if match:
                found.append(ClassTar(match[1], whole, offset))

    wnids = {each.wnid for each in found}
    if len(wnids) < len(found):
        raise CorpusError(f"{whole}: holds the tar of a class twice, so it is not ImageNet's own.")
    return sorted(found, key=lambda each: each.wnid)


def _places(root: Path, folder: Path, split: str) -> list[Path]:
    name = SET_NAME.format(split=split)
    return [folder / name, root / name]


def _members(path: Path, start: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset in the file and size of the regular members of a tar that begins there."""
    try:
        with path.open("rb") as file:
            # tarfile begins where the file stands; its offsets count from the file's start.
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # else it grows
                    if info.isreg() and not info.issparse():
                        yield info.name, info.offset_data, info.size
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        raise CorpusError(f"{path}: the tar cannot be read ({error}).") from error
