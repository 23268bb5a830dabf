"""summary.json: what packing made of the input, as counts that a person reads and training checks.

Beside the manifest and not part of it: the digest of a set depends on its samples alone, and a set
that was packed before there were summaries stays whole without one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shards.files import replacing

SUMMARY_FILE = "summary.json"
MAX_SUMMARY_BYTES = 1 << 20
NUM_EXAMPLES = 3  # names given per reason

Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    # Unlike the manifest's: what a newer version counts besides is of no concern here.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class LeftOut(_Record):
    """Inputs that were left out for one reason."""

    count: Count
    examples: tuple[str, ...] = ()


class PhotoSize(_Record):
    """A photo's size in pixels, upright and before resizing."""

    source: str
    width: Count
    height: Count


class Summary(_Record):
    """The content of summary.json.

    Attributes:
        taken: Samples in the set.
        converted: Photos whose pixels were changed beyond resizing, by kind ("16-bit", "CMYK",
            ...).
        left_out: Inputs that are not in the set, by reason.
        labels_dropped: Labels that were dropped while their photo was kept, by reason.
        near_grey: Photos with next to no color (shards/images/chroma.py).
        off_profile: Photos with another color space than sRGB; they were converted.
        low_quality: JPEGs whose chroma is coarse: quality under 50, or 4:2:0 under 70.
        smallest: The photo with the fewest pixels.
        largest: The photo with the most.
    """

    taken: Count
    converted: dict[str, Count] = {}
    left_out: dict[str, LeftOut] = {}
    labels_dropped: dict[str, LeftOut] = {}
    near_grey: Count = 0
    off_profile: Count = 0
    low_quality: Count = 0
    smallest: PhotoSize | None = None
    largest: PhotoSize | None = None

    @property
    def grey_share(self) -> float:
        """The share of the samples that are near-grey, in [0, 1]."""
        return self.near_grey / self.taken if self.taken else 0.0


def write_summary(summary: Summary, folder: Path) -> None:
    """Write summary.json whole or not at all."""
    document = summary.model_dump(mode="json", exclude_none=True)
    with replacing(folder / SUMMARY_FILE) as temporary:
        temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_summary(folder: Path) -> Summary | None:
    """Return the summary of a packed folder; None if it has none that can be read."""
    try:
        with (folder / SUMMARY_FILE).open("rb") as stream:
            # One byte over the bound tells that there is more.
            content = stream.read(MAX_SUMMARY_BYTES + 1)
    except OSError:
        return None

    return parse_summary(content)


def parse_summary(content: bytes) -> Summary | None:
    """Validate summary.json's bytes; None if they are too long or are no summary."""
    if len(content) > MAX_SUMMARY_BYTES:
        return None
    try:
        return Summary.model_validate_json(content)
    # A set is whole without its summary: a damaged one counts as none.
    except ValidationError:
        return None
