"""Folders as the commands leave them, without weights, drawn from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from colorgan.evaluation.picture_grids import color_grid, mask_grid, to_uint8_HWC
from colorgan.evaluation.strips import write_strips
from datasets.corpora.voc import CLASSES

# A script, an attribute, TeX and a sign that turns the text's direction.
HOSTILE = "<script>alert(1)</script>\" onload='x' $x_1$ ‮gpj"
GREY = {"psnr": 20.0, "ssim": 0.8, "grey_psnr": 18.0, "grey_ssim": 0.7, "images": 4.0}
VERSIONS = {
    "Python": "3.11.7",
    "torch": "2.13.0",
    "DALI": "2.4.0",
    "numpy": "2.4.6",
    "source": "c0ffee",
}


def line(kind: str, at: int, **values: float | None) -> dict[str, Any]:
    """Return a line of a log."""
    return {"kind": kind, "images": at, "time": 1.0, **({"values": values} if values else {})}


def make_run(
    folder: Path,
    recipe: dict[str, Any],
    scores: dict[str, float],
    *,
    total: int = 100,
    seen: int = 100,
) -> Path:
    """Write a run folder as training leaves it, without weights."""
    folder.mkdir(parents=True)
    base = {
        "run": str(folder),
        "seed": 0,
        "data": {"train": ["shards/t"], "val": ["shards/v"]},
        "network": {"image_size": 32},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**base, **recipe}))
    role = "loss/model" if "task" in recipe else "loss/generator"
    started = {
        "text": "started",
        "total_images": total,
        "ranks": 1,
        "device": "CPU, 2 cores",
        "versions": VERSIONS,
    }
    log = [{**line("event", 0), **started}]
    # By the folder's name: every run has its own curve, the same in every test.
    noise = random.Random(str(folder))

    for place in range(1, 11):
        at = seen * place // 10
        # Falling, as a chart of a flat line would hide errors of its axis.
        loss = 1.0 / (1 + at) + noise.random() / 100
        log.append(line("train", at, **{role: loss, "images_per_s": 10.0, "wait_share": 0.1}))

    log += [line("validate", seen, **scores)]
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in log))
    checkpoint = folder / "checkpoints" / f"images-{seen:012d}"
    checkpoint.mkdir(parents=True)
    # Without it the report takes the checkpoint for one that is being written.
    (checkpoint / "COMPLETE").write_text("{}")
    model = {"inference": "running", "source_version": "c0ffee", "architecture": {"image_size": 32}}
    (checkpoint / "state.json").write_text(
        json.dumps({"data_digest": "d1", "world_size": 1, "model": model})
    )
    return folder


def tuned(folder: Path, seed: int, accuracy: float, init: str = "scratch", **recipe: Any) -> Path:
    """Write a finished fine-tuning run of a classifier."""
    scores = {
        "first_positive_accuracy": accuracy,
        # Unlike the first score, so that a mixed-up column shows.
        "mAP": accuracy / 2,
        "images": 8.0,
        "classes": 3.0,
    }
    return make_run(folder, {"seed": seed, "task": "classify", "init": init, **recipe}, scores)


def grid(path: Path, size: int, num_rows: int, shade: float, *, strips: bool = True) -> Path:
    """Write a picture of grey, colored, original: black, a shade, white.

    Args:
        path: of the captioned grid.
        size: of each image in pixels.
        num_rows: images; each gains a decibel less over grey than the one before.
        shade: of the colored images, in [0, 1].
        strips: write the folder of strips too; runs of older versions have none.
    """
    images = [torch.full((3, size, size), value) for value in (0.0, shade, 1.0)]
    color_grid(path, [tuple(images)] * num_rows, [f"sample {i}" for i in range(num_rows)])
    if strips:
        pixels = [to_uint8_HWC(image) for image in images]
        # Each gains less than the one before, so that their order can be tested.
        scores = [{"psnr": 20.0 + row, "grey_psnr": 18.0 + 2 * row} for row in range(num_rows)]
        rows = [(row, each, pixels) for row, each in enumerate(scores)]
        write_strips(path.with_suffix(""), ("grey", "coloured", "original"), rows)

    return path


def scored(
    folder: Path,
    kind: str,
    classes: Sequence[str],
    seed: int,
    scores: dict[str, float],
    **about: Any,
) -> Path:
    """Write an evaluation folder; classes score by the seed, some are taken for the next."""
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    names = ["background", *classes] if kind == "segmenter" else list(classes)
    per_class: dict[str, float | None] = {name: 0.2 + 0.7 * draw.random() for name in names}
    # A class without any object has no score, in real folders too.
    per_class[names[-1]] = None
    size = range(len(names))
    # Mostly right, and often taken for the next class.
    matrix = [[draw.randrange(20) + 200 * (i == j) + 60 * (j == i + 1) for j in size] for i in size]
    text = {
        **{
            "model": "runs/a/model",
            "data": ["shards/v"],
            "kind": kind,
            "inference": "running",
            "images_seen": 100,
        },
        **{
            "scores": {"images": 8.0, "classes": float(len(names)), **scores},
            "per_class": per_class,
        },
        **{"classes": list(classes), "confusion": matrix if kind != "detector" else None, **about},
    }
    if kind == "segmenter":
        _overlays(folder / "pictures.png", classes, draw)
    (folder / "scores.json").write_text(json.dumps(text))

    return folder


def _overlays(path: Path, classes: Sequence[str], draw: random.Random) -> None:
    rows = []

    for _ in range(3):
        photo, truth = (
            torch.rand(3, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2),
            torch.zeros(64, 64),
        )
        # One object on background, off the middle, so that a mirrored overlay shows.
        truth[16:48, 8:40] = draw.randrange(1, len(classes) + 1)
        # The prediction is the truth a little aside: right, wrong and missed pixels.
        rows.append((photo, truth.to(torch.uint8), truth.roll(6, 1).to(torch.uint8)))

    mask_grid(path, rows, classes=classes)


def probed(folder: Path, model: str, seed: int, lift: float) -> Path:
    """Write a folder of launcher/probe.py with two levels."""
    folder.mkdir(parents=True)

    def score(value: float) -> dict[str, Any]:
        return {
            "mAP": value,
            "mAP_11_point": value + 0.01,
            "chance": 0.07,
            "classes": 20,
            "per_class": [],
        }

    # The second level is better, and chosen.
    levels = [0.2 + lift, 0.3 + lift]
    text = {
        **{
            "model": model,
            "seed": seed,
            "classes": list(CLASSES),
            "data": {"train": {"images": 40}, "test": {"images": 8}},
        },
        "levels": [
            {"channels": 64, "side": 16, "grid": 12},
            {"channels": 128, "side": 8, "grid": 8},
        ],
        "linear": {
            "best_level": 1,
            "levels": [
                {"score": score(v), "cross_validated": v, "unfinished_fits": 0} for v in levels
            ],
        },
        "lowshot": {
            "levels": [
                [{"k": k, "mAP_mean": v * k / 96, "mAP_std": 0.01} for k in (1, 96)] for v in levels
            ]
        },
        "knn": {
            **{"best_level": 1, "best_k": 5},
            "levels": [
                [{"k": k, "score": score(v), "cross_validated": v} for k in (1, 5)] for v in levels
            ],
        },
    }
    (folder / "probe.json").write_text(json.dumps(text))
    return folder


def study(folder: Path, seeds: Sequence[int] = (0, 1), classes: Sequence[str] = CLASSES) -> Path:
    """Write a study of four protocols, its runs included."""
    protocols = [
        _protocol(
            folder,
            "paper-classification",
            "classify",
            "first_positive_accuracy",
            0.31,
            0.35,
            seeds,
            classes,
        ),
        _protocol(
            folder, "voc2012-segmentation", "segment", "mIoU_own_size", 0.12, 0.125, seeds, classes
        ),
        _protocol(folder, "voc2007-detection", "detect", "AP50", 0.2, 0.18, seeds, classes),
        _protocol(folder, "voc2007-linear", "linear", "mAP", 0.25, 0.33, seeds, classes),
    ]
    (folder / "study.json").write_text(json.dumps({"protocols": protocols}))

    return folder


def _protocol(
    folder: Path,
    name: str,
    task: str,
    metric: str,
    low: float,
    high: float,
    seeds: Sequence[int],
    classes: Sequence[str],
) -> dict[str, Any]:
    kinds = {"classify": "classifier", "segment": "segmenter", "detect": "detector"}
    first = "random" if task == "linear" else "scratch"
    arms = []

    for arm, mean in ((first, low), ("pretrained", high)):
        values = [
            mean + 0.01 * random.Random(f"{name}{arm}{seed}").uniform(-1, 1) for seed in seeds
        ]
        runs = [folder / name / f"{arm}-{seed}" for seed in seeds]
        for run, seed, value in zip(runs, seeds, values, strict=True):
            # A probe has no run of its own: the protocol's arm is its folder.
            if task == "linear":
                probed(run, arm, seed, mean - 0.2)
                continue
            init = "scratch" if arm == first else str(folder / "pretrain" / "gan" / "generator")
            make_run(
                run,
                {"seed": seed, "task": task, "init": init},
                {metric: value, "images": 8.0, "classes": 20.0},
            )
            scored(
                run / "evaluation",
                kinds[task],
                classes,
                seed,
                {metric: value},
                model=str(run / "model"),
            )
        stages = {"stages": [{"epochs": 4.0, "learning_rate": 0.0003, "features": "train"}]}
        arms.append(
            {"name": arm, "settings": stages, "values": values, "runs": list(map(str, runs))}
        )

    gap = high - low
    # A narrow interval around the gap: the verdict follows from the means alone.
    compared = {
        "arm": "pretrained",
        "against": first,
        "difference": gap,
        "low": gap - 0.01,
        "high": gap + 0.01,
    }
    verdict = (
        "pretraining helps"
        if gap > 0.01
        else "no difference shown"
        if gap > -0.01
        else "pretraining hurts"
    )
    return {
        **{
            "name": name,
            "title": name.replace("-", " "),
            "task": task,
            "metric": metric,
            "metric_title": f"{metric}, by rule",
        },
        **{
            "source": "Everingham et al.",
            "data": {"title": "drawn", "train": 1713, "test": 342, "classes": 20},
        },
        **{
            "seeds": list(seeds),
            "arms": arms,
            "comparisons": [{**compared, "level": 0.95, "verdict": verdict}],
        },
        "further": [
            {
                "metric_title": "the same runs by another score",
                "arms": arms,
                "comparisons": [compared],
            }
        ],
    }
