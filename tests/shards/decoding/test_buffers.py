"""Memory is used again when, and only when, no tensor shares it any more."""

import gc
import threading

import torch

from shards.decoding.buffers import Buffers

SHAPE = (2, 3, 8, 8)


def test_memory_in_use_is_never_handed_out_again() -> None:
    buffers = Buffers()
    kept = [torch.from_numpy(buffers.take(SHAPE)).fill_(index) for index in range(5)]
    for index, tensor in enumerate(kept):
        assert (tensor == index).all()
    assert len({tensor.data_ptr() for tensor in kept}) == 5


def test_memory_is_used_again_once_all_views_are_gone() -> None:
    buffers = Buffers()
    tensor = torch.from_numpy(buffers.take(SHAPE))
    address = tensor.data_ptr()
    view = tensor[:, 1:]
    shared = tensor.detach().permute(0, 2, 3, 1)
    del tensor

    assert buffers.take(SHAPE).ctypes.data != address

    del view

    assert buffers.take(SHAPE).ctypes.data != address

    del shared

    assert buffers.take(SHAPE).ctypes.data == address


def test_memory_saved_for_backward_is_in_use() -> None:
    buffers = Buffers()
    tensor = torch.from_numpy(buffers.take(SHAPE)).fill_(2.0)
    weight = torch.ones(SHAPE, requires_grad=True)
    loss = (weight * tensor).sum()
    del tensor
    gc.collect()
    torch.from_numpy(buffers.take(SHAPE)).fill_(9.0)
    loss.backward()

    assert weight.grad is not None
    assert (weight.grad == 2.0).all()


def test_memory_released_by_another_thread() -> None:
    buffers = Buffers()
    held = [torch.from_numpy(buffers.take(SHAPE))]
    address = held[0].data_ptr()
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert buffers.take(SHAPE).ctypes.data == address


def test_a_hoarder_gets_memory_of_its_own() -> None:
    buffers = Buffers(max_kept=3)
    hoard = [torch.from_numpy(buffers.take(SHAPE)).fill_(index) for index in range(10)]
    assert len({tensor.data_ptr() for tensor in hoard}) == 10
    assert buffers.num_kept <= 3
    assert buffers.take((1, 3, 8, 8)).shape == (1, 3, 8, 8)
