"""timm, which lies in a folder of its own in the environment (see the Makefile)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch


@contextmanager
def timm_on_the_path() -> Iterator[Any]:
    """While open, timm can be imported; declares torchvision's operators if it is of another torch.

    Yields:
        The module.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(sys.prefix) / "encoders"))
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        try:
            import torchvision  # noqa: F401
        except RuntimeError:
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor a, Tensor b, float c) -> Tensor")  # type: ignore[no-untyped-call]
        import timm

        yield timm
