"""ZeRO on real gloo ranks: DDP's numbers, less per rank, checkpoints for any strategy."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.toy import ToyLoader, on_ranks, toy_recipe, train_toy

pytest.importorskip("deepspeed")

from helpers.checkpoints import save_checkpoint

from benchmarks.strategies import STRATEGIES, Equivalence, Resume, measure
from colorgan.checkpoints.checkpoint import open_checkpoint
from colorgan.config.recipe import FinetuneRecipe
from colorgan.data import Loaders
from colorgan.distributed.launch_profile import LaunchProfile, check_launch, launch_profile
from colorgan.distributed.ranks import Ranks
from colorgan.errors import LaunchError
from colorgan.models.model_folder import load_model
from colorgan.tasks.finetuning import FinetuneJob, finetune
from colorgan.tasks.initial_model import initial_model
from colorgan.tasks.transfer import stages_in_images

ROOT = Path(__file__).resolve().parents[3]
PROFILES = ROOT / "launcher" / "configs" / "accelerate"
# Every stage is stopped under and taken up under once; `benchmarks/strategies.py` runs all pairs.
PAIRS = (
    ("ddp", "zero2"),
    ("zero1", "zero3"),
    ("zero2", "zero1"),
    ("zero3", "ddp"),
)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Equivalence], list[Resume]]:
    return measure(tmp_path_factory.mktemp("strategies"), PAIRS)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains_as_one_process(
    name: str, tables: tuple[list[Equivalence], list[Resume]]
) -> None:
    rows = [row for row in tables[0] if row.strategy == name]
    assert sorted((row.ranks, row.accumulation) for row in rows) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for row in rows:
        assert row.differences.keys() == {"generator", "discriminator"}
        assert max(row.differences.values()) < 1e-6, row


def test_a_rank_holds_less_with_every_stage(tables: tuple[list[Equivalence], list[Resume]]) -> None:
    held = {row.strategy: row.held for row in tables[0] if row.ranks == 2 and row.accumulation == 1}
    ddp = held["ddp"]

    assert (
        held["zero1"]["optimizer"] < 0.76 * ddp["optimizer"]
    )  # half of two moments and of a copy of the weights
    assert held["zero1"]["gradients"] > 0.9 * ddp["gradients"]
    assert (
        held["zero2"]["gradients"] < 0.7 * ddp["gradients"]
    )  # a weight on the border counts whole
    assert held["zero2"]["weights"] > 0.9 * ddp["weights"]
    assert held["zero3"]["weights"] < 0.51 * ddp["weights"]
    assert sum(held["zero3"].values()) < 0.65 * sum(ddp.values())


@pytest.mark.parametrize("pair", PAIRS)
def test_a_run_goes_on_under_another_strategy(
    pair: tuple[str, str], tables: tuple[list[Equivalence], list[Resume]]
) -> None:
    rows = [row for row in tables[1] if (row.first, row.second) == pair]
    assert [row.ranks for row in rows] == [(2, 2), (2, 1), (1, 2)]
    for row in rows:
        assert row.difference < 2e-6, row
        assert row.samples == "each of 48 once"


OFFLOAD = {"offload": LaunchProfile(2, offload_optimizer=True)}


def _check_all_precisions(ranks: Ranks) -> None:
    reports: dict[str, list[dict[str, float]]] = {}
    for name, profile in {**STRATEGIES, **OFFLOAD}.items():
        _check_precision_and_clipping(replace(ranks, profile=profile), reports, name)


def _check_all_networks(ranks: Ranks, folder: str) -> None:
    for name, profile in {**STRATEGIES, **OFFLOAD}.items():
        _check_whole_networks(
            replace(ranks, profile=profile),
            Path(folder) / name,
        )


def _check_precision_and_clipping(
    ranks: Ranks, reports: dict[str, list[dict[str, float]]], name: str
) -> None:
    recipe = toy_recipe(
        Path("unused"),
        batch={"global_batch_size": 8, "precision": "bf16"},
        optimizer={"learning_rate": 1e-3, "gradient_clip_norm": 0.5},
    )
    reports[name] = train_toy(recipe, ranks, num_steps=3, micro_batch_size=2)[2]

    for ours, theirs in zip(reports[name], reports["ddp"], strict=True):
        assert ours["gradient_norm/generator"] > 0.5
        assert ours == pytest.approx(theirs, rel=0.02), name


def _check_whole_networks(ranks: Ranks, folder: Path) -> None:
    """Batch-norm statistics agree; `evaluated` is the checkpoint's, averaged and raw."""
    recipe = toy_recipe(folder, ema_half_life_images=20)
    _, strategy, _ = train_toy(
        recipe,
        ranks,
        num_steps=2,
        micro_batch_size=2,
    )
    path = save_checkpoint(
        folder, ranks=ranks, roles=strategy.state(), state={"images_seen": 16}, keep_last=1
    )
    found = open_checkpoint(path)
    for average, role in ((False, "generator"), (True, "generator_average")):
        whole = strategy.evaluated("generator", ema=average).state_dict()
        saved = found.tensors(role)
        assert whole.keys() == saved.keys()
        for name, tensor in whole.items():
            assert torch.equal(tensor, saved[name]), name
    released = strategy.release("generator").state_dict()

    assert all(
        torch.equal(released[name], tensor) for name, tensor in found.tensors("generator").items()
    )


class _Labelled(ToyLoader):
    def batch(self, slots: range) -> Any:
        batch = super().batch(slots)
        batch.classes_BC = (batch.lab_B3HW[:, 0, 0, :3] > 0).float()
        return batch


def _check_fine_tuning(ranks: Ranks, path: str) -> None:
    """Two stages (features frozen, then all), an engine each, give the model that DDP gives."""
    folder = Path(path)
    trained = []

    for name in ("ddp", "zero1", "zero3"):
        recipe = FinetuneRecipe.model_validate(
            {
                "run": folder / f"classify-{name}",
                "init": "generator",
                "head_width": 8,
                "network": {"image_size": 32, "width": 4, "norm": "instance"},
                "batch": {"global_batch_size": 8},
                "stages": [
                    {"epochs": 1, "learning_rate": 1e-3, "features": "frozen"},
                    {"epochs": 1, "learning_rate": 1e-4},
                ],
                "weight_decay": 0.1,
                "layer_decay": 0.5,
            }
        )
        recipe = recipe.model_copy(update={"init": "scratch"})  # any weights will do
        model, config = initial_model(recipe, ("a", "b", "c"), ())
        stages = stages_in_images(recipe, 16)
        loader = _Labelled(8, 4, ranks.rank, ranks.world_size)
        mine = replace(ranks, profile=STRATEGIES[name])
        job = FinetuneJob(
            recipe,
            model,
            config,
            stages,
            "toy",
            Loaders(loader, None),
        )
        finetune(job, mine)
        trained.append(load_model(recipe.run / "model")[0].state_dict())

    for other in trained[1:]:
        assert all(
            torch.allclose(other[name], tensor, atol=1e-6) for name, tensor in trained[0].items()
        )


def test_bf16_and_clipping_are_those_of_ddp() -> None:
    on_ranks(2, _check_all_precisions)


def test_networks_are_whole_when_evaluated_saved_and_released(tmp_path: Path) -> None:
    on_ranks(2, _check_all_networks, str(tmp_path))


def test_stages_of_fine_tuning_give_the_model_of_ddp(tmp_path: Path) -> None:
    on_ranks(2, _check_fine_tuning, str(tmp_path))


ONE_RANK = """
import sys
sys.path.insert(0, "tests")
from dataclasses import replace
from pathlib import Path
from helpers.toy import toy_recipe, train_toy
from colorgan.distributed.launch_profile import LaunchProfile
from colorgan.distributed.ranks import Ranks
ranks = replace(Ranks.single(), profile=LaunchProfile(2))
train_toy(toy_recipe(Path("unused")), ranks, num_steps=1, micro_batch_size=8)
print("trained")
"""

# What is asked of whole networks, under the strategy that takes their weights apart.
WHOLE = """
import sys
sys.path.insert(0, "tests")
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from helpers.tiny_set import tiny_sample, write_set
from helpers.toy import toy_recipe
from colorgan.distributed.launch_profile import LaunchProfile
from colorgan.distributed.ranks import Ranks
from colorgan.doctor.worker import job_steps
from colorgan.errors import UsageError
from colorgan.tasks import pretraining
from colorgan.training import plan

folder = Path(sys.argv[1])
data = write_set(folder / "set", [tiny_sample(index) for index in range(16)])
ranks = replace(Ranks.single(), profile=LaunchProfile(3))
recipe = toy_recipe(folder / "run", images=16)
recipe = recipe.model_copy(
    update={"data": recipe.data.model_copy(update={"train": (data,)}), "dry_run": True}
)
pretraining.run(recipe, ranks)
network = {"image_size": 32, "width": 4}
job_steps(ranks, str(data), network, [{"global_batch_size": 8}], 0.01)

Usage = namedtuple("Usage", "total used free")
plan.shutil.disk_usage = lambda path: Usage(1 << 40, 0, 1 << 20)
try:
    pretraining.run(recipe.model_copy(update={"dry_run": False}), ranks)
except UsageError as error:
    print(error)
"""


# From a run in which norms alone learned, so that other weights have no moments.
SOME_MOMENTS = """
import sys
sys.path.insert(0, "tests")
from dataclasses import replace
from pathlib import Path
from helpers.toy import ToyLoader, toy_recipe
from colorgan.distributed.launch_profile import LaunchProfile
from colorgan.distributed.ranks import Ranks
from colorgan.tasks.pretraining import pretrain

def train(ranks, name, **settings):
    recipe = toy_recipe(Path(sys.argv[1]) / name, loss={"gan": "none"}, **settings)
    loader = ToyLoader(8, 8, 0, 1)
    pretrain(recipe, ranks, total_images=16, data_digest="x", train=loader, val=None)

one = Ranks.single()
train(one, "norms", optimizer={"trained": "norms"})
profile = LaunchProfile(int(sys.argv[2]))
train(replace(one, profile=profile), "all", resume_from=Path(sys.argv[1]) / "norms")
print("went on")
"""


def _alone(script: str, *words: str) -> str:
    """Run a script without a launcher in a process of its own; return what it printed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    result = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"},
        cwd=ROOT,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize("stage", [1, 3])
def test_weights_without_moments_start_afresh(tmp_path: Path, stage: int) -> None:
    assert "went on" in _alone(SOME_MOMENTS, str(tmp_path), str(stage))


def test_one_process_without_a_launcher_trains_under_zero() -> None:
    assert "trained" in _alone(ONE_RANK)


def test_plan_doctor_and_the_look_at_the_disk_see_whole_networks(tmp_path: Path) -> None:
    told = _alone(WHOLE, str(tmp_path))
    assert "Dry run: nothing was trained." in told
    assert '"gflop": ' in told
    assert re.search(r"has 1 MiB free, but the run's checkpoints need [1-9]\d* MiB", told), told


DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


def test_the_profile_is_read_from_what_accelerate_sets() -> None:
    assert launch_profile({}) == LaunchProfile()
    assert launch_profile({"ACCELERATE_MIXED_PRECISION": "no"}).name == "ddp"
    assert launch_profile(DEEPSPEED).name == "zero3"
    offload = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}
    assert launch_profile(offload) == LaunchProfile(3, offload_optimizer=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "zero_stage is 0: use 1, 2 or 3"),
        (
            {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"},
            "offload_optimizer_device is nvme: use none or cpu",
        ),
        (
            {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"},
            "only the optimizer can be offloaded",
        ),
        (
            {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"},
            r"deepspeed_config_file ds\.json, which is not read",
        ),
        (
            {"ACCELERATE_MIXED_PRECISION": "fp16"},
            "mixed_precision fp16, but precision is the recipe's",
        ),
    ],
)
def test_a_profile_that_cannot_be_followed_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        launch_profile({**DEEPSPEED, **change})


def test_without_deepspeed_a_zero_profile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        LaunchError,
        match=r"zero3\.yaml needs DeepSpeed, which is not installed: pip install 'deepspeed",
    ):
        launch_profile(DEEPSPEED)


def test_a_gpu_profile_without_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launched = {**DEEPSPEED, "ACCELERATE_MIXED_PRECISION": "no", "LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(
        LaunchError, match=r"for GPUs, but this machine shows none.*zero3_cpu\.yaml"
    ):
        check_launch(launched)
    check_launch({**launched, "CUDA_VISIBLE_DEVICES": "-1,-1"})


def test_a_profile_and_its_cpu_twin_differ_in_the_device_only() -> None:
    names = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    assert names == sorted(f"{name}{twin}" for name in STRATEGIES for twin in ("", "_cpu"))
    for name in STRATEGIES:
        ours, twin = (
            yaml.safe_load((PROFILES / f"{name}{end}.yaml").read_text()) for end in ("", "_cpu")
        )
        assert twin == {**ours, "use_cpu": True, "gpu_ids": "-1,-1"}


# One write a line: unbuffered prints of two ranks run into each other.
SCRIPT = """
import os
from colorgan.distributed.ranks import close_ranks, open_ranks
ranks = open_ranks(timeout_s=60)
started = f"started {ranks.rank} {ranks.world_size} {ranks.device} {ranks.profile.name}\\n"
os.write(1, started.encode())
close_ranks()
"""


@pytest.mark.parametrize("name", ["ddp", "zero2"])
def test_accelerate_launch_starts_the_profile(tmp_path: Path, name: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(PROFILES / f"{name}_cpu.yaml"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    started = sorted(line for line in result.stdout.splitlines() if line.startswith("started"))

    assert started == [f"started {rank} 2 cpu {name}" for rank in (0, 1)], result.stderr[-2000:]
