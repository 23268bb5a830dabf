"""The front door: no gaps left to fill, links that lead somewhere, and commands that name real commands."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("slurm/*.md"), *PROJECT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_pages_are_whole(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"@[A-Z_]+@|TODO|TBD", text)
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert link.startswith(("http://", "https://")) or (page.parent / link).exists(), link
    for script in re.findall(r"\b(?:launcher|slurm|benchmarks)/[\w/]+\.(?:py|sh|yaml)", text):
        assert (PROJECT / script).exists(), script
