"""No key collides with a launcher's options: words after the script's name reach it."""

from __future__ import annotations

import pytest
from accelerate.commands.launch import launch_command_parser
from deepspeed.launcher.runner import parse_args
from torch.distributed.run import get_args_parser

from colorgan.config.keys import aliases_of, schema_keys
from colorgan.config.recipe import FinetuneRecipe, PretrainRecipe
from colorgan.evaluation.settings import EvaluateSettings
from colorgan.probes.settings import ProbeSettings

SCHEMAS = (PretrainRecipe, FinetuneRecipe, EvaluateSettings, ProbeSettings)
WORDS = sorted(
    {key.name for schema in SCHEMAS for key in schema_keys(schema)}
    | {alias for schema in SCHEMAS for alias in aliases_of(schema)}
    | {"config", "help"}
)


def passes_torchrun(words: list[str]) -> bool:
    try:
        arguments = get_args_parser().parse_args(words)
    except SystemExit:
        return False

    return [
        arguments.training_script,
        *arguments.training_script_args,
    ] == words


def passes_accelerate(words: list[str]) -> bool:
    arguments, unknown = launch_command_parser().parse_known_args(words)
    return not unknown and [arguments.training_script, *arguments.training_script_args] == words


def passes_deepspeed(words: list[str]) -> bool:
    arguments = parse_args(words)
    return [
        arguments.user_script,
        *arguments.user_args,
    ] == words


@pytest.mark.parametrize(
    "passes",
    [passes_accelerate, passes_deepspeed, passes_torchrun],
)
def test_keys_reach_the_script(passes: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(passes)
    lost = [name for name in WORDS if not passes(["script.py", f"--{name}", "1"])]
    # torchrun cannot tell `--run` from its own --run-path; `--run_dir` is the same key.
    assert lost == (["run"] if passes is passes_torchrun else [])
    assert aliases_of(PretrainRecipe)["run_dir"] == aliases_of(FinetuneRecipe)["run_dir"] == "run"
