"""What accelerate was asked for is followed, or refused in one sentence; never ignored."""

from __future__ import annotations

import pytest

from colorgan.distributed import launch_profile as module
from colorgan.distributed.launch_profile import LaunchProfile, launch_profile
from colorgan.errors import LaunchError
from colorgan.launchers import Process

PLAIN = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ACCELERATE_MIXED_PRECISION": "fp16"},
            "mixed_precision fp16, but precision is the recipe's",
        ),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
            "dynamo_backend inductor, but compiling is the recipe's",
        ),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP, which is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for Megatron-LM, which is not supported"),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
            "asks for a parallelism_config, which is not supported",
        ),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "gradient_accumulation_steps 4, but accumulation is the recipe's",
        ),
        (
            {"ACCELERATE_GRADIENT_CLIPPING": "1.0"},
            r"gradient_clipping 1\.0, but clipping is the recipe's",
        ),
    ],
)
def test_what_is_not_followed_is_refused(change: dict[str, str], message: str) -> None:
    assert launch_profile(PLAIN) == LaunchProfile()
    with pytest.raises(LaunchError, match=message):
        launch_profile({**PLAIN, **change})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gradient_accumulation_steps", "4"], "gradient_accumulation_steps 4"),
        (["--gradient_clipping=0.5"], r"gradient_clipping 0\.5"),
    ],
)
def test_options_that_accelerate_does_not_pass_on_are_read_from_its_command_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = (
        "python",
        "/bin/accelerate",
        "launch",
        "--cpu",
        *words,
        "pretrain.py",
        "--seed",
        "1",
    )
    monkeypatch.setattr(module, "launchers_above", lambda: [Process(1, 1, launcher)])

    with pytest.raises(LaunchError, match=message):
        launch_profile(PLAIN)


def test_words_of_the_script_are_not_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = ("python", "/bin/accelerate", "launch", "pretrain.py", "--gradient_clipping", "1")
    monkeypatch.setattr(module, "launchers_above", lambda: [Process(1, 1, launcher)])
    assert launch_profile(PLAIN) == LaunchProfile()
