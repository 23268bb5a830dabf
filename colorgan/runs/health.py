"""Whether a GAN is well: bands for what is logged; a warning in words, once an episode, when a value leaves its band.

    fit -> Run.report -> HealthWatch.judge -> display and log (event)

Only values that a run logs are judged: fine-tuning has gradient norms, pretraining all of them.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

REPORTS_TO_WARN = 3  # in a row out of the band: one noisy report says nothing
NORM_HISTORY, NORM_FACTOR = 50, 20.0


@dataclass(frozen=True)
class Band:
    """What is well for one figure, derived from the logged values, and what to say where it is not."""

    name: str
    figure: Callable[[Mapping[str, float]], float | None]  # None: not logged
    low: float
    high: float
    too_low: str = ""
    too_high: str = ""


def _accuracy(values: Mapping[str, float]) -> float | None:
    real, fake = (
        values.get("discriminator_accuracy/real"),
        values.get("discriminator_accuracy/fake"),
    )
    return None if real is None or fake is None else (real + fake) / 2


def _colorfulness(values: Mapping[str, float]) -> float | None:
    output, data = values.get("colourfulness/output"), values.get("colourfulness/data")
    return output / data if output is not None and data else None


BANDS = (
    Band(
        "discriminator accuracy", _accuracy, 0.2, 0.98,
        too_low="it calls real what is fake and fake what is real: lower optimizer.discriminator_learning_rate",
        too_high="it tells nearly all pictures apart, so the generator learns little from it: lower "
        "optimizer.discriminator_learning_rate or discriminator.width",
    ),
    Band(
        "colourfulness of the output as a share of the data's", _colorfulness, 0.25, 2.0,
        too_low="the pictures are nearly grey: raise loss.gan_weight, or train longer",
        too_high="the colours are too strong: raise loss.l1_weight",
    ),
    Band(
        "share of saturated output", lambda values: values.get("saturated/output"), -1.0, 0.05,
        too_high="the generator sits at the ends of tanh, where it learns no more: lower optimizer.learning_rate",
    ),
)  # fmt: skip


@dataclass
class HealthWatch:
    """Judges each report; holds only what makes an episode. The same on every rank."""

    _streaks: dict[str, int] = field(default_factory=dict)
    _norms: dict[str, deque[float]] = field(default_factory=dict)

    def judge(self, values: Mapping[str, float]) -> list[str]:
        """Return a sentence for every figure that has left its band for `REPORTS_TO_WARN` reports in a row.

        It is said once; then again only after the figure was back in its band.
        """
        sentences = []
        for band in (*BANDS, *self._norm_bands(values)):
            figure = band.figure(values)
            if figure is None:
                continue
            advice = (
                band.too_low if figure < band.low else band.too_high if figure > band.high else None
            )
            streak = 0 if advice is None else self._streaks.get(band.name, 0) + 1
            self._streaks[band.name] = streak
            if streak == REPORTS_TO_WARN:
                usual = (
                    f"{band.low:g} to {band.high:g}" if band.low > 0 else f"at most {band.high:.3g}"
                )
                sentences.append(f"{band.name} is {figure:.3g} (usual: {usual}): {advice}")
        return sentences

    def _norm_bands(self, values: Mapping[str, float]) -> list[Band]:
        """A gradient norm is judged by its own median so far, once there are enough of them."""
        bands = []
        for name in (name for name in values if name.startswith("gradient_norm/")):
            history = self._norms.setdefault(name, deque(maxlen=NORM_HISTORY))
            if len(history) >= 10:
                usual = statistics.median(history)
                bands.append(
                    Band(
                        f"gradient norm of the {name.partition('/')[2]}",
                        lambda values, name=name: values[name],  # type: ignore[misc]
                        usual / NORM_FACTOR, usual * NORM_FACTOR,
                        too_low="it has nearly stopped learning",
                        too_high="steps may go astray: set optimizer.gradient_clip_norm or lower the learning rate",
                    )
                )  # fmt: skip
            history.append(values[name])
        return bands
