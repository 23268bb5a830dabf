"""From a checkpoint to a model folder in bounded memory, and a check of the result.

    checkpoint -> consolidate -> generator/ (model.safetensors, config.json)

Weights are copied in slices, then the written network is run layer by layer and its output compared
with what the run recorded. Neither step holds the whole network: the largest thing in memory is the
largest single tensor. (An encoder of timm is loaded whole for the check.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from colorgan.checkpoints.checkpoint import Checkpoint
from colorgan.errors import CheckpointError, ModelFolderError
from colorgan.files import replacing_folder
from colorgan.models.model_config import CONFIG, UNET, WEIGHTS, ModelConfig
from colorgan.models.model_folder import check_model_folder, empty_model, load_model, probe
from colorgan.models.weights_file import WeightsFile, write_safetensors

# Of outputs of order 1. A GPU's convolutions differ from a CPU's by about 1e-4.
PROBE_TOLERANCE = 1e-3


def consolidate(
    source: Checkpoint, out: Path, weights: Literal["raw", "average"] | None = None
) -> ModelConfig:
    """Turn a checkpoint into a model folder, dtypes kept; return its config.

    The weights are the average (EMA) if there is one, unless `raw` is asked for. The written
    network is run on a fixed input and compared with what the run recorded when it saved.

    Raises:
        CheckpointError: The checkpoint lacks the weights asked for, or does not describe its model.
        ModelFolderError: The output differs from the recorded one.
    """
    roles = source.roles()
    role = str(source.state.get("model_role"))
    # The average is what validation scored, so it is what a user expects to get.
    which = weights or ("average" if f"{role}_average" in roles else "raw")
    config = described_model(source, which)

    stored = f"{role}_average" if which == "average" else role
    shapes = source.shapes(stored)

    def read(name: str, offset: int, length: int) -> Tensor:
        return source.read(stored, name, offset, length)

    check_model_folder(out, config.kind)
    # Checked before it takes its place: a folder that fails is never seen under its name.
    with replacing_folder(out) as partial:
        write_safetensors(partial / WEIGHTS, shapes, read)
        (partial / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")
        _check_output(partial, config, source.read("probe", which))
    return config


def described_model(source: Checkpoint, which: str = "raw") -> ModelConfig:
    """Return what a checkpoint says of its model, for its raw or its average weights.

    Raises:
        CheckpointError: It says nothing that this version knows.
    """
    try:
        return ModelConfig.model_validate({**source.state["model"], "weights": which})
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{source.path} does not describe a model that this version of colorgan knows"
        ) from None


def _check_output(folder: Path, config: ModelConfig, recorded: Tensor) -> None:
    output = streamed_probe(folder / WEIGHTS, config).flatten()
    recorded = recorded.flatten()
    if output.shape != recorded.shape:
        raise ModelFolderError(
            f"{folder}: the network's output has {len(output)} elements, but the run recorded "
            f"{len(recorded)}: the checkpoint and this version of colorgan do not belong together"
        )

    difference = float((output - recorded).abs().max())
    # Also refuses NaN, which compares as false.
    if not difference <= PROBE_TOLERANCE:
        raise ModelFolderError(
            f"{folder}: the network's output differs by {difference:.2g} from what the run "
            f"recorded (at most {PROBE_TOLERANCE:.0e}): the checkpoint and this version of "
            "colorgan do not belong together"
        )


def streamed_probe(weights: Path, config: ModelConfig) -> Tensor:
    """Return a weights file's output for the fixed input, each layer's tensors read in its turn.

    Raises:
        ModelFolderError: The file does not fit the config.
    """
    size = config.architecture.image_size
    if config.architecture.encoder != UNET:  # its layers may read each other's tensors
        # On the CPU, where every machine can repeat it.
        return probe(load_model(weights.parent)[0], size, torch.device("cpu"))

    module = empty_model(config)
    file = WeightsFile(weights)
    file.check_fits(module)
    with _read_in_turn(module, file), _without_onednn():
        return probe(module, size, torch.device("cpu"))


@contextmanager
def _without_onednn() -> Iterator[None]:
    """While open, convolutions do not copy their weights into oneDNN's layout.

    The copy would double the largest tensor.
    """
    before = torch._C._get_mkldnn_enabled()
    torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before)  # type: ignore[no-untyped-call]


@contextmanager
def _read_in_turn(module: nn.Module, file: WeightsFile) -> Iterator[None]:
    """While open, each layer of `module` has its tensors during its own forward pass only.

    The module is on the meta device.
    """
    handles = []
    for name, part in module.named_modules():
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        if not own:
            continue

        prefix = f"{name}." if name else ""
        handles.append(
            part.register_forward_pre_hook(
                _fill(
                    [key for key, _ in own],
                    prefix,
                    file,
                )
            )
        )
        # Emptied right after use, so that one layer at a time is in memory.
        handles.append(part.register_forward_hook(_empty(dict(own))))

    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fill(keys: list[str], prefix: str, file: WeightsFile) -> Callable[[nn.Module, Any], None]:
    def fill(part: nn.Module, inputs: Any) -> None:
        for key in keys:
            _set(part, key, file.read(prefix + key))

    return fill


def _empty(meta: dict[str, Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def empty(part: nn.Module, inputs: Any, output: Any) -> None:
        for key, tensor in meta.items():
            _set(part, key, tensor)

    return empty


def _set(part: nn.Module, key: str, tensor: Tensor) -> None:
    # Stored bf16 is widened: not every CPU kernel takes it, and the recorded output is float32.
    value = tensor.float() if tensor.is_floating_point() and not tensor.is_meta else tensor
    if key in part._buffers:
        part._buffers[key] = value
    else:
        part._parameters[key] = nn.Parameter(value, requires_grad=False)
