"""One process and DDP: resuming in every memory format, compiled networks, compressed gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toy import ToyLoader, on_ranks, toy_recipe
from torch import Tensor, nn

from colorgan.checkpoints.checkpoint import latest_checkpoint
from colorgan.distributed.launch_profile import LaunchProfile
from colorgan.distributed.phase import Phase, StrategySettings
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.strategy import open_strategy
from colorgan.errors import LaunchError
from colorgan.tasks.pretraining import pretrain

ONE = Ranks.single()
FORMATS: tuple[dict[str, Any], ...] = (
    {},
    {"channels_last": True},
    {"channels_last": True, "precision": "bf16"},
)


def train(folder: Path, total: int, batch: dict[str, Any], ranks: Ranks = ONE) -> None:
    """Pretrain in `folder` up to `total` images, from its newest checkpoint if there is one."""
    recipe = toy_recipe(
        folder,
        batch={"global_batch_size": 8, **batch},
        ema_half_life_images=16,
    )
    loader = ToyLoader(
        8,
        8 // ranks.world_size,
        ranks.rank,
        ranks.world_size,
    )

    pretrain(
        recipe,
        ranks,
        total_images=total,
        data_digest="x",
        train=loader,
        val=None,
    )


def saved_state(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint: weights, average, moments."""
    checkpoint = latest_checkpoint(folder / "checkpoints", ONE, pytest.fail)
    assert checkpoint is not None
    state = {}
    for role in checkpoint.roles():
        for name, tensor in checkpoint.tensors(role).items():
            state[f"{role}/{name}"] = tensor
    return state


def assert_same(a: Path, b: Path) -> None:
    ours = saved_state(a)
    theirs = saved_state(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("batch", FORMATS, ids=["plain", "nhwc", "nhwc-bf16"])
def test_a_resumed_run_ends_bit_for_bit_in_every_memory_format(
    tmp_path: Path, batch: dict[str, Any]
) -> None:
    train(tmp_path / "whole", 40, batch)
    train(tmp_path / "cut", 24, batch)
    train(tmp_path / "cut", 40, batch)
    assert_same(tmp_path / "cut", tmp_path / "whole")


def _train_whole_and_cut(ranks: Ranks, folder: str) -> None:
    batch = FORMATS[1]
    train(Path(folder, "whole"), 32, batch, ranks)
    train(Path(folder, "cut"), 16, batch, ranks)
    train(Path(folder, "cut"), 32, batch, ranks)


def test_two_ranks_resume_bit_for_bit_in_channels_last(tmp_path: Path) -> None:
    on_ranks(2, _train_whole_and_cut, str(tmp_path))
    assert_same(tmp_path / "cut", tmp_path / "whole")


def two_convolutions() -> list[Phase]:
    """Two phases of one convolution each, with Adam."""
    phases = []

    for name in ("a", "b"):
        module = nn.Conv2d(1, 2, 3)
        optimizer = torch.optim.Adam(
            module.parameters(),
            lr=0.1,
            fused=True,
        )
        phases.append(
            Phase(
                name,
                module,
                optimizer,
                lambda images_seen: 0.1,
            )
        )

    return phases


@pytest.mark.parametrize(
    "adam",
    [torch.optim.Adam, torch.optim.AdamW],
)
def test_loaded_moments_have_the_strides_of_their_weights(adam: Any) -> None:
    from colorgan.distributed.state import load_optimizer_state, optimizer_state

    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = adam(module.parameters(), lr=0.1, amsgrad=True)
    module(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()

    kept = {name: t.contiguous().clone() for name, t in optimizer_state(module, optimizer).items()}
    load_optimizer_state(module, optimizer, kept)
    for name, tensor in optimizer_state(module, optimizer).items():
        assert torch.equal(tensor, kept[name])
    for slots in (optimizer.state[module.weight],):
        moments = [value for value in slots.values() if value.dim()]
        assert len(moments) == 3
        assert all(moment.stride() == module.weight.stride() for moment in moments)


def test_compiled_networks_run_compiled_in_each_others_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: dict[nn.Module, nn.Module] = {}

    def compile_nothing(module: nn.Module) -> nn.Module:
        compiled[module] = nn.Sequential(module)
        return compiled[module]

    monkeypatch.setattr(torch, "compile", compile_nothing)
    phases = two_convolutions()
    strategy = open_strategy(ONE, phases, StrategySettings(compile=True))
    for phase in phases:
        networks = strategy.networks(phase)
        assert networks == {each.name: compiled[each.module] for each in phases}


def _train_with_bf16_gradients(ranks: Ranks) -> None:
    phase = two_convolutions()[0]
    with torch.no_grad():
        for parameter in phase.module.parameters():
            parameter.fill_(0.5)
    strategy = open_strategy(ranks, [phase], StrategySettings(compress_gradients=True))
    images = torch.full(
        (2, 1, 8, 8),
        1.0 + ranks.rank / 3,
    )
    with strategy.micro_step(phase, last=True):
        strategy.backward(
            phase,
            strategy.networks(phase)["a"](images).mean(),
        )

    # Of bfloat16's 8 bits, on every rank the same.
    gradient = phase.module.weight.grad
    assert isinstance(gradient, Tensor)
    assert torch.equal(gradient, gradient.bfloat16().float())
    expected = torch.full_like(
        gradient,
        (1.0 + 4 / 3) / 2 / 2,
    )
    assert torch.allclose(gradient, expected, rtol=0.01)


def test_gradients_travel_as_bf16_where_asked() -> None:
    on_ranks(2, _train_with_bf16_gradients)


@pytest.mark.parametrize("setting", ["compile", "channels_last", "compress_gradients"])
def test_zero_refuses_what_it_would_ignore(setting: str) -> None:
    ranks = Ranks(
        0,
        1,
        torch.device("cpu"),
        profile=LaunchProfile(2),
    )

    with pytest.raises(LaunchError, match=rf"batch\.{setting} is not supported under zero2"):
        open_strategy(
            ranks,
            two_convolutions(),
            StrategySettings(**{setting: True}),
        )
