"""COCO and sets in its format: images, and their objects in an instances JSON.

    train2017/ + annotations/instances_train2017.json    COCO, 2014 and 2017; LVIS by its coco_url
    train/ or images/train/ + annotations/instances_train.json    the same without a year
    train/_annotations.coco.json beside its images       Roboflow; `--split val` finds valid/ too
    images/ + annotations/instances_default.json         CVAT, with --split default

Names of files may hold folders, differ in case, or be written by Windows. A split without
annotation file (test, unlabeled, or not fetched) is just its images. The JSON is read by
coco_json.py; no image is opened.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datasets.corpora.coco_json import ImageEntry, Instances, read_instances
from datasets.corpora.coco_masks import CocoMask
from datasets.corpora.files import (
    FileNames,
    Skipped,
    is_file,
    is_folder,
    list_folder,
    list_pictures,
    pass_over,
    record_key,
    require_files,
    require_folder,
)
from datasets.corpora.palette import voc_palette
from datasets.errors import CorpusError
from shards.records import MAX_CLASSES, Corpus, Record, label_of

SPLITS = ("train", "val", "test", "unlabeled")
LABELLED_SPLITS = ("train", "val")
ALIASES = {"val": ("val", "valid", "validation"), "valid": ("valid", "val", "validation")}
# Where the instances of a split are, by its name.
JSON_FILES = (
    "annotations/instances_{}.json",
    "{}/_annotations.coco.json",
    "annotations/lvis_v1_{}.json",
    "annotations/{}.json",
    "annotations/{}/instances.json",
    "instances_{}.json",
    "{}.json",
)
# Where its images are, the likeliest place first.
PICTURE_FOLDERS = ("{}", "images/{}", "{}/images", "images", ".")


@dataclass(frozen=True, slots=True)
class _Split:
    """One split on disk.

    Attributes:
        root: of the corpus.
        name: of the split there.
        annotations: its instances file; None if it has none.
    """

    root: Path
    name: str
    annotations: Path | None

    @property
    def folders(self) -> list[Path]:
        """Return the folders where its images may be."""
        # Sets that dropped the year from the folder keep it in the JSON's name.
        without_year = re.sub(r"\d{4}$", "", self.name)
        folders: list[Path] = []
        for pattern in PICTURE_FOLDERS:
            for name in (self.name, without_year):
                folder = self.root / pattern.format(name)
                if folder not in folders and folder.is_dir():
                    folders.append(folder)
        return folders


def open_coco(root: Path, split: str) -> Corpus:
    """Open a split of COCO or of a set in its format.

    Args:
        root: the folder that holds `train2017/`, `annotations/` and so on; other layouts are at the
            top of this file.
        split: `train`, `val`, `test` or `unlabeled` of whichever year is there, in full as
            `train2014`, or the name of any folder or instances file.

    Raises:
        CorpusError: a missing or ambiguous split, no image, an annotation file that is malformed or
            does not fit.
    """
    found = _find(root, split)
    if found.annotations is not None:
        return _labelled(split, found, read_instances(found.annotations))

    folder = next(iter(found.folders))
    skipped = Skipped()
    num_records = len(list_pictures(folder, skipped))
    pass_over(folder, skipped, "pictures in deeper folders, which are read only with a JSON file")
    if num_records == 0:
        raise CorpusError(
            f"{folder}: the split {split!r} is empty, no picture in this "
            f"folder.{skipped.in_words()}"
        )
    note = ""
    # test and unlabeled have no labels anywhere: that needs no word.
    if found.name.startswith(LABELLED_SPLITS):
        note = f"no instances file for {found.name}, so its pictures have no labels"
    records = functools.partial(_plain_records, folder)
    return Corpus(
        "coco",
        split,
        (),
        (),
        num_records,
        records,
        note,
        skipped.left_out(),
    )


def _find(root: Path, split: str) -> _Split:
    """Return the one split on disk that a name means."""
    require_folder(root, "give the COCO folder that holds train2017/ and annotations/ as --root")
    # It becomes part of paths: no slash, no dot in front.
    if not re.fullmatch(r"[\w-][\w .-]*", split):
        raise CorpusError(
            f"{split!r} is no split of COCO: give train, val, test or a folder's name."
        )

    aliases = ALIASES.get(split, (split,))
    names = [name for name in aliases if _is_there(root, name)][:1]

    # Without its year a split is that of the one year that is there.
    if split in SPLITS:
        years = re.compile(rf"{split}\d{{4}}")
        listed = [*_folders_in(root), *_folders_in(root / "images")]
        names += sorted({name for name in listed if years.fullmatch(name)})

    if len(names) > 1:
        raise CorpusError(
            f"{root}: the split {split!r} is ambiguous here, say which: {' or '.join(names)}."
        )
    if not names:
        raise _no_such_split(root, split)
    return _Split(root, names[0], _annotations_of(root, names[0]))


def _is_there(root: Path, name: str) -> bool:
    """Return whether a split of exactly this name has images or an instances file."""
    folders = (root / name, root / "images" / name)
    return any(folder.is_dir() for folder in folders) or _annotations_of(root, name) is not None


def _annotations_of(root: Path, name: str) -> Path | None:
    """Return the instances file of a split; None if it has none."""
    for pattern in JSON_FILES:
        path = root / pattern.format(name)
        if path.is_file():
            return path

    # `train/` beside instances_train2017.json, as long as there is one year only.
    dated = re.compile(rf"instances_{re.escape(name)}\d{{4}}\.json")
    folder = root / "annotations"
    entries = list_folder(folder) if folder.is_dir() and (root / name).is_dir() else []
    matching = [folder / entry.name for entry in entries if dated.fullmatch(entry.name)]
    # Two years beside each other: nobody says whose images these are.
    return matching[0] if len(matching) == 1 else None


def _no_such_split(root: Path, split: str) -> CorpusError:
    """Return the error for a split that is not there; it names those that are."""
    known = _folders_in(root) + _folders_in(root / "images")
    known = [name for name in known if name not in ("annotations", "images")]
    for name in _files_in(root / "annotations"):
        match = re.fullmatch(r"(?:instances|lvis_v1)_(.+)\.json", name)
        if match and match[1] not in known:
            known.append(match[1])

    there = ", ".join(known[:12]) or "none"
    if split in SPLITS or re.fullmatch(rf"({'|'.join(SPLITS)})\d{{4}}", split):
        return CorpusError(f"{root}: no folder for the split {split!r}; there are: {there}.")
    return CorpusError(
        f"{split!r} is no split of COCO in {root}: COCO has {', '.join(SPLITS)}, or in full e.g. "
        f"train2017; there are: {there}."
    )


def _folders_in(folder: Path) -> list[str]:
    entries = list_folder(folder) if folder.is_dir() else []
    return [entry.name for entry in entries if is_folder(entry)]


def _files_in(folder: Path) -> list[str]:
    entries = list_folder(folder) if folder.is_dir() else []
    return [entry.name for entry in entries if is_file(entry)]


def _plain_records(folder: Path) -> Iterator[Record]:
    """Yield the images of a split that has no annotations."""
    for name in list_pictures(folder):
        yield Record(record_key(name), folder / name, label_of([]))


@dataclass(frozen=True, slots=True)
class _Found:
    """The file of each image.

    Attributes:
        folder: that holds them.
        names: paths below it, in the order of `Instances.images`.
    """

    folder: Path
    names: list[str]


def _labelled(split: str, found: _Split, instances: Instances) -> Corpus:
    """Open a split with its annotation file."""
    if not instances.images:
        raise CorpusError(
            f"{instances.source}: the split {split!r} is empty, the file lists no picture."
        )

    files = _find_files(found, instances)
    # A mask has 8 bits: LVIS's 1,203 classes go without.
    count = len(instances.classes)
    with_masks = count <= MAX_CLASSES
    note = "" if with_masks else f"no masks: {count:,} classes, and a mask holds {MAX_CLASSES}"
    palette = voc_palette(count) if with_masks else ()
    records = functools.partial(_labelled_records, instances, files, with_masks)
    return Corpus(
        "coco",
        split,
        instances.classes,
        palette,
        len(instances.images),
        records,
        note,
        instances.left_out.left_out(),
    )


def _find_files(found: _Split, instances: Instances) -> _Found:
    """Return the images' files in the folder that holds most of them.

    Raises:
        CorpusError: files that no folder holds.
    """
    # Nobody says where the images are: the folder that holds most of the names is theirs.
    names = [image.name for image in instances.images]
    best = found.folders[0] if found.folders else found.root
    best_files: list[str | None] = [None] * len(names)

    for folder in found.folders:
        files = _names_in(folder, names)
        if files.count(None) < best_files.count(None):
            best, best_files = folder, files
        if None not in best_files:
            break

    return _Found(best, require_files(names, best_files, best, instances.source))


def _names_in(folder: Path, names: list[str]) -> list[str | None]:
    """Return the path of each name below a folder; None for those that it does not hold.

    A name may begin with the folder's own (`train2017/1.jpg` in train2017/), or have folders that
    are not there, as long as the last parts of all names differ.
    """
    files = FileNames(folder)
    lasts = [PurePosixPath(name).name for name in names]
    are_unique = len(set(lasts)) == len(lasts)

    found = []
    prefix = f"{folder.name}/"
    for name, last in zip(names, lasts, strict=True):
        path = files.find(name)
        if path is None and name.startswith(prefix):
            path = files.find(name.removeprefix(prefix))
        if path is None and are_unique and last != name:
            path = files.find(last)
        found.append(path)
    return found


def _labelled_records(instances: Instances, files: _Found, with_masks: bool) -> Iterator[Record]:
    """Yield the images of a split with their objects; an image without objects is a record too."""
    for image, name in zip(instances.images, files.names, strict=True):
        objects, dropped = instances.objects_of(image)
        mask = _mask_of(instances, image) if with_masks else None
        if mask is not None:
            dropped += mask.dropped()
        yield Record(
            record_key(name),
            files.folder / name,
            label_of(objects),
            mask,
            label_size=image.size,
            fault=image.fault,
            dropped=dropped,
        )


def _mask_of(instances: Instances, image: ImageEntry) -> CocoMask | None:
    # Without a size the outlines have no plane to be drawn on.
    if image.size is None:
        return None
    annotations = instances.annotations.get(image.id, [])
    indexed = tuple((instances.class_of_annotation(each), each) for each in annotations)
    width, height = image.size
    return CocoMask(indexed, height, width, f"{instances.source}: {image.name}")
