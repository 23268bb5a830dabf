"""Set up every test: `colorgan` is imported before torch, which it gives OpenMP's settings."""

import colorgan  # noqa: F401
