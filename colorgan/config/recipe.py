"""The schema of a run: every key of pretraining and fine-tuning, with its unit, default and range.

Read by colorgan/config/command_line.py: defaults <- `--config FILE.yaml` <- `--key.sub value`.
Everything is counted in images seen; `epochs` is a convenience. Components never get these objects:
the `build_*` functions translate them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# Bounded: larger ones do not fit the 64 bits of a file, a generator of numbers, or a tensor.
PositiveInt = Annotated[int, Field(gt=0, lt=1 << 63)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=1 << 63)]
Share = Annotated[float, Field(ge=0, le=1)]

SCRATCH = "scratch"  # as `init`: no weights to start from
# The downstream tasks by name, with the kind of the models that they make.
TaskName = Literal["classify", "segment", "detect"]
MODEL_KINDS: Mapping[str, str] = {
    "classify": "classifier",
    "segment": "segmenter",
    "detect": "detector",
}


def _folder(value: Any) -> Any:
    """Return a URL as text: a Path would merge its two slashes."""
    return Path(value) if isinstance(value, str) and "://" not in value else value


# A packed folder, or its URL.
Folder = Annotated[Path | str, BeforeValidator(_folder)]


class Section(BaseModel):
    """A frozen part of a recipe; an unknown key is an error."""

    # Infinity and NaN pass every bound, and YAML can write both.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def open_keys(self) -> dict[str, set[str]]:
        """Return the keys of each group that nobody set and that something else decides.

        A recipe on disk leaves them out: read again, they would count as set.
        """
        return {}


class DataRecipe(Section):
    """Where the packed shards are and how images are read from them."""

    train: tuple[Folder, ...] = Field(
        (),
        description="packed folders to train on, or URLs (https, s3, gs, hf); several are mixed",
    )
    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="each training folder's share when several are mixed; none: by their sizes",
    )
    val: tuple[Folder, ...] = Field(
        (), description="packed folders to validate on, or URLs; none: no validation"
    )
    cache_dir: Path | None = Field(
        None, description="cache of shards from URLs; unset: ~/.cache/colorgan"
    )
    cache_gb: float = Field(
        100.0, gt=0, description="size limit of that cache per node, in gigabytes (1e9 bytes)"
    )
    random_crop_min_area: float = Field(
        1.0,
        gt=0,
        le=1,
        description="smallest share of the image's area that a random crop takes; 1 = no crop",
    )
    flip: bool = Field(False, description="mirror half of the images left to right")
    decode_threads: NonNegativeInt = Field(
        0, description="decoding threads per rank; 0 = its cores, on a GPU at most 8"
    )
    hardware_decoder_share: Share = Field(
        0.65,
        description="share of the JPEGs for the hardware decoder of a GPU that has one",
    )
    prefetch_batches: PositiveInt = Field(2, description="micro-batches decoded ahead")
    max_bad_share: Share = Field(
        0.001, description="share of unreadable samples above which the run stops"
    )

    @property
    def cache(self) -> tuple[Path | None, float]:
        """The cache of shards from URLs: its folder and its limit in gigabytes."""
        return self.cache_dir, self.cache_gb


class NetworkRecipe(Section):
    """The generator: an encoder and the U-Net's decoder."""

    encoder: str = Field(
        "unet",
        max_length=100,
        description="unet, alexnet, a network of timm (resnet50, vgg16_bn, convnext_tiny, ...; "
        "needs the extra `encoders`), or a backbone of your own",
    )
    encoder_weights: Path | None = Field(
        None,
        description="weights that a backbone starts from, .safetensors or .pth; unset: drawn",
    )
    image_size: int = Field(
        256,
        description="side of the square input in pixels: 32, 64, 128, 256 or 512; of a backbone, "
        "any from 32 to 512; in fine-tuning with init, any multiple of 32 up to 1024",
    )
    width: int = Field(
        64,
        gt=0,
        le=1024,
        description="channels of the U-Net's first level; the deepest has eight times as many; a "
        "backbone has its own",
    )
    norm: Literal["batch", "instance"] = Field(
        "batch", description="normalization layer; a backbone has its own"
    )
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

    target: Literal["color", "luminance"] = Field(
        "color",
        description="what the generator learns to output; luminance: its own input, through a "
        "U-Net without skips, as a study's control",
    )
    color: Literal["l1", "l2", "huber", "classes"] = Field(
        "l1",
        description="how colors are compared: a distance, or the cross entropy of 313 classes of "
        "color (Zhang et al. 2016)",
    )
    gan: Literal["bce", "least_squares", "hinge", "none"] = Field(
        "bce", description="adversarial loss; none: the color loss only"
    )
    gan_weight: float = Field(
        1.0, ge=0, description="weight of the adversarial term in the generator's loss"
    )
    l1_weight: float = Field(
        100.0,
        ge=0,
        description="weight (lambda) of the color loss: 100 for distances of the normalized "
        "chroma; beside a GAN about 2 for classes",
    )

    @model_validator(mode="after")
    def _luminance_is_reconstructed_alone(self) -> LossRecipe:
        if self.target == "luminance" and (self.gan != "none" or self.color == "classes"):
            raise ValueError(
                "target: luminance is learned by a distance alone: set loss.gan none, and "
                "loss.color l1, l2 or huber"
            )
        return self


class OptimizerRecipe(Section):
    """Adam and its schedule over images seen."""

    learning_rate: float = Field(2e-4, gt=0, description="peak learning rate")
    discriminator_learning_rate: float | None = Field(
        None, gt=0, description="the discriminator's peak learning rate; unset: the same"
    )
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first decay")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's second decay")
    trained: Literal["all", "norms"] = Field(
        "all",
        description="the generator's weights that learn; norms: those of its normalization layers, "
        "all others stay as drawn, as a study's control",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="decay to 0, counted from the first image, warm-up included"
    )
    decay_start: Share = Field(0.0, description="share of the images after which the decay begins")
    warmup_images: NonNegativeInt = Field(
        0, description="images over which the rate rises linearly from 0"
    )
    gradient_clip_norm: float = Field(
        0.0, ge=0, description="largest gradient norm of a network; 0 = off"
    )


class BatchRecipe(Section):
    """How images become steps."""

    global_batch_size: PositiveInt = Field(32, description="images per step over all ranks")
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="images per forward pass on a rank; unset: global batch / ranks, at once",
    )
    precision: Literal["auto", "fp32", "bf16"] | None = Field(
        None,
        description="bf16: autocast, weights stay float32; fp32: TF32 in a GPU's convolutions; "
        "auto: bf16 where the device has it; unset: auto on a GPU, fp32 on a CPU",
    )
    channels_last: bool | Literal["auto"] | None = Field(
        None,
        description="networks in NHWC memory format; auto: with bf16; unset: auto on a GPU, off on "
        "a CPU (in fp32 it helps some sizes and slows others: benchmarks/step.py)",
    )
    compile: bool = Field(False, description="torch.compile the networks")
    compress_gradients: bool = Field(
        False,
        description="send gradients between ranks as bfloat16 (for GPUs without NVLink; DDP only)",
    )


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
        True, description="write checkpoints from a copy in memory while training goes on"
    )
    keep_last: PositiveInt = Field(2, description="number of newest checkpoints to keep")
    keep_every_images: NonNegativeInt = Field(
        0, description="the first checkpoint at or past each multiple is never removed; 0 = none"
    )
    trackers: tuple[str, ...] = Field(
        ("tensorboard",),
        description="where else values and pictures are logged: tensorboard, wandb, mlflow, ... of "
        "accelerate.tracking, where installed; [] for none",
    )


class LaunchRecipe(Section):
    """The process group."""

    timeout_s: PositiveInt = Field(
        600, description="seconds after which a rank that does not answer ends the run"
    )
    torch_threads: NonNegativeInt = Field(
        0, description="compute threads per rank; 0 = this rank's share of the cores"
    )
    gradient_bucket_mb: PositiveInt = Field(
        25, description="MiB of gradients that DDP sends at a time"
    )
    deterministic: bool = Field(
        True, description="GPU: cuDNN algorithms that give the same numbers every time; off: faster"
    )


# What users of other tools type for the keys of a run. `--run` itself is ambiguous to torchrun,
# which has a `--run-path`.
_RUN_ALIASES = {
    "run_dir": "run",
    "output_dir": "run",
    "batch_size": "batch.global_batch_size",
    "micro_batch_size": "batch.micro_batch_size",
    "precision": "batch.precision",
    "image_size": "network.image_size",
}


class RunRecipe(Section):
    """The keys that both kinds of training have."""

    run: Path = Field(description="run folder: checkpoints, log, pictures, recipe")
    seed: NonNegativeInt = Field(0, description="seed of weights, order, crops and dropout")
    data: DataRecipe = DataRecipe()
    network: NetworkRecipe = NetworkRecipe()
    batch: BatchRecipe = BatchRecipe()
    output: OutputRecipe = OutputRecipe()
    launch: LaunchRecipe = LaunchRecipe()
    dry_run: bool = Field(False, description="check everything, print the plan, do not train")


class PretrainRecipe(RunRecipe):
    """Settings of `launcher/pretrain.py`."""

    usual: ClassVar[tuple[str, ...]] = (
        "run",
        "data.train",
        "data.val",
        "images",
        "epochs",
        "seed",
        "dry_run",
        "network.image_size",
        "network.width",
        "optimizer.learning_rate",
        "batch.global_batch_size",
        "batch.micro_batch_size",
        "batch.precision",
        "output.save_every_images",
        "output.validate_every_images",
    )
    aliases: ClassVar[Mapping[str, str]] = {
        **_RUN_ALIASES,
        "lr": "optimizer.learning_rate",
        "learning_rate": "optimizer.learning_rate",
    }

    run: Path = Field(
        Path("runs/pretrain"), description="run folder: checkpoints, log, pictures, recipe"
    )
    discriminator: DiscriminatorRecipe = DiscriminatorRecipe()
    loss: LossRecipe = LossRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    images: PositiveInt | None = Field(
        None, description="images to see in total (give this or epochs)"
    )
    epochs: float | None = Field(
        None, gt=0, description="passes over the training set instead of images; default 20"
    )
    ema_half_life_images: NonNegativeInt = Field(
        0, description="half-life of the average of the generator's weights; 0 = no average"
    )
    init: str = Field(
        SCRATCH,
        description="weights to start from: a generator's folder, another run's, or `scratch`",
    )
    resume_from: Path | None = Field(
        None, description="another run to go on from in a new folder, with its optimizers"
    )
    reset_optimizer: bool = Field(
        False, description="with resume_from: start with fresh optimizers"
    )

    @model_validator(mode="after")
    def _one_length(self) -> PretrainRecipe:
        if self.images is not None and self.epochs is not None:
            raise ValueError("give images or epochs, not both")
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> PretrainRecipe:
        # Weights of zero are allowed one by one; both at once would train nothing.
        adversarial = self.loss.gan != "none" and self.loss.gan_weight > 0
        if not adversarial and self.loss.l1_weight == 0:
            raise ValueError(
                "the generator has no loss to learn from: set loss.l1_weight above 0, or loss.gan "
                "to a loss with loss.gan_weight above 0"
            )
        return self


class StageRecipe(Section):
    """A part of fine-tuning with its own optimizer."""

    epochs: float = Field(gt=0, description="passes over the training set")
    learning_rate: float = Field(gt=0, description="peak learning rate")
    features: Literal["train", "frozen"] = Field(
        "train", description="frozen: only the new layers are trained"
    )
    frozen_levels: NonNegativeInt = Field(
        0, description="encoder levels, from the input on, that are not trained"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="decay over the stage, to 0"
    )


class FinetuneRecipe(RunRecipe):
    """Settings of `launcher/finetune.py`."""

    usual: ClassVar[tuple[str, ...]] = (
        "task",
        "init",
        "run",
        "data.train",
        "data.val",
        "epochs",
        "learning_rate",
        "stages",
        "seed",
        "dry_run",
        "network.image_size",
        "network.width",
        "head_width",
        "batch.global_batch_size",
        "batch.micro_batch_size",
        "batch.precision",
    )
    aliases: ClassVar[Mapping[str, str]] = {**_RUN_ALIASES, "lr": "learning_rate"}

    run: Path = Field(Path("runs/finetune"), description="run folder: checkpoints, log, model")
    task: TaskName = Field(
        "classify",
        description="what to learn: the classes in an image, the class of each pixel, or boxes",
    )
    init: str = Field(
        SCRATCH,
        description="folder of the generator or imported encoder to start from, or `scratch`",
    )
    stages: tuple[StageRecipe, ...] = Field(
        (StageRecipe(epochs=20, learning_rate=1e-3, schedule="linear"),), min_length=1,
        description="stages one after the other, each with its own optimizer",
    )  # fmt: skip
    # Not part of a dumped recipe: `_one_stage` puts them into the stage.
    epochs: float | None = Field(
        None, gt=0, exclude=True, description="epochs of the stage, where there is only one"
    )
    learning_rate: float | None = Field(
        None, gt=0, exclude=True, description="learning rate of the stage, where there is only one"
    )
    head_width: int = Field(
        4096, gt=0, le=65_536, description="hidden width of the classifier's two dense layers"
    )
    fit: Literal["squash", "crop", "pad"] = Field(
        "squash",
        description="pictures that are not square: squash them, crop the square in the middle, or "
        "pad them with grey (void in masks); labels follow, and evaluations do the same",
    )
    void: Literal["ignore", "background"] = Field(
        "ignore", description="how void pixels (255) count in training"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's first decay")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's second decay")
    gradient_clip_norm: float = Field(0.0, ge=0, description="largest gradient norm; 0 = off")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="decoupled decay (AdamW), not of biases and norms; 0 = Adam",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="learning rate of an encoder level as a share of the next one's",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: rare classes weigh more in the loss, by their frequency"
    )
    luminance_jitter: float = Field(
        0.0, ge=0, lt=1, description="largest random change of contrast and brightness in training"
    )
    patience: NonNegativeInt = Field(
        0, description="validations without a better score after which training ends; 0 = off"
    )
    inference: Literal["running", "paper"] = Field(
        "running", description="paper: batch statistics and dropout stay on in evaluation"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_stage(cls, settings: Any) -> Any:
        """Put `epochs` and `learning_rate` into the one stage; wrong values are reported later."""
        if not isinstance(settings, dict):
            return settings

        # A copy: the caller's recipe is compared and written later.
        settings = dict(settings)
        short = {}
        for name in ("epochs", "learning_rate"):
            if _is_positive(settings.get(name)):
                short[name] = settings.pop(name)
        if not short:
            return settings

        default = [stage.model_dump() for stage in cls.model_fields["stages"].default]
        stages = settings.get("stages", default)
        # Which of several stages is meant cannot be guessed.
        if not isinstance(stages, list | tuple) or len(stages) != 1:
            keys = " and ".join(short)
            raise ValueError(
                f"{keys} can be given for a run of one stage; this one has {len(stages)}: "
                f"write --stages.0.{next(iter(short))} for the first"
            )

        stage = stages[0]
        plain = stage.model_dump() if isinstance(stage, BaseModel) else stage
        # The short keys over the stage's own: the command line is over the recipe.
        return {**settings, "stages": [{**plain, **short}]}

    def open_keys(self) -> dict[str, set[str]]:
        """Return the keys that `init` and the length of a pass decide unless they are set."""
        output = {"validate_every_images"} - self.output.model_fields_set
        if self.init == SCRATCH:
            return {"output": output}
        network = set(NetworkRecipe.model_fields) - self.network.model_fields_set
        return {"network": network, "output": output}

    @model_validator(mode="after")
    def _padding_is_void(self) -> FinetuneRecipe:
        if self.task == "segment" and (self.fit, self.void) == ("pad", "background"):
            raise ValueError(
                "fit: pad makes padding void, which void: background would train as background: "
                "choose fit: crop or squash, or leave void out"
            )
        return self

    @model_validator(mode="after")
    def _frozen_features_are_learnt(self) -> FinetuneRecipe:
        # Frozen random features would train without an error, to a useless score.
        frozen = any(stage.features == "frozen" or stage.frozen_levels for stage in self.stages)
        if self.init == SCRATCH and frozen:
            raise ValueError(
                "a stage freezes the features, but with init: scratch they are untrained: "
                "give --init GENERATOR"
            )
        return self


def _is_positive(value: Any) -> bool:
    try:
        return float(value) > 0
    except (TypeError, ValueError):
        return False
