"""Read the lists that give the classes of ImageNet's flat validation folder.

val_annotations.txt                             Tiny ImageNet: name, wnid, box
LOC_val_solution.csv                            Kaggle: name,wnid box ...
val.txt                                         Caffe: name, class index or wnid
imagenet_2012_validation_synset_labels.txt      one wnid per line, in the order of the names
ILSVRC2012_validation_ground_truth.txt          refused: its numbers need the development kit
"""

import re
from dataclasses import dataclass
from pathlib import Path

from datasets.corpora.files import read_lines
from datasets.errors import CorpusError

LIST_NAMES = (
    "{split}_annotations.txt",
    "LOC_{split}_solution.csv",
    "{split}.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)
WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, slots=True)
class Labels:
    """A list of labels.

    Attributes:
        path: the file.
        classes: the sorted wnids.
        labels: the class index of each image that is there and listed.
    """

    path: Path
    classes: tuple[str, ...]
    labels: dict[str, int]


def find_labels(
    root: Path, folder: Path, split: str, names: list[str], wnids: tuple[str, ...]
) -> Labels | None:
    """Return the labels of a flat folder; None if no list is there.

    Args:
        root: of the corpus.
        folder: of the split; lists are looked for in both.
        split: its name.
        names: the images' file names, sorted.
        wnids: those of the sorted splits, so that a class has the same index in all.

    Raises:
        CorpusError: a list that does not fit the images, or whose numbers have no meaning here.
    """
    path = _first_list(root, folder, split)
    if path is None:
        return None

    # Names have no spaces in ImageNet; what follows the label are boxes.
    lines = read_lines(path, "list of labels")
    words = [re.split(r"[\s,]+", line) for line in lines]
    if all(len(each) == 1 for each in words):
        pairs = _in_order(lines, names, path)
    else:
        # Kaggle's list begins with a line of column names.
        rows = [each for each in words if len(each) > 1 and each[1] != "PredictionString"]
        pairs = [(row[0], row[1]) for row in rows]
    return _labels(pairs, names, wnids, path)


def _first_list(root: Path, folder: Path, split: str) -> Path | None:
    """Return the first list that is there; the split's folder comes before the root."""
    for pattern in LIST_NAMES:
        name = pattern.format(split=split)
        for place in (folder / name, root / name):
            if place.is_file():
                return place
    return None


def _in_order(lines: list[str], names: list[str], path: Path) -> list[tuple[str, str]]:
    """Return name and label for a list without names."""
    if len(lines) != len(names):
        raise CorpusError(
            f"{path}: has {len(lines):,} labels without names, but there are {len(names):,} "
            "pictures."
        )
    if not all(WNID.fullmatch(line) for line in lines):
        raise CorpusError(
            f"{path}: its numbers are those of ImageNet's development kit, which orders the "
            "classes in its own way; use imagenet_2012_validation_synset_labels.txt or "
            "LOC_val_solution.csv."
        )
    return list(zip(names, lines, strict=True))


def _labels(
    pairs: list[tuple[str, str]], names: list[str], wnids: tuple[str, ...], path: Path
) -> Labels:
    """Return the class index of each image that the list names, with or without its extension."""
    # Kaggle's list has names without their extension.
    file_of = {name.rpartition(".")[0]: name for name in names}
    file_of |= {name: name for name in names}
    listed = {file_of[name]: label for name, label in pairs if name in file_of}
    if not listed:
        raise CorpusError(f"{path}: names none of the {len(names):,} pictures.")

    if all(WNID.fullmatch(label) for label in listed.values()):
        classes = tuple(sorted({*wnids, *listed.values()}))
        index_of = {wnid: index for index, wnid in enumerate(classes)}
        indices = {name: index_of[label] for name, label in listed.items()}
        return Labels(path, classes, indices)

    # Numbers count the sorted wnids of all classes: of a subset they mean other ones.
    # A list of names has none; a damaged one has some.
    numbers = [int(label) for label in listed.values() if _is_number(label)]
    if len(numbers) < len(listed) or max(numbers) + 1 != len(wnids):
        raise CorpusError(
            f"{path}: its labels are neither wnids nor numbers of the {len(wnids)} classes of "
            "train/."
        )
    return Labels(
        path,
        wnids,
        {name: int(label) for name, label in listed.items()},
    )


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit() and len(label) < 7
