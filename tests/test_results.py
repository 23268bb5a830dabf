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


def images_of(result: Any, arm: str) -> str:
    """Return how many images an arm's generators have seen, as the front page writes it."""
    return f"{next(each.images for each in result.generators if each.arm == arm):,}"


def in_points(comparison: Any) -> str:
    """Return a difference with its interval as the front page writes it."""
    low, gain, high = (
        f"{round(100 * value, 1) + 0.0:.1f}"
        for value in (comparison.low, comparison.difference, comparison.high)
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
    readme_words = [
        f"After {images_of(arms, 'l1-four-times')} images L1 is "
        f"{in_points(by_arms['l1-four-times', 'luminance-four-times'])} ahead",
        f"after {images_of(arms, 'l1')} it is {in_points(by_arms['l1', 'luminance'])}",
        f"a correction for {len(by_arms)} comparisons",
        f"after {images_of(arms, 'least-squares')} images it is "
        f"{in_points(by_arms['least-squares', 'l1'])} ahead of L1",
        f"its time {in_points(by_arms['least-squares', 'l1-equal-time'])}",
    ]
    for words in readme_words:
        assert words in readme, words
