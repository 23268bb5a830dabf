"""The parts of a page as plain data: sections return blocks, templates/blocks/ renders them.

Each class names its template. Text is escaped when it is rendered; only `Markup` is not.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Heading:
    """A heading inside a section; its level is 3 or 4."""

    template: ClassVar[str] = "heading"

    text: str
    level: int = 3


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        kind: `soft` for remarks, `missing` for what is not there, `verdict` for an answer.
    """

    template: ClassVar[str] = "text"

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    template: ClassVar[str] = "items"

    texts: Sequence[str]
    kind: str = ""


@dataclass(frozen=True)
class Bar:
    """A table cell with a bar behind its number.

    Attributes:
        share: length of the bar, in [0, 1].
    """

    text: str
    share: float


@dataclass(frozen=True)
class Table:
    """A table that scrolls sideways by itself; the first cell of each row is its header.

    Attributes:
        kind: class names of the style sheet.
        sortable: a click on a column's head sorts by it; off where the order of rows has a meaning.
    """

    template: ClassVar[str] = "table"

    header: Sequence[str]
    rows: Sequence[Sequence[str | Bar]]
    caption: str = ""
    kind: str = ""
    sortable: bool = True


@dataclass(frozen=True)
class Legend:
    """Names beside the colors of their places."""

    template: ClassVar[str] = "legend"

    names: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A chart with its caption.

    Attributes:
        svg: of the chart.
        label: read aloud in place of the drawing.
        data: JSON of the points, for values under the pointer; empty for charts without.
    """

    title: str
    svg: Markup
    label: str
    note: str = ""
    data: str = ""


@dataclass(frozen=True)
class Charts:
    """Figures side by side."""

    template: ClassVar[str] = "charts"

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Photo:
    """An image with its caption."""

    caption: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Photos:
    """Rows of photos.

    Attributes:
        compare: each row is one photo grey, colored and original; a click lays them over each
            other.
    """

    template: ClassVar[str] = "photos"

    rows: Sequence[Sequence[Photo]]
    compare: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture as it was saved, no wider than the page."""

    template: ClassVar[str] = "picture"

    photo: Photo
    title: str = ""


@dataclass(frozen=True)
class HeatMap:
    """A square of shares with names beside and above it.

    Attributes:
        source: image with one pixel per cell.
        remarks: lines below the title.
        scale: (text, opacity) of the key.
    """

    template: ClassVar[str] = "heat_map"

    title: str
    names: Sequence[str]
    source: str
    remarks: Sequence[str]
    scale: Sequence[tuple[str, float]]
    rgb: str


@dataclass(frozen=True)
class Card:
    """One answer at a glance."""

    title: str
    value: str
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Cards:
    """Answers side by side."""

    template: ClassVar[str] = "cards"

    cards: Sequence[Card]


@dataclass(frozen=True)
class Group:
    """Blocks in an element of a class: `article`, or `abreast` for side by side."""

    template: ClassVar[str] = "group"

    kind: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Folded:
    """Blocks behind a title that opens them."""

    template: ClassVar[str] = "folded"

    title: str
    blocks: Sequence[Block]


# mypy narrows by class; the templates choose by the name that each class has.
Block = (
    Heading
    | Text
    | Items
    | Table
    | Legend
    | Charts
    | Photos
    | Picture
    | HeatMap
    | Cards
    | Group
    | Folded
)


# The key is the anchor of the contents.
@dataclass(frozen=True)
class Section:
    """A titled part of the page that folds."""

    key: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


def data_uri(data: bytes, media_type: str) -> str:
    """Return bytes as a URI, so that the page needs no other file."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
