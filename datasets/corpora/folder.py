"""Any folder of pictures, with or without masks beside them, or sorted into folders by class.

    <root>/[<split>/]**/*.jpg                      pictures only, found recursively
    <root>/[<split>/]images/**/cat.jpg             with masks: the same path and stem, always .png,
    <root>/[<split>/]masks/**/cat.png              palette or grey, 0 = background, 255 = void
    <root>/images/<split>/** and <root>/masks/<split>/**        the same, split below
    <root>/[<split>/]<class>/**/*.jpg              without masks, where classes.txt names such folders
    <root>/classes.txt or <root>/<split>/classes.txt            the classes' names, one a line, index 1 first

Masks of nothing but 0 and 255 are those of one class, 255; where some of a set hold 0 and 1 and others 0 and 255,
they are refused. To tell, masks are read once, up to the first with a higher index where classes.txt names several.
Without that file the classes are called class1, class2, ...: write it for a large set. A first line `background` is
left out. The split `all` is the root itself. Hidden files and other extensions are skipped; links are followed only
to files inside the folder.
"""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.corpora.files import record_key, require_folder, walk_pictures
from datasets.corpora.masks import BinaryMask, png_mask
from datasets.corpora.palette import voc_palette
from datasets.errors import CorpusError
from shards.records import MAX_CLASSES, VOID, Corpus, Record, label_of

CLASSES = "classes.txt"
BACKGROUND_NAMES = ("background", "_background_", "__background__")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the pictures and the masks of a split lie, and what the masks hold.

    `folders`: the classes of pictures that are sorted by class. `binary`: masks of 0 and 255, the one class.
    """

    images: Path
    masks: Path | None
    folders: tuple[str, ...] = ()
    binary: bool = False


def open_folder(root: Path, split: str) -> Corpus:
    """Opens a folder of pictures; the layouts stand at the top of this file.

    Labels name classes only where pictures lie in folders that classes.txt names.

    Raises:
        CorpusError: no such folder, no picture, a picture without its mask or outside of the classes' folders, or
            masks that fit no classes.
    """
    layout = _layout(root, split)
    names = _named_classes(root, split)
    if layout.masks is None:
        here = any((layout.images / name).is_dir() for name in names)
        layout = dataclasses.replace(layout, folders=names if here else ())
    num_records = _count(layout)
    if num_records == 0:
        raise CorpusError(
            f"{layout.images}: the split {split!r} is empty, no picture in this folder or below "
            "(hidden files, other extensions and links that lead out of it are skipped)."
        )
    if layout.masks is None:
        records = functools.partial(_records, layout, 0)
        return Corpus("folder", split, layout.folders, (), num_records, records)
    held = _look_at_masks(layout, names)
    classes = names or tuple(f"class{index}" for index in range(1, held.num_classes + 1))
    records = functools.partial(
        _records, dataclasses.replace(layout, binary=held.binary), len(classes)
    )
    return Corpus(
        "folder", split, classes, voc_palette(len(classes)), num_records, records, held.note
    )


def _layout(root: Path, split: str) -> _Layout:
    """Finds a split's folders."""
    require_folder(root, "give the folder of pictures as --root")
    if split in ("", ".") or "/" in split or ".." in split:
        raise CorpusError(
            f"{split!r} is no split of a folder: give a folder's name in {root}, or `all`."
        )
    if split != "all" and (root / "images" / split).is_dir():
        masks = root / "masks" / split
        return _Layout(root / "images" / split, masks if masks.is_dir() else None)
    base = root if split == "all" else root / split
    if not base.is_dir():
        raise CorpusError(
            f"{root}: no folder {split!r} in it; use --split all for the whole folder."
        )
    if not (base / "masks").is_dir():
        return _Layout(base, None)
    if not (base / "images").is_dir():
        raise CorpusError(
            f"{base}: holds masks/ but no images/; put the pictures of the masks into images/."
        )
    return _Layout(base / "images", base / "masks")


def _mask_path(masks: Path, relative: str) -> Path:
    return masks / PurePosixPath(relative).with_suffix(".png")


def _count(layout: _Layout) -> int:
    """Counts the pictures; checks that each has its mask, or lies in a class's folder."""
    present = set(walk_pictures(layout.masks)) if layout.masks else set()
    num_records = 0
    for relative in walk_pictures(layout.images):
        num_records += 1
        if layout.masks and PurePosixPath(relative).with_suffix(".png").as_posix() not in present:
            raise CorpusError(
                f"{layout.images / relative}: no mask {_mask_path(layout.masks, relative)} for it."
            )
        if layout.folders and PurePosixPath(relative).parts[0] not in layout.folders:
            raise CorpusError(
                f"{layout.images / relative}: lies in no folder of a class that classes.txt names."
            )
    return num_records


@dataclass(frozen=True, slots=True)
class _Held:
    """What the masks of a split hold."""

    num_classes: int
    binary: bool
    note: str


def _look_at_masks(layout: _Layout, names: tuple[str, ...]) -> _Held:
    """Tells masks of class indices from those of 0 and 255; unreadable ones are left to the packer, to be named."""
    assert layout.masks is not None
    largest, indices = 0, False  # 2 to 254, or 1 beside 255: then 255 is void
    first: dict[frozenset[int], Path] = {}
    for relative in walk_pictures(layout.images):
        path = _mask_path(layout.masks, relative)
        try:
            values = frozenset(np.bincount(png_mask(path).read().ravel()).nonzero()[0].tolist()) - {
                0
            }
        except CorpusError:
            continue
        first.setdefault(values, path)
        largest = max(largest, *(values - {VOID}), 0)
        indices = indices or largest > 1 or values == {1, VOID}
        if indices and names:
            break
    return _kind_of_masks(layout.masks, names, largest, indices, first)


def _kind_of_masks(
    masks: Path,
    names: tuple[str, ...],
    largest: int,
    indices: bool,
    first: dict[frozenset[int], Path],
) -> _Held:
    """Decides by what the masks hold, or refuses."""
    ones, full = (first.get(frozenset({value})) for value in (1, VOID))
    if ones and full and not indices and len(names) <= 1:
        raise CorpusError(
            f"{masks}: {ones.name} holds 0 and 1 only, {full.name} 0 and 255 only, so that 255 may be the class or "
            "void: write all masks in one way."
        )
    if full and not ones and not indices:
        if len(names) > 1:
            raise CorpusError(
                f"{masks}: the masks hold 0 and 255 only, one class, but classes.txt names {len(names)}."
            )
        return _Held(1, True, "the masks hold 0 and 255: 255 is the class")
    if largest == 0 and not names:
        raise CorpusError(
            f"{masks}: the masks hold only background and void, no class; add classes.txt."
        )
    if largest <= 1 and not indices and len(names) <= 1:
        return _Held(1, False, "the masks hold 0 and 1: 1 is the class")
    return _Held(largest, False, "the masks hold indices of classes; 255 is void")


def _named_classes(root: Path, split: str) -> tuple[str, ...]:
    """Reads classes.txt; empty where there is none."""
    path = next((path for path in (root / split / CLASSES, root / CLASSES) if path.is_file()), None)
    if path is None:
        return ()
    try:
        names = [
            line.strip()
            for line in path.read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: the list of classes cannot be read ({error}).") from error
    if names and names[0].lower() in BACKGROUND_NAMES:
        names = names[1:]
    if not 0 < len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise CorpusError(
            f"{path}: needs 1 to {MAX_CLASSES} different names, one a line; it has {len(names)}."
        )
    return tuple(names)


def _records(layout: _Layout, num_classes: int) -> Iterator[Record]:
    for relative in walk_pictures(layout.images):
        label, mask = label_of([]), None
        if layout.folders:
            label["classes"] = [layout.folders.index(PurePosixPath(relative).parts[0])]
        if layout.masks:
            path = _mask_path(layout.masks, relative)
            mask = BinaryMask(path) if layout.binary else png_mask(path, num_classes)
        yield Record(record_key(relative), layout.images / relative, label, mask)
