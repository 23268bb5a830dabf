"""The pretext task: a conditional GAN that colors grey images (Treneska et al. 2022; Isola et al.

2017).

`build_pretraining` translates a recipe into the task and its networks; `colorgan.training.loop.fit`
trains them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.config.recipe import OptimizerRecipe, PretrainRecipe
from colorgan.data import Batch, Loader
from colorgan.distributed.phase import Network, Phase, Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.strategy import open_strategy
from colorgan.errors import UsageError
from colorgan.evaluation.reconstruction_scores import LIGHTNESS_SCALE
from colorgan.models.discriminator import Discriminator
from colorgan.models.model_config import NUM_OUTPUTS, ModelConfig, Target
from colorgan.models.model_folder import build_model
from colorgan.models.modes import (
    dropout_keys,
    initialise,
    moving_statistics,
    set_dropout_keys,
)
from colorgan.models.unet import ClassUNet, encoder_of
from colorgan.tasks.color_losses import ClassLoss, ColorLoss, distance_loss, measure_prior
from colorgan.tasks.gan_losses import GAN_LOSSES, GanLoss, lab_colorfulness
from colorgan.tasks.networks import architecture_of, start_encoder
from colorgan.tasks.starting_weights import Start
from colorgan.training.automatic import strategy_settings
from colorgan.training.schedules import learning_rate_schedule

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
FROM_SEED = Start({})
L1 = distance_loss("l1", 128.0)
# Chroma beyond it counts as saturated; tanh ends at 1.
SATURATED = 0.98


class Colored(NamedTuple):
    """What a pass of the generator gives: the color loss, a scalar, and the output, float32."""

    loss: Tensor
    output_BCHW: Tensor


class PretrainTask:
    """Discriminator and generator take turns; with `gan=None` the generator learns alone.

    The discriminator's loss is halved, real and fake go through it in separate batches so that
    batch-norm statistics do not mix, and the generator's loss is `gan_weight * adversarial +
    l1_weight * color`, where `color` is L1 unless another one is given.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        *,
        gan: GanLoss | None,
        gan_weight: float,
        l1_weight: float,
        seed: int,
        color: ColorLoss = L1,
        target: Literal["color", "luminance"] = "color",
        prior_images: int = 0,
    ) -> None:
        self.phases = phases
        self._gan = gan
        self._gan_weight = gan_weight
        self._l1_weight = l1_weight
        self._seed = seed
        self._color = color
        self._target = target
        # On which the prior of color classes was measured; 0: it came with the weights, or there
        # is none.
        self.prior_images = prior_images
        self._generator = next(phase.module for phase in phases if phase.name == GENERATOR)

    def share(self, batch: Batch, networks: Mapping[str, Network]) -> Colored:
        """Run the generator once for both turns, with its graph.

        The weights are those of two passes, as their outputs are equal: same weights, same dropout.
        Running statistics move as by two passes, so that runs of either kind of step, with one
        micro-batch or several, keep alike statistics.
        """
        with moving_statistics(self._generator, num_passes=len(self.phases)):
            return self._colored(batch, networks[GENERATOR])

    def _colored(self, batch: Batch, generator: Network) -> Colored:
        luminance_B1HW, chroma_B2HW = batch.lab_B3HW[:, :1], batch.lab_B3HW[:, 1:]
        # By position, the same in both turns: the generator is judged on the image that it is then
        # trained on.
        set_dropout_keys(self._generator, dropout_keys(self._seed, batch.positions_B))
        target_BCHW = luminance_B1HW if self._target == "luminance" else chroma_B2HW
        return Colored(*self._color(generator, luminance_B1HW, target_BCHW))

    @torch.no_grad()
    def _fake(self, batch: Batch, generator: Network) -> Tensor:
        """Return the output alone, which costs the discriminator's turn half the memory."""
        set_dropout_keys(self._generator, dropout_keys(self._seed, batch.positions_B))
        return generator(batch.lab_B3HW[:, :1])

    def loss(
        self,
        phase: Phase,
        batch: Batch,
        networks: Mapping[str, Network],
        shared: object = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the phase's network on one micro-batch, and its parts."""
        luminance_B1HW, chroma_B2HW = batch.lab_B3HW[:, :1], batch.lab_B3HW[:, 1:]
        drawn = shared if isinstance(shared, Colored) else None
        if phase.name == DISCRIMINATOR:
            return self._discriminator_loss(
                networks[DISCRIMINATOR],
                luminance_B1HW,
                chroma_B2HW,
                drawn.output_BCHW.detach() if drawn else self._fake(batch, networks[GENERATOR]),
            )
        colored = drawn or self._colored(batch, networks[GENERATOR])
        return self._generator_loss(networks, luminance_B1HW, chroma_B2HW, colored)

    def _discriminator_loss(
        self, discriminator: Network, luminance_B1HW: Tensor, chroma_B2HW: Tensor, fake_B2HW: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self._gan is not None
        # float32 for the loss: 8 bits of bf16 are too few for a mean over patches.
        real_logits = discriminator(luminance_B1HW, chroma_B2HW).float()
        fake_logits = discriminator(luminance_B1HW, fake_B2HW).float()
        # Halved as in pix2pix, section 3.3: it slows the discriminator relative to the generator.
        loss = 0.5 * (self._gan.real(real_logits) + self._gan.fake(fake_logits))
        return loss, {
            "discriminator_accuracy/real": (real_logits > self._gan.threshold).float().mean(),
            "discriminator_accuracy/fake": (fake_logits <= self._gan.threshold).float().mean(),
        }

    def _generator_loss(
        self,
        networks: Mapping[str, Network],
        luminance_B1HW: Tensor,
        chroma_B2HW: Tensor,
        colored: Colored,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        color, fake_BCHW = colored.loss, colored.output_BCHW
        values = {f"luminance_{self._color.name}": color}
        if self._target != "luminance":
            # L1 is logged with every loss, so that runs can be compared. What is only watched is
            # detached: it adds nothing to the graph.
            seen_B2HW = fake_BCHW.detach()
            values = {"l1": F.l1_loss(seen_B2HW, chroma_B2HW), self._color.name: color}
            values |= _colors(seen_B2HW, chroma_B2HW)
        loss = self._l1_weight * color
        if self._gan is not None:
            adversarial = self._gan.generator(
                networks[DISCRIMINATOR](luminance_B1HW, fake_BCHW).float()
            )
            loss = loss + self._gan_weight * adversarial
            values["adversarial"] = adversarial
        return loss, values


@torch.no_grad()
def _colors(fake_B2HW: Tensor, chroma_B2HW: Tensor) -> dict[str, Tensor]:
    """Colorfulness and saturation of the output, which colorgan/runs/health.py watches.

    In normalised units.
    """
    return {
        "colourfulness/output": lab_colorfulness(fake_B2HW).mean(),
        "colourfulness/data": lab_colorfulness(chroma_B2HW).mean(),
        "saturated/output": (fake_B2HW.abs() > SATURATED).float().mean(),
    }


def generator_config(recipe: PretrainRecipe) -> ModelConfig:
    """Return what a model folder of the recipe's generator will hold."""
    target: Target = "luminance" if recipe.loss.target == "luminance" else "chroma"
    if recipe.loss.color == "classes":
        target = "classes"
    network = recipe.network
    return ModelConfig(
        kind="generator",
        architecture=architecture_of(network, num_outputs=NUM_OUTPUTS[target]),
        ab_scale=network.ab_scale,
        target=target,
    )


def _color_loss(recipe: PretrainRecipe, generator: nn.Module, ranks: Ranks) -> ColorLoss:
    """Return the loss of the recipe, for a generator on this rank's device."""
    loss, ab_scale = recipe.loss, recipe.network.ab_scale
    if loss.color != "classes":
        return distance_loss(loss.color, ab_scale if loss.target == "color" else LIGHTNESS_SCALE)

    assert isinstance(generator, ClassUNet)
    return ClassLoss(
        generator.classes, ab_scale=ab_scale, device=ranks.device, adversarial=loss.gan != "none"
    )


def build_networks(
    recipe: PretrainRecipe, ranks: Ranks, start: Start = FROM_SEED
) -> dict[str, nn.Module]:
    """Return the networks on this rank's device, whole, in the order of their turns in a step.

    Args:
        recipe: Of the run.
        ranks: This process's place among the ranks.
        start: Their weights; by default they are drawn from the seed.
    """
    generator = build_model(generator_config(recipe))
    # Drawn on the CPU, then moved: a GPU's generator draws other numbers from the same seed.
    initialise(generator, recipe.seed)
    start_encoder(generator, recipe.network.image_size, start.encoder_weights)
    networks: dict[str, nn.Module] = {GENERATOR: generator.to(ranks.device)}

    if recipe.loss.gan != "none":
        # The discriminator's turn comes first in every step.
        networks = {DISCRIMINATOR: _new_discriminator(recipe).to(ranks.device), **networks}

    start.load_into(networks)
    if recipe.optimizer.trained == "norms":
        _freeze_but_norms(generator)
    return networks


def build_pretraining(
    recipe: PretrainRecipe,
    ranks: Ranks,
    total_images: int,
    networks: dict[str, nn.Module] | None = None,
    prior_of: Loader | None = None,
) -> tuple[PretrainTask, Strategy]:
    """Return the task and its networks, wrapped for this rank. Called on all ranks.

    Args:
        recipe: Of the run.
        ranks: This process's place among the ranks.
        total_images: Length of the run, for the schedules.
        networks: As `build_networks` returns them; by default drawn from the seed. ZeRO-3 takes
            their weights apart: what is asked of whole ones is asked before.
        prior_of: Training images on which the prior of color classes is measured, for recipes that
            need one; None: it comes with the weights.
    """
    networks = networks or build_networks(recipe, ranks)
    generator = networks[GENERATOR]
    prior_images = 0
    if prior_of is not None and isinstance(generator, ClassUNet):
        prior_images = measure_prior(
            generator,
            prior_of,
            ranks,
            global_batch_size=recipe.batch.global_batch_size,
            ab_scale=recipe.network.ab_scale,
        )
    phases = [
        _phase(name, module, recipe.optimizer, total_images) for name, module in networks.items()
    ]
    settings = strategy_settings(
        recipe,
        gradient_clip_norm=recipe.optimizer.gradient_clip_norm,
        ema=GENERATOR,
        ema_half_life_images=recipe.ema_half_life_images,
    )
    strategy = open_strategy(ranks, phases, settings)

    gan = recipe.loss.gan
    task = PretrainTask(
        phases,
        gan=None if gan == "none" else GAN_LOSSES[gan],
        gan_weight=recipe.loss.gan_weight,
        l1_weight=recipe.loss.l1_weight,
        seed=recipe.seed,
        color=_color_loss(recipe, generator, ranks),
        target=recipe.loss.target,
        prior_images=prior_images,
    )
    return task, strategy


def _new_discriminator(recipe: PretrainRecipe) -> Discriminator:
    """Return a discriminator with weights drawn on the CPU."""
    discriminator = Discriminator(
        width=recipe.discriminator.width,
        num_strided_blocks=recipe.discriminator.num_strided_blocks,
        padding=recipe.discriminator.padding,
        norm=recipe.network.norm,
        bias_before_norm=recipe.network.bias_before_norm,
    )
    # Another seed, as both networks have layers of the same shapes.
    initialise(discriminator, recipe.seed + 1)
    return discriminator


NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm)


def _freeze_but_norms(generator: nn.Module) -> None:
    """Let the scales and offsets of the norms learn, nothing else."""
    generator.requires_grad_(False)
    for part in generator.modules():
        if isinstance(part, NORMS):
            part.requires_grad_(True)
    if not any(weight.requires_grad for weight in encoder_of(generator).parameters()):
        raise UsageError(
            "optimizer.trained: norms leaves nothing to learn in this encoder, which has no "
            "normalization layers with weights: take another network.encoder"
        )


def _phase(name: str, module: nn.Module, recipe: OptimizerRecipe, total_images: int) -> Phase:
    peak = recipe.learning_rate
    if name == DISCRIMINATOR and recipe.discriminator_learning_rate is not None:
        peak = recipe.discriminator_learning_rate
    rate = learning_rate_schedule(
        peak,
        schedule=recipe.schedule,
        total_images=total_images,
        warmup_images=recipe.warmup_images,
        decay_start=recipe.decay_start,
    )
    # One kernel for all parameters: hundreds of small tensors make the usual loop slow.
    optimizer = torch.optim.Adam(
        [each for each in module.parameters() if each.requires_grad],
        lr=peak,
        betas=(recipe.beta1, recipe.beta2),
        fused=True,
    )
    return Phase(name, module, optimizer, rate)
