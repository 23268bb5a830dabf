"""ImageNet: one folder a class, named by its wnid (`n02123597/*.JPEG`); the sorted wnids are the classes.

Folders are listed one at a time, no picture is opened: 1,281,167 pictures cost a few seconds of listing.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from datasets.corpora.files import list_folder, list_pictures, record_key, require_folder
from datasets.errors import CorpusError
from shards.records import Corpus, Record


def open_imagenet(root: Path, split: str) -> Corpus:
    """Opens a split of ImageNet.

    Args:
        root: the folder that holds `train/` and `val/`, or one that holds the folders of wnids itself.
        split: the folder's name, `train` or `val`; any name where the root holds the wnids itself. Links to
            folders of wnids are followed: subsets are often made of them.

    Raises:
        CorpusError: no such folder, no folder of a wnid in it, pictures outside of them, or no picture.
    """
    require_folder(root, "give the ImageNet folder that holds train/ as --root")
    folder = root / split if (root / split).is_dir() else root
    present = _wnids(folder)
    if not present:
        raise CorpusError(
            f"{folder}: no folder of a wnid such as n02123597 for the split {split!r}; sort them into "
            "one folder a class, or use --corpus folder."
        )
    wnids = tuple(sorted({*present, *_wnids_of_other_splits(root, folder)}))
    num_records = sum(len(list_pictures(folder / wnid)) for wnid in present)
    if num_records == 0:
        raise CorpusError(
            f"{folder}: the split {split!r} is empty, no picture in its {len(present)} folders."
        )
    return Corpus(
        "imagenet",
        split,
        wnids,
        (),
        num_records,
        functools.partial(_records, folder, present, wnids),
    )


def _wnids(folder: Path) -> list[str]:
    """Returns the folders of wnids in a folder, sorted."""
    return [
        entry.name
        for entry in list_folder(folder)
        if re.fullmatch(r"n\d{8}", entry.name) and entry.is_dir()
    ]


def _wnids_of_other_splits(root: Path, folder: Path) -> list[str]:
    """The wnids of `train/` and `val/` beside the split, so that a class has the same index in both."""
    if folder == root:
        return []
    return [
        wnid
        for split in ("train", "val")
        if (root / split).is_dir()
        for wnid in _wnids(root / split)
    ]


def _records(folder: Path, present: list[str], wnids: tuple[str, ...]) -> Iterator[Record]:
    for wnid in present:
        for name in list_pictures(folder / wnid):
            # train's names begin with their wnid and are their own key; val's get a hash of folder and name
            relative = name if name.startswith(f"{wnid}_") else f"{wnid}/{name}"
            label = {"classes": [wnids.index(wnid)], "objects": []}
            yield Record(record_key(relative, ".JPEG"), folder / wnid / name, label)
