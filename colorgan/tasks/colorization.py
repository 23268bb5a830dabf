"""The pretext task: a conditional GAN that colors grey images (Treneska et al. 2022; Isola et al.

2017).

`build_pretraining` translates a recipe into the task and its networks; `colorgan.training.loop.fit`
trains them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.config.recipe import NetworkRecipe, OptimizerRecipe, PretrainRecipe
from colorgan.data import Batch
from colorgan.distributed.phase import Network, Phase, Strategy
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.strategy import open_strategy
from colorgan.models.discriminator import Discriminator
from colorgan.models.model_folder import Architecture, ModelConfig, build_model
from colorgan.models.modes import dropout_keys, initialise, set_dropout_keys
from colorgan.tasks.gan_losses import GAN_LOSSES, GanLoss, lab_colorfulness
from colorgan.tasks.starting_weights import Start
from colorgan.training.automatic import strategy_settings
from colorgan.training.schedules import learning_rate_schedule

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
FROM_SEED = Start({})
# Chroma beyond it counts as saturated; tanh ends at 1.
SATURATED = 0.98


class PretrainTask:
    """Discriminator and generator take turns; with `gan=None` the generator learns from L1 alone.

    The discriminator's loss is halved, real and fake go through it in separate batches so that
    batch-norm statistics do not mix, and the generator's loss is `gan_weight * adversarial +
    l1_weight * L1`.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        *,
        gan: GanLoss | None,
        gan_weight: float,
        l1_weight: float,
        seed: int,
    ) -> None:
        self.phases = phases
        self._gan = gan
        self._gan_weight = gan_weight
        self._l1_weight = l1_weight
        self._seed = seed
        self._generator = next(phase.module for phase in phases if phase.name == GENERATOR)

    def loss(
        self, phase: Phase, batch: Batch, networks: Mapping[str, Network]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the phase's network on one micro-batch, and its parts."""
        luminance_B1HW, chroma_B2HW = batch.lab_B3HW[:, :1], batch.lab_B3HW[:, 1:]
        # The same keys in both turns: the generator is judged on the image that it is then trained
        # on.
        set_dropout_keys(self._generator, dropout_keys(self._seed, batch.positions_B))
        if phase.name == DISCRIMINATOR:
            # The discriminator's turn needs no gradient of the generator: half the memory of the
            # pass.
            with torch.no_grad():
                fake_B2HW = networks[GENERATOR](luminance_B1HW)
            return self._discriminator_loss(
                networks[DISCRIMINATOR], luminance_B1HW, chroma_B2HW, fake_B2HW
            )
        return self._generator_loss(networks, luminance_B1HW, chroma_B2HW)

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
        self, networks: Mapping[str, Network], luminance_B1HW: Tensor, chroma_B2HW: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        fake_B2HW = networks[GENERATOR](luminance_B1HW).float()
        l1 = F.l1_loss(fake_B2HW, chroma_B2HW)
        # The colors are only watched: detached, they add nothing to the graph.
        values = {"l1": l1, **_colors(fake_B2HW.detach(), chroma_B2HW)}
        loss = self._l1_weight * l1
        if self._gan is not None:
            adversarial = self._gan.generator(
                networks[DISCRIMINATOR](luminance_B1HW, fake_B2HW).float()
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


def generator_config(recipe: NetworkRecipe) -> ModelConfig:
    """Return what a model folder of the recipe's generator will hold."""
    return ModelConfig(
        kind="generator",
        architecture=Architecture(**recipe.model_dump(exclude={"ab_scale"})),
        ab_scale=recipe.ab_scale,
    )


def build_pretraining(
    recipe: PretrainRecipe, ranks: Ranks, total_images: int, start: Start = FROM_SEED
) -> tuple[PretrainTask, Strategy]:
    """Return the task and its networks on this rank's device.

    They are drawn from the seed, or have the weights of `start`. Called on all ranks.
    """
    generator = build_model(generator_config(recipe.network))
    # Drawn on the CPU, then moved: a GPU's generator draws other numbers from the same seed.
    initialise(generator, recipe.seed)
    networks: dict[str, nn.Module] = {GENERATOR: generator.to(ranks.device)}

    gan = None if recipe.loss.gan == "none" else GAN_LOSSES[recipe.loss.gan]
    if gan is not None:
        discriminator = Discriminator(
            width=recipe.discriminator.width,
            num_strided_blocks=recipe.discriminator.num_strided_blocks,
            padding=recipe.discriminator.padding,
            norm=recipe.network.norm,
            bias_before_norm=recipe.network.bias_before_norm,
        )
        # Another seed, as both networks have layers of the same shapes.
        initialise(discriminator, recipe.seed + 1)
        # The discriminator's turn comes first in every step.
        networks = {DISCRIMINATOR: discriminator.to(ranks.device), **networks}

    start.load_into(networks)
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

    task = PretrainTask(
        phases,
        gan=gan,
        gan_weight=recipe.loss.gan_weight,
        l1_weight=recipe.loss.l1_weight,
        seed=recipe.seed,
    )
    return task, strategy


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
        module.parameters(), lr=peak, betas=(recipe.beta1, recipe.beta2), fused=True
    )
    return Phase(name, module, optimizer, rate)
