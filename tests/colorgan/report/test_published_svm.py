"""Others' linear SVMs stand in a table of their own, with network, data and source."""

from __future__ import annotations

from pathlib import Path

from colorgan.probes.record import Probe
from colorgan.report.blocks import Folded, Table
from colorgan.report.sections.probes import probe_tables

PROBE = Probe(
    path=Path("probe"),
    model="runs/generator",
    seed="0",
    train=10,
    test=10,
    classes=3,
    levels=("1: 4×16×16",),
    linear=((0.251, 0.24, 0.26),),
    shots=(),
    low_shot=(),
    neighbors=(),
    knn=(),
    softmax=(),
    best_linear=0,
    best_knn=None,
    best_softmax=None,
)


def test_published_rows_never_share_a_table_with_ours() -> None:
    own, published = probe_tables({"ours": [PROBE]})
    assert isinstance(published, Folded)
    (table,) = published.blocks
    assert isinstance(table, Table)
    assert ["BYOL, Grill 2020", "ResNet-50", "ImageNet-1k", "5", "86.58\u00a0%"] in table.rows
    assert "OpenSelfSup" in str(table.caption)
    assert "86.58" not in str(own)
    assert "25.1" not in str(published)


def test_without_linear_classifiers_of_ours_there_is_none() -> None:
    assert probe_tables({}) == []
