"""List image files, resolve the names that labels give to files, and derive sample keys.

Only names and directory entries are looked at: sets have up to millions of images. The one
exception are files without a known extension, whose first bytes tell whether an image is left out.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from datasets.errors import CorpusError
from shards.records import LeftOut

# HEIC, JPEG XL and AVIF are listed too: the packer reads them if the installed Pillow can, and
# rejects them by name if not.
PICTURE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".heic",
        ".heif",
        ".jxl",
        ".avif",
    ]
)
RAW_SUFFIXES = frozenset(
    [".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".psd", ".svg", ".eps"]
)
# What lies beside images in most sets; these are not looked into.
OTHER_SUFFIXES = frozenset(
    [
        ".txt",
        ".xml",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".md",
        ".yaml",
        ".yml",
        ".html",
        ".npy",
        ".npz",
        ".mat",
        ".tar",
        ".zip",
        ".gz",
        ".db",
        ".ini",
        ".pdf",
        ".py",
    ]
)
# First bytes of the formats that are found without an extension: JPEG, PNG, GIF, TIFF; JPEG XL and
# JPEG 2000, each bare and in a box.
PICTURE_STARTS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
    b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cjP  ",
)
# What follows `RIFF` or `BM` and a length: both also begin other files.
WEBP_START, WEBP_BRAND = b"RIFF", b"WEBP"
BMP_START, BMP_RESERVED = b"BM", bytes(4)
# Brands of AVIF and HEIC, in the box that also begins films.
PICTURE_BRANDS = (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1")
# A USTAR name has 100 bytes; an extension and the packer's own need some of them.
MAX_KEY_LENGTH = 80
# A packed set has the first of these from its start on, a set of others' shards has the last two.
PACKED_FILES = (frozenset(["packing.json"]), frozenset(["manifest.json", "samples.npy"]))
SHEET_FILE = "sample.png"
MAX_LIST_BYTES = 1 << 30
NUM_EXAMPLES = 3


@dataclass
class Skipped:
    """Counts what is left out, by reason, with a few names each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one more."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        # A few names tell a user where to look; millions would not.
        names = self.examples.setdefault(reason, [])
        if len(names) < NUM_EXAMPLES:
            names.append(name)

    @property
    def count(self) -> int:
        """Return the number of all that is left out."""
        return sum(self.counts.values())

    def left_out(self) -> tuple[LeftOut, ...]:
        """Return the counts, the most frequent reason first."""
        reasons = sorted(
            self.counts,
            key=lambda reason: (-self.counts[reason], reason),
        )
        return tuple(
            LeftOut(reason, self.counts[reason], tuple(self.examples[reason])) for reason in reasons
        )

    def in_words(self) -> str:
        """Return one sentence for an error; empty if nothing was left out."""
        parts = [
            f"{item.count:,} {item.reason} ({', '.join(item.examples)})" for item in self.left_out()
        ]
        return f" Left out: {'; '.join(parts)}." if parts else ""


def require_folder(folder: Path, what: str) -> Path:
    """Return the folder.

    Raises:
        CorpusError: it is missing, or a file; `what` says what to give instead.
    """
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CorpusError(
            f"{folder}: is a file, not a folder; unpack it (tar xf, unzip) and {what}."
        )
    raise CorpusError(f"{folder}: no such folder; {what}.")


def is_picture(name: str) -> bool:
    """Return whether a file name is an image's: not hidden, a known extension in any case."""
    return not name.startswith(".") and _suffix(name) in PICTURE_SUFFIXES


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """Return a folder's entries without the hidden ones, sorted by name.

    Raises:
        CorpusError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise CorpusError(f"{folder}: the folder cannot be listed ({error.strerror}).") from error
    return sorted(shown, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or to where nobody may look
        return False


def is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a file, or a link to one."""
    try:
        return entry.is_file()
    except OSError:  # as above
        return False


def list_pictures(folder: Path, skipped: Skipped | None = None) -> list[str]:
    """Return the names of the images directly in a folder, sorted; links to files are followed."""
    names = []
    for entry in list_folder(folder):
        if _is_taken(entry, skipped, entry.name):
            names.append(entry.name)
    return names


def walk_pictures(root: Path, skipped: Skipped | None = None) -> Iterator[str]:
    """Yield the images under a folder as relative paths (with `/`), depth first, sorted by name.

    Links are followed, to files and to folders, also out of the root: subsets are often made of
    them. A link to a folder that contains it, or to one that another link has led to, is skipped,
    so that the walk ends.
    """
    linked = {os.path.realpath(root)}
    # Paths are put together as text: pathlib would take most of the time of a walk.
    entries = list_folder(root)
    if _is_packed(entries):
        # Pictures and the set made of them in one folder: only its own picture is none of them.
        entries = [entry for entry in entries if entry.name != SHEET_FILE]
    todo = [("", entry) for entry in reversed(entries)]

    while todo:
        parent, entry = todo.pop()
        relative = parent + entry.name
        if is_folder(entry):
            inner, reason = _inner(root / relative, entry, linked)
            todo.extend((f"{relative}/", each) for each in reversed(inner))
            if reason and skipped is not None:
                skipped.add(reason, relative)
        elif _is_taken(entry, skipped, relative):
            yield relative


def pass_over(folder: Path, skipped: Skipped, reason: str, taken: Container[str] = ()) -> None:
    """Count the pictures below the folders in a folder, except below those that are taken."""
    for entry in list_folder(folder):
        if entry.name in taken or not is_folder(entry) or _is_packed(list_folder(Path(entry.path))):
            continue
        for relative in walk_pictures(Path(entry.path)):
            skipped.add(reason, f"{folder.name}/{entry.name}/{relative}")


def _inner(
    folder: Path, entry: os.DirEntry[str], linked: set[str]
) -> tuple[list[os.DirEntry[str]], str]:
    """Return the entries of a folder to walk, and why there are none; empty if nothing forbids."""
    if entry.is_symlink() and not _is_new(entry, linked):
        return [], "links to folders that are walked already"
    entries = list_folder(folder)
    # A set packed into the folder of its pictures holds a picture of samples, no new picture.
    return ([], "packed folders") if _is_packed(entries) else (entries, "")


def _is_packed(entries: list[os.DirEntry[str]]) -> bool:
    """Return whether these are the entries of a packed set."""
    names = {entry.name for entry in entries}
    return any(files <= names for files in PACKED_FILES)


def _is_new(entry: os.DirEntry[str], linked: set[str]) -> bool:
    """Return whether a linked folder is no ancestor of its link and was reached by no other link.

    Note it.
    """
    target = os.path.realpath(entry.path)
    parents = os.path.realpath(os.path.dirname(entry.path))  # noqa: PTH120 (hot path)
    is_ancestor = (parents + os.sep).startswith(target + os.sep)
    # Two links to each other would lead round for ever.
    if is_ancestor or target in linked:
        return False
    linked.add(target)
    return True


def _is_taken(entry: os.DirEntry[str], skipped: Skipped | None, shown: str) -> bool:
    """Return whether an entry is an image to take.

    Count it in `skipped` if it is one that is not.
    """
    if is_picture(entry.name) and is_file(entry):
        return True
    if skipped is not None:
        reason = _why_skipped(entry)
        if reason:
            skipped.add(reason, shown)
    return False


def _why_skipped(entry: os.DirEntry[str]) -> str:
    """Return why an entry that may be an image is not taken.

    Empty for folders and files of other kinds.
    """
    if is_folder(entry):
        return ""
    if not is_file(entry):
        return "links to nothing" if entry.is_symlink() else ""

    suffix = _suffix(entry.name)
    if suffix in RAW_SUFFIXES:
        return f"{suffix[1:].upper()} files, which are not read: export them as JPEG or PNG"
    if suffix not in OTHER_SUFFIXES and _starts_like_a_picture(Path(entry.path)):
        return "pictures without a known extension: rename them to .jpg or .png"
    return ""


def _starts_like_a_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    if head.startswith(WEBP_START):
        return head[8:] == WEBP_BRAND
    if head.startswith(BMP_START):
        return head[6:10] == BMP_RESERVED
    return head.startswith(PICTURE_STARTS) or head[4:].startswith(PICTURE_BRANDS)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (hot path)


def inside(folder: Path, name: str, source: Path) -> Path:
    """Join a name that an annotation file gives.

    Raises:
        CorpusError: the name leads out of the folder, or is none.
    """
    if leads_out(name):
        raise CorpusError(f"{source}: names {name!r}, which is no file inside {folder}.")
    return folder / PurePosixPath(name)


def leads_out(name: str) -> bool:
    """Return whether a name leads out of the folder that it is joined to, or is none."""
    pure = PurePosixPath(name)
    return (
        not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name
    )


class FileNames:
    """The files of a folder by name, as lists and labels write it.

    An exact name comes first; then one that differs in case or in the form of its accents only
    (`IMG_1.JPG`, macOS's decomposed Unicode). Each folder is listed once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exact: dict[str, set[str]] = {}
        self._alike: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> str | None:
        """Return the file's real name relative to the folder.

        None if there is none, or no single one.
        """
        parent, _, last = name.rpartition("/")
        self._list(parent)
        if last in self._exact[parent]:
            return name

        alike = self._alike[parent].get(_plain(last), [])
        # Two files that differ in case alone: guessing would pick one at random.
        if len(alike) != 1:
            return None
        return f"{parent}/{alike[0]}" if parent else alike[0]

    def find_stem(self, stem: str) -> str | None:
        """Return the image of this name without extension.

        None if there is none, or no single one.
        """
        parent, _, last = stem.rpartition("/")
        self._list(parent)
        names = self._exact[parent]
        found = sorted({last + suffix for suffix in PICTURE_SUFFIXES} & names)

        if not found:
            plain = {_plain(last) + suffix for suffix in PICTURE_SUFFIXES}
            alike = self._alike[parent]
            found = [name for each in sorted(plain & alike.keys()) for name in alike[each]]
        if len(found) != 1:
            return None
        return f"{parent}/{found[0]}" if parent else found[0]

    def _list(self, parent: str) -> None:
        if parent in self._exact:
            return
        folder = self.folder / parent
        names = [entry.name for entry in list_folder(folder)] if folder.is_dir() else []
        self._exact[parent] = set(names)
        alike: dict[str, list[str]] = {}
        for name in names:
            alike.setdefault(_plain(name), []).append(name)
        self._alike[parent] = alike


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def require_files(
    names: Sequence[str], found: Sequence[str | None], folder: Path, source: Path
) -> list[str]:
    """Return the files that were found, if each name has one of its own.

    Raises:
        CorpusError: counts the missing files and names the first, or names two that are one file.
    """
    missing = [name for name, file in zip(names, found, strict=True) if file is None]
    if missing:
        raise CorpusError(
            f"{source}: {len(missing):,} of the files it names are missing in {folder}, "
            f"the first is {missing[0]}; fetch them, or take them off the list."
        )

    # Two spellings of one file would be two samples of one key.
    files = [file for file in found if file is not None]
    name_of: dict[str, str] = {}
    for name, file in zip(names, files, strict=True):
        if file in name_of:
            raise CorpusError(f"{source}: {name_of[file]} and {name} are the same file, {file}.")
        name_of[file] = name
    return files


def read_lines(path: Path, what: str) -> list[str]:
    """Return a text file's lines without surrounding space and without the empty ones.

    Raises:
        CorpusError: the file cannot be read, is larger than 1 GB, or is not UTF-8; `what` names it.
    """
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise CorpusError(f"{path}: larger than {MAX_LIST_BYTES:,} bytes, so it is no {what}.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: the {what} cannot be read ({error}).") from error
    stripped = (line.strip() for line in lines)
    return [line for line in stripped if line]


def record_key(relative: str, suffix: str = ".jpg") -> str:
    """Return the key of an image from its path relative to the corpus: `cat.jpg` -> `cat`.

    A path that cannot be its own key (folders, other characters, another suffix, too long, or one
    that looks like a key made here) keeps what it can and gets eight hex digits of its hash: no two
    paths share one.
    """
    stem = relative.removesuffix(suffix)
    plain = re.fullmatch(rf"[A-Za-z0-9_-]{{1,{MAX_KEY_LENGTH}}}", stem) is not None
    if plain and relative.endswith(suffix) and not re.search(r"-[0-9a-f]{8}$", stem):
        return stem

    # Of the bytes: names that are not UTF-8 have no other form.
    digest = hashlib.sha256(os.fsencode(relative)).hexdigest()[:8]
    readable = re.sub(
        r"[^A-Za-z0-9_-]+",
        "_",
        str(PurePosixPath(relative).with_suffix("")),
    )
    return f"{readable[: MAX_KEY_LENGTH - 9]}-{digest}"
