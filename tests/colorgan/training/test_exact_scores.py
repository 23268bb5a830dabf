"""Training may compute in TF32; its validations may not."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toy import ToyLoader, toy_recipe

from colorgan.distributed.ranks import Ranks
from colorgan.tasks.pretraining import pretrain


def switches() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@dataclass
class Watching(ToyLoader):
    """Notes the switches whenever a batch is read."""

    seen: dict[str, set[tuple[bool, bool]]] = field(default_factory=dict)

    def batch(self, slots: range) -> Any:
        self.seen.setdefault("train", set()).add(switches())
        return super().batch(slots)

    def eval_batches(self) -> Iterator[Any]:
        self.seen.setdefault("validate", set()).add(switches())
        yield super().batch(range(10_000, 10_002))


def test_validation_is_float32_and_training_keeps_its_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    loader: Any = Watching(8, 8)
    recipe = toy_recipe(tmp_path)
    pretrain(recipe, Ranks.single(), total_images=32, data_digest="abc", train=loader, val=loader)

    assert loader.seen == {"train": {(True, False)}, "validate": {(False, False)}}
    assert switches() == (True, False)
