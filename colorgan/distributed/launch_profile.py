"""The launch profile: what the launcher's environment asks for, checked before anything starts.

`accelerate launch --config_file launcher/configs/accelerate/zero2.yaml ...` sets the variables that
are read here; `colorgan/distributed/ranks.py` follows the result.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from colorgan.errors import LaunchError
from colorgan.launchers import launchers_above, wants_cpu
from shards.extras import install_command

PROFILES = "launcher/configs/accelerate"
_ZERO = "ACCELERATE_DEEPSPEED_"
_OTHER_STRATEGIES = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
    "a parallelism_config": "ACCELERATE_USE_PARALLELISM_CONFIG",
}


@dataclass(frozen=True)
class LaunchProfile:
    """How weights, gradients and optimizer state are held over the ranks."""

    zero_stage: int = 0  # DeepSpeed ZeRO 1, 2 or 3; 0: DDP
    offload_optimizer: bool = False  # the optimizer's state in CPU memory (ZeRO only)

    @property
    def name(self) -> str:
        """`ddp`, `zero1`, `zero2` or `zero3`, as the file is called."""
        return f"zero{self.zero_stage}" if self.zero_stage else "ddp"


DATA_PARALLEL = LaunchProfile()


def launch_profile(environment: Mapping[str, str] | None = None) -> LaunchProfile:
    """Return what the launcher asks for.

    Raises:
        LaunchError: A stage, an offload or a precision is not supported, or DeepSpeed is not
            installed.
    """
    env = os.environ if environment is None else environment
    if not any(name.startswith("ACCELERATE_") for name in env):
        return DATA_PARALLEL  # accelerate did not start this process; its library stays unloaded

    from accelerate.utils import parse_flag_from_env, patch_environment

    # accelerate's parsers read os.environ; tests and the doctor ask about other environments.
    with patch_environment(**env):
        _refuse_unsupported()
        if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
            return DATA_PARALLEL
        return _zero_profile(env)


def _refuse_unsupported() -> None:
    """Raise if accelerate was asked for something that this project does not do, or does itself."""
    from accelerate.utils import TorchDynamoPlugin, parse_choice_from_env, parse_flag_from_env

    precision = parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        raise LaunchError(
            f"the launch profile asks for mixed_precision {precision}, but precision is the "
            'recipe\'s: set mixed_precision: "no" (or --mixed_precision no) and --batch.precision '
            "bf16"
        )

    # accelerate's own reading of its variables, so that both agree on what was asked for.
    backend = TorchDynamoPlugin().backend.value
    if backend.lower() != "no":
        raise LaunchError(
            f"the launch profile asks for dynamo_backend {backend.lower()}, but compiling is the "
            "recipe's: set dynamo_backend no and --batch.compile true"
        )

    for name, flag in _OTHER_STRATEGIES.items():
        if parse_flag_from_env(flag):
            raise LaunchError(
                f"the launch profile asks for {name}, which is not supported: use "
                f"{PROFILES}/ddp.yaml, or zero1.yaml to zero3.yaml"
            )

    _refuse_training_settings()


def _refuse_training_settings() -> None:
    """Raise for accumulation and clipping, which accelerate passes on only to DeepSpeed."""
    from accelerate.utils import parse_choice_from_env

    steps = parse_choice_from_env("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    clipping = parse_choice_from_env("ACCELERATE_GRADIENT_CLIPPING", "auto")
    given = _launcher_arguments()
    steps = given.get("gradient_accumulation_steps") or steps
    clipping = given.get("gradient_clipping") or clipping

    if steps not in ("auto", "1"):
        raise LaunchError(
            f"the launch profile asks for gradient_accumulation_steps {steps}, but accumulation is "
            "the recipe's: remove it and set --batch.micro_batch_size"
        )
    # Zero means no clipping and contradicts nothing.
    if clipping not in ("auto", "none") and float(clipping) > 0:
        raise LaunchError(
            f"the launch profile asks for gradient_clipping {clipping}, but clipping is the "
            "recipe's: remove it and set --optimizer.gradient_clip_norm"
        )


def _launcher_arguments() -> dict[str, str]:
    """Return the two options that `accelerate launch` was given and does not pass on."""
    from accelerate.commands.launch import launch_command_parser

    # The two options reach no variable outside DeepSpeed, so the launcher's command line is read.
    for launcher in launchers_above():
        words = list(launcher.words)
        if "launch" not in words:
            continue
        arguments, _ = launch_command_parser().parse_known_args(words[words.index("launch") + 1 :])
        options = ("gradient_accumulation_steps", "gradient_clipping")
        given = {name: getattr(arguments, name, None) for name in options}
        return {name: str(value) for name, value in given.items() if value is not None}

    return {}


def _zero_profile(env: Mapping[str, str]) -> LaunchProfile:
    # 2 is what accelerate takes if a profile names none.
    stage = env.get(_ZERO + "ZERO_STAGE", "2")
    if stage not in ("1", "2", "3"):
        raise LaunchError(
            f"the launch profile's zero_stage is {stage}: use 1, 2 or 3, or {PROFILES}/ddp.yaml"
        )

    file = env.get(_ZERO + "CONFIG_FILE", "none")
    if file != "none":
        raise LaunchError(
            f"the launch profile names deepspeed_config_file {file}, which is not read: the recipe "
            f"sets precision, clipping and batches; remove the line ({PROFILES}/zero{stage}.yaml "
            "shows what is read)"
        )

    where = env.get(_ZERO + "OFFLOAD_PARAM_DEVICE", "none")
    if where != "none":
        raise LaunchError(
            f"offload_param_device is {where}: only the optimizer can be offloaded; set it to none"
        )

    where = env.get(_ZERO + "OFFLOAD_OPTIMIZER_DEVICE", "none")
    if where not in ("none", "cpu"):
        raise LaunchError(f"offload_optimizer_device is {where}: use none or cpu")

    # Looked up, not imported: importing takes seconds and may compile.
    if importlib.util.find_spec("deepspeed") is None:
        raise LaunchError(
            f"{PROFILES}/zero{stage}.yaml needs DeepSpeed, which is not installed: "
            f"{install_command('deepspeed')}, or use {PROFILES}/ddp.yaml"
        )
    return LaunchProfile(int(stage), where == "cpu")


def check_launch(environment: Mapping[str, str] | None = None) -> None:
    """Stop where a launcher would silently start something other than it was asked for.

    Raises:
        LaunchError: accelerate was asked for several processes and started one, or for GPUs where
            there are none.
    """
    env = os.environ if environment is None else environment
    # accelerate sets MASTER_ADDR but no WORLD_SIZE when it was asked for several processes and
    # starts one (`--cpu --num_processes 2`, `distributed_type: MULTI_CPU`).
    if "ACCELERATE_USE_CPU" in env and "MASTER_ADDR" in env and "WORLD_SIZE" not in env:
        raise LaunchError(
            "accelerate was asked for several processes but started one: use "
            f"`accelerate launch --config_file {PROFILES}/ddp_cpu.yaml` (CPU) or ddp.yaml (GPUs)"
        )

    by_accelerate = "ACCELERATE_MIXED_PRECISION" in env and "LOCAL_WORLD_SIZE" in env
    if by_accelerate and not wants_cpu(env) and not torch.cuda.is_available():
        raise LaunchError(
            "the launch profile is for GPUs, but this machine shows none (or not to this PyTorch): "
            f"use its CPU twin, for instance {PROFILES}/{launch_profile(env).name}_cpu.yaml"
        )
