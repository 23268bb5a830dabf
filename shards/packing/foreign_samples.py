"""One shard made elsewhere -> the rows of its usable samples, and the others with their reasons.

Members are grouped as the webdataset library does it (`base_plus_ext`): neighbours with one key are
one sample. Its image is the member named jpg, jpeg, png or webp in any case. A sample whose image
training would have to convert first (CMYK, another color space, 16 bits, transparency, an
animation) is left out: indexing copies nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.errors import PictureError
from shards.files import printable
from shards.foreign_labels import JSON_PREFIX, class_indices, label_values
from shards.images import jpeg_damage
from shards.images.headers import is_loadable, jpeg_header, states_nothing_more
from shards.images.photo import decoding, open_photo
from shards.rejections import NO_DATA, NO_ENDING, SECOND_IMAGE, Rejection
from shards.samples_table import SAMPLE_DTYPE
from shards.storage.tar_reader import TarMember, TarReader

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
FORMAT_NAMES = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp"}
MAX_IMAGE_BYTES = 256 << 20
MAX_CLASS_NAMES = 100_000
TURNED = "turned by EXIF"


@dataclass(frozen=True)
class LabelRule:
    """How labels are read; an empty format reads none.

    Attributes:
        label_format: `cls`, `json:FIELD` or "".
        classes: The class names, if the user has given them.
    """

    label_format: str = ""
    classes: tuple[str, ...] = ()

    @property
    def ending(self) -> str:
        """The ending of the label's member."""
        return "json" if self.label_format.startswith(JSON_PREFIX) else self.label_format


@dataclass
class ForeignShard:
    """The samples of one shard.

    Attributes:
        rows: SAMPLE_DTYPE, shard 0.
        rejected: Samples that are left out, shard 0.
        formats: The images' formats: "jpeg", "png", "webp".
        highest_class: The largest class number in the labels; -1 if there is none.
        class_names: The class names in the labels.
        num_grey: Samples whose image has one channel.
        num_turned: Samples that EXIF turns; they are used as stored.
    """

    rows: list[tuple[int, ...]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    formats: set[str] = field(default_factory=set)
    highest_class: int = -1
    class_names: set[str] = field(default_factory=set)
    num_grey: int = 0
    num_turned: int = 0

    def table(self) -> NDArray[np.void]:
        """Return the rows as an array."""
        return np.array(self.rows, SAMPLE_DTYPE)


@dataclass(frozen=True)
class _Member:
    """A member of a sample that is being put together."""

    ending: str
    place: TarMember
    crc: int
    content: bytes


def read_shard(reader: TarReader, rule: LabelRule, max_pixels: int) -> ForeignShard:
    """Read a shard from its start to its end.

    Raises:
        DamagedTarError: The tar cannot be read on.
        OSError: The file cannot be read.
    """
    shard = ForeignShard()
    for key, members in _groups(reader, rule, shard):
        for image in _plain_images(members)[1:]:
            _pass_over(shard, image.place.name, SECOND_IMAGE)
        for name, sample in _samples(key, members):
            try:
                _add(shard, name, sample, rule, max_pixels)
            # One bad sample costs itself: shards from elsewhere always have a few.
            except (PictureError, ValueError) as error:
                shard.rejected.append(Rejection(0, name, printable(name), str(error)))

    for name, kind in reader.passed_over():
        _pass_over(shard, name, kind + NO_DATA)
    return shard


def _pass_over(shard: ForeignShard, name: str, reason: str) -> None:
    shard.rejected.append(Rejection(0, name, printable(name), reason))


def _groups(
    reader: TarReader, rule: LabelRule, shard: ForeignShard
) -> Iterator[tuple[str, list[_Member]]]:
    """Yield the members of each key, neighbors only; skip members that training does not use."""
    # Imported here: the library brings torch, and only indexing needs it.
    from webdataset.tariterators import base_plus_ext, meta_prefix, meta_suffix

    current = ""
    members: list[_Member] = []
    for place in reader.members():
        is_meta = place.name.startswith(meta_prefix) and place.name.endswith(meta_suffix)
        key, endings = base_plus_ext(place.name)
        # Members that the library itself skips.
        if key is None and not is_meta:
            _pass_over(shard, place.name, NO_ENDING)
        if key is None or is_meta:
            continue

        if key != current and members:
            yield current, members
            members = []
        current = key

        ending = endings.lower()
        last = ending.rpartition(".")[2]
        if last in IMAGE_ENDINGS or (rule.ending and last == rule.ending):
            # Larger ones are passed over unread, and rejected by their size later.
            content = reader.read(place) if place.size <= MAX_IMAGE_BYTES else b""
            members.append(_Member(ending, place, zlib.crc32(content), content))
        # A key without any usable member still counts: it is rejected by name.
        elif not members:
            members.append(_Member(ending, place, 0, b""))

    if members:
        yield current, members


def _samples(key: str, members: list[_Member]) -> Iterator[tuple[str, list[_Member]]]:
    """Yield the samples of one key: one, or several whose names have dots beyond the first."""
    images = [each for each in members if each.ending.rpartition(".")[2] in IMAGE_ENDINGS]
    plain = _plain_images(members)

    if plain:
        others = [each for each in members if "." not in each.ending and each not in images]
        yield key, [plain[0], *others]
        return
    if not images:
        yield key, []
        return

    # "0.5.jpg" and "0.5.cls" have the key "0" for the library; what they share is "0.5".
    for image in images:
        stem = image.ending.rpartition(".")[0]
        own = [each for each in members if each.ending.rpartition(".")[0] == stem]
        yield f"{key}.{stem}", [image, *(each for each in own if each is not image)]


def _plain_images(members: list[_Member]) -> list[_Member]:
    # The usual names, key and one ending; dots within are the exception.
    return [each for each in members if each.ending in IMAGE_ENDINGS]


def _add(
    shard: ForeignShard, key: str, members: list[_Member], rule: LabelRule, max_pixels: int
) -> None:
    if not members:
        raise PictureError("no jpg, jpeg, png or webp member")

    image = members[0]
    judged = _judge(image, max_pixels)

    label = (0, 0, 0)
    values: list[int | str] = []
    if rule.label_format:
        label, values = _label(members, rule)

    shard.formats.add(judged.format)
    shard.num_grey += judged.is_grey
    shard.num_turned += judged.is_turned
    _count_classes(shard, values)

    place = image.place
    span = (place.offset, place.size, image.crc)
    shard.rows.append((0, judged.width, judged.height, *span, *label, 0, 0, 0))


@dataclass(frozen=True)
class _Judged:
    format: str
    width: int
    height: int
    is_grey: bool
    is_turned: bool


def _judge(image: _Member, max_pixels: int) -> _Judged:
    """Return what training will see of an image.

    Raises:
        PictureError: It is damaged, or training would have to convert it.
    """
    content = image.content
    if image.place.size > MAX_IMAGE_BYTES:
        raise PictureError(f"more bytes than an image can sensibly have: {image.place.size}")

    # Most files by far are such JPEGs, and indexing is bound by this step.
    plain = _judge_plain_jpeg(content, max_pixels)
    if plain is not None:
        return plain

    with decoding():
        photo = open_photo(content, max_pixels)
        kind = FORMAT_NAMES.get(photo.image.format or "")
        # What a decoder does by itself anyhow needs no packing.
        conversions = [change for change in photo.changes if change not in (TURNED, "palette")]
        if kind is None:
            conversions.append(str(photo.image.format))
        if kind is not None and not conversions and not is_loadable(content):
            conversions.append(f"{kind} that training cannot read")
        if kind is None or conversions:
            raise PictureError(f"{', '.join(conversions)}, so it needs packing")

        is_turned = photo.orientation != 1
        return _Judged(kind, photo.width, photo.height, photo.image.mode == "L", is_turned)


def _judge_plain_jpeg(content: bytes, max_pixels: int) -> _Judged | None:
    """Return what `_judge` does, 5 times as fast for most JPEGs; None: the file must be opened."""
    header = jpeg_header(content)
    if header is None or not is_loadable(content):
        return None
    if header.width * header.height > max_pixels or not states_nothing_more(content):
        return None

    examined = jpeg_damage.examine(content)
    if examined.fault or examined.lacks_end or not examined.is_common:
        return None
    return _Judged("jpeg", header.width, header.height, header.channels == 1, is_turned=False)


def _label(members: list[_Member], rule: LabelRule) -> tuple[tuple[int, int, int], list[int | str]]:
    """Return offset, size and crc of the label's member, and its values."""
    member = next(
        (each for each in members[1:] if each.ending.rpartition(".")[2] == rule.ending), None
    )
    if member is None:
        raise PictureError(f"no {rule.ending} member to read its label from")

    try:
        values = label_values(member.content, rule.label_format)
        # Checked against the given names now, not in the middle of training.
        if rule.classes:
            class_indices(member.content, rule.label_format, rule.classes)
    except ValueError as error:
        raise PictureError(f"its label {error}") from error

    numbers = [value for value in values if isinstance(value, int)]
    for number in numbers:
        if not 0 <= number < MAX_CLASS_NAMES:
            raise PictureError(f"its label is not from 0 to {MAX_CLASS_NAMES - 1}: {number}")

    return (member.place.offset, member.place.size, member.crc), values


def _count_classes(shard: ForeignShard, values: list[Any]) -> None:
    for value in values:
        if isinstance(value, int):
            shard.highest_class = max(shard.highest_class, value)
        # Bounded: captions instead of classes would fill the memory.
        elif len(shard.class_names) < MAX_CLASS_NAMES:
            shard.class_names.add(value)


def shard_of(stream: BinaryIO, rule: LabelRule, max_pixels: int) -> tuple[ForeignShard, int, str]:
    """Return the samples of an open shard, its bytes and its sha256."""
    reader = TarReader(stream)
    shard = read_shard(reader, rule, max_pixels)
    sha256 = reader.finish()
    return shard, reader.num_bytes, sha256
