"""The loop against a hand-written step, accumulation, real gloo ranks, interruptions."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.networks import small_unet
from helpers.toy import ToyLoader, on_ranks, toy_recipe, train_toy
from torch import Tensor
from torch.nn import functional as F

from colorgan.checkpoints.checkpoint import latest_checkpoint
from colorgan.distributed.ranks import Ranks
from colorgan.errors import TrainingError
from colorgan.models.discriminator import Discriminator
from colorgan.models.modes import dropout_keys, initialise, set_dropout_keys
from colorgan.tasks.colorization import build_pretraining
from colorgan.tasks.pretraining import pretrain
from colorgan.training.loop import Hooks, Intervals, StopSignals, fit

ONE = Ranks.single()
# Differences between ways of cutting a batch are tested without what amplifies rounding noise:
# Adam, L1's sign flips.
EXACT = {
    "network": {"image_size": 32, "width": 4, "norm": "instance"},
    "loss": {"gan": "least_squares", "l1_weight": 0.0},
    "optimizer": {"learning_rate": 0.01},
}


def weights(strategy: Any) -> dict[str, Tensor]:
    return {
        f"{role}/{name}": t.clone()
        for role, ts in strategy.state().items()
        for name, t in ts.items()
    }


def largest_difference(
    a: dict[str, Tensor],
    b: dict[str, Tensor],
    prefix: tuple[str, ...],
) -> float:
    assert a.keys() == b.keys()
    return max(
        float((a[k].double() - b[k].double()).abs().max()) for k in a if k.startswith(prefix)
    )


def test_two_steps_equal_a_hand_written_gan(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, optimizer={"learning_rate": 1e-3})
    _, strategy, _ = train_toy(recipe, ONE, num_steps=2, micro_batch_size=8)

    generator = small_unet(image_size=32, width=4)
    discriminator = Discriminator(width=4, num_strided_blocks=2)
    initialise(generator, 0)
    initialise(discriminator, 1)
    adam_g = torch.optim.Adam(
        generator.parameters(),
        lr=1e-3,
        betas=(0.5, 0.999),
        fused=True,
    )
    adam_d = torch.optim.Adam(
        discriminator.parameters(),
        lr=1e-3,
        betas=(0.5, 0.999),
        fused=True,
    )
    ones = torch.ones_like
    bce = F.binary_cross_entropy_with_logits
    for step in range(2):
        batch = ToyLoader(8, 8).batch(
            range(
                8 * step,
                8 * step + 8,
            )
        )
        grey = batch.lab_B3HW[:, :1]
        color = batch.lab_B3HW[:, 1:]
        set_dropout_keys(generator, dropout_keys(0, batch.positions_B))
        fake = generator(grey).detach()
        real_logits = discriminator(grey, color)
        fake_logits = discriminator(grey, fake)
        loss = 0.5 * (bce(real_logits, ones(real_logits)) + bce(fake_logits, 0 * ones(fake_logits)))
        adam_d.zero_grad()
        loss.backward()
        adam_d.step()
        fake = generator(grey)
        logits = discriminator(grey, fake)
        adam_g.zero_grad()
        (bce(logits, ones(logits)) + 100.0 * F.l1_loss(fake, color)).backward()
        adam_g.step()
    for name, tensor in generator.state_dict().items():
        assert torch.allclose(
            strategy.state()["generator"][name],
            tensor,
            atol=1e-6,
        ), name
    for name, tensor in discriminator.named_parameters():
        assert torch.allclose(
            strategy.state()["discriminator"][name],
            tensor,
            atol=1e-6,
        ), name


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, **EXACT)
    whole = weights(train_toy(recipe, ONE, num_steps=3, micro_batch_size=8, sgd=True)[1])

    for micro in (4, 2):
        cut = weights(train_toy(recipe, ONE, num_steps=3, micro_batch_size=micro, sgd=True)[1])
        assert (
            largest_difference(
                whole,
                cut,
                ("generator/", "discriminator/"),
            )
            < 1e-6
        )


def _train_and_save(
    ranks: Ranks,
    folder: str,
    micro: int,
    changes: dict[str, Any],
) -> None:
    _, strategy, _ = train_toy(
        toy_recipe(Path(folder), **changes), ranks, num_steps=3, micro_batch_size=micro, sgd=True
    )
    if ranks.main:
        torch.save(
            weights(strategy),
            Path(folder) / "weights.pt",
        )


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    on_ranks(
        2,
        _train_and_save,
        str(tmp_path),
        2,
        EXACT,
    )
    two = torch.load(tmp_path / "weights.pt", weights_only=True)
    one = weights(
        train_toy(toy_recipe(tmp_path, **EXACT), ONE, num_steps=3, micro_batch_size=2, sgd=True)[1]
    )

    assert (
        largest_difference(
            one,
            two,
            ("generator/", "discriminator/"),
        )
        < 1e-6
    )


def test_the_generators_turn_leaves_the_discriminator_alone(tmp_path: Path) -> None:
    task, strategy = build_pretraining(
        toy_recipe(tmp_path),
        ONE,
        8,
    )
    discriminator, generator = (strategy.phases[name] for name in ("discriminator", "generator"))
    batch = ToyLoader(8, 8).batch(range(8))
    with strategy.turn(generator):
        loss, _ = task.loss(
            generator,
            batch,
            strategy.networks(generator),
        )
        loss.backward()

    assert all(p.grad is None for p in discriminator.module.parameters())
    assert all(p.requires_grad for p in discriminator.module.parameters())
    assert all(p.grad is not None for p in generator.module.parameters())


def test_the_weight_average_follows_its_half_life(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, ema_half_life_images=8)
    task, strategy = build_pretraining(recipe, ONE, 8)
    before = weights(strategy)
    hooks = Hooks(
        lambda report: None,
        lambda images: None,
        lambda images: None,
    )
    fit(
        task,
        strategy,
        ToyLoader(8, 8),
        Intervals(8, 8, 8),
        hooks,
        StopSignals(),
    )
    after = weights(strategy)
    name = "encoder.blocks.0.conv.weight"
    middle = 0.5 * (before[f"generator/{name}"] + after[f"generator/{name}"])

    assert torch.allclose(
        after[f"generator_average/{name}"],
        middle,
        atol=1e-7,
    )

    statistic = "encoder.blocks.1.norm.running_mean"
    assert torch.equal(
        after[f"generator_average/{statistic}"],
        after[f"generator/{statistic}"],
    )


def test_gradient_norm_is_clipped(tmp_path: Path) -> None:
    from colorgan.distributed.phase import Phase

    recipe = toy_recipe(tmp_path, optimizer={"gradient_clip_norm": 1e-3})
    _, strategy = build_pretraining(recipe, ONE, 8)
    phase: Phase = strategy.phases["generator"]
    for parameter in phase.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    seen: list[float] = []
    phase.optimizer.step = lambda: seen.append(  # type: ignore[method-assign]
        float(
            torch.nn.utils.get_total_norm(
                [p.grad for p in phase.module.parameters() if p.grad is not None]
            )
        )
    )
    norm = strategy.step(phase, 0)
    assert float(norm) == pytest.approx(
        sum(p.numel() for p in phase.module.parameters()) ** 0.5, rel=1e-5
    )
    assert seen == pytest.approx([1e-3], rel=1e-3)


@pytest.mark.parametrize("gan", ["bce", "least_squares", "hinge", "none"])
def test_every_objective_trains(tmp_path: Path, gan: str) -> None:
    recipe = toy_recipe(
        tmp_path, loss={"gan": gan, "l1_weight": 100}, optimizer={"learning_rate": 2e-3}
    )
    _, strategy, reports = train_toy(recipe, ONE, num_steps=6, micro_batch_size=8)
    assert reports[-1]["l1"] < reports[0]["l1"]
    assert ("discriminator" in strategy.phases) == (gan != "none")


def test_bf16_trains_close_to_fp32(tmp_path: Path) -> None:
    plain = train_toy(toy_recipe(tmp_path), ONE, num_steps=2, micro_batch_size=8)[2]
    batch = {"global_batch_size": 8, "precision": "bf16", "channels_last": True}
    mixed = train_toy(toy_recipe(tmp_path, batch=batch), ONE, num_steps=2, micro_batch_size=8)[2]

    assert mixed[-1]["l1"] == pytest.approx(
        plain[-1]["l1"],
        rel=0.02,
    )
    assert mixed != plain


def _pretrain(folder: Path, ranks: Ranks = ONE, total: int = 48, **changes: Any) -> Any:
    recipe = toy_recipe(folder, ema_half_life_images=20, **changes)
    size = recipe.batch.global_batch_size
    loader = ToyLoader(
        size,
        size // ranks.world_size,
        ranks.rank,
        ranks.world_size,
    )

    return pretrain(recipe, ranks, total_images=total, data_digest="abc", train=loader, val=loader)


def final_state(folder: Path) -> dict[str, Tensor]:
    found = latest_checkpoint(
        folder / "checkpoints",
        ONE,
        pytest.fail,
    )

    assert found is not None
    return {
        f"{role}/{name}": t for role in found.roles() for name, t in found.tensors(role).items()
    }


class _KilledError(Exception):
    """Stands for SIGKILL: nothing of ours runs after it."""


@pytest.mark.parametrize("killed_at", [8, 24, 40])
def test_a_killed_run_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    _pretrain(tmp_path / "whole")

    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(ToyLoader, "batch", _batch_until(killed_at))
        _pretrain(tmp_path / "killed")

    outcome = _pretrain(tmp_path / "killed")
    assert outcome.images_seen == 48
    whole = final_state(tmp_path / "whole")
    resumed = final_state(tmp_path / "killed")

    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def _batch_until(slot: int) -> Any:
    original = ToyLoader.batch

    def batch(self: ToyLoader, slots: range) -> Any:
        if slots.start == slot:
            raise _KilledError
        return original(self, slots)

    return batch


def _pretrain_on_ranks(ranks: Ranks, folder: str, stop_at: int) -> None:
    original = ToyLoader.batch

    def batch(self: ToyLoader, slots: range) -> Any:
        if ranks.rank == 1 and slots.start >= stop_at >= 0:
            os.kill(os.getpid(), signal.SIGUSR2)  # to one rank only
        return original(self, slots)

    ToyLoader.batch = batch  # type: ignore[method-assign]
    outcome = _pretrain(Path(folder), ranks)
    assert outcome.stopped == ("SIGUSR2" if stop_at >= 0 else None)  # on both
    if stop_at >= 0:
        # Asked once more while it leaves, as SLURM's script does: the status stays the run's own.
        os.kill(os.getpid(), signal.SIGTERM)


def test_two_ranks_stop_together_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    on_ranks(
        2,
        _pretrain_on_ranks,
        str(tmp_path / "whole"),
        -1,
    )
    on_ranks(
        2,
        _pretrain_on_ranks,
        str(tmp_path / "stopped"),
        20,
    )

    assert final_state(tmp_path / "stopped").keys() == final_state(tmp_path / "whole").keys()
    on_ranks(
        2,
        _pretrain_on_ranks,
        str(tmp_path / "stopped"),
        -1,
    )
    whole = final_state(tmp_path / "whole")
    resumed = final_state(tmp_path / "stopped")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_finished_run_is_scored_again_and_left_as_it_is(tmp_path: Path) -> None:
    first = _pretrain(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").rglob("*")}
    second = _pretrain(tmp_path)
    assert second.scores == first.scores
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").rglob("*")} == before


def test_a_loss_that_is_no_number_is_never_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(*arguments: Any, **keywords: Any) -> None:
        pytest.fail("weights that are no numbers were validated")

    monkeypatch.setattr(ToyLoader, "eval_batches", judged)
    with pytest.raises(TrainingError, match=r"is (nan|inf) at \d+ images"):
        _pretrain(
            tmp_path,
            optimizer={"learning_rate": 1e30},
            loss={"gan": "least_squares"},
            # A validation long before the first line of the log, and before the first save.
            output={
                "log_every_images": 1000,
                "save_every_images": 0,
                "validate_every_images": 16,
                "num_pictures": 0,
            },
        )


def test_a_loss_that_is_no_number_stops_before_saving(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"is (nan|inf) at \d+ images: lower the learning rate"):
        _pretrain(
            tmp_path,
            optimizer={"learning_rate": 1e30},
            loss={"gan": "least_squares"},
        )

    found = latest_checkpoint(
        tmp_path / "checkpoints",
        ONE,
        pytest.fail,
    )

    assert found is None or all(
        bool(t.isfinite().all()) for t in found.tensors("generator").values()
    )
