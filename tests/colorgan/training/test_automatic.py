"""What `auto` and unset settings mean on each device, and over a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toy import toy_recipe

from colorgan.distributed.launch_profile import DATA_PARALLEL, LaunchProfile
from colorgan.distributed.ranks import Ranks
from colorgan.errors import LaunchError
from colorgan.training import automatic
from colorgan.training.automatic import chosen_for_device, speed_hint, strategy_settings

CPU, GPU = "cpu", "cuda"


def choose(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    bf16: bool,
    batch: dict[str, Any],
    earlier: dict[str, Any] | None = None,
    profile: LaunchProfile = DATA_PARALLEL,
) -> tuple[Any, Any]:
    """Precision and memory format chosen for a device with or without bf16."""
    monkeypatch.setattr(automatic, "has_bf16", lambda device: bf16)
    recipe = toy_recipe(
        Path("unused"),
        batch={"global_batch_size": 8, **batch},
    )
    ranks = Ranks(
        0,
        1,
        torch.device(device),
        profile=profile,
    )
    chosen = chosen_for_device(recipe, ranks, {"batch": earlier or {}}).batch

    return chosen.precision, chosen.channels_last


AUTO = {"precision": "auto", "channels_last": "auto"}


@pytest.mark.parametrize(
    ("device", "bf16", "batch", "expected"),
    [
        (CPU, True, {}, ("fp32", False)),
        (CPU, True, AUTO, ("bf16", True)),
        (CPU, False, AUTO, ("fp32", False)),
        (GPU, True, {}, ("bf16", True)),
        (GPU, True, {"precision": "fp32"}, ("fp32", False)),
        (GPU, True, {"channels_last": False}, ("bf16", False)),
        (GPU, False, {}, ("fp32", False)),
        (CPU, False, {"precision": "bf16", "channels_last": True}, ("bf16", True)),
    ],
)
def test_what_is_unset_follows_the_device(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    bf16: bool,
    batch: dict[str, Any],
    expected: tuple[str, bool],
) -> None:
    assert choose(monkeypatch, device, bf16, batch) == expected


@pytest.mark.parametrize("batch", [{}, AUTO])
def test_a_run_keeps_its_choice_on_another_device(
    monkeypatch: pytest.MonkeyPatch, batch: dict[str, Any]
) -> None:
    earlier = {"precision": "bf16", "channels_last": True}
    assert choose(monkeypatch, CPU, False, batch, earlier) == ("bf16", True)
    earlier = {"precision": "fp32", "channels_last": False}
    assert choose(monkeypatch, GPU, True, batch, earlier) == ("fp32", False)


def test_a_run_is_resumed_under_zero_in_the_usual_format(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = {"precision": "bf16", "channels_last": True}
    chosen = choose(monkeypatch, GPU, True, {}, earlier, LaunchProfile(2))
    assert chosen == ("bf16", False)


def test_bf16_on_a_gpu_that_emulates_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(LaunchError, match=r"Tesla T4 only emulates, slowly: use --batch.precision"):
        choose(monkeypatch, GPU, False, {"precision": "bf16"})


def test_float32_on_a_gpu_with_bf16_is_hinted_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "has_bf16", lambda device: True)
    gpu = Ranks(0, 1, torch.device("cuda"))
    recipe = toy_recipe(
        Path("unused"),
        batch={"global_batch_size": 8, "precision": "fp32"},
    )

    assert "--batch.precision auto" in str(speed_hint(recipe, gpu))
    assert speed_hint(recipe, Ranks.single()) is None


def test_what_a_cpu_computes_by_default_is_float32_in_the_usual_format() -> None:
    settings = strategy_settings(toy_recipe(Path("unused")), gradient_clip_norm=0.0)
    assert (settings.precision, settings.channels_last) == ("fp32", False)
    assert not settings.compress_gradients
