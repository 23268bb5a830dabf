"""Conditional-GAN colorization pretraining, checkpoints and transfer.

The names of colorgan/api.py are names of this package too (`from colorgan import colorize`); the
first use of one loads torch, `import colorgan` does not.
"""

import importlib
import os
from typing import Any

__all__ = [
    "Classifier",
    "Detector",
    "Encoder",
    "Generator",
    "Loader",
    "Segmenter",
    "colorize",
    "score",
]

# OpenMP's threads wait for each other by spinning, some 300,000 times by default. Where other work
# has taken one of the cores, the others spin for milliseconds after every operation: a small
# network trained 3 to 6 images/s on two busy cores. With 1,000 it trained 22 to 76 there, and 147
# against 153 on idle ones (OMP_WAIT_POLICY=PASSIVE: 21 to 75, and 135). It must be set before torch
# is loaded.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"


def __getattr__(name: str) -> Any:
    """Load a name of colorgan/api.py when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("colorgan.api"), name)


def __dir__() -> list[str]:
    """Offer the names that are not loaded yet to completion."""
    return sorted({*globals(), *__all__})
