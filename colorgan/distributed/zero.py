"""ZeRO: the phases' networks under DeepSpeed stage 1, 2 or 3; the only file that imports DeepSpeed.

Stage 1 spreads the optimizer's state over the ranks, 2 the gradients too, 3 the weights too. Each
network has an engine of its own (DeepSpeed's several-model plugin in accelerate is for networks
that do not learn through each other). Weights stay float32; the weight average (EMA) is spread over
the ranks in every stage.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from colorgan.distributed.phase import (
    RATE_SHARE,
    Network,
    Phase,
    StrategySettings,
    average_statistics,
    frozen,
)
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.state import Piece, Saved, optimizer_tensors, rank_slice
from colorgan.distributed.zero_buffers import FlatBuffer, flat_buffers, partition
from colorgan.errors import LaunchError
from shards.extras import install_command

BUCKET_ELEMENTS = 50_000_000  # DeepSpeed's default of 5e8 reserves 2 GB per engine


class Zero:
    """Trains the phases' networks under the launch profile's ZeRO stage.

    Built on all ranks, in the same order. Batch-norm statistics and the EMA follow `DataParallel`'s
    rules.

    Raises:
        LaunchError: DeepSpeed is not installed, or not a version whose buffers are known here.
    """

    def __init__(self, ranks: Ranks, phases: Sequence[Phase], settings: StrategySettings) -> None:
        self.ranks = ranks
        self.phases = {phase.name: phase for phase in phases}
        self._stage = ranks.profile.zero_stage
        self._settings = settings
        self._autocast = torch.autocast(
            ranks.device.type, torch.bfloat16, enabled=settings.precision == "bf16"
        )

        # Stage 3 takes the weights apart: a whole network is put together from its shape here.
        self._skeletons = {phase.name: copy.deepcopy(phase.module).to("meta") for phase in phases}
        deepspeed = _import_deepspeed(ranks)
        self._engines: dict[str, Any] = {}
        self._buffers_of: dict[str, list[FlatBuffer]] = {}
        for phase in phases:
            with _groups_wait_for(ranks.timeout_s), _local_rank_of(ranks.device):
                engine = deepspeed.initialize(
                    model=phase.module,
                    optimizer=phase.optimizer,
                    config=_config(ranks, phase.module, settings),
                    dist_init_required=False,
                )[0]
            self._engines[phase.name] = engine
            self._buffers_of[phase.name] = flat_buffers(engine, phase.module)

        self.ema_name = settings.ema_name
        self._ema: dict[str, Tensor] = {}
        if self.ema_name is not None:
            held = self._held(self.ema_name)
            # Only this rank's slice: a whole average would undo what ZeRO saves.
            self._ema = {name: piece.values.clone() for name, piece in held.items()}

    def networks(self, phase: Phase) -> dict[str, Network]:
        """Return the callables of a phase's turn: its own collects gradients, the others do not."""
        bare: dict[str, Network] = {name: each.module for name, each in self.phases.items()}
        return {**bare, phase.name: self._engines[phase.name]}

    def turn(self, phase: Phase) -> AbstractContextManager[None]:
        """While open, only the phase's own network learns: no gradient reaches the others."""
        return frozen(other.module for name, other in self.phases.items() if name != phase.name)

    @contextmanager
    def micro_step(self, phase: Phase, *, last: bool) -> Iterator[None]:
        """Surround forward and backward of one micro-batch; `step` follows the `last`.

        Called on all ranks.
        """
        # DeepSpeed would count micro-batches itself; here the loop says which is the last.
        self._engines[phase.name].set_gradient_accumulation_boundary(last)
        yield

    def autocast(self) -> torch.autocast:
        """Return the context of the recipe's precision for a forward pass."""
        return self._autocast

    def backward(self, phase: Phase, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's loss to the phase's network. Called on all ranks."""
        self._engines[phase.name].backward(loss, scale_wrt_gas=False)

    def step(self, phase: Phase, images_seen: int) -> Tensor:
        """Clip, update weights, clear gradients; return the gradient norm before clipping.

        Called on all ranks. Where a gradient is NaN or infinite, DeepSpeed leaves the weights as
        they are; the norm is then infinite.
        """
        for group in phase.optimizer.param_groups:
            group["lr"] = group.get(RATE_SHARE, 1.0) * phase.learning_rate(images_seen)

        engine = self._engines[phase.name]
        engine.step()
        return torch.as_tensor(engine.get_global_grad_norm(), device=self.ranks.device).detach()

    @torch.no_grad()
    def end_step(self, num_images: int) -> None:
        """Average batch-norm statistics over the ranks and move the EMA. Called on all ranks."""
        average_statistics([phase.module for phase in self.phases.values()], self.ranks)
        if self.ema_name is None:
            return

        held = self._held(self.ema_name)
        # In the average's order, as the lists below are paired by place.
        now = [held[name].values for name in self._ema]
        weight = 1.0 - self._settings.ema_decay(num_images)
        torch._foreach_lerp_(list(self._ema.values()), now, weight)

    def evaluated(self, name: str, *, ema: bool | None = None) -> nn.Module:
        """Return a whole network to run: the EMA if there is one. Called on all ranks.

        Only the raw weights of stages 1 and 2 are whole on every rank; others are assembled in a
        new module.
        """
        use_ema = name == self.ema_name and ema is not False
        if not use_ema and self._stage < 3:
            return self.phases[name].module

        pieces = self._ema_pieces() if use_ema else self._held(name)
        return self._whole(name, pieces).requires_grad_(False)

    def release(self, name: str) -> nn.Module:
        """End the engines; return the network as a plain module. Called on all ranks."""
        module = self._whole(name, self._held(name))
        for engine in self._engines.values():
            engine.destroy()
        return module

    def held(self) -> dict[str, list[Tensor]]:
        """Return the weights, gradients and optimizer states on this rank now; for accounting.

        The optimizer's part includes the copy of the weights that it updates, where that is not the
        weights themselves.
        """
        weights: list[Tensor] = []
        gradients: list[Tensor] = []
        optimizer = optimizer_tensors(phase.optimizer for phase in self.phases.values())

        for name, phase in self.phases.items():
            parameters: list[Any] = list(phase.module.parameters())
            weights += [p.ds_tensor if self._stage == 3 else p for p in parameters]
            gradients += [p.grad for p in parameters if p.grad is not None]
            gradients += self._partitioned_gradients(name)
            optimizer += [buffer.values for buffer in self._buffers_of[name]]

        # Where the optimizer updates the weights themselves, they are counted once.
        own = {tensor.untyped_storage().data_ptr() for tensor in weights}
        optimizer = [t for t in optimizer if t.untyped_storage().data_ptr() not in own]
        return {"weights": weights, "gradients": gradients, "optimizer": optimizer}

    def _partitioned_gradients(self, name: str) -> list[Tensor]:
        optimizer = self._engines[name].optimizer
        if self._stage == 3:
            return [optimizer.grad_partitions_flat_buffer]
        averaged = optimizer.averaged_gradients.values()
        return [part for parts in averaged for part in parts or []]

    def _held(self, name: str) -> dict[str, Piece]:
        """Return views of this rank's part of each weight: its partition (stage 3) or a slice."""
        rank, size = self.ranks.rank, self.ranks.world_size
        parameters = self.phases[name].module.named_parameters()
        if self._stage < 3:
            return {key: rank_slice(parameter, rank, size) for key, parameter in parameters}
        return {key: partition(parameter, rank) for key, parameter in parameters}

    def _ema_pieces(self) -> dict[str, Piece]:
        assert self.ema_name is not None
        held = self._held(self.ema_name)
        return {key: Piece(t, held[key].shape, held[key].offset) for key, t in self._ema.items()}

    @torch.no_grad()
    def _whole(self, name: str, pieces: dict[str, Piece]) -> nn.Module:
        module = copy.deepcopy(self._skeletons[name]).to_empty(device=self.ranks.device)
        for key, parameter in module.named_parameters():
            piece = pieces[key]
            flat = parameter.data.view(-1).zero_()
            flat[piece.offset : piece.offset + piece.values.numel()] = piece.values
            if self.ranks.world_size > 1:
                dist.all_reduce(flat)  # a sum of parts that do not overlap: exact

        # Buffers are whole on every rank in all stages.
        for mine, other in zip(module.buffers(), self.phases[name].module.buffers(), strict=True):
            mine.copy_(other)
        return module

    def state(self) -> dict[str, dict[str, Tensor | Piece]]:
        """Return the pieces of weights, EMA and optimizer states on this rank, by role."""
        roles: dict[str, dict[str, Tensor | Piece]] = {}
        for name in self.phases:
            buffers = self._module_buffers(name)
            roles[name] = {**self._held(name), **buffers}
            roles[f"{name}_optimizer"] = self._optimizer_state(name)
            if name == self.ema_name:
                roles[f"{name}_average"] = {**self._ema_pieces(), **buffers}
        return roles

    def _module_buffers(self, name: str) -> dict[str, Tensor]:
        module = self.phases[name].module
        parameters = dict(module.named_parameters())
        return {key: value for key, value in module.state_dict().items() if key not in parameters}

    def _optimizer_state(self, name: str) -> dict[str, Tensor | Piece]:
        held: dict[str, Tensor | Piece] = {}
        state = self.phases[name].optimizer.state
        for buffer in self._buffers_of[name]:
            for slot, value in state.get(buffer.values, {}).items():
                for owned in buffer.owned:
                    if value.dim() == 0:  # Adam's step
                        held[f"{owned.name}/{slot}"] = value
                    elif owned.length:
                        part = value.view(-1)[owned.start : owned.start + owned.length]
                        held[f"{owned.name}/{slot}"] = Piece(part, owned.shape, owned.offset)
        return held

    @torch.no_grad()
    def load_state(self, saved: Saved, *, with_optimizers: bool = True) -> None:
        """Load what any strategy, on any number of ranks, has saved. Called on all ranks."""
        for name, phase in self.phases.items():
            for key, parameter in phase.module.named_parameters():
                piece = (
                    partition(parameter, self.ranks.rank)
                    if self._stage == 3
                    else Piece(parameter.data.view(-1), tuple(parameter.shape), 0)
                )
                _read_into(saved, name, key, piece)

            for key, buffer in self._module_buffers(name).items():
                _read_into(saved, name, key, Piece(buffer.view(-1), tuple(buffer.shape), 0))

            # The optimizer updates its own float32 copy of the weights.
            self._engines[name].optimizer.refresh_fp32_params()
            if with_optimizers:
                self._load_optimizer(saved, name)

        if self.ema_name is not None:
            for key, piece in self._ema_pieces().items():
                _read_into(saved, f"{self.ema_name}_average", key, piece)

    def _load_optimizer(self, saved: Saved, name: str) -> None:
        optimizer, role = self.phases[name].optimizer, f"{name}_optimizer"
        shapes = saved.shapes(role)
        slots = sorted({key.rsplit("/", 1)[1] for key in shapes})

        for buffer in self._buffers_of[name]:
            state: dict[str, Tensor] = {}
            for slot in slots:
                names = [f"{owned.name}/{slot}" for owned in buffer.owned]
                first = next((name for name in names if name in shapes), None)
                if first is None:
                    continue
                if shapes[first][1] == ():
                    value = saved.read(role, first).view(())
                    state[slot] = value.to(_step_device(optimizer, buffer.values))
                else:
                    state[slot] = _read_slot(saved, role, slot, buffer, shapes)

            # Popped first: parameters that the checkpoint has no state for start afresh.
            optimizer.state.pop(buffer.values, None)
            if state:
                optimizer.state[buffer.values] = state


def _read_slot(
    saved: Saved, role: str, slot: str, buffer: FlatBuffer, known: Container[str]
) -> Tensor:
    """Return an optimizer slot for a flat buffer, its parameters' slices read from a checkpoint.

    It is 0 for parameters that the checkpoint does not know.
    """
    values = torch.zeros_like(buffer.values)
    for owned in buffer.owned:
        if f"{owned.name}/{slot}" not in known:
            continue
        part = values[owned.start : owned.start + owned.length]
        _read_into(saved, role, f"{owned.name}/{slot}", Piece(part, owned.shape, owned.offset))
    return values


def _read_into(saved: Saved, role: str, name: str, piece: Piece) -> None:
    if piece.values.numel():
        piece.values.copy_(saved.read(role, name, piece.offset, piece.values.numel()))


def _step_device(optimizer: torch.optim.Optimizer, flat: Tensor) -> torch.device:
    """Return where Adam wants its step counter: beside the weights when fused, else on the CPU."""
    return flat.device if optimizer.defaults.get("fused") else torch.device("cpu")


def _import_deepspeed(ranks: Ranks) -> Any:
    """Import DeepSpeed for this rank's device and give it the process group."""
    on_cpu = ranks.device.type == "cpu"
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if on_cpu else "cuda")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    if ranks.world_size == 1:
        # A launcher sets it only for several processes; DeepSpeed asserts that it is there.
        os.environ.setdefault("LOCAL_RANK", "0")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise LaunchError(
            f"{ranks.profile.name} needs DeepSpeed, which cannot be imported ({error}): "
            f"{install_command('deepspeed')}, or use ddp.yaml"
        ) from None

    # It warns of settings that `_config` makes on purpose.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Printed at every collective call; it is DeepSpeed's to change, not the user's.
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.\w+_tensor` is deprecated", FutureWarning
    )

    if on_cpu:
        # DeepSpeed would compile a shared-memory extension at first use (99 s, needs a compiler).
        # On a GPU merely reading this table runs compilers and warns of each extension that has no
        # toolkit.
        operations = getattr(deepspeed.ops, "__compatible_ops__", None)
        if isinstance(operations, dict):
            operations["deepspeed_shm_comm"] = False

    backend = "gloo" if on_cpu else "nccl"
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(backend)
    return deepspeed


@contextmanager
def _local_rank_of(device: torch.device) -> Iterator[None]:
    """While open, LOCAL_RANK is the number of this rank's GPU, which DeepSpeed takes it for.

    They differ where SLURM shows each task a GPU of its own.
    """
    before = os.environ.get("LOCAL_RANK")
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index)
    try:
        yield
    finally:
        if before is not None:
            os.environ["LOCAL_RANK"] = before


@contextmanager
def _groups_wait_for(seconds: int) -> Iterator[None]:
    """Give the groups that are made meanwhile the launch's timeout.

    DeepSpeed makes its own, and torch's default for them is half an hour: so long the others would
    wait for a rank that ended before it came to that point.
    """
    new_group = dist.new_group
    dist.new_group = partial(new_group, timeout=timedelta(seconds=seconds))
    try:
        yield
    finally:
        dist.new_group = new_group


def _config(ranks: Ranks, module: nn.Module, settings: StrategySettings) -> dict[str, Any]:
    """Return DeepSpeed's settings.

    Those that change numbers or memory are all set here, never left to its defaults.
    """
    num_elements = sum(parameter.numel() for parameter in module.parameters())
    bucket = min(BUCKET_ELEMENTS, num_elements // 2 * 2 + 2)  # it must be even
    offload = "cpu" if ranks.profile.offload_optimizer else "none"
    return {
        # Not used: the training loop marks the last micro-batch of a step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.gradient_clip_norm,  # the default clips at 1.0
        "communication_data_type": "fp32",
        # It synchronises the device at every forward pass and step: seven times per training step.
        "timers": {"throughput": {"enabled": False}},
        "torch_autocast": {
            "enabled": settings.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own Adam is compiled at first use and rounds differently.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": ranks.profile.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": False,
            "round_robin_gradients": False,
            # Otherwise small weights stay whole on every rank.
            "stage3_param_persistence_threshold": 0,
            "offload_optimizer": {"device": offload},
        },
    }
