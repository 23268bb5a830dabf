"""Networks and the folders they are stored in.

Front doors: `model_config` (what a folder holds, without torch), `model_folder` (build, load,
save), `generator.Generator` (the public API), `modes` (inference, dropout keys). The classes with
`from_pretrained` are names of this package too, and of `colorgan`.
"""

import importlib
from typing import Any

_HOMES = {
    "Classifier": "predictors",
    "Detector": "predictors",
    "Encoder": "pyramid",
    "Generator": "generator",
    "Segmenter": "predictors",
}


def __getattr__(name: str) -> Any:
    """Load a class with `from_pretrained` when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
