"""Studies and probes in the report: reading, refusals, and their tables, cards and text."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from helpers.drawn_runs import HOSTILE, make_run, probed, study

from colorgan.errors import UsageError
from colorgan.probes.record import read_probe
from colorgan.report.rendering import render
from colorgan.report.report_data import ReportData, read_folders
from colorgan.report.sections.answer import answer_cards, verdicts
from colorgan.report.sections.probes import probe_tables, spread
from colorgan.report.sections.transfer import points, transfer_markdown, transfer_section
from colorgan.report.study_chart import draw_study
from colorgan.study.record import read_study


def text_of(page: str) -> str:
    return unescape(
        re.sub(
            r"<[^>]+>",
            " ",
            re.sub(r"<svg.*?</svg>", " ", page, flags=re.DOTALL),
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(
        tmp_path_factory.mktemp("study"),
        seeds=(0, 1, 2),
    )


def test_a_study_is_read_with_the_runs_behind_it(folder: Path) -> None:
    found = read_study(folder)
    told = json.loads((folder / "study.json").read_text())["protocols"]

    assert [each.name for each in found.protocols] == [each["name"] for each in told]
    assert [each.of_the_paper for each in found.protocols] == [True, False, False, False]
    scratch = found.protocols[0].arms[0]
    behind = found.behind(found.protocols[0])

    assert scratch.mean == pytest.approx(statistics.fmean(told[0]["arms"][0]["values"]))
    assert scratch.deviation == pytest.approx(statistics.stdev(told[0]["arms"][0]["values"]))
    assert [run.seed for run in behind["scratch"].runs] == [0, 1, 2]
    assert len(behind["scratch"].runs[0].evaluations[0].per_class) == 20
    assert scratch.settings_text == "4 epochs at 0.0003"

    probed_arms = found.behind(found.protocols[3]).values()
    assert [len(arm.probes) for arm in probed_arms] == [3, 3]
    assert found.notes == []


def test_a_study_that_was_moved_finds_its_runs_and_opens_none_outside(
    folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    runs = [run for behind in read_study(moved).folders.values() for run in behind.runs]

    assert len(runs) == 18
    assert all(moved in run.path.parents for run in runs)
    outside = make_run(
        tmp_path / "outside",
        {"task": "classify"},
        {"mAP": 0.5},
    )
    (moved / "paper-classification" / "link").symlink_to(outside)
    told = json.loads((moved / "study.json").read_text())
    told["protocols"][0]["arms"][0]["runs"] = [
        str(outside),
        "../outside",
        "paper-classification/link",
    ]
    (moved / "study.json").write_text(json.dumps(told))
    found = read_study(moved)

    assert found.behind(found.protocols[0])["scratch"].runs == ()
    assert "3 of 3 runs of scratch are not in" in found.notes[0]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"protocols": []}', '{"protocols": [1, {}]}', "[" * 100_000]
)
def test_a_damaged_study_is_told_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(UsageError, match="holds no protocols: write it again"):
        read_folders([tmp_path])


@pytest.mark.parametrize(
    "wrong",
    [
        {"seeds": 5, "arms": "x", "comparisons": 3, "data": [1]},
        {
            "arms": [
                {
                    "name": HOSTILE,
                    "values": [None, "x", 1e400, 0.5],
                    "runs": [5, None, "/"],
                }
            ],
            "seeds": [0] * 4,
        },
        {
            "arms": [{}],
            "comparisons": [{}, {"difference": 0.1, "low": "x", "verdict": HOSTILE}],
            "title": HOSTILE,
        },
        {
            "arms": [{"name": "a"}],
            "further": [5, {"metric_title": HOSTILE, "arms": [{"name": "a", "values": "x"}, 3]}]
            * 99,
        },
        {
            "seeds": list(range(10**4)),
            "arms": [{"name": "a", "values": [0.1] * 10**4}] * 100,
            "source": "s" * 10**5,
        },
    ],
)
def test_what_is_not_as_agreed_is_left_out_bounded_and_escaped(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    (tmp_path / "study.json").write_text(
        json.dumps({"protocols": [{"name": "n", "title": "t", **wrong}]})
    )
    page = render(transfer_section(read_folders([tmp_path]), {}))
    assert "<script" not in page
    assert " onload='x'" not in re.sub(r">[^<]*<", "><", page)
    assert len(page) < 1_000_000


def test_each_protocol_has_its_own_table_chart_and_verdict(folder: Path) -> None:
    files: dict[str, bytes] = {}
    page = render(transfer_section(read_folders([folder]), files))
    papers, fields = text_of(page).split("The field's protocols")

    assert "47.18" in papers
    assert "1,713" in papers
    assert "47.18" not in fields
    assert "44.66" not in fields
    assert papers.index("The paper's protocols") < papers.index("paper classification")
    assert (
        "pretrained − scratch: +4.00 points, 95 % interval +3.00 to +5.00: pretraining helps"
        in papers
    )
    assert "−2.00 points, 95 % interval −3.00 to −1.00: pretraining hurts" in fields
    assert "no difference shown" in fields

    for name in ("voc2012-segmentation", "voc2007-detection", "voc2007-linear"):
        assert files[f"{name}.png"].startswith(b"\x89PNG")
    assert {"paper-classification-training-loss.png", "voc2012-segmentation-1-overlays.png"} <= set(
        files
    )

    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_further_scores_are_told_for_each_arm(folder: Path, tmp_path: Path) -> None:
    """In the page and in the text; an arm without values has a dash."""
    told = json.loads((folder / "study.json").read_text())
    compared = {
        "arm": "pretrained",
        "against": "scratch",
        "difference": 0.1,
        "low": 0.05,
        "high": 0.15,
    }
    arms = [
        {"name": "scratch", "values": [0.1, 0.2, 0.3]},
        {"name": "pretrained", "values": [0.3, 0.3, 0.3]},
    ]
    told["protocols"][0]["further"] = [
        {"metric_title": "another score", "arms": arms, "comparisons": [compared]},
        {"metric_title": "a third one", "arms": arms[:1], "comparisons": []},
    ]
    (tmp_path / "study.json").write_text(json.dumps(told))
    report_data = read_folders([tmp_path])
    page = text_of(render(transfer_section(report_data, {})))
    text = transfer_markdown(report_data)
    for part in ("another score", "20.00 ± 10.00", "30.00 ± 0.00 (+10.00; +5.00 to +15.00)"):
        assert part in page and part in text

    assert "| a third one | 20.00 ± 10.00 | – |" in text


def test_several_differences_are_told_in_short(folder: Path) -> None:
    report_data = read_folders([folder])
    protocol = report_data.studies[0].protocols[0]
    (shown,) = protocol.comparisons
    chance = {"arm": "other", "difference": -0.001, "low": -0.012, "high": 0.011}
    others = (
        shown.model_copy(update={**chance, "verdict": "unclear"}),
        shown.model_copy(update={"arm": "third", "verdict": "no verdict: one class alone"}),
    )
    several = protocol.model_copy(update={"comparisons": (shown, *others)})
    study = replace(report_data.studies[0], protocols=(several,))

    assert verdicts(replace(report_data, studies=(study,))) == [
        "paper classification: shown: pretrained − scratch +4.0 (3.0 to 5.0); "
        "not shown: other − scratch −0.1 (−1.2 to 1.1); "
        "no verdict: third − scratch +4.0 (3.0 to 5.0) (points, 95 % intervals)"
    ]


def test_cards_and_text_say_the_same(folder: Path) -> None:
    report_data = read_folders([folder])
    cards = answer_cards(report_data)

    assert [card.kind for card in cards] == ["better", "unclear", "worse", "better", ""]
    assert cards[0].value == "+4.00 points"
    assert "First-positive accuracy" in cards[0].text
    # The last one is that of the study's probes, at the level that the training part chose.
    assert cards[4].value == "pretrained 43.0\u00a0%"
    assert verdicts(report_data)[0] == "paper classification: pretraining helps"

    text = transfer_markdown(report_data)
    assert text.count("\n## ") == 4
    assert (
        "- pretrained − scratch: +4.00 points, 95 % interval +3.00 to +5.00: pretraining helps"
        in text
    )
    assert transfer_markdown(ReportData([], [])) == ""


@pytest.mark.parametrize(
    ("pretraining", "runs", "told"),
    [((), 2, "; 2 seeds, 95"), ((0, 1, 2), 1, "; 3 pretraining seeds, 95")],
)
def test_a_card_says_over_which_seeds(
    folder: Path, pretraining: tuple[int, ...], runs: int, told: str
) -> None:
    report_data = read_folders([folder])
    protocol = report_data.studies[0].protocols[0]
    seeds = tuple(map(str, pretraining))
    arms = tuple(
        arm.model_copy(update={"pretraining_seeds": seeds if arm.name == "pretrained" else ()})
        for arm in protocol.arms
    )
    changed = protocol.model_copy(update={"arms": arms, "seeds": protocol.seeds[:runs]})
    study = replace(report_data.studies[0], protocols=(changed,))

    assert told in answer_cards(replace(report_data, studies=(study,)))[0].text


def test_a_chart_shows_every_seed_and_the_interval(folder: Path) -> None:
    protocol = read_study(folder).protocols[0]
    files: dict[str, bytes] = {}
    chart = draw_study(protocol, "key", "read aloud", files)

    assert chart is not None
    assert list(files) == ["key.png"]
    # matplotlib defines each marker once and uses it per point: three runs of two arms, one
    # difference.
    assert chart.svg.count("<use ") >= 7
    assert "var(--line-0)" in chart.svg
    assert "var(--line-1)" in chart.svg


def test_points_bear_their_sign() -> None:
    assert [points(share) for share in (0.0123, -0.5, 0.0)] == [
        "+1.23 points",
        "−50.00 points",
        "+0.00 points",
    ]


def test_a_study_brings_the_pretraining_that_it_made(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    run = make_run(
        folder / "pretrain" / "gan",
        {},
        {"psnr": 20.0},
    )
    assert [each.path for each in read_folders([folder, run]).runs] == [run.resolve()]


def test_probes_are_means_over_their_seeds(tmp_path: Path) -> None:
    arms = {
        "random": [
            read_probe(probed(tmp_path / f"r{seed}", "random", seed, seed / 10)) for seed in (0, 1)
        ],
        "pretrained": [
            read_probe(
                probed(
                    tmp_path / "p",
                    "g/generator",
                    0,
                    0.4,
                )
            )
        ],
    }
    text = " ".join(text_of(render(probe_tables(arms))).split())

    assert (
        "Level random pretrained 1: 64×12×12 25.0 ± 7.1 60.0 2: 128×8×8 35.0 ± 7.1 * 70.0 *" in text
    )
    assert "Arm, level k = 1 k = 96 random, 1: 64×12×12 0.3 ± 1.0 25.0 ± 1.0" in text
    assert "k = 1 k = 5 random, 1: 64×12×12 25.0 25.0 random, 2: 128×8×8 35.0 35.0 *" in text
    assert "40 images to train, 8 to score, 20 classes" in text
    assert spread([None, None]) == "–"


def test_probes_given_by_themselves_are_grouped_by_model(tmp_path: Path) -> None:
    folders = [probed(tmp_path / f"p{seed}", "g/generator", seed, 0.1) for seed in (0, 1)]
    text = text_of(render(transfer_section(read_folders(folders), {})))
    assert "Probes: generator 2." in text
    (tmp_path / "p0" / "probe.json").write_text('{"linear": {"levels": "x"}}')
    with pytest.raises(UsageError, match=r"probe\.json holds no scores"):
        read_folders(folders)
