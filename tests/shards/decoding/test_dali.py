"""The graph in its GPU form, as far as a machine without a GPU can check it.

Building a GPU pipeline needs a GPU; defining it does not. So each operator is looked up in DALI's
registries: it must exist for its device, and DALI must accept its arguments.
"""

from __future__ import annotations

import itertools
from typing import Any

import nvidia.dali.backend as dali
import pytest
import torch

from shards.decoding.dali import define_pipeline, graph
from shards.decoding.spec import DecodeSpec

GPU = torch.device("cuda", 0)
REGISTERED = {
    "cpu": set(dali.RegisteredCPUOps()),
    "mixed": set(dali.RegisteredMixedOps()),
    "gpu": set(dali.RegisteredGPUOps()),
}


def gpu_graph(spec: DecodeSpec) -> list[Any]:
    """Define the graph for a GPU and return its outputs."""
    pipeline = define_pipeline(spec, 4, 2, GPU)
    with pipeline:
        return graph(spec, on_gpu=True)


def operators(outputs: list[Any]) -> list[Any]:
    """Return every operator that the outputs depend on."""
    seen: dict[int, Any] = {}
    waiting = [node.source for node in outputs]
    while waiting:
        operator = waiting.pop()
        if operator is None or id(operator) in seen:
            continue
        seen[id(operator)] = operator

        for entry in operator.inputs:
            nodes = entry if isinstance(entry, list) else [entry]
            waiting += [node.source for node in nodes]
    return list(seen.values())


# DALI has no public way from a node to its operator's device, schema and arguments.
def device_of(operator: Any) -> str:
    device: str = operator._op.device
    return device


def schema_of(operator: Any) -> Any:
    return operator._op.schema


FORMS = [
    DecodeSpec(64, crop=crop, resize=resize, flip=flip, mask=mask, lab="operators")
    for crop, resize, flip, mask in itertools.product([False, True], repeat=4)
]


@pytest.mark.parametrize("spec", FORMS, ids=str)
def test_every_operator_exists_on_its_device_and_takes_its_arguments(spec: DecodeSpec) -> None:
    outputs = gpu_graph(spec)
    used = operators(outputs)
    devices = {device_of(operator) for operator in used}
    assert {"mixed", "gpu"} <= devices

    for operator in used:
        schema = schema_of(operator)
        assert schema.Name() in REGISTERED[device_of(operator)], schema.Name()
        operator.check_args()
        schema.CheckArgs(operator.spec)


@pytest.mark.parametrize("spec", FORMS, ids=str)
def test_tensors_come_out_on_the_gpu_and_masks_on_the_host_too(spec: DecodeSpec) -> None:
    devices = [node.device for node in gpu_graph(spec)]
    assert devices == (["gpu", "gpu", "cpu"] if spec.mask else ["gpu"])


def decoder_arguments(spec: DecodeSpec) -> dict[str, Any]:
    (decoder,) = [each for each in operators(gpu_graph(spec)) if device_of(each) == "mixed"]
    arguments: dict[str, Any] = decoder._op._init_args
    return arguments


def test_the_hardware_decoders_share_reaches_the_graph() -> None:
    spec = DecodeSpec(64, lab="operators", hardware_decoder_share=0.25)
    assert decoder_arguments(spec)["hw_decoder_load"] == 0.25


def test_decoder_memory_follows_the_packed_size() -> None:
    """DALI's default of 16 MiB per thread, and twice 8 MiB of pinned memory, suits photos."""
    packed = decoder_arguments(DecodeSpec(256, resize=False, lab="operators"))
    assert packed["device_memory_padding"] == packed["host_memory_padding"] == 1 << 20
    assert packed["preallocate_width_hint"] == packed["preallocate_height_hint"] == 256

    large = decoder_arguments(DecodeSpec(1024, resize=False, lab="operators"))
    assert large["device_memory_padding"] == 4 << 20
    photos = decoder_arguments(DecodeSpec(256, resize=True, lab="operators"))
    assert photos["device_memory_padding"] == 16 << 20
