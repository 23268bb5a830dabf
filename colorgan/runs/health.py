"""Monitor GAN health: warn once each time a logged value leaves its expected range.

    fit -> Run.report -> HealthWatch.judge -> display and log (event)

Only values that a run logs are judged: fine-tuning has gradient norms, pretraining all of them.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

REPORTS_TO_WARN = 3  # in a row out of the band: one noisy report means nothing
NORM_HISTORY, NORM_FACTOR = 50, 20.0
MIN_NORM_HISTORY = 10
# Fewer images/s than this share of the run's own best rate: something else takes the cores.
SLOW_SHARE = 0.4


@dataclass(frozen=True)
class Band:
    """The expected range of one figure derived from the logged values, and advice outside it."""

    name: str
    figure: Callable[[Mapping[str, float]], float | None]  # None: not logged
    low: float
    high: float
    too_low: str = ""
    too_high: str = ""

    def advice(self, figure: float) -> str | None:
        """Return what to do about a figure; None within the band."""
        if figure < self.low:
            return self.too_low
        return self.too_high if figure > self.high else None

    @property
    def usual(self) -> str:
        """The band as text."""
        return f"{self.low:g} to {self.high:g}" if self.low > 0 else f"at most {self.high:.3g}"


def _accuracy(values: Mapping[str, float]) -> float | None:
    real = values.get("discriminator_accuracy/real")
    fake = values.get("discriminator_accuracy/fake")
    # The mean of both: either alone swings from step to step.
    return None if real is None or fake is None else (real + fake) / 2


def _colorfulness(values: Mapping[str, float]) -> float | None:
    output, data = values.get("colourfulness/output"), values.get("colourfulness/data")
    # Relative to the data: a set of seascapes is less colorful than one of fruit.
    return output / data if output is not None and data else None


def _saturated(values: Mapping[str, float]) -> float | None:
    return values.get("saturated/output")


BANDS = (
    Band(
        "discriminator accuracy",
        _accuracy,
        0.2,
        0.98,
        too_low="it takes real images for fake and fake ones for real: lower "
        "optimizer.discriminator_learning_rate",
        too_high="it tells nearly all images apart, so the generator learns little from it: lower "
        "optimizer.discriminator_learning_rate or discriminator.width",
    ),
    Band(
        "colourfulness of the output as a share of the data's",
        _colorfulness,
        0.25,
        2.0,
        too_low="the images are nearly grey: raise loss.gan_weight, or train longer",
        too_high="the colors are too strong: raise loss.l1_weight",
    ),
    Band(
        "share of saturated output",
        _saturated,
        -1.0,
        0.05,
        too_high="the generator is at the ends of tanh, where gradients vanish: lower "
        "optimizer.learning_rate",
    ),
)


@dataclass
class HealthWatch:
    """Judges each report; the same on every rank."""

    _streaks: dict[str, int] = field(default_factory=dict)
    _norms: dict[str, deque[float]] = field(default_factory=dict)
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=NORM_HISTORY))
    _told_slow: bool = False

    def judge(self, values: Mapping[str, float]) -> list[str]:
        """Return a sentence for each figure out of its band for `REPORTS_TO_WARN` reports in a row.

        A figure is warned of once, then again only after it was back in its band.
        """
        sentences = []
        for band in (*BANDS, *self._norm_bands(values)):
            figure = band.figure(values)
            if figure is None:
                continue

            advice = band.advice(figure)
            streak = 0 if advice is None else self._streaks.get(band.name, 0) + 1
            self._streaks[band.name] = streak
            # Equal, not at least: a state that lasts is told of once.
            if streak == REPORTS_TO_WARN:
                sentences.append(f"{band.name} is {figure:.3g} (usual: {band.usual}): {advice}")
        return sentences

    def judge_rate(self, images_per_s: float, wait_share: float) -> str | None:
        """Return a sentence, once per run, when training is far slower than it has been.

        Waiting for the loader is no sign of it: the loader's rate is another matter.

        Args:
            images_per_s: Of the last report.
            wait_share: Share of that time spent waiting for the loader.
        """
        # As if data had come at once: only the computing is judged here.
        self._rates.append(images_per_s * 1.0 / max(1e-3, 1.0 - wait_share))
        recent = list(self._rates)[-REPORTS_TO_WARN:]
        best = max(self._rates)
        # The best of the recent ones: a single slow report is a checkpoint or a neighbour's build.
        slow = len(self._rates) > 2 * REPORTS_TO_WARN and max(recent) < SLOW_SHARE * best
        if not slow or self._told_slow:
            return None

        self._told_slow = True
        return (
            f"training computes {max(recent):,.0f} images/s, of {best:,.0f} at its best: other "
            "processes may be using this machine's cores. Lower --launch.torch_threads, or run "
            "fewer of them"
        )

    def _norm_bands(self, values: Mapping[str, float]) -> list[Band]:
        """Return a band per gradient norm around its own median, once there are enough values."""
        bands = []
        for name in [name for name in values if name.startswith("gradient_norm/")]:
            history = self._norms.setdefault(name, deque(maxlen=NORM_HISTORY))
            # The first norms of a network from its seed say nothing about the later ones.
            if len(history) >= MIN_NORM_HISTORY:
                bands.append(_norm_band(name, statistics.median(history)))
            # After the band is made: a jump must not widen the band that it is judged by.
            history.append(values[name])
        return bands


def _norm_band(name: str, usual: float) -> Band:
    return Band(
        f"gradient norm of the {name.partition('/')[2]}",
        lambda values: values[name],
        usual / NORM_FACTOR,
        usual * NORM_FACTOR,
        too_low="it has nearly stopped learning",
        too_high="steps may diverge: set optimizer.gradient_clip_norm or lower the learning rate",
    )
