"""The documentation's site: the whole Python API, and nothing that needs a network."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from helpers.browser import Page, chromium, needs_browser

import colorgan

PROJECT = Path(__file__).resolve().parents[1]
MKDOCS = PROJECT / ".venv-docs/bin/mkdocs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site by the tools that `make docs` has installed."""
    if not MKDOCS.exists():
        pytest.skip("needs the documentation's tools: make docs")

    out = tmp_path_factory.mktemp("site")
    subprocess.run(
        [MKDOCS, "build", "--strict", "--quiet", "--site-dir", out],
        check=True,
        timeout=300,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "NO_MKDOCS_2_WARNING": "1"},
    )
    return out


def test_the_page_of_the_api_has_every_name() -> None:
    text = (PROJECT / "docs/api.md").read_text()
    assert set(re.findall(r"^::: colorgan\.api\.(\w+)$", text, re.M)) == set(colorgan.__all__)


def test_methods_and_arguments_are_in_the_site(site: Path) -> None:
    page = (site / "api.html").read_text()
    for name in ("Generator.from_pretrained", "Segmenter.predict", "Encoder.forward"):
        assert f'id="colorgan.api.{name}"' in page
    assert "random_crop_min_area" in page


@needs_browser
def test_diagrams_and_search_need_no_network(site: Path, tmp_path: Path) -> None:
    with chromium(tmp_path) as page:
        page.open((site / "design.html").as_uri())
        # The theme draws into a closed tree: only its size can be seen from outside.
        page.wait_for("document.querySelector('div.mermaid')?.getBoundingClientRect().height > 200")

        page.value("document.querySelector('[data-md-component=search-query]').focus()")
        page.call("Input.insertText", text="checkpoint")
        page.wait_for("document.querySelector('.md-search-result__item')")
        assert fetched_elsewhere(page) == []
        assert page.logged == []


def fetched_elsewhere(page: Page) -> list[str]:
    """Return what the page has asked other hosts for."""
    entries = page.value("performance.getEntriesByType('resource').map(entry => entry.name)")
    return [name for name in entries if name.startswith("http")]
