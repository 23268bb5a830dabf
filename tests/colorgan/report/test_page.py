"""The report: folders read, scores grouped, a whole and safe page that names what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from helpers.drawn_runs import GREY, HOSTILE, grid, line, make_run, tuned
from PIL import Image

from colorgan.errors import UsageError
from colorgan.report.blocks import Heading, Table, Text
from colorgan.report.final_scores import (
    by_conditions,
    final_results,
    paired_difference,
    run_of,
    spread,
)
from colorgan.report.page import write_report
from colorgan.report.photos import open_picture, progress, triples
from colorgan.report.published import METRICS
from colorgan.report.rendering import render
from colorgan.report.report_data import read_folders
from colorgan.report.sections.answer import answer_cards
from colorgan.report.sections.scores import markdown
from colorgan.runs.reading import differences, read_run, short_names


def test_text_is_escaped_and_hidden_characters_are_shown() -> None:
    assert (
        render([Text('a < b & "c"', 'x" y')])
        == '<p class="x&#34; y">a &lt; b &amp; &#34;c&#34;</p>'
    )

    hidden = render([Heading("a\x00\u202eb\u00a0c\ud800")])
    assert hidden == "<h3>a\\x00\\u202eb\u00a0c\\ud800</h3>"
    table = render(
        [
            Table(
                ("<b>", "x"),
                [["<i>", "1"], ["&", "2"]],
                "<c>",
            )
        ]
    )

    assert "<b>" not in table
    assert "<i>" not in table
    assert "&lt;c&gt;" in table
    assert 'class=" sortable"' in table


def test_what_cannot_be_read_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")

    assert open_picture(tmp_path / "x.png") is None
    assert (
        progress(
            [(5, tmp_path / "x.png"), (6, tmp_path / "absent.png")],
            10,
        )
        == []
    )
    assert triples(tmp_path / "absent.png") == []


def test_progress_takes_the_first_and_the_last_of_many(tmp_path: Path) -> None:
    pictures = [(n, grid(tmp_path / f"{n}.png", 32, 1, n / 100)) for n in range(10, 110, 10)]
    (row,) = progress(pictures, 100)
    captions = [caption for caption, _ in row]
    assert captions[0] == "grey"
    assert captions[-2:] == ["100 %", "original"]
    assert len(captions) == 7


def test_mean_and_sample_deviation() -> None:
    assert spread([]) == "–"
    assert spread([0.25], 100) == "25.00"
    assert spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"


def test_runs_that_differ_only_in_seed_are_one_arm_and_pairs_are_by_seed(tmp_path: Path) -> None:
    runs = [tuned(tmp_path / f"s{seed}", seed, 0.2 + seed / 10) for seed in (0, 1)]
    runs += [
        tuned(tmp_path / f"g{seed}", seed, 0.3 + seed / 5, init="g/generator") for seed in (1, 0)
    ]
    results, notes = final_results(read_folders(runs))
    ((conditions, arms),) = by_conditions(results, "classify").items()

    assert notes == []
    assert (
        conditions.images,
        conditions.classes,
        conditions.size,
    ) == (8, 3, 32)
    assert [arm.label for arm in arms] == ["scratch", "generator"]

    gap, words = paired_difference(
        *arms,
        METRICS["classify"][0],
    )

    assert gap == "+15.00 ± 7.07"  # 10 and 20 points
    assert words == "better with 2 of 2 seeds"
    assert "| scratch | 0, 1 | 25.00 ± 7.07 | 12.50 ± 3.54 | s0, s1 |" in markdown(results)


def test_runs_without_a_study_have_a_card_per_task_and_set(tmp_path: Path) -> None:
    runs = [tuned(tmp_path / f"s{seed}", seed, 0.2 + seed / 10) for seed in (0, 1)]
    report_data = read_folders(runs)
    (card,) = answer_cards(report_data, final_results(report_data)[0])
    assert card.title == "Classification, v, 8 images"
    assert card.value == "scratch 25.00 ± 7.07\u00a0%"


def test_other_protocols_and_other_recipes_share_no_mean(tmp_path: Path) -> None:
    runs = [
        tuned(tmp_path / "a", 0, 0.2),
        tuned(tmp_path / "b", 1, 0.3, head_width=7),
    ]
    runs.append(
        tuned(
            tmp_path / "c",
            2,
            0.4,
            data={"train": ["shards/t"], "val": ["shards/other"]},
        )
    )
    grouped = by_conditions(
        final_results(read_folders(runs))[0],
        "classify",
    )

    assert [[len(arm.results) for arm in arms] for arms in grouped.values()] == [[1, 1], [1]]
    labels = {arm.label for arms in grouped.values() for arm in arms}
    assert labels == {"scratch (head_width (absent))", "scratch (head_width 7)", "scratch"}


def test_unfinished_runs_are_in_no_table_and_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", {}, GREY, total=200)
    results, notes = final_results(read_folders([run]))
    assert results == []
    assert "is unfinished (100 of 200 images)" in notes[0]


def test_an_evaluation_belongs_to_its_run_and_only_if_of_its_last_weights(tmp_path: Path) -> None:
    run = tuned(tmp_path / "runs" / "a", 0, 0.2)
    text = {
        "model": "runs/a/model",
        "data": ["shards/test"],
        "kind": "classifier",
        "inference": "paper",
    }
    for name, images_seen in (("now", 100), ("before", 50)):
        (tmp_path / name).mkdir()
        scores = {"mAP": 0.5, "images": 9.0, "classes": 3.0}
        (tmp_path / name / "scores.json").write_text(
            json.dumps({**text, "images_seen": images_seen, "scores": scores})
        )
    report_data = read_folders([run, tmp_path / "now", tmp_path / "before"])

    assert run_of("runs/a/model", report_data.runs) is report_data.runs[0]
    assert run_of("elsewhere/a/model", report_data.runs) is None
    results, notes = final_results(report_data)

    assert [(r.source, r.conditions.inference) for r in results] == [
        ("last validation", "running"),
        ("evaluation", "paper"),
    ]
    assert len(notes) == 1
    assert "before scores another model" in notes[0]


def test_names_and_differences(tmp_path: Path) -> None:
    assert short_names(
        [
            Path("/a/x/seed-0"),
            Path("/a/y/seed-0"),
        ]
    ) == ["x/seed-0", "y/seed-0"]

    report_data = read_folders(
        [
            tuned(tmp_path / "a", 0, 0.1),
            tuned(tmp_path / "b", 3, 0.1),
        ]
    )

    assert differences(report_data.runs) == {"seed": ["0", "3"]}


def test_what_is_no_run_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"has no recipe\.yaml, study\.json, scores\.json or probe\.json: give run folders",
    ):
        read_folders([tmp_path])
    with pytest.raises(UsageError, match="is not a folder"):
        read_folders([tmp_path / "absent"])

    (tmp_path / "recipe.yaml").write_text("[1, 2")
    with pytest.raises(UsageError, match="is not a recipe that a run wrote"):
        read_folders([tmp_path])

    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "scores.json").write_text('{"scores": {"mAP": "high"}}')
    with pytest.raises(UsageError, match="holds no scores"):
        read_folders([tmp_path / "e"])


def test_a_damaged_log_and_a_run_of_nothing_are_shown_as_such(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "r",
        {"loss": {"gan": "bce"}},
        GREY,
    )
    bad = [
        '{"kind": "train", "images": 3, "values": [1]}',
        '{"kind": "train", "images": 4, "values": {"l1": null}}',
        "\xff{",
        '{"kind": 5, "images": 1}',
    ]
    with (run / "log.jsonl").open("a") as log:
        log.write("\n".join(bad))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "recipe.yaml").write_text("seed: 1\n")
    page = write_report([run, bare], tmp_path / "out").read_text()

    assert "There is no log.jsonl" in page
    assert "No complete checkpoint" in page
    assert "No pictures were saved" in page
    assert "Not in the logs: " in page


class Reader(HTMLParser):
    """What a browser would see: elements, their attributes, the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(
        self,
        tag: str,
        attrs: list[tuple[str, str | None]],
    ) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page of a pretraining run and two fine-tuning runs with hostile names."""
    root = tmp_path_factory.mktemp("report")
    name = HOSTILE.replace("/", "∕")
    run = make_run(
        root / name,
        {"note": HOSTILE, "loss": {"gan": "least_squares"}},
        GREY,
    )

    for images in (50, 100):
        grid(
            run / "pictures" / f"images-{images:012d}.png",
            32,
            2,
            images / 200,
        )

    generator = str(run / "generator")
    runs = [
        run,
        tuned(root / "s", 0, 0.2),
        tuned(
            root / f"p {name}",
            0,
            0.3,
            init=generator,
        ),
    ]

    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({**line("event", 100), "text": HOSTILE, "status": "<b>"}) + "\n")
        log.write(
            json.dumps(line("train", 100, **{f"{HOSTILE}": 1.0, "loss/discriminator": 0.01})) + "\n"
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return write_report(runs, root / "out")


def test_the_page_is_whole_safe_and_fetches_nothing(report: Path) -> None:
    page = report.read_text()
    seen = Reader(page)
    tags = {tag for tag, _ in seen.elements}

    assert not tags & {"iframe", "object", "embed", "link", "base", "form"}
    script = (files("colorgan.report") / "page.js").read_text()
    assert page.count("<script>") == 1
    assert f"<script>{script}</script>" in page

    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    policies = [a["content"] for tag, a in seen.elements if a.get("http-equiv")]

    assert policies == [policy]
    for tag, attributes in seen.elements:
        assert not [key for key in attributes if key.startswith("on")], tag
        for key in ("src", "href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/")), attributes[key]

    assert "@import" not in page
    assert "<script>alert(1)" in seen.text  # shown, as text
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]

    assert len(ids) == len(set(ids))
    assert "<svg" in page


def test_the_page_tells_the_papers_numbers_in_columns_of_their_own(report: Path) -> None:
    text = Reader(report.read_text()).text
    for value in (
        "20.94\u00a0dB",
        "47.18\u00a0%",
        "52.83\u00a0%",
        "44.66\u00a0%",
        "47.07\u00a0%",
        "paper-classification",
    ):
        assert value in text

    assert "20.00\u00a0% (seed 0; run 2)" in text
    assert "+10.00 points (one seed: its spread is unknown)" in text
    assert "2.00 dB above the same images left grey" in text
    assert "far ahead of the generator" in text
    assert "No finished segmentation run was given." in text


def test_pictures_and_text_lie_beside_the_page_and_nothing_half_written(report: Path) -> None:
    names = sorted(path.name for path in report.parent.iterdir())
    assert {"report.html", "report.md", "progress-1.png", "generator-loss.png"} <= set(names)
    assert not [name for name in names if name.startswith(".")]
    for path in report.parent.glob("*.png"):
        Image.open(path).verify()


@pytest.mark.parametrize("text", ["a: &x {b: 1}\nc: *x\n", "- 1", "a: [", "\x00"])
def test_a_recipe_that_unfolds_or_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UsageError, match="is not a recipe that a run wrote"):
        read_run(tmp_path)


def test_events_and_recipes_are_bounded(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "r",
        {"note": "x" * 100_000},
        GREY,
    )
    with (run / "log.jsonl").open("a") as log:
        log.writelines(
            json.dumps({**line("event", 100), "text": f"event {n}"}) + "\n" for n in range(1000)
        )
    page = write_report([run], tmp_path / "out").read_text()

    assert "event 999" in page
    assert "event 900" not in page
    assert len(page) < 300_000


def test_a_commit_is_shortened_and_keeps_its_mark_of_changes(tmp_path: Path) -> None:
    run = tuned(tmp_path / "run", 0, 0.2)
    (state,) = run.glob("checkpoints/*/state.json")
    text = json.loads(state.read_text())
    for commit, shown in (("c" * 40, "c" * 15), ("c" * 40 + "+changes", "c" * 15 + "+changes")):
        text["model"]["source_version"] = commit
        state.write_text(json.dumps(text))
        page = write_report([run], tmp_path / "out").read_text()
        assert f">{shown}<" in page
