"""Phase, Strategy and its settings: what training asks of a strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from colorgan.distributed.ranks import Ranks
from colorgan.distributed.state import Roles, Saved

Network = Callable[..., Tensor]
Precision = Literal["fp32", "bf16"]
# A key of an optimizer's parameter group: its share of the phase's learning rate; absent: 1.
RATE_SHARE = "rate_share"


@dataclass
class Phase:
    """One turn of a training step: the network it trains, its optimizer, how often, at which rate.

    `learning_rate` maps images seen to the rate.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]


@dataclass(frozen=True)
class StrategySettings:
    """How phases are trained, the same for every strategy.

    Attributes:
        precision: "bf16" runs forward passes under autocast; weights stay float32.
        gradient_clip_norm: Largest gradient norm per network; 0: no clipping.
        channels_last: Keep the networks in NHWC memory format (DDP only).
        compile: Compile the networks with torch.compile (DDP only).
        compress_gradients: Send gradients between ranks as bfloat16 (DDP only).
        gradient_bucket_mb: Size in MiB of the pieces in which DDP sends gradients.
        ema: Name of the phase whose weights are averaged (EMA), if `ema_half_life_images` is not 0.
        ema_half_life_images: Half-life of that average in images seen; 0: no average.
    """

    precision: Precision = "fp32"
    gradient_clip_norm: float = 0.0
    channels_last: bool = False
    compile: bool = False
    compress_gradients: bool = False
    gradient_bucket_mb: int = 25
    ema: str | None = None
    ema_half_life_images: int = 0

    @property
    def ema_name(self) -> str | None:
        """The phase whose weights are averaged; None without an average."""
        return self.ema if self.ema_half_life_images else None

    def ema_decay(self, num_images: int) -> float:
        """Return the share of the average that stays after a step of `num_images`."""
        # A half-life in images, not in steps: another batch size leaves the average as wide.
        return float(0.5 ** (num_images / self.ema_half_life_images))


class Strategy(Protocol):
    """Trains the phases' networks over the ranks.

    Every method is collective except `networks`, `turn` and `autocast`.
    """

    ranks: Ranks
    phases: dict[str, Phase]
    ema_name: str | None  # the network whose weights are averaged

    def networks(self, phase: Phase) -> dict[str, Network]:
        """Return the callables of a phase's turn: its own collects gradients, the others do not."""

    def turn(self, phase: Phase) -> AbstractContextManager[None]:
        """While open, only the phase's own network learns: no gradient reaches the others."""

    def micro_step(self, phase: Phase, *, last: bool) -> AbstractContextManager[None]:
        """Surround forward and backward of one micro-batch."""

    def autocast(self) -> torch.autocast:
        """Return the context of the recipe's precision for a forward pass."""

    def backward(self, phase: Phase, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's loss to the phase's network."""

    def step(self, phase: Phase, images_seen: int) -> Tensor:
        """Clip, update weights, clear gradients; return the gradient norm before clipping."""

    def end_step(self, num_images: int) -> None:
        """Average batch-norm statistics over the ranks and move the weight average."""

    def evaluated(self, name: str, *, ema: bool | None = None) -> nn.Module:
        """Return a whole network to run, not to train.

        Args:
            name: The phase's name.
            ema: True for averaged weights, False for raw ones; None: averaged if there is an
                average.
        """

    def state(self) -> Roles:
        """Return what this rank holds of weights and optimizer states, by role and name."""

    def load_state(self, saved: Saved, *, with_optimizers: bool = True) -> None:
        """Load what `state` of any strategy, on any number of ranks, was saved as."""

    def release(self, name: str) -> nn.Module:
        """End this strategy; return a network with its weights, for another one to train."""

    def held(self) -> dict[str, list[Tensor]]:
        """Return the weights, gradients and optimizer states on this rank now; for accounting."""


@contextmanager
def frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While open, no parameter of `modules` collects a gradient.

    Otherwise one phase's backward pass adds to another's gradients, and accumulation is silently
    wrong.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    # Kept one by one: in fine-tuning some are frozen for good.
    tracked = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)

    try:
        yield
    finally:
        for parameter, flag in zip(parameters, tracked, strict=True):
            parameter.requires_grad_(flag)


@torch.no_grad()
def average_statistics(modules: Iterable[nn.Module], ranks: Ranks) -> None:
    """Set each floating-point buffer to its mean over the ranks. Called on all ranks.

    Those of frozen parts, which are in eval mode, are alike on all and stay as they are: a mean of
    three rounds.
    """
    if ranks.world_size == 1:
        return

    parts = [part for module in modules for part in module.modules() if part.training]
    buffers = [b for part in parts for b in part.buffers(recurse=False) if b.is_floating_point()]
    if not buffers:
        return

    # In one message: a network has dozens of small buffers, and latency would rule.
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= ranks.world_size

    split = torch.split(flat, [buffer.numel() for buffer in buffers])
    means = [part.view_as(buffer) for part, buffer in zip(split, buffers, strict=True)]
    torch._foreach_copy_(buffers, means)
