"""Blocks -> HTML by the templates: one page without other files, its text escaped.

A content security policy lets the browser run this script alone and fetch nothing, whatever a run's
files hold.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any
from unicodedata import category

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from colorgan.report.blocks import Block, Section


@cache
def _environment() -> Environment:
    # Undefined names fail here: a gap in a page of numbers would look like a value.
    environment = Environment(
        loader=PackageLoader("colorgan.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Templates of groups render their blocks by the same function.
    environment.globals["render"] = render
    return environment


def _visible(value: Any) -> Any:
    """Return text with control, direction and surrogate characters as escapes.

    They are not HTML, or hide what a name is.
    """
    if isinstance(value, Markup) or not isinstance(value, str):
        return value

    shown = []
    for character in value:
        # Category C: control, format (direction), surrogate, private and unassigned.
        plain = character in "\n\t" or category(character)[0] != "C"
        shown.append(character if plain else character.encode("unicode_escape").decode())
    return "".join(shown)


def render(blocks: Sequence[Block]) -> Markup:
    """Return blocks as HTML."""
    parts = []
    for block in blocks:
        template = _environment().get_template(f"blocks/{block.template}.html")
        parts.append(template.render(block=block))
    return Markup("".join(parts))


def render_page(title: str, made: str, answer: Sequence[Block], sections: Sequence[Section]) -> str:
    """Return the whole page.

    Args:
        title: of the page.
        made: when and from what.
        answer: blocks above all sections.
        sections: in order; each is an entry of the contents.
    """
    package = files("colorgan.report")
    # The hash in the policy must be that of these very bytes.
    script = (package / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            made=made,
            answer=answer,
            sections=sections,
            style=Markup((package / "style.css").read_text()),
            script=Markup(script),
            digest=digest,
        )
    )
