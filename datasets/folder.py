"""Any folder of pictures, with or without masks beside them.

    <root>/[<split>/]**/*.jpg                      pictures only, found recursively
    <root>/[<split>/]images/**/cat.jpg             with masks: the same path and stem, always .png,
    <root>/[<split>/]masks/**/cat.png              palette or grey, 0 = background, 255 = void
    <root>/images/<split>/** and <root>/masks/<split>/**        the same, split below
    <root>/classes.txt or <root>/<split>/classes.txt            the classes' names, one a line, index 1 first

The split `all` is the root itself. Without classes.txt all masks are read once, to find the largest index,
and the classes are called class1, class2, ...: write the file for a large set. A first line `background` is
left out. Hidden files and other extensions are skipped; links are followed only to files inside the folder.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datasets.errors import CorpusError
from datasets.files import record_key, require_folder, walk_pictures
from datasets.masks import png_mask
from datasets.palette import voc_palette
from datasets.records import MAX_CLASSES, VOID, Corpus, Record, label_of

BACKGROUND_NAMES = ("background", "_background_", "__background__")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the pictures and the masks of a split lie."""

    images: Path
    masks: Path | None


def open_folder(root: Path, split: str) -> Corpus:
    """Opens a folder of pictures; the layouts stand at the top of this file.

    Labels name no classes (the pictures have none but in their masks).

    Raises:
        CorpusError: no such folder, no picture, a picture without its mask, or masks that fit no classes.
    """
    layout = _layout(root, split)
    num_records = _count(layout)
    if num_records == 0:
        raise CorpusError(
            f"{layout.images}: the split {split!r} is empty, no picture in this folder or below "
            "(hidden files, other extensions and links that lead out of it are skipped)."
        )
    classes = _classes(root, split, layout) if layout.masks else ()
    palette = voc_palette(len(classes)) if layout.masks else ()
    return Corpus("folder", split, classes, palette, num_records, functools.partial(_records, layout, len(classes)))


def _layout(root: Path, split: str) -> _Layout:
    """Finds a split's folders."""
    require_folder(root, "give the folder of pictures as --root")
    if split in ("", ".") or "/" in split or ".." in split:
        raise CorpusError(f"{split!r} is no split of a folder: give a folder's name in {root}, or `all`.")
    if split != "all" and (root / "images" / split).is_dir():
        masks = root / "masks" / split
        return _Layout(root / "images" / split, masks if masks.is_dir() else None)
    base = root if split == "all" else root / split
    if not base.is_dir():
        raise CorpusError(f"{root}: no folder {split!r} in it; use --split all for the whole folder.")
    if not (base / "masks").is_dir():
        return _Layout(base, None)
    if not (base / "images").is_dir():
        raise CorpusError(f"{base}: holds masks/ but no images/; put the pictures of the masks into images/.")
    return _Layout(base / "images", base / "masks")


def _mask_path(masks: Path, relative: str) -> Path:
    return masks / PurePosixPath(relative).with_suffix(".png")


def _count(layout: _Layout) -> int:
    """Counts the pictures; with masks, checks that each has one."""
    if layout.masks is None:
        return sum(1 for _ in walk_pictures(layout.images))
    present = set(walk_pictures(layout.masks))
    num_records = 0
    for relative in walk_pictures(layout.images):
        num_records += 1
        if PurePosixPath(relative).with_suffix(".png").as_posix() not in present:
            raise CorpusError(f"{layout.images / relative}: no mask {_mask_path(layout.masks, relative)} for it.")
    return num_records


def _classes(root: Path, split: str, layout: _Layout) -> tuple[str, ...]:
    """Reads the classes' names, or counts the classes in the masks."""
    for path in (root / split / "classes.txt", root / "classes.txt"):
        if path.is_file():
            return _named_classes(path)
    assert layout.masks is not None
    largest = 0
    for relative in walk_pictures(layout.images):
        plane = png_mask(_mask_path(layout.masks, relative)).read()
        largest = max(largest, int(plane[plane != VOID].max(initial=0)))
    if largest == 0:
        raise CorpusError(f"{layout.masks}: the masks hold only background and void, no class; add classes.txt.")
    return tuple(f"class{index}" for index in range(1, largest + 1))


def _named_classes(path: Path) -> tuple[str, ...]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: the list of classes cannot be read ({error}).") from error
    if names and names[0].lower() in BACKGROUND_NAMES:
        names = names[1:]
    if not 0 < len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise CorpusError(f"{path}: needs 1 to {MAX_CLASSES} different names, one a line; it has {len(names)}.")
    return tuple(names)


def _records(layout: _Layout, num_classes: int) -> Iterator[Record]:
    for relative in walk_pictures(layout.images):
        mask = png_mask(_mask_path(layout.masks, relative), num_classes) if layout.masks else None
        yield Record(record_key(relative), layout.images / relative, label_of([]), mask)
