"""Mistakes: one sentence each, before any long work, exit status 2, no traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.commands import LAUNCHER, TINY, Command, command_line

from colorgan.errors import ColorganError
from datasets.errors import CorpusError
from shards.errors import ShardError

MISTAKES = (ColorganError, ShardError, CorpusError)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data.trian", "x"], "data.trian.*data.train"),
        (["--batch.global_batch_size", "0"], "global_batch_size"),
        (["--optimizer.learning_rate", "-1"], "learning_rate"),
        (["--network.image_size", "100"], "image size 100"),
        (["--batch.global_batch_size", "64"], "40 images, fewer than one batch"),
        (["--batch.micro_batch_size", "3"], "does not divide"),
        (["--images", "10", "--epochs", "1"], "images or epochs, not both"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--data.val", "/nowhere"], "/nowhere"),
    ],
)
def test_pretrain_tells_a_mistake(
    tmp_path: Path, packed: dict[str, Path], command: Command, words: list[str], sentence: str
) -> None:
    run = tmp_path / "run"

    with pytest.raises(MISTAKES, match=sentence):
        command(
            "pretrain",
            "--data.train",
            packed["train"],
            "--run",
            run,
            "--images",
            "16",
            *TINY,
            *words,
        )
    assert not (run / "checkpoints").exists()


def test_all_mistakes_at_once(command: Command) -> None:
    with pytest.raises(ColorganError) as told:
        command(
            "pretrain",
            "--data.train",
            "x",
            "--sede",
            "1",
            "--loss.gan",
            "wgan",
            "--network.width",
            "-2",
        )

    for word in ("3 problems", "sede", "seed", "wgan", "bce", "network.width"):
        assert word in str(told.value)


def test_manifest_of_a_newer_version_and_a_short_shard(
    tmp_path: Path, packed: dict[str, Path], command: Command
) -> None:
    newer, short = tmp_path / "newer", tmp_path / "short"
    for folder in (newer, short):
        shutil.copytree(packed["train"], folder)
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    shard = next(short.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-2048])

    for folder, word in ((newer, "99"), (short, shard.name)):
        with pytest.raises(ShardError, match=word):
            command(
                "pretrain",
                "--data.train",
                folder,
                "--run",
                tmp_path / "run",
                "--images",
                "16",
                *TINY,
            )


def test_a_folder_that_is_no_generator(
    tmp_path: Path, packed: dict[str, Path], command: Command
) -> None:
    tune = ["--task", "classify", "--data.train", packed["voc-train"], "--run", tmp_path / "run"]
    for init in (packed["train"], tmp_path / "nothing"):
        with pytest.raises(ColorganError, match="is not a model folder"):
            command("finetune", *tune, "--init", init, "--batch.global_batch_size", "8")
        with pytest.raises(ColorganError, match="is not a model folder"):
            command("colorize", "--generator", init, "--out", tmp_path / "o", "x.jpg")


def test_other_classes_than_the_head(
    tmp_path: Path, packed: dict[str, Path], command: Command
) -> None:
    words = [
        "--task",
        "classify",
        "--data.train",
        packed["voc-train"],
        "--run",
        tmp_path / "run",
        "--head_width",
        "8",
    ]
    words += [
        "--network.image_size",
        "32",
        "--network.width",
        "4",
        "--batch.global_batch_size",
        "8",
    ]
    stages = ["--stages", "[{epochs: 1, learning_rate: 0.001}]"]
    other = tmp_path / "other"
    shutil.copytree(packed["voc-val"], other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(
        json.dumps({**manifest, "classes": manifest["classes"][::-1]})
    )

    with pytest.raises(ColorganError, match="other classes"):
        command("finetune", *words, *stages, "--data.val", other)
    command("finetune", *words, *stages)

    with pytest.raises(ColorganError, match="score it on a set of the same corpus"):
        command("evaluate", "--model", tmp_path / "run" / "model", "--data", other)


def test_a_run_of_another_recipe_and_a_run_without_checkpoints(
    tmp_path: Path, packed: dict[str, Path], command: Command
) -> None:
    words = ["--data.train", packed["train"], "--run", tmp_path / "run", "--images", "16", *TINY]
    command("pretrain", *words)
    with pytest.raises(ColorganError, match=r"loss\.l1_weight: 100\.0 -> 3\.0"):
        command("pretrain", *words, "--loss.l1_weight", "3")
    with pytest.raises(ColorganError, match="holds no checkpoint"):
        command("consolidate", "--run", tmp_path / "elsewhere")


@pytest.mark.parametrize(("task", "label"), [("segment", "mask"), ("classify", "class")])
def test_labels_are_needed_to_fine_tune(
    tmp_path: Path, packed: dict[str, Path], command: Command, task: str, label: str
) -> None:
    pictures, out = (
        packed["train"].parents[1] / "raw" / "coco" / "train2017",
        tmp_path / "unlabelled",
    )
    command(
        "pack",
        "--corpus",
        "folder",
        "--root",
        pictures,
        "--split",
        "all",
        "--out",
        out,
        "--image",
        "squash:32",
    )
    words = [
        "--task",
        task,
        "--data.train",
        out,
        "--run",
        tmp_path / "run",
        "--network.image_size",
        "32",
    ]

    with pytest.raises(MISTAKES, match=f"no image has a {label}: nothing to learn"):
        command("finetune", *words, "--batch.global_batch_size", "8", "--network.width", "4")


def test_empty_split_and_missing_folder(tmp_path: Path, command: Command) -> None:
    (tmp_path / "empty").mkdir()

    for root in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(MISTAKES, match=root.name):
            command(
                "pack",
                "--corpus",
                "folder",
                "--root",
                root,
                "--split",
                "all",
                "--out",
                tmp_path / "out",
            )


def test_the_shell_sees_status_2_one_sentence_and_no_traceback(
    tmp_path: Path, packed: dict[str, Path]
) -> None:
    done = command_line(
        "python", LAUNCHER / "pretrain.py", "--data.train", "/nowhere", *TINY, cwd=tmp_path
    )

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("ManifestError: /nowhere")

    unwritable = ["--data.train", packed["train"], "--run", "/proc/run", "--images", "16", *TINY]
    done = command_line("python", LAUNCHER / "pretrain.py", *unwritable, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("UsageError: /proc has 0 KiB free")
    assert "choose another --run" in done.stderr


def test_one_process_where_several_were_asked_for(tmp_path: Path, packed: dict[str, Path]) -> None:
    words = ["--data.train", packed["train"], "--run", tmp_path / "run", "--images", "16", *TINY]
    done = command_line(
        "accelerate", "launch", "--cpu", "--num_processes", 2, LAUNCHER / "pretrain.py", *words
    )
    assert done.returncode != 0
    assert "accelerate was asked for several processes but started one" in done.stderr
    assert "ddp_cpu.yaml" in done.stderr


def test_frozen_features_need_a_generator(packed: dict[str, Path], command: Command) -> None:
    with pytest.raises(ColorganError, match="give --init GENERATOR"):
        command("finetune", "--config", "voc_classify_paper", "--data.train", packed["voc-train"])


def test_the_papers_recipe_needs_data(command: Command) -> None:
    with pytest.raises(ColorganError, match=r"data\.train is not given"):
        command("pretrain", "--config", "coco_paper")


def test_a_damaged_recipe_of_a_run(
    tmp_path: Path, packed: dict[str, Path], command: Command
) -> None:
    for text in ("", "a: [", "- 1"):
        (tmp_path / "recipe.yaml").write_text(text)

        with pytest.raises(ColorganError, match=r"recipe\.yaml is not a recipe that a run wrote"):
            command(
                "pretrain",
                "--data.train",
                packed["train"],
                "--run",
                tmp_path,
                "--images",
                "16",
                *TINY,
            )


def test_a_photo_is_not_overwritten_by_its_colored_copy(
    tmp_path: Path, packed: dict[str, Path], command: Command
) -> None:
    command(
        "pretrain",
        "--data.train",
        packed["train"],
        "--run",
        tmp_path / "run",
        "--images",
        "16",
        *TINY,
    )
    with pytest.raises(ColorganError, match="use the format safetensors"):
        command("consolidate", "--run", tmp_path / "run", "--format", "timm")
    assert not (tmp_path / "run" / "generator").exists()
    command("consolidate", "--run", tmp_path / "run")
    photo = tmp_path / "a.png"
    photo.write_bytes(b"")

    with pytest.raises(ColorganError, match="would be overwritten"):
        command("colorize", "--generator", tmp_path / "run" / "generator", "--out", tmp_path, photo)
    with pytest.raises(ColorganError, match="cannot be the folder of a model"):
        command("consolidate", "--run", tmp_path / "run", "--out", "/")
