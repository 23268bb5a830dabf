"""The schema of a run: every key that pretraining and fine-tuning know, with its unit, default and range.

One way in (colorgan/config/command_line.py): defaults <- `--config FILE.yaml` <- `--key.sub value`. Everything is counted in images
seen; `epochs` is a convenience. Components never get these objects: the `build_*` functions translate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# A packed folder, or its URL, which stays text: a Path would make one slash of two.
Folder = Annotated[
    Path | str, BeforeValidator(lambda v: Path(v) if isinstance(v, str) and "://" not in v else v)
]


class Section(BaseModel):
    """A frozen part of a recipe; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataRecipe(Section):
    """Where the packed shards are and how pictures are drawn from them."""

    train: tuple[Folder, ...] = Field(
        (),
        description="packed folders to train on, or their URLs (https://, s3://); several are mixed as one set",
    )
    val: tuple[Folder, ...] = Field(
        (), description="packed folders to validate on, or URLs; none: no validation"
    )
    cache_dir: Path | None = Field(
        None, description="where shards from URLs are kept; unset: in ~/.cache/colorgan"
    )
    cache_gb: float = Field(
        100.0, gt=0, description="how much of them a node keeps, in gigabytes (1e9 bytes)"
    )
    random_crop_min_area: float = Field(
        1.0,
        gt=0,
        le=1,
        description="smallest share of the picture's area a random crop takes; 1 = no crop",
    )
    flip: bool = Field(False, description="mirror half of the pictures left to right")
    decode_threads: NonNegativeInt = Field(
        0, description="decoding threads a rank; 0 = this rank's share of the cores"
    )
    hardware_decoder_share: Share = Field(
        0.65,
        description="GPU only: share of the JPEGs for the hardware decoder, where the GPU has one",
    )
    prefetch_batches: PositiveInt = Field(2, description="micro-batches decoded ahead")
    max_bad_share: Share = Field(
        0.001, description="share of unreadable samples over which the run stops"
    )

    @property
    def cache(self) -> tuple[Path | None, float]:
        """Where shards from URLs are kept, and how many gigabytes of them."""
        return self.cache_dir, self.cache_gb


class NetworkRecipe(Section):
    """The U-Net."""

    image_size: int = Field(
        256, description="side of the square input in pixels: 32, 64, 128, 256 or 512"
    )
    width: int = Field(
        64,
        gt=0,
        le=1024,
        description="channels of the first level; the deepest has eight times as many",
    )
    norm: Literal["batch", "instance"] = Field("batch", description="normalisation layer")
    bias_before_norm: bool = Field(
        False, description="give convolutions a bias that their norm cancels, as Keras does"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout of the first three decoder blocks")
    ab_scale: float = Field(
        128.0, gt=0, description="a and b are divided by it: 128 in the paper, 110 in pix2pix"
    )


class DiscriminatorRecipe(Section):
    """The 70x70 PatchGAN."""

    width: PositiveInt = Field(64, description="channels of the first level")
    num_strided_blocks: int = Field(
        4, ge=1, le=5, description="blocks of stride 2: 4 in the code, 3 in the text"
    )
    padding: Literal["same", "pix2pix"] = Field(
        "same", description="same: 16x16 map at 256; pix2pix with 3 blocks: 30x30"
    )


class LossRecipe(Section):
    """The objective of pretraining."""

    gan: Literal["bce", "least_squares", "hinge", "none"] = Field(
        "bce", description="adversarial loss; none: L1 alone"
    )
    gan_weight: float = Field(
        1.0, ge=0, description="weight of the adversarial term in the generator's loss"
    )
    l1_weight: float = Field(
        100.0, ge=0, description="weight (lambda) of the L1 distance of the normalised chroma"
    )


class OptimizerRecipe(Section):
    """Adam and its schedule over images seen."""

    learning_rate: float = Field(2e-4, gt=0, description="peak learning rate")
    discriminator_learning_rate: float | None = Field(
        None, gt=0, description="the discriminator's; unset: the same"
    )
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first decay")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's second decay")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="decay after the warm-up, to 0"
    )
    decay_start: Share = Field(0.0, description="share of the images after which the decay begins")
    warmup_images: NonNegativeInt = Field(
        0, description="images over which the rate rises linearly from 0"
    )
    gradient_clip_norm: float = Field(
        0.0, ge=0, description="largest gradient norm a network; 0 = off"
    )


class BatchRecipe(Section):
    """How images become steps."""

    global_batch_size: PositiveInt = Field(32, description="images a step over all ranks")
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="images a forward pass on a rank; unset: global batch / ranks (no accumulation)",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast; weights stay float32"
    )
    channels_last: bool = Field(
        False, description="memory format of the networks (faster in bf16 and on GPUs)"
    )
    compile: bool = Field(False, description="torch.compile the networks")


class OutputRecipe(Section):
    """What a run writes, and how often, in images seen."""

    log_every_images: PositiveInt = Field(1_000, description="images between two log lines")
    validate_every_images: NonNegativeInt = Field(
        20_000, description="images between validations; 0 = at the end only"
    )
    num_pictures: NonNegativeInt = Field(8, description="validation images shown in each picture")
    save_every_images: NonNegativeInt = Field(
        20_000, description="images between checkpoints; 0 = at the end only"
    )
    background_save: bool = Field(
        True, description="write checkpoints while training goes on, from a copy in memory"
    )
    keep_last: PositiveInt = Field(2, description="newest checkpoints that are kept")
    keep_every_images: NonNegativeInt = Field(
        0, description="checkpoints at multiples of this are kept for good; 0 = none"
    )


class LaunchRecipe(Section):
    """The process group."""

    timeout_s: PositiveInt = Field(
        600, description="seconds after which a silent rank ends the run"
    )
    torch_threads: NonNegativeInt = Field(
        0, description="compute threads a rank; 0 = this rank's share of the cores"
    )


class RunRecipe(Section):
    """What every training verb has."""

    run: Path = Field(description="run folder: checkpoints, log, pictures, recipe")
    seed: NonNegativeInt = Field(0, description="seed of weights, order, crops and dropout")
    data: DataRecipe = DataRecipe()
    network: NetworkRecipe = NetworkRecipe()
    batch: BatchRecipe = BatchRecipe()
    output: OutputRecipe = OutputRecipe()
    launch: LaunchRecipe = LaunchRecipe()
    dry_run: bool = Field(False, description="check everything, print the plan, train nothing")


class PretrainRecipe(RunRecipe):
    """`launcher/pretrain.py`."""

    run: Path = Field(
        Path("runs/pretrain"), description="run folder: checkpoints, log, pictures, recipe"
    )
    discriminator: DiscriminatorRecipe = DiscriminatorRecipe()
    loss: LossRecipe = LossRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    images: PositiveInt | None = Field(
        None, description="images to see in all (give this or epochs)"
    )
    epochs: float | None = Field(
        None, gt=0, description="the same in passes over the training set; default 20"
    )
    ema_half_life_images: NonNegativeInt = Field(
        0, description="half-life of the generator's weight average; 0 = none"
    )

    @model_validator(mode="after")
    def _one_length(self) -> PretrainRecipe:
        if self.images is not None and self.epochs is not None:
            raise ValueError("give images or epochs, not both")
        return self


class StageRecipe(Section):
    """A part of fine-tuning with one optimizer."""

    epochs: float = Field(gt=0, description="passes over the training set")
    learning_rate: float = Field(gt=0, description="peak learning rate")
    features: Literal["train", "frozen"] = Field(
        "train", description="frozen: only the new layers learn"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="decay over the stage, to 0"
    )


class FinetuneRecipe(RunRecipe):
    """`launcher/finetune.py`."""

    run: Path = Field(Path("runs/finetune"), description="run folder: checkpoints, log, model")
    task: Literal["classify", "segment", "detect"] = Field("classify", description="what to learn")
    init: str = Field(
        "scratch", description="generator (or imported encoder) folder to start from, or `scratch`"
    )
    stages: tuple[StageRecipe, ...] = Field(
        (StageRecipe(epochs=20, learning_rate=1e-3, schedule="linear"),), min_length=1,
        description="stages one after the other, each with its own optimizer",
    )  # fmt: skip
    head_width: int = Field(
        4096, gt=0, le=65_536, description="hidden width of the classifier's two dense layers"
    )
    void: Literal["ignore", "background"] = Field(
        "ignore", description="what void pixels (255) count as in training"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's first decay")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's second decay")
    gradient_clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0 = off")
    inference: Literal["running", "paper"] = Field(
        "running", description="paper: batch statistics and dropout stay on when evaluating"
    )

    @model_validator(mode="after")
    def _frozen_features_are_learnt(self) -> FinetuneRecipe:
        if self.init == "scratch" and any(stage.features == "frozen" for stage in self.stages):
            raise ValueError(
                "a stage freezes features that init: scratch has not learnt: give --init GENERATOR"
            )
        return self
