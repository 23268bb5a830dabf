"""The training step, ours against a textbook loop: alternated in one run, with the ratio.

    python benchmarks/step.py [--repeats 5] [--seconds 6] [--image_size 64] [--threads 1]

The textbook loop has plain torch modules of the same sizes and does what a tutorial does: float32,
NCHW, eager, the generator once per step, binary cross-entropy and L1, Adam. Ours is the product's
own `fit` on a repeated batch: in float32 in both memory formats, and in bf16 and channels_last
where the device has bf16 units. The table adds the CPU time of an image, which other work on the
machine moves less than the rate (with `--threads 1`, which spins on no lock), the counted FLOPs,
and the share of the matrix peak that was measured on this machine in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace
from typing import Any

# Imported before torch, which it gives OpenMP's settings.
import colorgan  # noqa: F401

# isort: split
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from colorgan.config.recipe import PretrainRecipe
from colorgan.distributed.phase import Strategy
from colorgan.distributed.ranks import Ranks, has_bf16, joined_ranks
from colorgan.tasks.colorization import PretrainTask, build_pretraining
from colorgan.training.loop import Hooks, Intervals, StopSignals, fit


@dataclass(frozen=True)
class Size:
    """A network and its batch."""

    image_size: int
    width: int
    batch: int

    @property
    def channels(self) -> list[int]:
        """Widths of the encoder's levels."""
        levels = self.image_size.bit_length() - 1
        return [self.width * min(8, 2**level) for level in range(levels)]

    def __str__(self) -> str:
        """Return the row's name."""
        return f"{self.image_size} px, width {self.width}, batch {self.batch}"


SIZES = (Size(256, 64, 4), Size(64, 16, 32))
NUM_STRIDED_BLOCKS = 3
L1_WEIGHT = 100.0
TEXTBOOK = "textbook, fp32"
Step = Callable[[], None]


class TextbookUNet(nn.Module):
    """pix2pix's generator in plain modules."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        channels = size.channels
        self.down = nn.ModuleList()
        before = 1
        for level, width in enumerate(channels):
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if level else []
            layers.append(
                nn.Conv2d(
                    before,
                    width,
                    4,
                    2,
                    1,
                )
            )
            # No norm at either end, as in ours.
            if 0 < level < len(channels) - 1:
                layers.append(nn.BatchNorm2d(width))
            self.down.append(nn.Sequential(*layers))
            before = width

        self.up = nn.ModuleList()
        for number, width in enumerate(reversed(channels[:-1])):
            layers = [
                nn.ReLU(),
                nn.ConvTranspose2d(
                    before,
                    width,
                    4,
                    2,
                    1,
                ),
                nn.BatchNorm2d(width),
            ]
            if number < 3:
                layers.append(nn.Dropout(0.5))
            self.up.append(nn.Sequential(*layers))
            before = 2 * width
        self.output = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(before, 2, 4, 2, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Return ab from L."""
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)

        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = torch.cat([block(x), skip], dim=1)
        out: Tensor = self.output(x)
        return out


def textbook_discriminator(size: Size) -> nn.Sequential:
    """Return a PatchGAN in plain modules."""
    layers: list[nn.Module] = []
    before = 3
    for block in range(NUM_STRIDED_BLOCKS):
        width = size.width * min(8, 2**block)
        layers.append(
            nn.Conv2d(
                before,
                width,
                4,
                2,
                1,
            )
        )
        if block:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.LeakyReLU(0.2))
        before = width

    width = size.width * 8
    layers += [
        nn.Conv2d(
            before,
            width,
            4,
            1,
            "same",
        ),
        nn.BatchNorm2d(width),
        nn.LeakyReLU(0.2),
    ]
    layers.append(
        nn.Conv2d(
            width,
            1,
            4,
            1,
            "same",
        )
    )
    return nn.Sequential(*layers)


def textbook_step(size: Size, device: torch.device, lab_B3HW: Tensor) -> Step:
    """Return one step of the textbook loop."""
    generator = TextbookUNet(size).to(device)
    # The two networks of a usual pix2pix, without anything of ours.
    discriminator = textbook_discriminator(size).to(device)
    generator_adam = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    discriminator_adam = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    grey, color = lab_B3HW[:, :1], lab_B3HW[:, 1:]
    loss_of = nn.BCEWithLogitsLoss()

    def step() -> None:
        fake = generator(grey)

        discriminator.requires_grad_(True)
        discriminator_adam.zero_grad()
        real_logits = discriminator(torch.cat([grey, color], 1))
        fake_logits = discriminator(torch.cat([grey, fake.detach()], 1))
        real_loss = loss_of(real_logits, torch.ones_like(real_logits))
        fake_loss = loss_of(fake_logits, torch.zeros_like(fake_logits))
        ((real_loss + fake_loss) / 2).backward()
        discriminator_adam.step()

        # As tutorials do: its gradients of this turn are not needed.
        discriminator.requires_grad_(False)
        generator_adam.zero_grad()
        logits = discriminator(torch.cat([grey, fake], 1))
        adversarial = loss_of(logits, torch.ones_like(logits))
        (adversarial + L1_WEIGHT * F.l1_loss(fake, color)).backward()
        generator_adam.step()

    return step


class OneBatch:
    """A loader that yields one micro-batch for ever, so that the step alone is measured."""

    wait_s = 0.0

    def __init__(self, lab_B3HW: Tensor) -> None:
        positions = torch.arange(len(lab_B3HW))
        self._batch: Any = SimpleNamespace(
            lab_B3HW=lab_B3HW, positions_B=positions, sample_ids_B=positions
        )

    def train_batches(self, images_seen: int) -> Iterator[list[Any]]:
        """Yield it."""
        return itertools.repeat([self._batch])


def our_step(size: Size, ranks: Ranks, lab_B3HW: Tensor, **batch: Any) -> Step:
    """Return one step of the product's loop; `batch` is the recipe's group of that name."""
    recipe = PretrainRecipe.model_validate(
        {
            "network": {"image_size": size.image_size, "width": size.width},
            "discriminator": {"width": size.width, "num_strided_blocks": NUM_STRIDED_BLOCKS},
            "loss": {"l1_weight": L1_WEIGHT},
            "batch": {"global_batch_size": size.batch, **batch},
        }
    )
    task, strategy = build_pretraining(recipe, ranks, size.batch * 1_000_000)
    return step_of(task, strategy, lab_B3HW)


def step_of(task: PretrainTask, strategy: Strategy, lab_B3HW: Tensor) -> Step:
    """Return one step of the product's loop on one repeated batch."""
    loader: Any = OneBatch(lab_B3HW)
    hooks = Hooks(ignored, ignored, ignored)
    size, seen = len(lab_B3HW), 0

    def step() -> None:
        nonlocal seen
        intervals = Intervals(seen + size, size, 0)
        seen = fit(
            task,
            strategy,
            loader,
            intervals,
            hooks,
            StopSignals(),
            images_seen=seen,
        )

    return step


def ignored(*arguments: Any, **keywords: Any) -> None:
    """Take anything, do nothing."""


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Pace:
    """How fast a loop went.

    Attributes:
        images_per_s: By the clock.
        cpu_s: CPU seconds of this process per image.
    """

    images_per_s: float
    cpu_s: float


def pace_of(step: Step, device: torch.device, batch: int, seconds: float) -> Pace:
    """Measure a loop over about `seconds`."""
    wait_for(device)
    began, cpu_began = time.perf_counter(), time.process_time()
    number = 0
    while number < 2 or time.perf_counter() - began < seconds:
        step()
        number += 1
    wait_for(device)

    images = number * batch
    elapsed, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    return Pace(images / elapsed, cpu_s / images)


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product here, the best of five."""
    side = 8192 if device.type == "cuda" else 2048
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    # The best, not the median: a peak is a limit.
    best = float("inf")
    for _ in range(6):
        wait_for(device)
        began = time.perf_counter()
        left @ right
        wait_for(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def flops_of(step: Step) -> float:
    """Return the floating-point operations of one step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def compare(size: Size, ranks: Ranks, repeats: int, seconds: float) -> None:
    """Alternate the loops and print their medians, ratios and shares of the peak."""
    device = ranks.device
    lab_B3HW = (
        torch.rand(
            size.batch,
            3,
            size.image_size,
            size.image_size,
            device=device,
        )
        * 2
        - 1
    )
    steps = {
        TEXTBOOK: (textbook_step(size, device, lab_B3HW), torch.float32),
        "ours, fp32": (
            our_step(size, ranks, lab_B3HW, precision="fp32", channels_last=False),
            torch.float32,
        ),
        "ours, fp32 channels_last": (
            our_step(size, ranks, lab_B3HW, precision="fp32", channels_last=True),
            torch.float32,
        ),
    }
    # Emulated bf16 would only show the emulation.
    if has_bf16(device):
        fast = our_step(size, ranks, lab_B3HW, precision="bf16", channels_last=True)
        steps["ours, bf16 channels_last"] = (fast, torch.bfloat16)

    # Counted while it runs, not taken from formulas.
    flops = {name: flops_of(step) / size.batch for name, (step, _) in steps.items()}
    paces: dict[str, list[Pace]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, (step, _) in steps.items():
            paces[name].append(pace_of(step, device, size.batch, seconds))

    peaks = {dtype: matrix_peak(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    rates = {name: median(pace.images_per_s for pace in each) for name, each in paces.items()}
    cpu_s = {name: median(pace.cpu_s for pace in each) for name, each in paces.items()}
    print(f"\n{size}")
    print(
        f"{'':26}{'images/s':>10}{'ratio':>8}{'CPU ms/image':>14}{'ratio':>8}"
        f"{'GFLOP/image':>13}{'of peak':>9}"
    )
    for name, (_, dtype) in steps.items():
        ratio = rates[name] / rates[TEXTBOOK]
        cpu_ratio = cpu_s[TEXTBOOK] / cpu_s[name]
        share = rates[name] * flops[name] / peaks[dtype]
        print(
            f"{name:26}{rates[name]:10.2f}{ratio:7.2f}x{1e3 * cpu_s[name]:14.1f}{cpu_ratio:7.2f}x"
            f"{flops[name] / 1e9:13.1f}{share:9.0%}"
        )
    shown = ", ".join(f"{str(d).removeprefix('torch.')} {p / 1e9:,.0f}" for d, p in peaks.items())
    print(f"matrix peak, GFLOP/s: {shown}")


def main() -> None:
    """Print a table per size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--image_size", type=int, choices=[size.image_size for size in SIZES])
    parser.add_argument("--threads", type=int, default=0, help="0: as the product chooses")
    given = parser.parse_args()

    with joined_ranks(timeout_s=60, tf32=True, torch_threads=given.threads) as ranks:
        print(f"{ranks.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        for size in SIZES:
            if given.image_size not in (None, size.image_size):
                continue
            compare(size, ranks, given.repeats, given.seconds)


if __name__ == "__main__":
    main()
