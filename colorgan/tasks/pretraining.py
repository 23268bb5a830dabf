"""The pretext task: a conditional GAN that colours grey pictures (Treneska et al. 2022; Isola et al. 2017).

`PretrainTask` is what `colorgan.training.loop.fit` trains; `build_pretraining` translates a recipe into it; `pretrain` is
the whole job on a run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorgan.config.recipe import NetworkRecipe, OptimizerRecipe, PretrainRecipe
from colorgan.distributed.ranks import Network, Phase, Ranks, Strategy, open_strategy
from colorgan.evaluation.generator_scores import mean_scores, save_grid, score_colouring
from colorgan.models.model_folder import Architecture, ModelConfig
from colorgan.models.unet import Discriminator, UNet, initialise, set_dropout_keys
from colorgan.runs.run import Outcome, Run
from colorgan.tasks.gan_losses import GAN_LOSSES, GanLoss, dropout_keys, lab_colourfulness, learning_rate_schedule
from colorgan.training.loop import Batch, EvalLoader, Hooks, Loader, StopSignals, fit
from colorgan.training.plan import cadence

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
SATURATED = 0.98  # of tanh's 1


class PretrainTask:
    """Discriminator and generator take turns; with `gan=None` the generator learns from L1 alone.

    The discriminator's loss is halved, real and fake go through it in separate batches so that batch-norm statistics
    do not mix, and the generator's loss is `gan_weight * adversarial + l1_weight * L1`.
    """

    def __init__(
        self, phases: Sequence[Phase], *, gan: GanLoss | None, gan_weight: float, l1_weight: float, seed: int
    ) -> None:
        self.phases = phases
        self._gan = gan
        self._gan_weight = gan_weight
        self._l1_weight = l1_weight
        self._seed = seed
        self._generator = next(phase.module for phase in phases if phase.name == GENERATOR)

    def loss(self, phase: Phase, batch: Batch, networks: Mapping[str, Network]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the phase's network on one micro-batch, and its parts."""
        luminance_B1HW, chroma_B2HW = batch.lab_B3HW[:, :1], batch.lab_B3HW[:, 1:]
        set_dropout_keys(self._generator, dropout_keys(self._seed, batch.slots_B))
        if phase.name == DISCRIMINATOR:
            with torch.no_grad():
                fake_B2HW = networks[GENERATOR](luminance_B1HW)
            return self._discriminator_loss(networks[DISCRIMINATOR], luminance_B1HW, chroma_B2HW, fake_B2HW)
        return self._generator_loss(networks, luminance_B1HW, chroma_B2HW)

    def _discriminator_loss(
        self, discriminator: Network, luminance_B1HW: Tensor, chroma_B2HW: Tensor, fake_B2HW: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self._gan is not None
        real_logits = discriminator(luminance_B1HW, chroma_B2HW).float()
        fake_logits = discriminator(luminance_B1HW, fake_B2HW).float()
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
        values = {"l1": l1, **_colours(fake_B2HW.detach(), chroma_B2HW)}
        loss = self._l1_weight * l1
        if self._gan is not None:
            adversarial = self._gan.generator(networks[DISCRIMINATOR](luminance_B1HW, fake_B2HW).float())
            loss = loss + self._gan_weight * adversarial
            values["adversarial"] = adversarial
        return loss, values


@torch.no_grad()
def _colours(fake_B2HW: Tensor, chroma_B2HW: Tensor) -> dict[str, Tensor]:
    """What colorgan/runs/health.py judges of the output, in normalised units."""
    return {
        "colourfulness/output": lab_colourfulness(fake_B2HW).mean(),
        "colourfulness/data": lab_colourfulness(chroma_B2HW).mean(),
        "saturated/output": (fake_B2HW.abs() > SATURATED).float().mean(),
    }


def build_generator(recipe: NetworkRecipe) -> UNet:
    """Return the U-Net of a recipe, on the CPU, with whatever weights torch gives it."""
    return UNet(
        image_size=recipe.image_size,
        width=recipe.width,
        norm=recipe.norm,
        bias_before_norm=recipe.bias_before_norm,
        dropout=recipe.dropout,
    )


def build_pretraining(recipe: PretrainRecipe, ranks: Ranks, total_images: int) -> tuple[PretrainTask, Strategy]:
    """Return the task and its networks on this rank's device, drawn from the seed. Called on all ranks."""
    generator = build_generator(recipe.network)
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
        initialise(discriminator, recipe.seed + 1)
        networks = {DISCRIMINATOR: discriminator.to(ranks.device), **networks}
    phases = [_phase(name, module, recipe.optimizer, total_images) for name, module in networks.items()]
    strategy = open_strategy(
        ranks,
        phases,
        precision=recipe.batch.precision,
        gradient_clip_norm=recipe.optimizer.gradient_clip_norm,
        channels_last=recipe.batch.channels_last,
        compile=recipe.batch.compile,
        averaged=GENERATOR,
        average_half_life_images=recipe.ema_half_life_images,
    )
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
    optimizer = torch.optim.Adam(module.parameters(), lr=peak, betas=(recipe.beta1, recipe.beta2), fused=True)
    return Phase(name, module, optimizer, rate)


def pretrain(
    recipe: PretrainRecipe,
    ranks: Ranks,
    *,
    total_images: int,
    data_digest: str,
    train: Loader,
    val: EvalLoader | None,
) -> Outcome:
    """Train in the recipe's run folder, from its newest checkpoint if there is one. Called on all ranks.

    Raises:
        UsageError: the folder holds a run of another recipe.
        CheckpointError: of other data, or no checkpoint is intact, or one could not be written.
        TrainingError: a loss is not a finite number.
    """
    task, strategy = build_pretraining(recipe, ranks, total_images)
    model = ModelConfig(
        kind="generator",
        architecture=Architecture(**recipe.network.model_dump(exclude={"ab_scale"})),
        ab_scale=recipe.network.ab_scale,
    )
    with (
        StopSignals() as stop,  # until the run folder is left: the launcher's SIGTERM must not hide why
        Run(
            recipe,
            ranks,
            total_images=total_images,
            data_digest=data_digest,
            model=model,
            model_role=GENERATOR,
            title="pretrain",
        ) as run,
    ):
        found = run.restore()
        images_seen = run.load(strategy, found) if found else 0
        scores: dict[str, float] = {}

        def validate(images_seen: int) -> None:
            if val is not None:
                scores.update(_validate(run, strategy, val, images_seen))

        hooks = Hooks(
            lambda step: run.report(step, train),
            validate,
            lambda images_seen: run.save(strategy, images_seen),
            run.watchdog.note,
        )
        if images_seen >= total_images:
            run.message(f"this run has seen its {total_images:,} images: nothing to train")
            validate(images_seen)
        images_seen = fit(task, strategy, train, cadence(recipe, total_images), hooks, stop, images_seen=images_seen)
        run.finish_saving()
        return Outcome(images_seen, stop.agreed, scores)


def _validate(run: Run, strategy: Strategy, val: EvalLoader, images_seen: int) -> dict[str, float]:
    """Score the held-out pictures, log them, save the picture. Called on all ranks."""
    recipe = run.recipe
    coloured = score_colouring(
        strategy.evaluated(GENERATOR),
        run.watchdog.moving(val.eval_batches(), "validate", images_seen),
        ab_scale=recipe.network.ab_scale,
        seed=recipe.seed,
        autocast=strategy.autocast(),
        num_pictures=recipe.output.num_pictures if run.ranks.main else 0,
    )
    scores = mean_scores(coloured, run.ranks)
    run.record("validate", images_seen, scores)
    run.message(scores_text(scores))
    if run.ranks.main:
        save_grid(run.folder / "pictures" / f"images-{images_seen:012d}.png", coloured)
    return scores


def scores_text(scores: Mapping[str, float]) -> str:
    """Return one line: each score beside that of the grey picture (ab = 0)."""
    return (
        f"PSNR {scores['psnr']:.2f} dB (grey {scores['grey_psnr']:.2f}), SSIM {scores['ssim']:.4f} "
        f"(grey {scores['grey_ssim']:.4f}), CIEDE2000 {scores['ciede2000']:.2f} (grey {scores['grey_ciede2000']:.2f}), "
        f"chroma error {scores['chroma_error']:.2f} (grey {scores['grey_chroma_error']:.2f}), "
        f"L1 of ab {scores['chroma_l1']:.3f} (grey {scores['grey_chroma_l1']:.3f}), "
        f"colourfulness {scores['colourfulness']:.1f} (original {scores['original_colourfulness']:.1f}) "
        f"on {scores['images']:.0f} held-out pictures"
    )
