"""Any folder of images, with or without masks beside them, or sorted into folders by class.

    <root>/[<split>/]**/*.jpg                      images only, found recursively
    <root>/[<split>/]images/**/cat.jpg             with masks: the same path, as cat.png or
    <root>/[<split>/]masks/**/cat.png              cat_mask.png; the folder may also be called
    <root>/images/<split>/** and masks/<split>/**  labels/ or annotations/
    <root>/[<split>/]**/cat.jpg and cat_mask.png   masks beside their images
    <root>/[<split>/]<class>/**/*.jpg              without masks, for folders that classes.txt names
    <root>/[<split>/]classes.txt                   the classes' names, one per line, index 1 first
    <root>/[<split>/]labelmap.txt                  for color-coded masks: `name:red,green,blue`

Masks are PNG, TIFF or BMP, palette or grey, 0 = background, 255 = void; mask_survey.py tells what
they hold. The split `all` is the root itself. Hidden files and other extensions are skipped; links
are followed.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from datasets.corpora.class_lists import read_classes, read_label_map
from datasets.corpora.files import FileNames, Skipped, record_key, require_folder, walk_pictures
from datasets.corpora.mask_survey import MaskKind, color_kind, survey
from datasets.corpora.palette import voc_palette
from datasets.errors import CorpusError
from shards.records import Corpus, Mask, Record, label_of

# JPEGs are found too, to be refused in words: their values are not those that were saved.
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
MASK_FOLDERS = ("masks", "labels", "annotations")
# What tools append to an image's name for its mask.
MASK_ENDINGS = ("", "_mask", "-mask", "_label", "_labels", "_gt", "_seg", "_segmentation")
BESIDE_ENDINGS = ("_mask", "-mask")
LABEL_SUFFIXES = (".txt", ".xml", ".json")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a split's images and masks are.

    Attributes:
        images: the folder of the images.
        masks: the folder of the masks; the same one if they are beside their images.
        folders: the class index of each folder, if images are sorted by class.
    """

    images: Path
    masks: Path | None
    folders: Mapping[str, int] = field(default_factory=dict)

    def pictures(self, skipped: Skipped | None = None) -> Iterator[str]:
        """Yield the images as relative paths, without the masks that are beside them."""
        for relative in walk_pictures(self.images, skipped):
            if self.masks != self.images or not _is_mask_name(relative):
                yield relative

    def mask_names(self) -> FileNames:
        """Return the files of the masks' folder."""
        assert self.masks is not None
        return FileNames(self.masks)

    def mask_of(self, relative: str, files: FileNames) -> Path | None:
        """Return the mask of an image; None if it has none."""
        stem = PurePosixPath(relative).with_suffix("").as_posix()
        endings = BESIDE_ENDINGS if self.masks == self.images else MASK_ENDINGS
        # The plain name first: `cat.png` is meant before `cat_mask.png`.
        for ending in endings:
            for suffix in MASK_SUFFIXES:
                name = files.find(f"{stem}{ending}{suffix}")
                if name is not None:
                    return files.folder / name
        return None


def open_folder(root: Path, split: str, mask_threshold: int | None = None) -> Corpus:
    """Open a folder of images; the layouts are at the top of this file.

    Labels name classes only if images are in folders that classes.txt names.

    Args:
        root: the folder.
        split: a folder in it or in its images/, or `all`.
        mask_threshold: take mask values from this one on for one class; for masks with soft edges.

    Raises:
        CorpusError: no such folder, no image, an image without its mask or outside of the classes'
            folders, or masks that fit no classes.
    """
    layout = _layout(root, split)

    # The same list names the indices of masks, or the folders of images that have none.
    if layout.masks is not None:
        names = read_classes(root / split, root)
    else:
        names, folders = _sorted_classes(layout.images, root / split, root)
        layout = replace(layout, folders=folders)

    skipped = Skipped()
    # A pass over names before any image is read: a missing mask is found in seconds.
    num_records = _count(layout, skipped)
    if num_records == 0:
        raise CorpusError(
            f"{layout.images}: the split {split!r} is empty, no picture in this folder or below "
            f"(hidden files and other extensions are skipped).{skipped.in_words()}"
        )
    _note_other_labels(layout, root, skipped)

    if layout.masks is None:
        if mask_threshold is not None:
            raise CorpusError(f"{root}: has no masks for a mask_threshold to apply to.")
        note = "" if layout.folders else _note_on_folders(layout.images, names)
        records = functools.partial(_records, layout, None)
        left_out = skipped.left_out()
        return Corpus(
            "folder",
            split,
            names if layout.folders else (),
            (),
            num_records,
            records,
            note,
            left_out,
        )

    kind = _kind(root, split, layout, names, mask_threshold)
    return Corpus(
        "folder",
        split,
        kind.classes,
        voc_palette(len(kind.classes)),
        num_records,
        functools.partial(_records, layout, kind),
        kind.note,
        skipped.left_out(),
    )


def _layout(root: Path, split: str) -> _Layout:
    """Return a split's folders."""
    require_folder(root, "give the folder of pictures as --root")
    if split in ("", ".") or "/" in split or ".." in split:
        raise CorpusError(
            f"{split!r} is no split of a folder: give a folder's name in {root}, or `all`."
        )

    if split != "all" and (root / "images" / split).is_dir():
        images = root / "images" / split
        return _Layout(
            images,
            _masks_in([root / name / split for name in MASK_FOLDERS]),
        )

    base = root if split == "all" else root / split
    if not base.is_dir():
        raise CorpusError(
            f"{root}: no folder {split!r} in it; use --split all for the whole folder."
        )
    # Only beside images/: a class may be called labels or annotations.
    if (base / "images").is_dir():
        masks = _masks_in([base / name for name in MASK_FOLDERS])
        if masks is not None:
            return _Layout(base / "images", masks)
    elif (base / "masks").is_dir():
        raise CorpusError(
            f"{base}: holds masks/ but no images/; put the pictures of the masks into images/."
        )
    return _Layout(base, base if _masks_are_beside(base) else None)


def _masks_in(folders: list[Path]) -> Path | None:
    """Return the first folder with masks: `labels/` may hold text files of detection sets."""
    for folder in folders:
        names = walk_pictures(folder) if folder.is_dir() else iter(())
        if any(name.lower().endswith(MASK_SUFFIXES) for name in names):
            return folder
    return None


def _masks_are_beside(folder: Path) -> bool:
    """Return whether at least half of the images have a mask such as cat_mask.png beside them."""
    stems: set[str] = set()
    masked: list[str] = []
    for relative in walk_pictures(folder):
        stem = PurePosixPath(relative).with_suffix("").as_posix()
        if _is_mask_name(relative):
            masked.append(stem)
        else:
            stems.add(stem)

    # A few pictures that happen to be called mask make no set of masks; one mask that is missing
    # among many does not unmake it.
    paired = sum(stem[: -len(BESIDE_ENDINGS[0])] in stems for stem in masked)
    return paired > 0 and 2 * paired >= len(stems)


def _is_mask_name(relative: str) -> bool:
    lower = relative.lower()
    stem, _, suffix = lower.rpartition(".")
    return stem.endswith(BESIDE_ENDINGS) and f".{suffix}" in MASK_SUFFIXES


def _sorted_classes(images: Path, *places: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the classes of images without masks, and the class index of each class's folder.

    A folder's name may differ from the class's in case and in the form of its accents.

    Raises:
        CorpusError: two classes for one folder, or images in folders none of which is a class's.
    """
    names = read_classes(*places, with_background=True, at_most=None)
    folder_of = _class_folders(images, names)
    # Lists of other tools begin with the background, which here may also be a class.
    if names and names[0] not in folder_of:
        names = read_classes(*places, at_most=None)

    if names and not folder_of:
        _check_no_folders(images, names)
    index_of = {name: index for index, name in enumerate(names)}
    return names, {folder: index_of[name] for name, folder in folder_of.items()}


def _class_folders(images: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the folder of each class that has one."""
    files = FileNames(images)
    folder_of: dict[str, str] = {}
    name_of: dict[str, str] = {}

    # Those of the very name first: another class may differ from it in case alone.
    plain = [name for name in names if "/" not in name]
    for name in sorted(plain, key=lambda name: files.find(name) != name):
        folder = files.find(name)
        if folder is None or not (images / folder).is_dir():
            continue

        other = name_of.setdefault(folder, name)
        if other == name:
            folder_of[name] = folder
        elif other != folder:
            raise CorpusError(
                f"{images / folder}: may be the folder of the class {other!r} or of {name!r}; name "
                "it exactly as in classes.txt."
            )
    return folder_of


def _check_no_folders(images: Path, names: tuple[str, ...]) -> None:
    """Refuse a list of classes if images are in folders that it does not name."""
    tops = {relative.partition("/")[0] for relative in walk_pictures(images) if "/" in relative}
    # The list of a detection tool's export lies beside images/ and labels/.
    if tops - {"images"}:
        raise CorpusError(
            f"{images}: no folder here is a class of classes.txt, which names "
            f"{_some_of(names)}; the folders with pictures are {_some_of(sorted(tops))}. Name the "
            "folders as in classes.txt, give their parent as --split, or remove classes.txt."
        )


def _some_of(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _count(layout: _Layout, skipped: Skipped) -> int:
    """Count the images; check that each has its mask, or is in a class's folder."""
    masks = layout.mask_names() if layout.masks else None
    num_records = 0
    for relative in layout.pictures(skipped):
        num_records += 1

        if masks is not None and layout.mask_of(relative, masks) is None:
            wanted = PurePosixPath(relative).with_suffix(".png")
            raise CorpusError(
                f"{layout.images / relative}: no mask {masks.folder / wanted} for it."
            )

        top = relative.partition("/")[0]
        if layout.folders and top not in layout.folders:
            raise CorpusError(
                f"{layout.images / relative}: is in no folder of a class that classes.txt names."
            )
    return num_records


def _note_other_labels(layout: _Layout, root: Path, skipped: Skipped) -> None:
    """Count the text files beside the images that detection tools write as labels."""
    if layout.masks is not None:
        return
    images = layout.images
    for name in ("labels", "annotations"):
        folders = [images / name]
        if images.name == "images":
            folders.append(images.parent / name)
        if images.parent.name == "images":
            folders.append(images.parent.parent / name / images.name)

        inside = [folder for folder in folders if folder.is_relative_to(root)]
        for folder in inside:
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in LABEL_SUFFIXES:
                    reason = f"label files in {name}/, which --corpus folder does not read"
                    skipped.add(reason, f"{name}/{path.name}")


def _note_on_folders(images: Path, names: tuple[str, ...]) -> str:
    """Return a hint if images may have classes that no list or folder gives; else nothing."""
    if names:
        return f"no labels: classes.txt names {_some_of(names)}, but no folder here is called so"

    tops = {relative.partition("/")[0] for relative in walk_pictures(images)}
    folders = sorted(top for top in tops if (images / top).is_dir())
    # A picture beside the folders speaks against classes.
    if len(folders) < 2 or len(folders) < len(tops):
        return ""

    return (
        f"no labels; if its {len(folders)} folders are classes ({_some_of(folders)}), list them in "
        "classes.txt"
    )


def _kind(
    root: Path, split: str, layout: _Layout, names: tuple[str, ...], mask_threshold: int | None
) -> MaskKind:
    """Return what the masks hold."""
    assert layout.masks is not None

    # Colors that are listed need no look at the masks.
    colors = read_label_map(root / split, root)
    if colors is not None:
        return color_kind(colors)

    files = layout.mask_names()
    masks = (layout.mask_of(relative, files) for relative in layout.pictures())
    paths = (path for path in masks if path is not None)
    return survey(layout.masks, paths, names, mask_threshold)


def _records(layout: _Layout, kind: MaskKind | None) -> Iterator[Record]:
    files = layout.mask_names() if layout.masks else None
    for relative in layout.pictures():
        label = label_of([])
        if layout.folders:
            top = relative.partition("/")[0]
            label["classes"] = [layout.folders[top]]

        mask: Mask | None = None
        path = layout.mask_of(relative, files) if files is not None else None
        if path is not None and kind is not None:
            mask = kind.mask(path)
        yield Record(
            record_key(relative),
            layout.images / relative,
            label,
            mask,
        )
