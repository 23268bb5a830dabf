"""From a checkpoint to a model folder, in bounded memory: weights copied in runs, the result probed layer by layer.

    checkpoint -> consolidate -> generator/ (model.safetensors, config.json)

Neither step ever holds the network: the largest thing in memory is the largest single tensor. (An encoder of timm is
loaded whole for the second.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from colorgan.checkpoints.checkpoint import Checkpoint
from colorgan.errors import ModelFolderError
from colorgan.models.model_folder import (
    UNET,
    ModelConfig,
    empty_model,
    load_model,
    partial_folder,
    probe,
    replace_folder,
)
from colorgan.models.weights_file import CONFIG, WEIGHTS, WeightsFile, write_safetensors

PROBE_TOLERANCE = (
    1e-3  # of outputs of order 1; a GPU's convolutions differ from the CPU's by about 1e-4
)


def consolidate(
    source: Checkpoint, out: Path, weights: Literal["raw", "average"] | None = None
) -> ModelConfig:
    """Turn a checkpoint into a model folder, dtypes kept; return its config.

    The weights are the average where there is one, unless `raw` is asked for. The written result is run on the probe
    input and compared with what the run recorded when it saved.

    Raises:
        CheckpointError: the checkpoint lacks the weights asked for.
        ModelFolderError: the probe's output differs from the recorded one.
    """
    partial = partial_folder(out)
    roles = source.roles()
    role = str(source.state["model_role"])
    which = weights or ("average" if f"{role}_average" in roles else "raw")
    config = ModelConfig.model_validate({**source.state["model"], "weights": which})
    stored = f"{role}_average" if which == "average" else role
    write_safetensors(
        partial / WEIGHTS,
        source.shapes(stored),
        lambda name, offset, length: source.read(stored, name, offset, length),
    )
    (partial / CONFIG).write_text(config.model_dump_json(indent=1) + "\n")
    _check_probe(partial, config, source.read("probe", which))
    replace_folder(partial, out)
    return config


def _check_probe(folder: Path, config: ModelConfig, recorded: Tensor) -> None:
    output = streamed_probe(folder / WEIGHTS, config)
    difference = float((output.flatten() - recorded.flatten()).abs().max())
    if not difference <= PROBE_TOLERANCE:
        raise ModelFolderError(
            f"{folder}: the network's output differs by {difference:.2g} from what the run recorded "
            f"(at most {PROBE_TOLERANCE:.0e}): the checkpoint and this version of colorgan do not belong together"
        )


def streamed_probe(weights: Path, config: ModelConfig) -> Tensor:
    """Return the probe output of a weights file; each layer's tensors are read when its turn comes, and dropped.

    Raises:
        ModelFolderError: the file does not fit the config.
    """
    if config.architecture.encoder != UNET:  # its layers may read each other's tensors
        return probe(
            load_model(weights.parent)[0], config.architecture.image_size, torch.device("cpu")
        )
    module = empty_model(config)
    with WeightsFile(weights) as file:
        file.check_fits(module)
        with _read_in_turn(module, file), _without_onednn():
            return probe(module, config.architecture.image_size, torch.device("cpu"))


@contextmanager
def _without_onednn() -> Iterator[None]:
    """While open, convolutions do not copy their weights into oneDNN's layout, which doubles the largest tensor."""
    before = torch._C._get_mkldnn_enabled()
    torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before)  # type: ignore[no-untyped-call]


@contextmanager
def _read_in_turn(module: nn.Module, file: WeightsFile) -> Iterator[None]:
    """While open, every layer of `module` (on the meta device) has its tensors during its own forward pass only."""
    handles = []
    for name, part in module.named_modules():
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        if not own:
            continue
        prefix = f"{name}." if name else ""
        handles.append(part.register_forward_pre_hook(_fill([key for key, _ in own], prefix, file)))
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
    value = tensor.float() if tensor.is_floating_point() and not tensor.is_meta else tensor
    if key in part._buffers:
        part._buffers[key] = value
    else:
        part._parameters[key] = nn.Parameter(value, requires_grad=False)
