"""ImageNet: one folder per class, named by its wnid; the sorted wnids are the classes.

    train/n02123597/*.JPEG                 ImageNet; train/n02123597/images/*.JPEG: Tiny ImageNet
    val/n02123597/*.JPEG                   sorted by class
    val/*.JPEG or val/images/*.JPEG        flat, with a list of labels (label_list.py)
    train/n02123597.tar                    class tars as distributed, read in place (class_tars.py)

Folders are listed one at a time, no image is opened: 1,281,167 images cost some seconds.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.corpora.class_tars import ClassTar, find_class_tars
from datasets.corpora.files import (
    Skipped,
    is_folder,
    list_folder,
    list_pictures,
    pass_over,
    record_key,
    require_folder,
)
from datasets.corpora.label_list import LIST_NAMES, find_labels
from datasets.errors import CorpusError
from shards.records import Corpus, Record

WNID = re.compile(r"n\d{8}")
OTHER_SPLITS = ("train", "val")


def open_imagenet(root: Path, split: str) -> Corpus:
    """Open a split of ImageNet.

    Args:
        root: the folder that holds `train/` and `val/`, or one that holds the wnids' folders
            itself.
        split: the folder's name, `train` or `val`; any name if the root holds the wnids itself.
            Links to wnids' folders are followed: subsets are often made of them.

    Raises:
        CorpusError: no such folder, no folder of a wnid in it and no list of labels, or no image.
    """
    require_folder(root, "give the ImageNet folder that holds train/ as --root")
    folder = root / split if (root / split).is_dir() else root
    present = _wnids(folder)
    if not present:
        tars = find_class_tars(root, folder, split)
        return _open_tars(root, tars, split) if tars else _open_flat(root, folder, split)

    # A split may lack classes that the other one has: indices count both.
    skipped = Skipped()
    wnids = tuple(
        sorted(
            {
                *present,
                *_wnids_of_other_splits(root, folder),
            }
        )
    )
    num_records = sum(len(list_pictures(_pictures_of(folder, wnid), skipped)) for wnid in present)
    if num_records == 0:
        raise CorpusError(
            f"{folder}: the split {split!r} is empty, no picture in its {len(present)} folders."
            f"{skipped.in_words()}"
        )
    # Counted, not taken: a stray image has no class.
    for name in list_pictures(folder):
        skipped.add("pictures outside of the classes' folders", name)
    pass_over(folder, skipped, "pictures in folders that are no wnid such as n02123597", present)
    for wnid in present:
        _count_beside(folder / wnid, _pictures_of(folder, wnid), skipped)
    records = functools.partial(_records, folder, present, wnids)
    left_out = skipped.left_out()
    return Corpus("imagenet", split, wnids, (), num_records, records, left_out=left_out)


def _wnids(folder: Path) -> list[str]:
    """Return the folders of wnids in a folder, sorted."""
    entries = list_folder(folder)
    return [entry.name for entry in entries if WNID.fullmatch(entry.name) and is_folder(entry)]


def _pictures_of(folder: Path, wnid: str) -> Path:
    """Return the folder of a class's images, which Tiny ImageNet has one level deeper."""
    deeper = folder / wnid / "images"
    return deeper if deeper.is_dir() else folder / wnid


def _count_beside(folder: Path, pictures: Path, skipped: Skipped) -> None:
    """Count the pictures in a folder that are not in the one folder that is read of it."""
    pass_over(pictures, skipped, "pictures in deeper folders, which are not read")
    if pictures != folder:
        for name in list_pictures(folder):
            skipped.add("pictures beside images/, which alone is read", f"{folder.name}/{name}")
        pass_over(folder, skipped, "pictures beside images/, which alone is read", (pictures.name,))


def _wnids_of_other_splits(root: Path, folder: Path) -> list[str]:
    """Return the wnids of `train/` and `val/`, so that a class has the same index in both."""
    # The root is the split: there is no other one beside it.
    if folder == root:
        return []
    wnids: list[str] = []
    for split in OTHER_SPLITS:
        if (root / split).is_dir():
            wnids += _wnids(root / split)
    return wnids


def _records(folder: Path, present: list[str], wnids: tuple[str, ...]) -> Iterator[Record]:
    index_of = {wnid: index for index, wnid in enumerate(wnids)}
    for wnid in present:
        pictures = _pictures_of(folder, wnid)
        for name in list_pictures(pictures):
            # Train's names begin with their wnid and are their own key; val's get a hash of folder
            # and name.
            relative = name if name.startswith(f"{wnid}_") else f"{wnid}/{name}"
            label = {"classes": [index_of[wnid]], "objects": []}
            yield Record(record_key(relative, ".JPEG"), pictures / name, label)


def _open_tars(root: Path, tars: list[ClassTar], split: str) -> Corpus:
    """Open a split whose classes are tars; counting their images would read every header."""
    others = _wnids_of_other_splits(root, root / split)
    wnids = tuple(sorted({each.wnid for each in tars} | set(others)))
    records = functools.partial(_tar_records, tars, wnids)
    note = f"the images are read from {len(tars)} class tars in place"
    return Corpus("imagenet", split, wnids, (), None, records, note)


def _tar_records(tars: list[ClassTar], wnids: tuple[str, ...]) -> Iterator[Record]:
    index_of = {wnid: index for index, wnid in enumerate(wnids)}
    for each in tars:
        label = {"classes": [index_of[each.wnid]], "objects": []}
        # Sorted like the files of an unpacked set, so that the packed set is the same.
        for image in sorted(
            each.images(),
            key=lambda member: member.name,
        ):
            name = image.name.removeprefix("./")
            relative = name if name.startswith(f"{each.wnid}_") else f"{each.wnid}/{name}"
            yield Record(record_key(relative, ".JPEG"), image, dict(label))


@dataclass(frozen=True, slots=True)
class _Flat:
    """A split whose images are in one folder.

    Attributes:
        folder: that holds them.
        labels: the class index of each file name.
    """

    folder: Path
    labels: dict[str, int]


def _open_flat(root: Path, folder: Path, split: str) -> Corpus:
    """Open a split whose images are not sorted by class, with its list of labels."""
    pictures = folder / "images" if (folder / "images").is_dir() else folder
    skipped = Skipped()
    names = list_pictures(pictures, skipped)
    wnids = tuple(sorted(set(_wnids_of_other_splits(root, folder))))
    found = (
        find_labels(
            root,
            folder,
            split,
            names,
            wnids,
        )
        if names
        else None
    )
    if found is None:
        lists = ", ".join(LIST_NAMES).format(split=split)
        raise CorpusError(
            f"{folder}: no folder of a wnid such as n02123597 for the split {split!r}, and no list "
            f"of labels ({lists}); add one of these, sort the pictures into one folder per class, "
            "or use --corpus folder."
        )

    _count_beside(folder, pictures, skipped)
    # A picture without a label would count as one of no class.
    for name in names:
        if name not in found.labels:
            skipped.add(f"pictures that {found.path.name} does not list", name)
    records = functools.partial(_flat_records, _Flat(pictures, found.labels))
    return Corpus(
        "imagenet",
        split,
        found.classes,
        (),
        len(found.labels),
        records,
        f"the classes are those of {found.path.name}",
        skipped.left_out(),
    )


def _flat_records(flat: _Flat) -> Iterator[Record]:
    for name in sorted(flat.labels):
        label = {"classes": [flat.labels[name]], "objects": []}
        yield Record(record_key(name, ".JPEG"), flat.folder / name, label)
