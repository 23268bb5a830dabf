"""Stratified splits: each class in its share, parts disjoint and complete, from any order."""

import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers.drawn_sample import write_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from datasets.corpora.folder import open_folder
from datasets.corpora.masks import IndexMask
from datasets.corpora.splits import (
    iterative_stratification,
    parse_shares,
    part_sizes,
    stratify,
    write_lists,
)
from datasets.corpora.voc import open_voc
from datasets.errors import CorpusError
from shards.records import VOID, Corpus

DATA = Path(__file__).parents[3] / "../shared/data"
SHARES = (70, 20, 10)
# Pictures of each class in trainval of VOC 2012, of 11,540.
VOC2012 = (
    716,
    603,
    811,
    549,
    812,
    467,
    1284,
    1128,
    1366,
    340,
    613,
    1341,
    526,
    575,
    4372,
    613,
    357,
    742,
    589,
    645,
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "raw"
    write_sample(
        root,
        num_train=1,
        num_val=1,
        num_voc_train=400,
        num_voc_val=1,
        size=32,
    )

    return root


def drawn_labels(num_records: int, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((num_records, 20)) < np.array(VOC2012) / 11540


def surplus(
    labels_NC: NDArray[np.bool_],
    parts_N: NDArray[np.int64],
    shares: Sequence[int] = SHARES,
) -> float:
    """By how many records a class is off its share in a part, on average."""
    wanted_PC = np.outer(
        np.array(shares) / 100,
        labels_NC.sum(axis=0),
    )
    found_PC = np.stack([labels_NC[parts_N == part].sum(axis=0) for part in range(len(shares))])
    return float(np.abs(found_PC - wanted_PC).mean())


def split_labels(
    corpus: Corpus, shares: Sequence[int]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return each record's classes, read apart from the code, and its part; check the partition."""
    parts = stratify(corpus, shares, seed=0)
    records = {record.key: record for record in corpus.records()}
    keys = [key for part in parts.values() for key in part.keys]

    assert sorted(keys) == sorted(records), "the parts are not disjoint and complete"

    labels_NC = np.zeros(
        (len(keys), len(corpus.classes)),
        np.bool_,
    )

    for row, key in enumerate(keys):
        mask = records[key].mask
        if isinstance(mask, IndexMask):
            labels_NC[row, np.setdiff1d(mask.read(), [0, VOID]).astype(int) - 1] = True
        else:
            labels_NC[row, [item["class"] for item in records[key].label["objects"]]] = True

    for part in parts.values():
        assert [record.key for record in part.corpus.records()] == list(part.keys)
        assert part.corpus.num_records == len(part.keys)
    sizes = [len(part.keys) for part in parts.values()]

    assert (
        np.abs(
            np.subtract(
                sizes,
                part_sizes(len(keys), shares),
            )
        ).max()
        <= 6
    )

    return labels_NC, np.repeat(np.arange(len(parts)), sizes)


def check_shares(corpus: Corpus, shares: Sequence[int]) -> None:
    """Check that classes are under 0.75 records off their shares; random splits are over 1 off."""
    labels_NC, parts_N = split_labels(corpus, shares)
    assert surplus(labels_NC, parts_N, shares) <= 0.75
    generator = np.random.default_rng(0)
    assert min(surplus(labels_NC, generator.permutation(parts_N), shares) for _ in range(20)) > 1


@pytest.mark.skipif(
    not DATA.is_dir(), reason="the real pictures (../shared/data) are not on this machine"
)
@pytest.mark.parametrize(
    ("split", "shares"),
    [
        ("2012-all", SHARES),
        ("2012-all", (80, 20)),
        ("2012-seg-all", SHARES),
    ],
)
def test_real_classes_keep_their_shares(split: str, shares: tuple[int, ...]) -> None:
    check_shares(open_voc(DATA / "VOCdevkit", split), shares)


@pytest.mark.parametrize("split", ["2012-train", "2012-seg-train"])
def test_drawn_classes_keep_their_shares(sample: Path, split: str) -> None:
    check_shares(open_voc(sample / "VOCdevkit", split), SHARES)


def test_the_papers_sizes() -> None:
    """As many pictures as VOC 2012 has; of its masks the paper takes 2,039, 577 and 297."""
    assert part_sizes(17_125, SHARES) == (11_987, 3_425, 1_713)

    for num_records, sizes in ((17_125, [11_987, 3_425, 1_713]), (2_913, [2_039, 583, 291])):
        labels_NC = drawn_labels(num_records)
        parts_N = iterative_stratification(
            labels_NC,
            part_sizes(num_records, SHARES),
            seed=0,
        )
        assert np.bincount(parts_N).tolist() == sizes
        assert surplus(labels_NC, parts_N) <= 0.5


@settings(max_examples=60, deadline=None)
@given(
    num_records=st.integers(3, 90),
    seed=st.integers(0, 99),
    shares=st.sampled_from(
        [
            SHARES,
            (80, 20),
            (34, 33, 33),
            (1, 99),
        ]
    ),
)
def test_every_record_has_a_part_and_draws_repeat(
    num_records: int, seed: int, shares: tuple[int, ...]
) -> None:
    labels_NC = drawn_labels(num_records, seed)
    sizes = part_sizes(num_records, shares)

    assert sum(sizes) == num_records
    assert all(abs(n - num_records * s / 100) < 1 for n, s in zip(sizes, shares, strict=True))
    parts_N = iterative_stratification(labels_NC, sizes, seed)

    assert len(parts_N) == num_records
    assert set(parts_N.tolist()) <= set(range(len(shares)))
    assert (parts_N == iterative_stratification(labels_NC, sizes, seed)).all()


def test_only_keys_labels_and_seed_decide(sample: Path) -> None:
    corpus = open_voc(sample / "VOCdevkit", "2012-train")
    backwards = dataclasses.replace(
        corpus,
        records=lambda: iter(list(corpus.records())[::-1]),
    )
    first, turned = (
        {n: p.keys for n, p in stratify(c, SHARES, 3).items()} for c in (corpus, backwards)
    )

    assert first == turned
    assert first != {name: part.keys for name, part in stratify(corpus, SHARES, 4).items()}


def test_a_mask_that_cannot_be_read_is_left_to_the_packer(sample: Path, tmp_path: Path) -> None:
    corpus = open_voc(sample / "VOCdevkit", "2012-seg-train")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    records = list(corpus.records())
    records[0] = dataclasses.replace(
        records[0],
        mask=IndexMask(damaged),
    )
    parts = stratify(
        dataclasses.replace(corpus, records=lambda: iter(records)),
        SHARES,
        0,
    )

    assert records[0].key in {key for part in parts.values() for key in part.keys}


def test_lists_are_written_once(sample: Path, tmp_path: Path) -> None:
    parts = stratify(
        open_voc(sample / "VOCdevkit", "2012-train"),
        (80, 20),
        0,
    )
    for _ in range(2):
        write_lists(tmp_path / "out", parts)

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.txt", "val.txt"]
    assert (tmp_path / "out" / "val.txt").read_text().split() == list(parts["val"].keys)
    (tmp_path / "file").write_text("")

    with pytest.raises(CorpusError, match=r"file/train.txt: the list cannot be written"):
        write_lists(tmp_path / "file", parts)


@pytest.mark.parametrize(
    "text",
    [
        "70,20",
        "70,20,5,5",
        "100",
        "101,-1",
        "70,30,0",
        "70;20;10",
        "a,b",
        "",
        "33.3,66.6",
        "8+2",
        "0+10,90",
    ],
)
def test_bad_shares_are_told_in_one_sentence(text: str) -> None:
    with pytest.raises(
        ValueError,
        match=f"'{re.escape(text)}': give two or three percentages that add up to 100, as 70,20",
    ):
        parse_shares(text)
    assert parse_shares("70, 20, 10") == SHARES
    assert parse_shares("80,20") == (80, 20)
    assert parse_shares("0.8+0.2,99") == ((Fraction(4, 5), Fraction(1, 5)), 99)


def test_a_group_of_shares_divides_what_one_share_draws(sample: Path) -> None:
    corpus = open_voc(sample / "VOCdevkit", "2012-train")
    tenth = stratify(corpus, parse_shares("10,90"), 0)["train"]
    parts = stratify(corpus, parse_shares("8+2,90"), 0)

    assert sorted([*parts["train"].keys, *parts["val"].keys]) == sorted(tenth.keys)
    # Sizes give way to classes.
    assert abs(len(parts["train"].keys) - 4 * len(parts["val"].keys)) <= 6
    assert parts["val"].corpus.split == "2012-train-val-of-8+2-90-seed-0"


def test_what_cannot_be_stratified_is_told(sample: Path) -> None:
    corpus = open_voc(sample / "VOCdevkit", "2012-train")
    few = dataclasses.replace(
        corpus,
        records=lambda: iter(list(corpus.records())[:3]),
    )

    with pytest.raises(
        CorpusError, match=r"voc 2012-train has 3 pictures, too few for parts of 70, 20, 10 %"
    ):
        stratify(few, SHARES, 0)


def test_photos_without_labels_are_drawn_at_random(tmp_path: Path) -> None:
    for number in range(40):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    corpus = open_folder(tmp_path, "all")
    assert not corpus.classes

    parts = stratify(corpus, (75, 25), 0)
    train, val = set(parts["train"].keys), set(parts["val"].keys)
    assert (len(train), len(val)) == (30, 10)
    assert not train & val
    assert parts["val"].corpus.num_records == 10
    assert {record.key for record in parts["val"].corpus.records()} == val
    # Drawn, not cut off at an end, and another draw with another seed.
    assert max(train) > min(val)
    assert set(stratify(corpus, (75, 25), 1)["val"].keys) != val
    assert set(stratify(corpus, (75, 25), 0)["val"].keys) == val
