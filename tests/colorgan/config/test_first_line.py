"""The first words of a run: everything a reader asks for, before torch is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from colorgan.config import first_line
from colorgan.config.first_line import PRINTED, first_lines, print_first_lines
from colorgan.config.recipe import (
    DataRecipe,
    FinetuneRecipe,
    LaunchRecipe,
    PretrainRecipe,
    RunRecipe,
)

RECIPE = PretrainRecipe(
    run=Path("runs/a"),
    data=DataRecipe(train=(Path("shards/photos"),)),
    launch=LaunchRecipe(torch_threads=3),
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what a launcher around the tests, or another test, has left."""
    for name in ("LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


def test_a_cpu_run_and_one_on_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_line, "GPUS", tmp_path / "absent")
    batch = RECIPE.batch.global_batch_size
    assert first_lines("pretrain", RECIPE, 1).splitlines() == [
        f"pretrain: CPU, 1 rank, 3 threads each, batch {batch}, micro-batch {batch}",
        "  data shards/photos",
        "  runs/a: look at log.jsonl; loading torch ...",
    ]

    (tmp_path / "gpus" / "0").mkdir(parents=True)
    (tmp_path / "gpus" / "1").mkdir()
    monkeypatch.setattr(first_line, "GPUS", tmp_path / "gpus")
    for visible, device in (
        (None, "2 GPUs"),
        ("1", "1 GPU"),
        ("0,1,2", "2 GPUs"),
        ("0,-1,1", "1 GPU"),
        ("-1", "CPU"),
        ("", "CPU"),
    ):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert first_lines("t", RECIPE, 2).startswith(f"t: {device}, 2 ranks, 3 threads each")
    assert f"batch {batch}, micro-batch {batch // 2}" in first_lines("t", RECIPE, 2)


def test_threads_are_of_the_node_and_a_cpu_run_names_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0").mkdir()
    monkeypatch.setattr(first_line, "GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    recipe = RECIPE.model_copy(update={"launch": LaunchRecipe()})
    # Four ranks on two nodes of eight cores.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert first_lines("t", recipe, 4).startswith("t: 1 GPU, 4 ranks, 4 threads each")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert first_lines("t", recipe, 4).startswith("t: CPU, 4 ranks")


@pytest.mark.parametrize(
    ("schema", "data", "where"),
    [
        (PretrainRecipe, {"train": ["a"], "val": ["b"]}, "log.jsonl and pictures/;"),
        (PretrainRecipe, {"train": ["a"]}, "log.jsonl;"),
        (PretrainRecipe, {}, "log.jsonl and pictures/;"),  # the built-in sample
        (FinetuneRecipe, {"train": ["a"], "val": ["b"]}, "log.jsonl and evaluation/;"),
    ],
)
def test_pictures_are_named_where_a_validation_draws_them(
    schema: type[RunRecipe], data: dict[str, list[str]], where: str
) -> None:
    words = {"task": "classify"} if schema is FinetuneRecipe else {}
    recipe = schema.model_validate({"run": "runs/a", "data": data, **words})
    assert (
        first_lines("t", recipe, 1).splitlines()[-1]
        == f"  runs/a: look at {where} loading torch ..."
    )


def test_rank_0_alone_prints_and_a_dry_run_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    print_first_lines("pretrain", RECIPE)
    monkeypatch.setenv("RANK", "0")
    print_first_lines("pretrain", RECIPE.model_copy(update={"dry_run": True}))
    assert capsys.readouterr().out == ""

    print_first_lines("pretrain", RECIPE)
    assert capsys.readouterr().out.startswith("pretrain: ")

    # A launcher prints for its ranks, which then do not.
    print_first_lines("pretrain", RECIPE, num_ranks=2)
    assert "2 ranks" in capsys.readouterr().out
    monkeypatch.setenv(PRINTED, "1")
    print_first_lines("pretrain", RECIPE)
    assert capsys.readouterr().out == ""
