"""Stratified splits of a corpus: parts that hold each class in the same share.

Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-Label Data, ECML PKDD 2011,
algorithm 1, as Treneska et al. 2022 split VOC 2012 into 70/20/10. The split is a function of keys,
labels, shares and seed: the order of files on disk has no effect. launcher/pack.py packs each part
like any corpus.

N records, C classes, P parts.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.errors import CorpusError
from shards.records import VOID, Corpus, Record

PARTS = ("train", "val", "test")
Percent = Fraction | int
# Those of a group are drawn together, and then divided.
Shares = Sequence[Percent | Sequence[Percent]]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One part of a corpus, and the keys of its records, sorted."""

    corpus: Corpus
    keys: tuple[str, ...]


def parse_shares(text: str) -> Shares:
    """Read `70,20,10` (train, val, test), `80,20` (train, val) or `8+2,90`, in percent.

    The last one draws train and val together: as `10,90` would draw train.

    Raises:
        ValueError: Anything else.
    """
    groups = [group.split("+") for group in text.replace(" ", "").split(",")]
    words = [word for group in groups for word in group]
    are_numbers = all(re.fullmatch(r"\d{1,3}(\.\d{1,3})?", word, re.ASCII) for word in words)
    flat = [Fraction(word) for word in words] if are_numbers else []
    if len(flat) not in (2, 3) or min(flat) <= 0 or sum(flat) != 100:
        raise ValueError(
            f"{text!r}: give two or three percentages that add up to 100, as 70,20,10 or 80,20"
        )
    of_groups = (tuple(map(Fraction, group)) for group in groups)
    return tuple(group if len(group) > 1 else group[0] for group in of_groups)


def stratify(corpus: Corpus, shares: Shares, seed: int) -> dict[str, Part]:
    """Split a corpus into `train`, `val` and, with three shares, `test`.

    If the split has masks, a record's classes are those present in its mask, else those of all its
    objects, difficult ones too. A split without labels is drawn at random. One pass over the
    records; each mask is read once.

    Raises:
        CorpusError: fewer records than parts.
    """
    present = {record.key: _classes_of(record) for record in corpus.records()}
    keys = sorted(present)
    labels_NC = np.zeros((len(keys), len(corpus.classes)), np.bool_)
    for row, key in enumerate(keys):
        labels_NC[row, present[key]] = True

    groups = [share if isinstance(share, Sequence) else (share,) for share in shares]
    parts_N = _parts_of_groups(labels_NC, groups, seed)
    num_parts = sum(map(len, groups))
    percent = ["+".join(f"{float(share):g}" for share in group) for group in groups]
    if min(np.bincount(parts_N, minlength=num_parts)) == 0:
        raise CorpusError(
            f"{corpus.name} {corpus.split} has {len(keys)} pictures, too few for parts of "
            f"{', '.join(percent)} %."
        )

    # The name of a part says how it was made: packed folders keep it.
    request = f"of-{'-'.join(percent)}-seed-{seed}"
    parts = {}
    for part, name in enumerate(PARTS[:num_parts]):
        own = [keys[row] for row in np.flatnonzero(parts_N == part)]
        parts[name] = _part(corpus, f"{corpus.split}-{name}-{request}", own)
    return parts


def _parts_of_groups(
    labels_NC: NDArray[np.bool_], groups: Sequence[Sequence[Percent]], seed: int
) -> NDArray[np.int64]:
    """Return the part of each record, N: the groups are drawn first, then each is divided."""
    of_groups = part_sizes(len(labels_NC), [sum(group) for group in groups])
    groups_N = iterative_stratification(labels_NC, of_groups, seed)
    parts_N = np.zeros(len(labels_NC), np.int64)

    first = 0
    for number, group in enumerate(groups):
        rows = np.flatnonzero(groups_N == number)
        # Of a group of one part everything is that part's.
        if len(group) > 1:
            sizes = part_sizes(len(rows), group)
            parts_N[rows] = iterative_stratification(labels_NC[rows], sizes, seed)
        parts_N[rows] += first
        first += len(group)
    return parts_N


def _classes_of(record: Record) -> list[int]:
    if record.mask is not None:
        try:
            counts = np.bincount(record.mask.read().ravel(), minlength=VOID + 1)
            return [value - 1 for value in range(1, VOID) if counts[value]]
        except CorpusError:
            pass  # the packer rejects it and says why; until then its objects stand in for the mask
    classes: list[int] = record.label["classes"]
    return classes


def _part(corpus: Corpus, split: str, keys: Sequence[str]) -> Part:
    # A pass over the corpus again: records are not kept in memory.
    records = functools.partial(_chosen, corpus, frozenset(keys))
    own = dataclasses.replace(
        corpus,
        split=split,
        num_records=len(keys),
        records=records,
    )
    return Part(own, tuple(keys))


def _chosen(corpus: Corpus, keys: frozenset[str]) -> Iterator[Record]:
    return (record for record in corpus.records() if record.key in keys)


def part_sizes(num_records: int, shares: Sequence[Percent]) -> tuple[int, ...]:
    """Return whole numbers that add up to all records.

    What is left after rounding down goes to the largest remainders, of equal ones to the last part:
    17,125 in 70/20/10 are the paper's 11,987, 3,425 and 1,713.
    """
    total = sum(shares)
    sizes = [int(num_records * share // total) for share in shares]
    remainders = [num_records * share % total for share in shares]

    ranked = sorted(zip(remainders, range(len(shares)), strict=True), reverse=True)
    num_left = num_records - sum(sizes)
    for _, part in ranked[:num_left]:
        sizes[part] += 1
    return tuple(sizes)


def iterative_stratification(
    labels_NC: NDArray[np.bool_], sizes: Sequence[int], seed: int
) -> NDArray[np.int64]:
    """Return the part of each record, N.

    The rarest class that is left is dealt out first: each of its records goes to the part that
    lacks most of that class, of equal ones to the part that lacks most records, of these to one
    drawn. Records without a class go where records are lacking. Sizes give way to classes, as in
    the paper: in 762 pictures of VOC every class is within one picture of its share and the parts
    within five of theirs; making sizes exact would cost up to six pictures of a class. In sets as
    large as VOC 2012 the sizes are met.

    Args:
        labels_NC: which classes a record has.
        sizes: wished records of each part; they add up to N.
        seed: of the ties, and of the order within a class.
    """
    generator = np.random.default_rng(seed)
    parts_N = np.full(len(labels_NC), -1, np.int64)

    # Records, and records of each class, that the parts still lack.
    missing_P = np.array(sizes, np.int64)
    share_P = missing_P / max(len(labels_NC), 1)
    missing_PC = np.outer(share_P, labels_NC.sum(axis=0))
    # Drawn once: records of a class are dealt out in this order.
    order = generator.permutation(len(labels_NC))

    while (left := order[parts_N[order] < 0]).size:
        class_index = _rarest_class(labels_NC[left])
        records = left if class_index is None else left[labels_NC[left, class_index]]

        for record in records:
            wanted_P = missing_P if class_index is None else missing_PC[:, class_index]
            part = _neediest(wanted_P, missing_P, generator)
            parts_N[record] = part
            missing_P[part] -= 1
            missing_PC[part, labels_NC[record]] -= 1
    return parts_N


def _rarest_class(labels_NC: NDArray[np.bool_]) -> int | None:
    """Return the class that the fewest records have; None if none has any."""
    counts_C = labels_NC.sum(axis=0)
    if not counts_C.any():
        return None
    return int(np.where(counts_C > 0, counts_C, len(labels_NC) + 1).argmin())


def _neediest(
    wanted_P: NDArray[np.generic], missing_P: NDArray[np.int64], generator: np.random.Generator
) -> int:
    """Return the part that lacks most of the class, of equal ones most records.

    Of these one drawn.
    """
    needs = list(zip(wanted_P.tolist(), missing_P.tolist(), strict=True))
    most = max(needs)
    equal = [part for part, need in enumerate(needs) if need == most]

    # Nothing is drawn unless there is a choice: draws are part of the split.
    if len(equal) == 1:
        return equal[0]
    return int(generator.choice(equal))


def write_lists(out: Path, parts: Mapping[str, Part]) -> None:
    """Write `<part>.txt` for each part, one key per line; lists that are there must be the same.

    Raises:
        CorpusError: the folder holds the lists of another split, or cannot be written.
    """
    for name, part in parts.items():
        path = out / f"{name}.txt"
        text = "".join(f"{key}\n" for key in part.keys)
        try:
            # Never replaced: a packed part and its list would no longer belong together.
            _write_once(path, text)
        except OSError as error:
            raise CorpusError(f"{path}: the list cannot be written ({error.strerror}).") from error


def _write_once(path: Path, text: str) -> None:
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise CorpusError(
                f"{path}: lists another split; give another --out, or the same shares and seed."
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    # Renamed, so that a killed call leaves no half of a list.
    partial.replace(path)
