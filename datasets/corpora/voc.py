"""PASCAL VOC 2007 and 2012: pictures in JPEGImages, objects in Annotations/*.xml, splits in ImageSets.

A split is `[YEAR-]NAME`: `train`, `val`, `trainval`, `test` from ImageSets/Main, `seg-train` and so on from
ImageSets/Segmentation with the palette masks of SegmentationClass, or `all`, every annotated picture (17,125
in VOC2012). The XML files are read one by one as the records are drawn, by defusedxml, no picture is opened.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree

from datasets.corpora.files import inside, list_folder, record_key, require_files, require_folder
from datasets.corpora.masks import PaletteMask
from datasets.corpora.palette import voc_palette
from datasets.errors import CorpusError
from shards.records import Corpus, Record, label_of

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
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
    ),
)
MAX_XML_BYTES = 4_000_000  # the largest of VOC2012 has 22 kB
_SPLIT = re.compile(r"(?:(?P<year>\d{4})-)?(?P<name>all|(?:seg-)?(?:train|val|trainval|test))")


@dataclass(frozen=True, slots=True)
class _Split:
    """One split of one year: `folder` is VOC2012/, `name` has no year."""

    folder: Path
    name: str

    @property
    def segmentation(self) -> bool:
        return self.name.startswith("seg-")

    @property
    def source(self) -> Path:
        """Where the split's pictures are listed: a text file of ImageSets, or the folder of XML files."""
        if self.name == "all":
            return self.folder / "Annotations"
        sets = self.folder / "ImageSets" / ("Segmentation" if self.segmentation else "Main")
        return sets / f"{self.name.removeprefix('seg-')}.txt"


def open_voc(root: Path, split: str) -> Corpus:
    """Opens a split of VOC.

    Args:
        root: VOCdevkit, a folder that holds it, or one year's folder such as VOCdevkit/VOC2012.
        split: `[2007-|2012-][seg-]train|val|trainval|test`, or `[2007-|2012-]all`; the year may be left out
            where only one year on disk has the split. A `test` without any XML file has no classes.

    Raises:
        CorpusError: a missing or ambiguous split, or one that is empty or names files that are missing.
            While the records are drawn: an XML file that is malformed, hostile or names an unknown class.
    """
    chosen = _resolve(root, split)
    names = _names(chosen)
    if not names:
        raise CorpusError(f"{chosen.source}: the split {split!r} is empty.")
    require_files(chosen.folder / "JPEGImages", (f"{name}.jpg" for name in names), chosen.source)
    if chosen.segmentation:
        require_files(
            chosen.folder / "SegmentationClass", (f"{name}.png" for name in names), chosen.source
        )
    labelled = _has_labels(chosen, names)
    classes = CLASSES if labelled else ()
    palette = voc_palette(len(CLASSES)) if chosen.segmentation else ()
    return Corpus(
        "voc",
        split,
        classes,
        palette,
        len(names),
        functools.partial(_records, chosen, names, labelled),
    )


def _year_folders(root: Path) -> list[Path]:
    """Returns the folders of the years that lie at, in, or in VOCdevkit/ in the root."""
    require_folder(root, "give VOCdevkit or VOCdevkit/VOC2012 as --root")
    if (root / "JPEGImages").is_dir():
        return [root]
    for parent in (root, root / "VOCdevkit"):
        years = [p for p in parent.glob("VOC*") if re.fullmatch(r"VOC\d{4}", p.name) and p.is_dir()]
        if years:
            return sorted(years)
    raise CorpusError(
        f"{root}: no VOC here; the root holds VOC2007/ or VOC2012/, or JPEGImages/ of one year."
    )


def _resolve(root: Path, split: str) -> _Split:
    """Finds the one year that a split's name means."""
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise CorpusError(
            f"{split!r} is no split of VOC: it has train, val, trainval, test, seg-train, seg-val, "
            "seg-trainval and all, each also with its year in front, e.g. 2012-seg-val."
        )
    folders = _year_folders(root)
    wanted = [
        f for f in folders if match["year"] is None or f.resolve().name == f"VOC{match['year']}"
    ]
    found = [
        choice
        for choice in (_Split(folder, match["name"]) for folder in wanted)
        if choice.source.exists()
    ]
    if len(found) > 1:
        choices = " or ".join(
            f"{choice.folder.resolve().name.removeprefix('VOC')}-{choice.name}" for choice in found
        )
        raise CorpusError(f"{root}: the split {split!r} is ambiguous here, say which: {choices}.")
    if not found:
        there = ", ".join(_available(folder) for folder in folders)
        raise CorpusError(f"{root}: no split {split!r} here; there are: {there}.")
    return found[0]


def _available(folder: Path) -> str:
    """Names the splits of one year, for a message."""
    names = [part + name for part in ("", "seg-") for name in ("train", "val", "trainval", "test")]
    found = [name for name in (*names, "all") if _Split(folder, name).source.exists()]
    return f"{folder.resolve().name} with {' '.join(found) or 'none'}"


def _names(chosen: _Split) -> list[str]:
    """Returns the names of a split's pictures, without extension, sorted."""
    if chosen.name == "all":
        return [
            e.name.removesuffix(".xml")
            for e in list_folder(chosen.source)
            if e.name.endswith(".xml")
        ]
    try:
        lines = chosen.source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise CorpusError(f"{chosen.source}: the list cannot be read ({error}).") from error
    names = sorted(line.split()[0] for line in lines if line.strip())
    for name in names:
        inside(chosen.folder / "JPEGImages", name, chosen.source)
    for name, following in itertools.pairwise(names):
        if name == following:
            raise CorpusError(f"{chosen.source}: names {name} twice.")
    return names


def _has_labels(chosen: _Split, names: list[str]) -> bool:
    """Whether the split's XML files are there: all of them, or for a test set perhaps none."""
    folder = chosen.folder / "Annotations"
    if chosen.name == "test" and not any((folder / f"{name}.xml").is_file() for name in names):
        return False
    require_files(folder, (f"{name}.xml" for name in names), chosen.source)
    return True


def _records(chosen: _Split, names: list[str], labelled: bool) -> Iterator[Record]:
    for name in names:
        objects = read_objects(chosen.folder / "Annotations" / f"{name}.xml") if labelled else []
        path = chosen.folder / "SegmentationClass" / f"{name}.png"
        mask = PaletteMask(path, len(CLASSES)) if chosen.segmentation else None
        image = chosen.folder / "JPEGImages" / f"{name}.jpg"
        yield Record(record_key(f"{name}.jpg"), image, label_of(objects), mask)


def read_objects(path: Path) -> list[dict[str, Any]]:
    """Reads the objects of one XML file, as `Record.label` has them; difficult ones are kept and marked.

    Only `name` and `bndbox` are needed; `pose`, `truncated`, `difficult` and `part` may be missing or there.

    Raises:
        CorpusError: the file is missing, malformed or hostile, or names a class that VOC does not have.
    """
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise CorpusError(
                f"{path}: larger than {MAX_XML_BYTES:,} bytes, so it is no annotation of VOC."
            )
        tree: Element = defusedxml.ElementTree.fromstring(path.read_bytes(), forbid_dtd=True)
    except (
        OSError,
        ParseError,
        ValueError,
        LookupError,
    ) as error:  # defusedxml's own errors are ValueErrors
        raise CorpusError(f"{path}: not an XML file that can be read safely ({error}).") from error
    return [_object(item, path) for item in tree.findall("object")]


def _object(item: Element, path: Path) -> dict[str, Any]:
    """One object; VOC's boxes count pixels from 1 and include the last, ours are half-open from 0."""
    name = (item.findtext("name") or "").strip()
    if name not in CLASSES:
        raise CorpusError(
            f"{path}: unknown class {name!r}; the 20 classes of VOC are {', '.join(CLASSES)}."
        )
    try:
        x0, y0, x1, y1 = (_coordinate(item, corner) for corner in ("xmin", "ymin", "xmax", "ymax"))
        difficult = bool(int(item.findtext("difficult") or 0))
    except ValueError as error:
        raise CorpusError(f"{path}: an object {name!r} has a malformed part ({error}).") from error
    box = [max(0.0, x0 - 1), max(0.0, y0 - 1), x1, y1]
    return {"class": CLASSES.index(name), "box": box, "difficult": difficult, "crowd": False}


def _coordinate(item: Element, corner: str) -> float:
    text = item.findtext(f"bndbox/{corner}")
    if text is None:
        raise ValueError(f"no bndbox/{corner}")
    value = float(text)
    if not abs(value) < 1e6:
        raise ValueError(f"bndbox/{corner} is {text.strip()}")
    return value
