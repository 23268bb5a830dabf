"""The whole way as a user goes it: pretrain, resume, consolidate, fine-tune, evaluate, colour."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from shlex import quote

import numpy as np
import pytest
import torch
from helpers.commands import LAUNCHER, PROJECT, TINY, Command, command_line
from PIL import Image
from safetensors.torch import load_file

from colorgan.errors import ModelFolderError, UsageError


def pretrain_words(packed: dict[str, Path], run: Path, images: int = 64) -> list[object]:
    data = ["--data.train", packed["train"], "--data.val", packed["val"]]
    intervals = ["--output.save_every_images", 16, "--output.validate_every_images", 32]

    return [
        *data,
        "--run",
        run,
        "--images",
        images,
        "--loss.gan",
        "least_squares",
        *TINY,
        *intervals,
    ]


def test_every_command_in_turn(tmp_path: Path, packed: dict[str, Path], command: Command) -> None:
    run = tmp_path / "a run"

    assert "Dry run: nothing was trained." in command(
        "pretrain", *pretrain_words(packed, run), "--dry_run"
    )
    assert not run.exists()

    told = command("pretrain", *pretrain_words(packed, run))
    assert "12 held-out images:" in told
    assert told.rstrip().endswith(f"Next: python launcher/consolidate.py --run {quote(str(run))}")
    assert sorted(p.name for p in (run / "pictures").iterdir())[-1] == "images-000000000064.png"

    kinds = [json.loads(line)["kind"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert kinds.count("validate") == 2
    assert kinds.count("save") == 4
    assert "its output equals the run's" in command("consolidate", "--run", run)

    generator = run / "generator"
    for task, score in (("classify", "mAP"), ("segment", "mIoU"), ("detect", "AP50")):
        for init in ("scratch", generator):
            tuned = tmp_path / f"{task}-{Path(init).name}"
            _finetune_and_evaluate(command, packed, tuned, task, init, score)

    scores = run / "scores"
    told = command("evaluate", "--model", generator, "--data", packed["val"], "--out", scores)
    assert "PSNR" in told
    assert (scores / "coloured.png").exists()

    # The same weights again: their card tells what they scored.
    command("consolidate", "--run", run)
    section = (generator / "README.md").read_text().split("## Evaluations")[1]
    assert section.startswith(f"\n\n### {packed['val'].name} (running inference)")
    assert "On 12 held-out images, beside the same images left grey:" in section


def _finetune_and_evaluate(
    command: Command,
    packed: dict[str, Path],
    run: Path,
    task: str,
    init: str | Path,
    score: str,
) -> None:
    """Fine-tune in two stages; the card and the scores must be those of the run's last epoch."""
    features = "train" if init == "scratch" else "frozen"
    first = f"{{epochs: 1, learning_rate: 0.001, features: {features}}}"
    words = ["--task", task, "--init", init, "--run", run]
    words += ["--data.train", packed["voc-train"], "--data.val", packed["voc-val"]]
    words += ["--head_width", 16, "--batch.global_batch_size", 8, "--launch.torch_threads", 1]
    words += ["--stages", f"[{first}, {{epochs: 1, learning_rate: 0.001}}]"]
    if init == "scratch":
        words += ["--network.image_size", 32, "--network.width", 4]
    assert score in command("finetune", *words)
    assert f"| {score} | " in (run / "model" / "README.md").read_text()

    asked = ["--model", run / "model", "--data", packed["voc-val"], "--out", run / "scores"]
    assert "(12 images, " in command("evaluate", *asked)
    scores = json.loads((run / "scores" / "scores.json").read_text())["scores"]
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    validated = [entry for entry in logged if entry["kind"] == "validate"]
    assert scores[score] == pytest.approx(validated[-1]["values"][score])


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_the_papers_inference_trains_saves_and_consolidates(
    tmp_path: Path, packed: dict[str, Path], command: Command, task: str
) -> None:
    words = [
        "--task",
        task,
        "--data.train",
        packed["voc-train"],
        "--data.val",
        packed["voc-val"],
        "--head_width",
        16,
    ]
    words += ["--network.image_size", 32, "--network.width", 4, "--batch.global_batch_size", 8]
    words += [
        "--stages",
        "[{epochs: 1, learning_rate: 0.001}]",
        "--inference",
        "paper",
        "--run",
        tmp_path,
    ]

    assert "paper inference" in command("finetune", *words)
    assert "paper inference" in command(
        "evaluate", "--model", tmp_path / "model", "--data", packed["voc-val"]
    )


def test_frozen_features_stay_and_then_learn(
    tmp_path: Path, packed: dict[str, Path], command: Command
) -> None:
    command("pretrain", *pretrain_words(packed, tmp_path / "run", images=16))
    command("consolidate", "--run", tmp_path / "run")
    before = load_file(tmp_path / "run" / "generator" / "model.safetensors")
    for features in ("frozen", "train"):
        words = [
            "--task",
            "segment",
            "--init",
            tmp_path / "run" / "generator",
            "--data.train",
            packed["voc-train"],
        ]
        words += ["--run", tmp_path / features, "--batch.global_batch_size", 8]
        command(
            "finetune",
            *words,
            "--stages",
            f"[{{epochs: 1, learning_rate: 0.01, features: {features}}}]",
        )
        after = load_file(tmp_path / features / "model" / "model.safetensors")
        same = [
            torch.equal(before[name], after[name])
            for name in before
            if not name.startswith("decoder.output.")
        ]
        assert all(same) if features == "frozen" else not any(same[:2])

    with pytest.raises(UsageError, match="only generators are exported to ONNX"):
        command("consolidate", "--run", tmp_path / "train", "--onnx")
    shown = command("consolidate", "--run", tmp_path / "train")
    assert f"{tmp_path / 'train' / 'model'}: segmenter 32x32" in shown
    assert "launcher/evaluate.py --model" in shown
    with pytest.raises(ModelFolderError, match="holds a generator and is not replaced by a segm"):
        command("consolidate", "--run", tmp_path / "train", "--out", tmp_path / "run" / "generator")


def test_a_resumed_fine_tuning_is_the_same_bit_for_bit(
    tmp_path: Path, packed: dict[str, Path], command: Command
) -> None:
    command("pretrain", *pretrain_words(packed, tmp_path / "run", images=16))
    command("consolidate", "--run", tmp_path / "run")
    words = ["--task", "classify", "--data.train", packed["voc-train"], "--head_width", 16]
    words += [
        "--init",
        tmp_path / "run" / "generator",
        "--batch.global_batch_size",
        8,
        "--output.save_every_images",
        16,
    ]
    words += [
        "--stages",
        "[{epochs: 1, learning_rate: 0.01, features: frozen}, {epochs: 1, learning_rate: 0.01}]",
    ]
    command("finetune", *words, "--run", tmp_path / "whole", "--output.keep_last", 9)
    whole = load_file(tmp_path / "whole" / "model" / "model.safetensors")

    for kept in (16, 32, 48):  # within the first stage, between the two, within the second
        run = tmp_path / f"cut-{kept}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "recipe.yaml").write_text((tmp_path / "whole" / "recipe.yaml").read_text())
        name = f"images-{kept:012d}"
        subprocess.run(
            [
                "cp",
                "-r",
                tmp_path / "whole" / "checkpoints" / name,
                run / "checkpoints",
            ],
            check=True,
        )
        command("finetune", *words, "--run", run)
        resumed = load_file(run / "model" / "model.safetensors")
        assert all(torch.equal(whole[tensor], resumed[tensor]) for tensor in whole)


def test_fine_tuning_ends_early_and_keeps_the_best_model(
    tmp_path: Path, packed: dict[str, Path], command: Command
) -> None:
    """At a rate that changes next to nothing, scores soon stop improving."""
    words = ["--task", "classify", "--head_width", 16, "--run", tmp_path / "run"]
    words += ["--data.train", packed["voc-train"], "--data.val", packed["voc-val"]]
    words += ["--network.image_size", 32, "--network.width", 4, "--batch.global_batch_size", 8]
    words += ["--epochs", 9, "--learning_rate", "1e-9", "--patience", 2, "--layer_decay", 0.5]
    words += ["--weight_decay", 0.01, "--class_weights", "balanced", "--luminance_jitter", 0.1]
    shown = command("finetune", *words)
    assert "the last 2 validations were no better: training ends" in shown
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    validated = [entry["images"] for entry in log if entry["kind"] == "validate"]
    assert validated == [32 * (epoch + 1) for epoch in range(len(validated))]  # once per epoch
    assert 3 <= len(validated) < 9

    best = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert best["images_seen"] == validated[-3]
    assert best["validations_since"] == 2
    for name in ("best", "model"):
        assert "mAP" in command(
            "evaluate", "--model", tmp_path / "run" / name, "--data", packed["voc-val"]
        )
    assert f"this run has ended at {validated[-1]} images" in command("finetune", *words)


def test_photos_of_any_size_keep_their_luminance(
    tmp_path: Path, packed: dict[str, Path], command: Command
) -> None:
    from skimage.color import rgb2lab

    command("pretrain", *pretrain_words(packed, tmp_path / "run", images=16))
    command("consolidate", "--run", tmp_path / "run")
    rows, columns = np.mgrid[0:61, 0:90]
    photo = np.stack(
        [rows * 4, columns * 2, 255 - rows * 4],
        axis=-1,
    ).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "wide.png")
    Image.fromarray(photo[:5, :3]).save(tmp_path / "tiny.png")
    Image.fromarray(photo).convert("L").save(tmp_path / "grey.jpg")
    names = ["wide.png", "tiny.png", "grey.jpg"]
    command(
        "colorize",
        "--generator",
        tmp_path / "run" / "generator",
        "--out",
        tmp_path / "out",
        *(tmp_path / n for n in names),
    )
    colored = np.asarray(Image.open(tmp_path / "out" / "wide.png"))
    assert colored.shape == photo.shape
    assert np.asarray(Image.open(tmp_path / "out" / "tiny.png")).shape == (5, 3, 3)
    # The middle of the gamut: at its edge a colour is clipped, which moves its luminance.
    difference = np.abs(rgb2lab(colored)[..., 0] - rgb2lab(photo)[..., 0])
    assert np.median(difference) < 0.5


def test_two_processes_under_accelerate_then_killed_and_started_again(
    tmp_path: Path, packed: dict[str, Path]
) -> None:
    profile = [
        "launch",
        "--config_file",
        LAUNCHER / "configs" / "accelerate" / "ddp_cpu.yaml",
        LAUNCHER / "pretrain.py",
    ]
    whole = command_line(
        "accelerate", *profile, *pretrain_words(packed, tmp_path / "whole"), cwd=tmp_path
    )

    assert whole.returncode == 0, whole.stderr
    words = [str(word) for word in [*profile, *pretrain_words(packed, tmp_path / "killed")]]
    program = str(Path(sys.executable).with_name("accelerate"))
    started = subprocess.Popen(
        [program, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 120
    while (
        not list((tmp_path / "killed").glob("checkpoints/images-*")) and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))
    subprocess.run(["pkill", "-KILL", "-s", str(started.pid)], check=False)

    assert started.wait() == -signal.SIGKILL
    again = command_line(
        "accelerate", *profile, *pretrain_words(packed, tmp_path / "killed"), cwd=tmp_path
    )

    assert again.returncode == 0, again.stderr
    files = sorted(
        (tmp_path / "whole" / "checkpoints" / "images-000000000064").glob("*.safetensors")
    )

    assert files
    for file in files:
        other = load_file(tmp_path / "killed" / "checkpoints" / "images-000000000064" / file.name)
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, other[name]), (file.name, name)


@pytest.mark.skipif(
    not (PROJECT.parent / "shared" / "data").is_dir(),
    reason="needs the real photos in ../shared/data",
)
def test_real_photos_pack_and_train(tmp_path: Path, command: Command) -> None:
    data = PROJECT.parent / "shared" / "data"
    out = tmp_path / "coco"
    command(
        "pack",
        "--corpus",
        "coco",
        "--root",
        data / "coco",
        "--split",
        "val",
        "--out",
        out,
        "--image",
        "squash:32",
    )
    words = [
        "--data.train",
        out,
        "--data.val",
        out,
        "--run",
        tmp_path / "run",
        "--images",
        64,
        *TINY,
    ]

    assert "78 held-out images:" in command("pretrain", *words)
