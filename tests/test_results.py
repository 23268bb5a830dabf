"""The page of results says what its records say."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent


def script() -> ModuleType:
    """Return benchmarks/results.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("results", PROJECT / "benchmarks" / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def in_points(comparison: Any) -> str:
    """Return a difference with its interval as the front page writes it."""
    low, gain, high = (
        f"{100 * value:.1f}" for value in (comparison.low, comparison.difference, comparison.high)
    )
    return f"{gain} points ({low} to {high})"


def test_the_page_is_what_the_records_give() -> None:
    results = script()
    assert results.PAGE.read_text() == results.write_page(results.read_results())


def test_the_front_page_quotes_the_records() -> None:
    results = script()
    record = results.read_result(results.RECORDS / "two_cores.json")
    (comparison,) = record.study.protocols[0].comparisons
    low, gain, high = (
        f"{100 * value:.1f}" for value in (comparison.low, comparison.difference, comparison.high)
    )
    readme = " ".join((PROJECT / "README.md").read_text().split())
    assert f"{gain} points with a 95 % interval from {low} to {high}" in readme
    for pretrained in (True, False):
        scores = [f"{100 * score:.1f}" for score in sorted(record.probed(pretrained=pretrained))]
        assert f"{scores[0]} to {scores[-1]} %" in readme

    best = results.read_generator("best_64px")
    closer = f"{100 * best.change('chroma_l1'):.0f} % closer to the truth than grey"
    assert f"a generator of {best.core_minutes:.0f} minutes on one CPU core" in readme
    assert closer in readme

    arms = results.read_result(results.RECORDS / "two_cores_objectives.json")
    by_arms = {(each.arm, each.against): each for each in arms.study.protocols[0].comparisons}
    gan, timed = by_arms["least-squares", "l1"], by_arms["least-squares", "l1-equal-time"]
    images = f"{arms.generators[0].images:,}"
    assert f"After {images} images it adds {in_points(gan)} to the frozen features" in readme

    gain, interval = in_points(timed).split(" points ")
    assert f"given the GAN's time, L1 alone is {gain} points behind {interval}" in readme
