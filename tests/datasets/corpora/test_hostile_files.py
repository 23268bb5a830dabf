"""Files from elsewhere, mutated: whatever they hold, the parsers answer or raise one clear error.

`COLORGAN_FUZZ_EXAMPLES=20000 pytest tests/datasets/corpora/test_hostile_files.py` runs longer, and
with other cases each time.
"""

import copy
import io
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.corpora.class_lists import read_classes, read_label_map
from datasets.corpora.coco import open_coco
from datasets.corpora.coco_masks import CocoMask
from datasets.corpora.imagenet import open_imagenet
from datasets.corpora.masks import BinaryMask, ColorMask, IndexMask
from datasets.corpora.voc import CLASSES, open_voc
from datasets.corpora.voc_xml import read_annotation
from datasets.errors import CorpusError

# Few and always the same in the suite; a night of fuzzing gives a number.
EXAMPLES = int(os.environ.get("COLORGAN_FUZZ_EXAMPLES", "0"))
MAX_GROWTH_BYTES = 1 << 30
fuzz = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Any:
    """Check that no case has made the process grow by a gigabyte."""
    # The peak: what was freed again has still been needed.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MAX_GROWTH_BYTES


def answers(parse: Callable[[], Any]) -> None:
    """Run a parser; it may raise one error of one line, that of a corpus."""
    try:
        # Any other error is a bug: it would reach the user as a traceback.
        parse()
    except CorpusError as error:
        assert str(error)
        assert len(str(error)) < 2000


# Values that have broken parsers: of other types, huge, not finite, of strange text.
STRANGE: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.sampled_from(
        [
            0,
            -1,
            1 << 31,
            1 << 63,
            10**400,
            65_535,
            10**9,
        ]
    ),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["../x.jpg", "/etc/passwd", "\0", "1.jpg", "ooooooooooo", "é" * 9, "NaN"]),
    st.recursive(
        st.integers() | st.floats(),
        lambda inner: st.lists(inner, max_size=4),
    ),
    st.lists(st.floats(-1e6, 1e6), max_size=8),
    st.just({}),
    st.fixed_dictionaries(
        {
            "size": st.just([40, 50]),
            "counts": st.text(max_size=12),
        }
    ),
    st.fixed_dictionaries(
        {
            "size": st.just([40, 50]),
            "counts": st.lists(st.integers()),
        }
    ),
)

DOCUMENT = {
    "images": [
        {"id": 1, "file_name": "1.jpg", "height": 40, "width": 50},
        {"id": 2, "file_name": "2.jpg", "height": 40, "width": 50},
    ],
    "annotations": [
        {
            "id": 8,
            "image_id": 1,
            "category_id": 90,
            "bbox": [1, 2, 3, 1.5],
            "area": 4.5,
            "iscrowd": 0,
            "segmentation": [[1, 2, 4, 2, 4, 4, 1, 4]],
        },
        {
            "id": 9,
            "image_id": 2,
            "category_id": 3,
            "bbox": [0, 0, 1, 1],
            "iscrowd": 1,
            "segmentation": {"size": [40, 50], "counts": [0, 1, 1999]},
        },
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
}


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each part of a document."""
    found = [path]
    if isinstance(node, dict | list):
        # By index in lists, so that whole entries change, too.
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            found += places(node[key], (*path, key))
    return found


PLACES = [path for path in places(DOCUMENT) if path]
CHANGES = st.lists(
    st.tuples(st.sampled_from(PLACES), STRANGE, st.booleans()), min_size=1, max_size=4
)


def changed(changes: list[tuple[tuple[Any, ...], Any, bool]]) -> dict[str, Any]:
    """Return the document with some parts replaced or removed."""
    # Copied: an example must not change those after it.
    document = copy.deepcopy(DOCUMENT)

    for path, value, remove in changes:
        node: Any = document
        try:
            for key in path[:-1]:
                node = node[key]
            if remove:
                del node[path[-1]]
            else:
                node[path[-1]] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change has taken this place away

    return document


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    for folder in ("train2017", "annotations"):
        (root / folder).mkdir()
    for name in ("1.jpg", "2.jpg"):
        (root / "train2017" / name).touch()
    return root


def read_coco(root: Path) -> None:
    corpus = open_coco(root, "train")

    for record in corpus.records():
        # As packing does: NaN in a label would make a shard that nothing can read.
        json.dumps(record.label, allow_nan=False)
        # No file name of a hostile list may lead out of the folder.
        assert record.image.is_relative_to(root)
        if record.mask is not None:
            answers(record.mask.read)


@fuzz
@given(changes=CHANGES)
def test_coco_json_with_strange_parts(coco: Path, changes: list[Any]) -> None:
    text = json.dumps(changed(changes))
    (coco / "annotations/instances_train2017.json").write_text(text)
    answers(lambda: read_coco(coco))


@fuzz
@given(content=st.binary(max_size=200), position=st.integers(0, 900))
def test_coco_json_with_strange_bytes(coco: Path, content: bytes, position: int) -> None:
    text = json.dumps(DOCUMENT).encode()
    # Replaced, not inserted: the rest stays where it was.
    mixed = text[:position] + content + text[position + len(content) :]
    (coco / "annotations/instances_train2017.json").write_bytes(mixed)
    answers(lambda: read_coco(coco))


@fuzz
@given(outline=STRANGE | st.lists(STRANGE, max_size=3), box=STRANGE, crowd=STRANGE)
def test_outlines_of_any_kind(outline: Any, box: Any, crowd: Any) -> None:
    annotation = {"id": 1, "segmentation": outline, "bbox": box, "iscrowd": crowd}
    # Once as a class, once as a region without one.
    mask = CocoMask(((0, annotation), (None, annotation)), 40, 50, "x.json")
    answers(mask.read)


XML = (
    "<annotation><size><width>50</width><height>40</height></size><object><name>dog</name>"
    "<difficult>0</difficult><bndbox><xmin>2</xmin><ymin>1</ymin><xmax>30</xmax><ymax>4</ymax>"
    "</bndbox></object></annotation>"
)
PIECES = st.sampled_from(
    [
        "<object>",
        "</object>",
        "<name>",
        "<bndbox/>",
        "<!DOCTYPE a>",
        "<![CDATA[x]]>",
        "&amp;",
        "&e;",
        "<!--",
        "-->",
        "<?xml version='1.0' encoding='utf-16'?>",
        "nan",
        "1e999",
        "-1",
    ]
)


@fuzz
@given(
    piece=PIECES | st.text(max_size=6),
    position=st.integers(0, len(XML)),
    removed=st.integers(0, 30),
    raw=st.binary(max_size=3),
)
def test_xml_with_strange_pieces(
    tmp_path: Path, piece: str, position: int, removed: int, raw: bytes
) -> None:
    text = XML[:position].encode() + piece.encode(errors="replace") + raw
    path = tmp_path / "a.xml"
    # Bytes, as text could hold no broken UTF-8.
    path.write_bytes(text + XML[position + removed :].encode())
    class_of = {name: index for index, name in enumerate(CLASSES)}
    answers(lambda: read_annotation(path, class_of))


def image_of(kind: str, mode: str) -> bytes:
    # Every value of a byte, so that a wrong table shows.
    plane = np.arange(20 * 30).reshape(20, 30).astype(np.uint8)
    picture = Image.fromarray(plane)
    if mode == "P":
        picture.putpalette(list(range(256)) * 3)
    buffer = io.BytesIO()
    (picture if mode in ("L", "P") else picture.convert(mode)).save(
        buffer,
        kind,
    )

    return buffer.getvalue()


MASKS = [image_of("PNG", mode) for mode in ("L", "P", "1", "LA", "RGB", "RGBA", "I;16")]
MASKS += [image_of(kind, mode) for kind in ("TIFF", "BMP") for mode in ("L", "P", "1", "RGB")]


@fuzz
@given(
    whole=st.sampled_from(MASKS),
    flips=st.lists(
        st.tuples(st.integers(0, 900), st.integers(0, 255)),
        max_size=6,
    ),
    length=st.none() | st.integers(0, 900),
)
def test_masks_with_strange_bytes(
    tmp_path: Path, whole: bytes, flips: list[tuple[int, int]], length: int | None
) -> None:
    content = bytearray(whole)
    for position, value in flips:
        # Single bytes: noise alone would end at the file's first bytes.
        content[position % len(content)] = value
    path = tmp_path / "m.png"
    # Cut as well: a file that ends early is the commonest damage.
    path.write_bytes(bytes(content)[:length])

    colors = (((0, 0, 0), 0), ((1, 1, 1), 1))
    for mask in (
        IndexMask(path),
        BinaryMask(path),
        BinaryMask(path, 9),
        ColorMask(path, colors, path),
    ):
        answers(mask.read)


LINES = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from(
            ["a", "b.jpg", "../x", "/etc", "a 1", "a -1", "road:1,2,3", "n00000001", ""]
        )
        | st.text(max_size=10),
        max_size=6,
    ).map(lambda lines: "\n".join(lines).encode(errors="replace")),
)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a VOC year and a flat ImageNet folder whose lists are to be overwritten."""
    root = tmp_path_factory.mktemp("lists")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main", "val", "train/n00000001"):
        (root / folder).mkdir(parents=True)
    for name in ("JPEGImages/a.jpg", "val/a.JPEG", "train/n00000001/a.JPEG"):
        (root / name).touch()
    (root / "Annotations/a.xml").write_text(XML)
    return root


@fuzz
@given(content=LINES)
def test_lists_of_any_kind(lists: Path, content: bytes) -> None:
    names = ("ImageSets/Main/train.txt", "val.txt", "classes.txt", "labelmap.txt")

    for name in names:
        (lists / name).write_bytes(content)
        answers(lambda: read_classes(lists))
        answers(lambda: read_label_map(lists))
        answers(lambda: list(open_voc(lists, "train").records()))
        answers(lambda: list(open_imagenet(lists, "val").records()))

    for name in ("classes.txt", "labelmap.txt"):
        # Other examples begin without them.
        (lists / name).unlink()
