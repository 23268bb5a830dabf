"""HTML that is safe by construction: text is escaped unless it is already an `Html`.

element("p", "a < b") == '<p>a &lt; b</p>'
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from unicodedata import category


class Html(str):
    """Text that is HTML already; every other text is escaped where it enters the page."""

    __slots__ = ()


VOID_ELEMENTS = {"img", "meta", "br", "link"}


def element(tag: str, *children: str | None, **attributes: str | int | None) -> Html:
    """Return an element; `class_` is the attribute class, `aria_label` aria-label; None is left out."""
    names = {
        key.rstrip("_").replace("_", "-"): value
        for key, value in attributes.items()
        if value is not None
    }
    opening = "".join(f' {name}="{html.escape(str(value))}"' for name, value in names.items())
    if tag in VOID_ELEMENTS:
        return Html(f"<{tag}{opening}>")
    return Html(f"<{tag}{opening}>{join(children)}</{tag}>")


def join(children: Iterable[str | None]) -> Html:
    """Return several pieces as one, each escaped unless it is Html."""
    return Html(
        "".join(
            child if isinstance(child, Html) else html.escape(_visible(child))
            for child in children
            if child
        )
    )


def _visible(text: str) -> str:
    """Control, direction and surrogate characters as escapes: they are no HTML, or hide what a name is."""
    return "".join(
        c if c in "\n\t" or category(c)[0] != "C" else c.encode("unicode_escape").decode()
        for c in text
    )


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str | None = None,
    class_: str | None = None,
) -> Html:
    """Return a table that scrolls sideways by itself where it is too wide; the first cell of a row is its header."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = [
        element(
            "tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])
        )
        for row in rows
    ]
    whole = element("table", element("thead", head), element("tbody", *body), class_=class_)
    told = element("p", caption, class_="soft") if caption else None
    return join([told, element("div", whole, class_="wide", tabindex=0)])


def missing(text: str) -> Html:
    """Return a sentence that says what is not there."""
    return element("p", text, class_="missing")


def data_uri(data: bytes, media_type: str) -> str:
    """Return bytes as a URI that stands in the page itself."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
