"""The report behind a mean: classes, confusions, overlays, and photos ranked by PSNR."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.drawn_runs import HOSTILE, grid, make_run, scored
from sklearn.metrics import confusion_matrix

from colorgan.evaluation.record import SavedEvaluation, read_evaluation
from colorgan.report.page import report_page
from colorgan.report.rendering import render
from colorgan.report.report_data import read_folders
from colorgan.report.sections.classes import (
    best_first,
    class_means,
    classes_blocks,
    row_shares,
    summed,
)
from colorgan.report.sections.gallery import colored_section, progress_section
from datasets.corpora.voc import CLASSES


def plain(
    per_class: dict[str, float | None], confusion: list[list[int]] | None = None
) -> SavedEvaluation:
    return SavedEvaluation(
        model="m",
        data=("d",),
        kind="classifier",
        inference="running",
        images_seen=1,
        scores={"mAP": 0.1},
        per_class=per_class,
        confusion=confusion or [],
    )


def test_class_means_leave_out_what_was_not_scored() -> None:
    first = plain({"a": 0.2, "b": None, "c": None})
    second = plain({"a": 0.4, "b": 0.5, "c": None})

    assert class_means([first, second]) == {
        "a": pytest.approx(0.3),
        "b": 0.5,
        "c": None,
    }
    assert best_first([class_means([first, second])]) == ["b", "a", "c"]


def test_confusions_add_up_and_rows_are_shares_as_sklearn_normalises() -> None:
    draw = np.random.default_rng(0)
    pairs = [draw.integers(0, 4, (2, 50)) for _ in range(2)]
    labels = [0, 1, 2, 3, 4]  # 4 is never there: a row of nothing
    matrices = [confusion_matrix(*pair, labels=labels).tolist() for pair in pairs]
    names, counts = summed([plain(dict.fromkeys("abcde", 0.5), matrix) for matrix in matrices])

    assert names == tuple("abcde")
    both = np.concatenate(pairs, axis=1)
    expected = np.nan_to_num(confusion_matrix(*both, labels=labels, normalize="true"))
    np.testing.assert_allclose(row_shares(counts), expected)


@pytest.mark.parametrize(
    "confusion",
    [
        None,
        5,
        [],
        [[1, 2]],
        [[1], [2, 3]],
        [[1, -1], [0, 1]],
        [["x"]],
        [[10**400]],
        [[True]],
        [[]] * 500,
    ],
)
def test_a_confusion_that_is_none_is_left_out(tmp_path: Path, confusion: Any) -> None:
    folder = scored(
        tmp_path / "e",
        "classifier",
        CLASSES,
        0,
        {"mAP": 0.5},
        confusion=confusion,
    )

    assert read_evaluation(folder).confusion == []


def test_the_rows_of_masks_begin_with_background(tmp_path: Path) -> None:
    found = read_evaluation(
        scored(
            tmp_path / "e",
            "segmenter",
            CLASSES,
            0,
            {"mIoU": 0.5},
        )
    )

    assert found.confusion_names == ("background", *CLASSES)
    bare = read_evaluation(
        scored(
            tmp_path / "f",
            "segmenter",
            CLASSES,
            0,
            {"mIoU": 0.5},
            per_class={},
        )
    )

    assert bare.confusion_names == ("background", *CLASSES)


@pytest.mark.parametrize("count", [21, 80])
def test_a_heat_map_names_every_class_and_shows_every_cell(tmp_path: Path, count: int) -> None:
    names = [f"class {i}" for i in range(count)]
    found = read_evaluation(
        scored(
            tmp_path / "e",
            "classifier",
            names,
            0,
            {"mAP": 0.5},
        )
    )
    files: dict[str, bytes] = {}
    page = render(classes_blocks("k", {"scratch": [found]}, files))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", page)

    assert sorted(texts) == sorted(names * 2)
    assert f'width="{10 * count}"' in page
    assert [name for name in files if name.endswith("confusion.png")] == ["k-1-confusion.png"]
    assert page.count('class="bar"') == count - 1  # the last one was not scored

    shares = row_shares(found.confusion)
    worst = max((shares[i][j], i, j) for i in range(count) for j in range(count) if i != j)
    assert f"Most often: {names[worst[1]]} as {names[worst[2]]} {100 * worst[0]:.0f} %" in page


def test_hostile_classes_are_shown_as_text(tmp_path: Path) -> None:
    folder = scored(
        tmp_path / "e",
        "classifier",
        [HOSTILE, "$x_1$", "b"],
        0,
        {"mAP": 0.5},
    )
    page = render(
        classes_blocks(
            "k",
            {HOSTILE: [read_evaluation(folder)]},
            {},
        )
    )

    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_overlays_of_the_first_picture_that_can_be_read(tmp_path: Path) -> None:
    seeds = [
        read_evaluation(scored(tmp_path / f"e{i}", "segmenter", CLASSES, i, {"mIoU": 0.5}))
        for i in (0, 1)
    ]
    (tmp_path / "e0" / "pictures.png").write_bytes(b"no picture")
    files: dict[str, bytes] = {}
    page = render(classes_blocks("k", {"scratch": seeds}, files))

    assert "Photo, truth, prediction: scratch" in page
    assert files["k-1-overlays.png"].startswith(b"\x89PNG")
    bare = seeds[0].model_copy(update={"per_class": {}, "confusion": []})

    assert classes_blocks("k", {"a": [bare]}, {}) == []


def test_photos_are_ranked_by_gain_over_grey(tmp_path: Path) -> None:
    """By the scores in the strips; nothing is measured again on the saved bytes."""
    run = make_run(tmp_path / "run", {}, {"psnr": 20.0})
    grid(run / "pictures" / "images-000000000100.png", 32, 3, 0.5)
    folder = scored(
        tmp_path / "e",
        "generator",
        ["a"],
        0,
        {"psnr": 20.0, "psnr_own_size": 21.0},
    )
    for name, shade in (("best", 0.9), ("worst", 0.2)):
        grid(folder / f"{name}.png", 32, 2, shade)
    files: dict[str, bytes] = {}
    page = unescape(
        render(
            colored_section(
                read_folders([run, folder]),
                files,
            )
        )
    )
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", page)

    assert captions[:3] == ["grey, 18.0 dB", "colored, 20.0 dB (+2.0)", "original"]
    gains = [caption for caption in captions if caption.startswith("colored")]
    of_run = ["colored, 20.0 dB (+2.0)", "colored, 21.0 dB (+1.0)", "colored, 22.0 dB (+0.0)"]

    assert gains == [*of_run, *of_run[:2], *of_run[:2]]
    assert "At the network's size: PSNR 20.00\u00a0dB." in page
    assert "At each photo's own size: PSNR 21.00\u00a0dB." in page
    assert page.index("Best by PSNR") < page.index("Worst by PSNR")
    assert {"evaluation-1-best.png", "evaluation-1-worst.png"} <= set(files)


def test_grids_of_older_versions_are_shown_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {}, {"psnr": 20.0})
    grid(run / "pictures" / "images-000000000100.png", 32, 2, 0.5, strips=False)
    folder = scored(
        tmp_path / "e",
        "generator",
        ["a"],
        0,
        {"psnr": 20.0},
    )
    grid(folder / "best.png", 32, 2, 0.5, strips=False)
    report_data = read_folders([run, folder])
    page = render(
        [
            *progress_section(report_data, {}),
            *colored_section(report_data, {}),
        ]
    )

    assert page.count('class="whole"') == 2
    assert "compare" not in page


def test_evaluations_by_themselves_are_compared_by_model(tmp_path: Path) -> None:
    for name in ("scratch-0", "pretrained-0"):
        scored(
            tmp_path / name,
            "segmenter",
            CLASSES,
            len(name),
            {"mIoU": 0.5},
            model=f"runs/{name}/model",
        )
    page = report_page(
        read_folders([tmp_path / "scratch-0", tmp_path / "pretrained-0"]),
        {},
    )

    assert "<h2>By class</h2>" in page
    header = re.search(r"<th scope=\"col\">Class</th>(.*?)</tr>", page)
    assert header is not None
    assert re.sub("<[^>]*>", " ", header[1]).split() == ["scratch-0", "pretrained-0"]
    assert "The given folders have nothing for: " in page
    assert "scratch-0: mIoU, void ignored 50.00\u00a0%; 8 images." in page


def test_versions_are_those_of_the_runs_log(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {}, {"psnr": 20.0})
    page = report_page(read_folders([run]), {})

    assert "2.13.0" in page
    assert "CPU, 2 cores" in page
    log = [json.loads(each) for each in (run / "log.jsonl").read_text().splitlines()]
    log[0]["versions"] = {"torch": HOSTILE}
    (run / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in log))
    page = report_page(read_folders([run]), {})

    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
