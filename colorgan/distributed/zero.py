"""ZeRO: the phases' networks under DeepSpeed stage 1, 2 or 3; the only file that imports DeepSpeed.

Stage 1 spreads the optimizer's state over the ranks, 2 the gradients too, 3 the weights too. One engine a network
(DeepSpeed's several-model plugin in accelerate is for networks that do not learn through each other). Weights stay
float32; the weight average is spread over the ranks in every stage.

The flat buffers that DeepSpeed keeps are read and written here by name and offset (`_Owned`), which its own
checkpoints cannot do: those hold pickles and the number of ranks. They are not public: the version is pinned.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from colorgan.distributed.phase import Network, Phase, average_statistics, frozen
from colorgan.distributed.ranks import Ranks
from colorgan.distributed.state import Piece, Saved, optimizer_tensors, rank_slice
from colorgan.errors import LaunchError

BUCKET_ELEMENTS = 50_000_000  # DeepSpeed's default of 5e8 reserves 2 GB an engine


@dataclass(frozen=True)
class _Owned:
    """Elements of a parameter that lie in a flat buffer which this rank's optimizer updates."""

    name: str
    shape: tuple[int, ...]
    offset: int  # in the parameter
    start: int  # in the buffer
    length: int  # 0: none of this parameter are here


class Zero:
    """Trains the phases' networks under the launch profile's ZeRO stage. Built on all ranks, in the same order.

    Batch-norm statistics and the weight average follow `DataParallel`'s rules.

    Raises:
        LaunchError: DeepSpeed is not installed, or not a version whose buffers are known here.
    """

    def __init__(
        self,
        ranks: Ranks,
        phases: Sequence[Phase],
        *,
        precision: str = "fp32",
        gradient_clip_norm: float = 0.0,
        averaged: str | None = None,
        average_half_life_images: int = 0,
    ) -> None:
        self.ranks = ranks
        self.phases = {phase.name: phase for phase in phases}
        self._stage = ranks.profile.zero_stage
        self._autocast = torch.autocast(
            ranks.device.type, torch.bfloat16, enabled=precision == "bf16"
        )
        self._half_life = average_half_life_images
        self._skeletons = {phase.name: copy.deepcopy(phase.module).to("meta") for phase in phases}
        deepspeed = _import_deepspeed(ranks)
        self._engines: dict[str, Any] = {}
        for phase in phases:
            config = _config(
                ranks, phase.module, precision=precision, gradient_clip_norm=gradient_clip_norm
            )
            self._engines[phase.name] = deepspeed.initialize(
                model=phase.module,
                optimizer=phase.optimizer,
                config=config,
                dist_init_required=False,
            )[0]
        self._owned = {
            name: list(_owned(self._engines[name], phase.module))
            for name, phase in self.phases.items()
        }
        self.averaged_name = averaged if average_half_life_images else None
        self._average: dict[str, Tensor] = {}
        if self.averaged_name is not None:
            self._average = {
                name: piece.values.clone() for name, piece in self._held(self.averaged_name).items()
            }

    def networks(self, phase: Phase) -> dict[str, Network]:
        """Return the callables of a phase's turn: its own network tracked for gradients, the others bare."""
        return {
            name: self._engines[name] if name == phase.name else other.module
            for name, other in self.phases.items()
        }

    def turn(self, phase: Phase) -> AbstractContextManager[None]:
        """While open, only the phase's own network learns: nothing leaks into the others."""
        return frozen(other.module for name, other in self.phases.items() if name != phase.name)

    @contextmanager
    def micro_step(self, phase: Phase, *, last: bool) -> Iterator[None]:
        """Surround forward and backward of one micro-batch; `step` follows the `last`. Called on all ranks."""
        self._engines[phase.name].set_gradient_accumulation_boundary(last)
        yield

    def autocast(self) -> torch.autocast:
        """Return the context of the recipe's precision for a forward pass."""
        return self._autocast

    def backward(self, phase: Phase, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's loss to the phase's network. Called on all ranks."""
        self._engines[phase.name].backward(loss, scale_wrt_gas=False)

    def step(self, phase: Phase, images_seen: int) -> Tensor:
        """Clip, update the phase's weights, clear gradients; return the gradient norm before clipping. All ranks.

        Where a gradient is not a finite number DeepSpeed leaves the weights as they are; the norm is then infinite.
        """
        for group in phase.optimizer.param_groups:
            group["lr"] = phase.learning_rate(images_seen)
        engine = self._engines[phase.name]
        engine.step()
        return torch.as_tensor(engine.get_global_grad_norm(), device=self.ranks.device).detach()

    @torch.no_grad()
    def end_step(self, num_images: int) -> None:
        """Average batch-norm statistics over the ranks and move the weight average. Called on all ranks."""
        average_statistics([phase.module for phase in self.phases.values()], self.ranks)
        if self.averaged_name is not None:
            held = self._held(self.averaged_name)
            now = [held[name].values for name in self._average]
            decay = 0.5 ** (num_images / self._half_life)
            torch._foreach_lerp_(list(self._average.values()), now, 1.0 - decay)

    def evaluated(self, name: str, *, average: bool | None = None) -> nn.Module:
        """Return a whole network to run: the weight average where there is one. Called on all ranks.

        Only the raw weights of stages 1 and 2 are whole on every rank; others are put together in a new module.
        """
        averaged = name == self.averaged_name and average is not False
        if not averaged and self._stage < 3:
            return self.phases[name].module
        pieces = self._held(name)
        if averaged:
            pieces = {
                key: Piece(self._average[key], piece.shape, piece.offset)
                for key, piece in pieces.items()
            }
        return self._whole(name, pieces).requires_grad_(False)

    def release(self, name: str) -> nn.Module:
        """End the engines; return the network as a module that DeepSpeed does not know. Called on all ranks."""
        module = self._whole(name, self._held(name))
        for engine in self._engines.values():
            engine.destroy()
        return module

    def held(self) -> dict[str, list[Tensor]]:
        """Return what this rank keeps at this moment, as weights, gradients and optimizer; for accounting.

        The optimizer's part has the copy of the weights that it updates, where that is not the weights themselves.
        """
        weights: list[Tensor] = []
        gradients: list[Tensor] = []
        optimizer = optimizer_tensors(phase.optimizer for phase in self.phases.values())
        for name, phase in self.phases.items():
            parameters: list[Any] = list(phase.module.parameters())
            weights += [p.ds_tensor if self._stage == 3 else p for p in parameters]
            gradients += [p.grad for p in parameters if p.grad is not None]
            inner = self._engines[name].optimizer
            if self._stage == 3:
                gradients.append(inner.grad_partitions_flat_buffer)
            else:
                gradients += [
                    part for parts in inner.averaged_gradients.values() for part in parts or []
                ]
            optimizer += [flat for flat, _ in self._owned[name]]
        own = {tensor.untyped_storage().data_ptr() for tensor in weights}
        optimizer = [
            tensor for tensor in optimizer if tensor.untyped_storage().data_ptr() not in own
        ]
        return {"weights": weights, "gradients": gradients, "optimizer": optimizer}

    def _held(self, name: str) -> dict[str, Piece]:
        """Return this rank's part of each weight, as views: its partition in stage 3, else an even cut of the whole."""
        rank, size = self.ranks.rank, self.ranks.world_size
        parameters = self.phases[name].module.named_parameters()
        if self._stage < 3:
            return {key: rank_slice(parameter, rank, size) for key, parameter in parameters}
        return {key: _partition(parameter, rank) for key, parameter in parameters}

    @torch.no_grad()
    def _whole(self, name: str, pieces: dict[str, Piece]) -> nn.Module:
        module = copy.deepcopy(self._skeletons[name]).to_empty(device=self.ranks.device)
        for key, parameter in module.named_parameters():
            piece, flat = pieces[key], parameter.data.view(-1).zero_()
            flat[piece.offset : piece.offset + piece.values.numel()] = piece.values
            if self.ranks.world_size > 1:
                dist.all_reduce(flat)  # of parts that do not overlap: exact
        for mine, other in zip(module.buffers(), self.phases[name].module.buffers(), strict=True):
            mine.copy_(other)
        return module

    def state(self) -> dict[str, dict[str, Tensor | Piece]]:
        """Return the pieces of weights, average and optimizer states that this rank holds, by role."""
        roles: dict[str, dict[str, Tensor | Piece]] = {}
        for name in self.phases:
            buffers = self._buffers(name)
            roles[name] = {**self._held(name), **buffers}
            roles[f"{name}_optimizer"] = self._optimizer_state(name)
            if name == self.averaged_name:
                held = self._held(name)
                average = {
                    key: Piece(t, held[key].shape, held[key].offset)
                    for key, t in self._average.items()
                }
                roles[f"{name}_average"] = {**average, **buffers}
        return roles

    def _buffers(self, name: str) -> dict[str, Tensor]:
        module = self.phases[name].module
        parameters = dict(module.named_parameters())
        return {key: value for key, value in module.state_dict().items() if key not in parameters}

    def _optimizer_state(self, name: str) -> dict[str, Tensor | Piece]:
        held: dict[str, Tensor | Piece] = {}
        state = self.phases[name].optimizer.state
        for flat, runs in self._owned[name]:
            for slot, value in state.get(flat, {}).items():
                for run in runs:
                    if value.dim() == 0:  # Adam's step
                        held[f"{run.name}/{slot}"] = value
                    elif run.length:
                        part = value.view(-1)[run.start : run.start + run.length]
                        held[f"{run.name}/{slot}"] = Piece(part, run.shape, run.offset)
        return held

    @torch.no_grad()
    def load_state(self, saved: Saved, *, with_optimizers: bool = True) -> None:
        """Take over what any strategy, on any number of ranks, has saved. Called on all ranks."""
        for name, phase in self.phases.items():
            for key, parameter in phase.module.named_parameters():
                whole = Piece(parameter.data.view(-1), tuple(parameter.shape), 0)
                _read_into(
                    saved,
                    name,
                    key,
                    _partition(parameter, self.ranks.rank) if self._stage == 3 else whole,
                )
            for key, buffer in self._buffers(name).items():
                _read_into(saved, name, key, Piece(buffer.view(-1), tuple(buffer.shape), 0))
            self._engines[name].optimizer.refresh_fp32_params()
            if with_optimizers:
                self._load_optimizer(saved, name)
        if self.averaged_name is not None:
            for key, piece in self._held(self.averaged_name).items():
                mine = Piece(self._average[key], piece.shape, piece.offset)
                _read_into(saved, f"{self.averaged_name}_average", key, mine)

    def _load_optimizer(self, saved: Saved, name: str) -> None:
        optimizer, role = self.phases[name].optimizer, f"{name}_optimizer"
        shapes = saved.shapes(role)
        slots = sorted({key.rsplit("/", 1)[1] for key in shapes})
        for flat, runs in self._owned[name]:
            state: dict[str, Tensor] = {}
            for slot in slots:
                if shapes[f"{runs[0].name}/{slot}"][1] == ():
                    state[slot] = (
                        saved.read(role, f"{runs[0].name}/{slot}")
                        .view(())
                        .to(_step_device(optimizer, flat))
                    )
                    continue
                state[slot] = torch.zeros_like(flat)
                for run in runs:
                    part = Piece(
                        state[slot][run.start : run.start + run.length], run.shape, run.offset
                    )
                    _read_into(saved, role, f"{run.name}/{slot}", part)
            optimizer.state.pop(flat, None)
            if state:
                optimizer.state[flat] = state


def _import_deepspeed(ranks: Ranks) -> Any:
    """Import DeepSpeed for this rank's device and give it the process group that there is (or one for one rank)."""
    on_cpu = ranks.device.type == "cpu"
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if on_cpu else "cuda")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise LaunchError(
            f"{ranks.profile.name} needs DeepSpeed, which cannot be imported ({error}): "
            "`pip install 'colorgan[deepspeed]'`, or use ddp.yaml"
        ) from None
    logging.getLogger("DeepSpeed").setLevel(
        logging.ERROR
    )  # it warns of settings that `_config` makes on purpose
    # Told at every collective call; DeepSpeed's to change, not the user's.
    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.\w+_tensor` is deprecated", FutureWarning
    )
    # On the CPU DeepSpeed would compile a shared-memory extension at first use (99 s, needs a compiler).
    operations = getattr(deepspeed.ops, "__compatible_ops__", None)
    if on_cpu and isinstance(operations, dict):
        operations["deepspeed_shm_comm"] = False
    backend = "gloo" if on_cpu else "nccl"
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(backend)
    return deepspeed


def _config(
    ranks: Ranks, module: nn.Module, *, precision: str, gradient_clip_norm: float
) -> dict[str, Any]:
    """Return DeepSpeed's settings; those that change numbers or memory are all set, never left to its defaults."""
    bucket = min(
        BUCKET_ELEMENTS, sum(parameter.numel() for parameter in module.parameters()) // 2 * 2 + 2
    )  # even
    offload = "cpu" if ranks.profile.offload_optimizer else "none"
    return {
        "train_micro_batch_size_per_gpu": 1,  # not used: the loop says which micro-batch is the last of a step
        "gradient_accumulation_steps": 1,
        "gradient_clipping": gradient_clip_norm,  # the default clips at 1.0
        "communication_data_type": "fp32",
        "torch_autocast": {
            "enabled": precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # theirs is compiled at first use and rounds otherwise
        "zero_optimization": {
            "stage": ranks.profile.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": False,
            "round_robin_gradients": False,
            "stage3_param_persistence_threshold": 0,  # otherwise small weights stay whole on every rank
            "offload_optimizer": {"device": offload},
        },
    }


def _owned(engine: Any, module: nn.Module) -> Iterator[tuple[Tensor, list[_Owned]]]:
    """Yield each flat buffer of the optimizer with the parameters' elements that lie in it, in order."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    optimizer, rank = engine.optimizer, dist.get_rank()
    try:
        if hasattr(optimizer, "fp32_partitioned_groups_flat"):
            yield from _owned_stage_3(optimizer, names, rank)
        else:
            yield from _owned_stages_1_2(optimizer, names, rank)
    except AttributeError as error:
        raise LaunchError(
            f"this DeepSpeed keeps its state otherwise than version 0.19.8 ({error}): install that version"
        ) from None


def _owned_stages_1_2(
    optimizer: Any, names: dict[int, str], rank: int
) -> Iterator[tuple[Tensor, list[_Owned]]]:
    """A group's parameters lie one after the other in one buffer, which is cut into as many parts as ranks."""
    for group, flat in enumerate(optimizer.single_partition_of_fp32_groups):
        first, last = rank * flat.numel(), (rank + 1) * flat.numel()
        runs: list[_Owned] = []
        parameters = optimizer.round_robin_bit16_groups[group]
        for parameter, begin in zip(
            parameters, optimizer.round_robin_bit16_offsets[group], strict=True
        ):
            start, stop = max(begin, first), min(begin + parameter.numel(), last)
            length = max(0, stop - start)
            shape = tuple(parameter.shape)
            runs.append(_Owned(names[id(parameter)], shape, start - begin, start - first, length))
        yield flat, runs


def _owned_stage_3(
    optimizer: Any, names: dict[int, str], rank: int
) -> Iterator[tuple[Tensor, list[_Owned]]]:
    """Every parameter is cut into as many equal parts as ranks (the last padded); a buffer holds a rank's parts."""
    for group, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
        runs: list[_Owned] = []
        position = 0
        for parameter in optimizer.fp16_groups[group]:
            each = parameter.ds_tensor.ds_numel
            length = max(0, min(each, parameter.ds_numel - rank * each))
            runs.append(
                _Owned(
                    names[id(parameter)], tuple(parameter.ds_shape), rank * each, position, length
                )
            )
            position += each
        yield flat, runs


def _partition(parameter: Any, rank: int) -> Piece:
    """Return the part of a weight that this rank holds in stage 3, as a view."""
    each = parameter.ds_tensor.ds_numel
    length = max(0, min(each, parameter.ds_numel - rank * each))
    return Piece(parameter.ds_tensor.data.view(-1)[:length], tuple(parameter.ds_shape), rank * each)


def _read_into(saved: Saved, role: str, name: str, piece: Piece) -> None:
    if piece.values.numel():
        piece.values.copy_(saved.read(role, name, piece.offset, piece.values.numel()))


def _step_device(optimizer: torch.optim.Optimizer, flat: Tensor) -> torch.device:
    """Return where Adam wants its step counter: beside the weights when fused, else on the CPU."""
    return flat.device if optimizer.defaults.get("fused") else torch.device("cpu")
