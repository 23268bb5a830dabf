"""Read the lists that users write for their own classes: classes.txt and labelmap.txt.

classes.txt     one class name per line, index 1 first; for masks a first line
                `background` is left out
labelmap.txt    CVAT's, one `name:red,green,blue` per line: the colors of masks, and the names
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from datasets.corpora.files import read_lines
from datasets.errors import CorpusError
from shards.records import MAX_CLASSES, VOID

CLASSES = "classes.txt"
LABEL_MAP = "labelmap.txt"
BACKGROUND_NAMES = ("background", "_background_", "__background__")
VOID_NAMES = ("void", "ignore", "unlabeled", "unlabelled")
LABEL_MAP_LINE = re.compile(r"([^:]+):(\d{1,3}),(\d{1,3}),(\d{1,3})(?::.*)?")

# Double spaces are left alone: they are part of some sets' names.
_BREAKS = re.compile(r"\s*[\t-\r\x1c-\x1f\x85\u2028\u2029]\s*")

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class LabelMap:
    """The classes of color-coded masks.

    Attributes:
        path: the file.
        classes: names without background and void, in the order of the file.
        values: the mask value of each color: 0 background, i + 1 `classes[i]`, 255 void.
    """

    path: Path
    classes: tuple[str, ...]
    values: tuple[tuple[Color, int], ...]


def read_classes(
    *folders: Path, with_background: bool = False, at_most: int | None = MAX_CLASSES
) -> tuple[str, ...]:
    """Return the names in the first classes.txt of these folders; empty if none has one.

    Args:
        folders: where to look, in this order.
        with_background: keep a first name `background`, which masks have as index 0 in any case.
        at_most: how many classes there may be; None for labels that are no masks.

    Raises:
        CorpusError: no names, too many, or one twice.
    """
    path = _first(CLASSES, folders)
    if path is None:
        return ()

    # Lists of other tools name the background.
    names = [one_line(name) for name in read_lines(path, "list of classes")]
    if not with_background and names and names[0].lower() in BACKGROUND_NAMES:
        names = names[1:]
    _check_names(names, path, at_most)
    return tuple(names)


def one_line(name: str) -> str:
    """Return a class name without line breaks and tabs, for tables and pictures that show it."""
    return _BREAKS.sub(" ", name).strip()


def read_label_map(*folders: Path) -> LabelMap | None:
    """Return the first labelmap.txt of these folders; None if none has one.

    Raises:
        CorpusError: a line that is no `name:red,green,blue`, or a name or color twice.
    """
    path = _first(LABEL_MAP, folders)
    if path is None:
        return None

    names: list[str] = []
    values: dict[Color, int] = {}
    for line in read_lines(path, "list of colors"):
        # CVAT begins with a comment: `# label:color_rgb:parts:actions`.
        if line.startswith("#"):
            continue
        name, color = _parsed(line, path)
        if color in values:
            raise CorpusError(f"{path}: gives the color of {name!r} to two classes.")
        values[color] = _value_of(name, names)
    _check_names(names, path, MAX_CLASSES)
    return LabelMap(path, tuple(names), tuple(values.items()))


def _parsed(line: str, path: Path) -> tuple[str, Color]:
    fault = CorpusError(f"{path}: {line[:60]!r} is no line such as road:128,64,128.")
    match = LABEL_MAP_LINE.fullmatch(line)
    if match is None:
        raise fault

    red, green, blue = int(match[2]), int(match[3]), int(match[4])
    if max(red, green, blue) > 255:
        raise fault
    return one_line(match[1]), (red, green, blue)


def _value_of(name: str, names: list[str]) -> int:
    """Return the mask value of a class, and add it to the names if it is one."""
    if name.lower() in BACKGROUND_NAMES:
        return 0
    if name.lower() in VOID_NAMES:
        return VOID
    names.append(name)
    # Too many names are refused below; the bound keeps their values within a byte until then.
    return min(len(names), VOID)


def _check_names(names: list[str], path: Path, at_most: int | None) -> None:
    if not names:
        raise CorpusError(f"{path}: names no class; write one name per line.")
    if at_most is not None and len(names) > at_most:
        raise CorpusError(
            f"{path}: names {len(names)} classes, but a mask has room for {at_most}; take some off "
            "the list."
        )

    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise CorpusError(f"{path}: names the class {name!r} {count} times; each needs one line.")


def _first(name: str, folders: tuple[Path, ...]) -> Path | None:
    paths = (folder / name for folder in folders)
    return next((path for path in paths if path.is_file()), None)
