"""PASCAL VOC 2007 and 2012, and sets in its layout: images, XML files, palette masks, lists.

    VOC2012/JPEGImages/*.jpg, Annotations/*.xml      images and objects
    VOC2012/ImageSets/Main/NAME.txt                  the images of the split NAME
    VOC2012/ImageSets/Segmentation/NAME.txt          those of seg-NAME, with SegmentationClass/*.png
    VOC2012/SegmentationClassAug/*.png               masks of lists such as trainaug: palette, grey
    VOC2012/classes.txt or labelmap.txt              the classes, where they are not VOC's 20

A split is `[YEAR-][seg-]NAME` for any list, `[YEAR-]all`, every annotated image (17,125 in
VOC2012), or `[YEAR-]seg-all`, every image with a mask (2,913 in VOC2012). Where no object has one
of VOC's classes and no list of classes is there, the names in the XML files are the classes,
sorted. XML files are read one by one as records are drawn, by voc_xml.py; no image is opened.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.corpora.class_lists import LabelMap, read_classes, read_label_map
from datasets.corpora.files import (
    FileNames,
    Skipped,
    inside,
    list_folder,
    read_lines,
    record_key,
    require_files,
    require_folder,
)
from datasets.corpora.masks import ColorMask, IndexMask
from datasets.corpora.palette import voc_palette
from datasets.corpora.voc_xml import Annotation, read_annotation, read_class_names
from datasets.errors import CorpusError
from shards.records import MAX_CLASSES, Corpus, Mask, Record, label_of

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
SHOWN_LISTS = 12
# In the order in which they are looked for; a JPEG's values are not those that were saved.
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_YEAR = re.compile(r"VOC\d{4}")
_SPLIT = re.compile(r"(?:(?P<year>\d{4})-)?(?P<name>\w[\w.+-]*)")
# VOC's lists of one class (`dog_train.txt`) are splits too, but not shown among them.
_CLASS_LIST = re.compile(r".+_(train|val|trainval|test)")
# A list's second column marks whether the class of the list is in the image.
_SECOND_COLUMN = re.compile(r"(.+?)\s+(-1|0|1)")


@dataclass(frozen=True, slots=True)
class _Split:
    """One split of one year.

    Attributes:
        folder: of the year, such as VOC2012/.
        name: of the split without its year.
    """

    folder: Path
    name: str

    @property
    def segmentation(self) -> bool:
        return self.name.startswith("seg-")

    @property
    def source(self) -> Path:
        """Return where its images are listed: a file of ImageSets, or the folder of labels."""
        if self.name == "all":
            return self.folder / "Annotations"
        if self.name == "seg-all":
            return self.masks
        sets = self.folder / "ImageSets" / ("Segmentation" if self.segmentation else "Main")
        return sets / f"{self.name.removeprefix('seg-')}.txt"

    @property
    def masks(self) -> Path:
        """Return the folder of its masks: SBD's for lists such as trainaug, if it is there."""
        plain, augmented = (self.folder / f"SegmentationClass{end}" for end in ("", "Aug"))
        wants_augmented = "aug" in self.name.lower() or not plain.is_dir()
        return augmented if wants_augmented and augmented.is_dir() else plain


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of one image.

    Attributes:
        name: of the image below JPEGImages/.
        image: its file.
        annotation: its XML file; None if it has none.
        mask: None if the split has no masks.
    """

    name: str
    image: Path
    annotation: Path | None
    mask: Path | None


@dataclass(frozen=True, slots=True)
class _Classes:
    """The classes of a year.

    Attributes:
        names: in the order of their indices.
        note: where they are from; empty for VOC's own.
        colors: those of color-coded masks, if a file lists them.
    """

    names: tuple[str, ...]
    note: str = ""
    colors: LabelMap | None = None


def open_voc(root: Path, split: str) -> Corpus:
    """Open a split of VOC or of a set in its layout.

    Args:
        root: VOCdevkit, a folder that holds it, or one year's folder such as VOCdevkit/VOC2012.
        split: `[YEAR-][seg-]NAME` of a list in ImageSets, `[YEAR-]all` or `[YEAR-]seg-all`; the
            year may be left out if only one year on disk has the split. A `test` without any XML
            file has no classes.

    Raises:
        CorpusError: a missing or ambiguous split, or one that is empty or names files that are
            missing.
    """
    chosen = _resolve(root, split)
    pictures = FileNames(chosen.folder / "JPEGImages")
    names = _names(chosen, pictures)
    if not names:
        raise _empty(chosen, split)

    # A test set whose objects are not public has no XML files, and so no classes.
    files = _find_files(chosen, names, pictures)
    unlabelled = Skipped()
    for each in files:
        if each.annotation is None:
            unlabelled.add("pictures without an XML file, so without objects", each.name)
    labelled = unlabelled.count < len(files)
    found = _classes(chosen, files, root)
    # A split of masks is none of boxes: tools name those in their own way.
    if not chosen.segmentation:
        _check_some_object(chosen, files, found)
    records = functools.partial(_records, files, found)
    return Corpus(
        "voc",
        split,
        found.names if labelled or chosen.segmentation else (),
        voc_palette(len(found.names)) if chosen.segmentation else (),
        len(files),
        records,
        found.note,
        unlabelled.left_out() if labelled else (),
    )


def _year_folders(root: Path) -> list[Path]:
    """Return the folders of the years at the root, in it, or in its VOCdevkit/."""
    require_folder(root, "give VOCdevkit or VOCdevkit/VOC2012 as --root")
    # One year's own folder.
    if (root / "JPEGImages").is_dir():
        return [root]
    for parent in (root, root / "VOCdevkit"):
        years = [path for path in parent.glob("VOC*") if _YEAR.fullmatch(path.name)]
        if any(path.is_dir() for path in years):
            return sorted(path for path in years if path.is_dir())
    raise CorpusError(
        f"{root}: no VOC here; the root holds VOC2007/ or VOC2012/, or JPEGImages/ of one year."
    )


def _resolve(root: Path, split: str) -> _Split:
    """Return the one year's split that a name means."""
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise CorpusError(f"{split!r} is no split of VOC: give a list's name such as 2012-seg-val.")

    folders = _year_folders(root)
    year = f"VOC{match['year']}" if match["year"] else ""
    wanted = [folder for folder in folders if not year or _year_of(folder) == year]
    choices = [_Split(folder, match["name"]) for folder in wanted]
    found = [choice for choice in choices if choice.source.exists()]

    # 2007 and 2012 both have a train: the wrong one would be packed without a word.
    if len(found) > 1:
        years = (_year_of(choice.folder).removeprefix("VOC") for choice in found)
        named = " or ".join(f"{year}-{match['name']}" for year in years)
        raise CorpusError(f"{root}: the split {split!r} is ambiguous here, say which: {named}.")
    if not found:
        there = ", ".join(_available(folder) for folder in folders)
        raise CorpusError(
            f"{root}: no split {split!r} here; there are: {there}. {split!r} is no split of VOC "
            "unless ImageSets has a list of that name."
        )
    return found[0]


def _year_of(folder: Path) -> str:
    """Return the name of a year's folder; that of a link counts before its target's."""
    return folder.name if _YEAR.fullmatch(folder.name) else folder.resolve().name


def _available(folder: Path) -> str:
    """Return the splits of one year, for a message."""
    names = []
    for kind, prefix in (("Main", ""), ("Segmentation", "seg-")):
        lists = folder / "ImageSets" / kind
        entries = list_folder(lists) if lists.is_dir() else []
        stems = [entry.name.removesuffix(".txt") for entry in entries]
        names += [prefix + stem for stem in stems if not _CLASS_LIST.fullmatch(stem)]
    names += [name for name in ("all", "seg-all") if _Split(folder, name).source.is_dir()]
    return f"{_year_of(folder)} with {' '.join(names[:SHOWN_LISTS]) or 'none'}"


def _names(chosen: _Split, pictures: FileNames) -> list[str]:
    """Return the names of a split's images as its list writes them, sorted."""
    if chosen.name in ("all", "seg-all"):
        suffixes = MASK_SUFFIXES if chosen.segmentation else (".xml",)
        files = [entry.name for entry in list_folder(chosen.source)]
        return [_without_suffix(name) for name in files if name.lower().endswith(suffixes)]

    # Before any name is looked up: a list may come from a stranger.
    lines = read_lines(chosen.source, "list")
    for line in lines:
        inside(pictures.folder, line, chosen.source)

    names = sorted(_without_mark(line, pictures) for line in lines)
    for name, following in itertools.pairwise(names):
        if name == following:
            raise CorpusError(f"{chosen.source}: names {name} twice.")
    return names


def _empty(chosen: _Split, split: str) -> CorpusError:
    """Return the error for a split without images."""
    hint = ""
    if chosen.source.is_dir():
        kind = "mask" if chosen.segmentation else "XML file"
        hint = (
            f", no {kind} is directly in this folder; list those of folders in it in a file of "
            "ImageSets"
        )
    return CorpusError(f"{chosen.source}: the split {split!r} is empty{hint}.")


def _without_mark(line: str, pictures: FileNames) -> str:
    """Return the name in a line: all of it if that is an image, else without a second column."""
    match = _SECOND_COLUMN.fullmatch(line)
    if match is None or _find_picture(line, pictures) is not None:
        return line
    return match[1]


def _find_picture(name: str, pictures: FileNames) -> str | None:
    """Return the image of a name, which may carry its extension."""
    # `my.photo` is a name with a dot before it is one with an extension.
    exact = pictures.find(f"{name}.jpg") or pictures.find_stem(name)
    return exact or pictures.find_stem(_stem(name))


def _without_suffix(name: str) -> str:
    return re.sub(r"\.[^./]+$", "", name)


def _stem(name: str) -> str:
    return re.sub(r"\.(jpe?g|png)$", "", name, flags=re.IGNORECASE)


def _find_files(chosen: _Split, names: list[str], pictures: FileNames) -> list[_Files]:
    """Return the files of each image.

    A name may carry its extension, and differ from the file's in case or Unicode form.

    Raises:
        CorpusError: images, XML files or masks that are missing.
    """
    stems = [_stem(name) for name in names]
    shown = [f"{stem}.jpg" for stem in stems]
    found = [_find_picture(name, pictures) for name in names]
    images = require_files(shown, found, pictures.folder, chosen.source)

    # XML file and mask are named like the image, or like the list names it.
    stems = [_without_suffix(image) for image in images]
    annotations = _annotations(chosen, stems, names)
    masks = _masks(chosen, stems, names)

    files = []
    for image, annotation, mask in zip(
        images,
        annotations,
        masks,
        strict=True,
    ):
        files.append(
            _Files(
                image,
                pictures.folder / image,
                annotation,
                mask,
            )
        )
    return files


def _annotations(chosen: _Split, stems: list[str], names: list[str]) -> list[Path | None]:
    """Return the XML file of each image.

    A test set may have none, and a split with masks need not have them: SBD has masks of images
    that VOC has no objects of, and tools for masks write no XML files.

    Raises:
        CorpusError: files that are missing.
    """
    folder = chosen.folder / "Annotations"
    found = _beside(folder, stems, names, (".xml",))
    is_public = chosen.name != "test" or any(found)
    if is_public and not chosen.segmentation:
        require_files([f"{stem}.xml" for stem in stems], found, folder, chosen.source)
    return [folder / file if file is not None else None for file in found]


def _masks(chosen: _Split, stems: list[str], names: list[str]) -> list[Path | None]:
    """Return the mask of each image; None for all if the split has no masks.

    Raises:
        CorpusError: masks that are missing.
    """
    if not chosen.segmentation:
        return [None] * len(stems)
    found = _beside(chosen.masks, stems, names, MASK_SUFFIXES)
    wanted = [f"{stem}.png" for stem in stems]
    files = require_files(wanted, found, chosen.masks, chosen.source)
    return [chosen.masks / file for file in files]


def _beside(
    folder: Path, stems: list[str], names: list[str], suffixes: tuple[str, ...]
) -> list[str | None]:
    """Return the file that goes with each image; None if there is none."""
    files = FileNames(folder)
    found = []
    for both in zip(stems, names, strict=True):
        candidates = (files.find(name + suffix) for suffix in suffixes for name in both)
        found.append(next((file for file in candidates if file is not None), None))
    return found


def _classes(chosen: _Split, files: list[_Files], root: Path) -> _Classes:
    """Return the classes: of a list beside the images, else VOC's, else those of the XML files."""
    # A list of the year's own comes before one for all years.
    folders = (chosen.folder, root)
    colors = read_label_map(*folders)
    names = read_classes(*folders, at_most=MAX_CLASSES if chosen.segmentation else None)
    # It also names the classes, in the order of their indices.
    if colors is not None:
        return _Classes(colors.classes, f"the classes are those of {colors.path.name}", colors)
    if names:
        return _Classes(names, f"the classes are the {len(names)} of classes.txt")

    annotations = [each.annotation for each in files if each.annotation is not None]
    if not annotations or _has_class_of_voc(annotations):
        # VOC's own order, in which published results number them.
        return _Classes(CLASSES)
    return _own_classes(chosen)


def _has_class_of_voc(annotations: list[Path]) -> bool:
    """Return whether an object has a class of VOC, or none has any.

    Mostly the first file decides.
    """
    has_objects = False
    for path in annotations:
        for name in read_class_names(path):
            has_objects = True
            if name in CLASSES:
                return True
    return not has_objects


def _own_classes(chosen: _Split) -> _Classes:
    """Return the class names of all XML files, so that each split has the same."""
    folder = chosen.folder / "Annotations"
    names: set[str] = set()
    for entry in list_folder(folder):
        if entry.name.lower().endswith(".xml"):
            names.update(read_class_names(folder / entry.name))

    if chosen.segmentation and len(names) > MAX_CLASSES:
        raise CorpusError(
            f"{folder}: its objects have {len(names)} different names, none of them VOC's; list "
            f"the classes, at most {MAX_CLASSES}, in {chosen.folder / 'classes.txt'}."
        )
    shown = ", ".join(sorted(names)[:SHOWN_LISTS])
    return _Classes(
        tuple(sorted(names)),
        f"the classes are the {len(names)} names in the XML files ({shown}); classes.txt fixes "
        "them",
    )


def _check_some_object(chosen: _Split, files: list[_Files], found: _Classes) -> None:
    """Refuse a split that has objects, none of which can be used."""
    class_of = {name: index for index, name in enumerate(found.names)}
    reason = ""
    for each in files:
        if each.annotation is None:
            continue
        try:
            annotation = read_annotation(each.annotation, class_of)
        except CorpusError:  # it costs its picture, which the packer names
            continue

        # Mostly the first file has one: a good set costs no pass over all files.
        if annotation.objects:
            return
        if annotation.dropped and not reason:
            reason = f"{annotation.dropped[0]} in {each.annotation.name}"

    if reason:
        raise CorpusError(f"{chosen.source}: none of its objects can be used: {reason}.")


def _records(files: list[_Files], found: _Classes) -> Iterator[Record]:
    class_of = {name: index for index, name in enumerate(found.names)}
    for each in files:
        fault = ""
        annotation = Annotation([], (), None)
        if each.annotation is not None:
            try:
                annotation = read_annotation(each.annotation, class_of)
            except CorpusError as error:
                # The reason comes first: the packer counts records by it.
                reason = str(error).removeprefix(f"{each.annotation}: ").rstrip(".")
                fault = f"its XML file {reason}: {each.annotation.name}"
        yield Record(
            record_key(each.name),
            each.image,
            label_of(annotation.objects),
            _mask(each.mask, found),
            label_size=annotation.size,
            fault=fault,
            dropped=annotation.dropped,
        )


def _mask(path: Path | None, found: _Classes) -> Mask | None:
    if path is None:
        return None
    if found.colors is not None:
        return ColorMask(path, found.colors.values, found.colors.path)
    return IndexMask(path, len(found.names))
