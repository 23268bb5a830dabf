"""Counts of what became of the photos of some records; added up from worker to shard to set.

A chunk's tally is made in a worker, a shard's is saved in its state, and the set's becomes
summary.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from shards.files import printable
from shards.images.conversion import StoredPicture
from shards.rejections import Rejection
from shards.summary import NUM_EXAMPLES, LeftOut, PhotoSize, Summary

# Of a summary: a reason that names its file must not make it as long as the list of files.
MAX_REASONS = 200
OTHER_REASONS = "other reasons"


@dataclass
class Reasons:
    """Counts by reason, with the first names of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, sentence: str, name: str) -> None:
        """Count one more; what follows a colon or bracket differs from file to file."""
        # Only the start, or each photo would have a reason of its own.
        self._add(reason_of(sentence), 1, [name])

    def add_all(self, other: dict[str, LeftOut]) -> None:
        """Add other counts."""
        for reason, each in other.items():
            self._add(reason, each.count, each.examples)

    def _add(self, reason: str, count: int, names: Iterable[str]) -> None:
        reason = printable(reason)
        if reason not in self.counts and len(self.counts) >= MAX_REASONS:
            reason = OTHER_REASONS
        self.counts[reason] += count
        own = self.examples.setdefault(reason, [])
        new = [name for name in map(printable, names) if name not in own]
        own.extend(new[: NUM_EXAMPLES - len(own)])

    def by_reason(self) -> dict[str, LeftOut]:
        """Return the record of summary.json, the commonest reason first."""
        return {
            reason: LeftOut(count=count, examples=tuple(self.examples[reason]))
            for reason, count in self.counts.most_common()
        }


@dataclass
class Tally:
    """Counts over some photos; see `Summary` for what each one means."""

    converted: Counter[str] = field(default_factory=Counter)
    labels_dropped: Reasons = field(default_factory=Reasons)
    near_grey: int = 0
    off_profile: int = 0
    low_quality: int = 0
    smallest: PhotoSize | None = None
    largest: PhotoSize | None = None

    def add_photo(self, picture: StoredPicture, source: str, dropped: Iterable[str]) -> None:
        """Count one photo that was packed."""
        self.converted.update(picture.changes)
        for sentence in dropped:
            detail = sentence.removeprefix(reason_of(sentence))
            self.labels_dropped.add(sentence, source + detail)
        self.near_grey += picture.is_near_grey
        self.off_profile += picture.is_off_profile
        self.low_quality += picture.is_low_quality

        # As a viewer shows it, which is how users know their photos.
        width, height = picture.geometry.upright
        size = PhotoSize(source=printable(source), width=width, height=height)
        self._take_sizes(size, size)

    def add(self, other: Tally) -> None:
        """Add another tally's counts."""
        self.converted.update(other.converted)
        self.labels_dropped.add_all(other.labels_dropped.by_reason())
        self.near_grey += other.near_grey
        self.off_profile += other.off_profile
        self.low_quality += other.low_quality
        self._take_sizes(other.smallest, other.largest)

    def _take_sizes(self, smallest: PhotoSize | None, largest: PhotoSize | None) -> None:
        if smallest is not None and (
            self.smallest is None or _area(smallest) < _area(self.smallest)
        ):
            self.smallest = smallest
        if largest is not None and (self.largest is None or _area(largest) > _area(self.largest)):
            self.largest = largest

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as `from_json` takes it."""
        # The summary's own schema, so that there is one list of counts.
        document = self.summary(0, {}).model_dump(mode="json", exclude_none=True)
        return {name: value for name, value in document.items() if value}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Tally:
        """Return the tally of plain data; counts that are absent are 0."""
        # As JSON: strict validation of Python's types refuses the lists that JSON made of tuples.
        summary = Summary.model_validate_json(json.dumps({"taken": 0, **document}))
        dropped = Reasons()
        dropped.add_all(summary.labels_dropped)
        return cls(
            Counter(summary.converted),
            dropped,
            summary.near_grey,
            summary.off_profile,
            summary.low_quality,
            summary.smallest,
            summary.largest,
        )

    def summary(self, taken: int, left_out: dict[str, LeftOut]) -> Summary:
        """Return the record of summary.json for `taken` samples."""
        return Summary(
            taken=taken,
            converted=dict(sorted(self.converted.items())),
            left_out=left_out,
            labels_dropped=self.labels_dropped.by_reason(),
            near_grey=self.near_grey,
            off_profile=self.off_profile,
            low_quality=self.low_quality,
            smallest=self.smallest,
            largest=self.largest,
        )


def reason_of(sentence: str) -> str:
    """Return the part of a sentence that is the same for all files: up to a colon or bracket."""
    return sentence.partition(":")[0].partition(" (")[0]


def left_out_by_reason(rejections: Iterable[Rejection]) -> dict[str, LeftOut]:
    """Count rejections by the start of their reason, the commonest first, with a few sources."""
    reasons = Reasons()
    for rejection in rejections:
        reasons.add(rejection.reason, rejection.source)
    return reasons.by_reason()


def _area(size: PhotoSize) -> int:
    return size.width * size.height
