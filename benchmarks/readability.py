"""Count what makes code hard to read, per package: density, air, comments, branching.

    python benchmarks/readability.py [FOLDER]      FOLDER: the project's root; default: this project

A syntax node is one node of Python's `ast`; nodes per line are counted over lines that are not
blank. A body is airless if its function has 12 lines or more and no blank line inside. Complexity
is McCabe's, as ruff's C901 counts it.
"""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import sysconfig
import tokenize
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOTS = ("colorgan", "shards", "datasets", "launcher", "benchmarks", "slurm", "tests")
AIRLESS_LINES = 12
MAX_LINE = 100
MAX_COMPLEXITY = 10

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Counts:
    """Sums over the files of a package."""

    files: int = 0
    lines: int = 0
    full_lines: int = 0
    nodes: int = 0
    long_bodies: int = 0
    airless: int = 0
    comments: int = 0
    long_lines: int = 0
    complex: int = 0
    public: int = 0
    documented: int = 0

    def row(self, name: str) -> str:
        """Return the package's row of the table."""
        airless = 100 * self.airless / self.long_bodies if self.long_bodies else 0.0
        documented = 100 * self.documented / self.public if self.public else 100.0
        return (
            f"{name:26}{self.files:6}{self.lines:8}{self.nodes:9}"
            f"{self.nodes / max(self.full_lines, 1):8.1f}"
            f"{airless:9.0f} %{100 * self.comments / max(self.lines, 1):8.1f} %{self.long_lines:8}"
            f"{self.complex:9}{documented:8.0f} %"
        )


def package_of(path: Path) -> str:
    """`colorgan/models/unet.py` -> `colorgan/models`; deeper folders count to the second level."""
    return "/".join(path.parts[:-1][:2])


def add_file(counts: Counts, text: str) -> None:
    """Add one file's counts."""
    tree = ast.parse(text)
    lines = text.splitlines()
    counts.files += 1
    counts.lines += len(lines)
    counts.nodes += sum(1 for _ in ast.walk(tree))
    counts.long_lines += sum(len(line) > MAX_LINE for line in lines)

    # By tokens: a `#` within a string is no comment.
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            counts.comments += 1

    # Without blank lines: air must not look like low density.
    counts.full_lines += sum(bool(line.strip()) for line in lines)

    for node in ast.walk(tree):
        if isinstance(node, Function):
            add_function(counts, node, lines)


def add_function(counts: Counts, node: Function, lines: list[str]) -> None:
    """Count whether a function's body is airless, and whether a public one has a docstring."""
    body = node.body
    has_docstring = ast.get_docstring(node) is not None
    # Blank lines of a docstring would hide a body without air.
    if has_docstring:
        body = body[1:]

    if body:
        first, last = body[0].lineno, body[-1].end_lineno or body[-1].lineno
        if last - first + 1 >= AIRLESS_LINES:
            counts.long_bodies += 1
            counts.airless += not any(not line.strip() for line in lines[first - 1 : last])

    if not node.name.startswith("_"):
        counts.public += 1
        counts.documented += has_docstring


def count_complex(root: Path, packages: dict[str, Counts]) -> list[str]:
    """Add the functions over MAX_COMPLEXITY, as ruff finds them; return where they are."""
    ruff = Path(sysconfig.get_path("scripts")) / "ruff"
    command = [
        str(ruff),
        "check",
        "--isolated",
        "--select",
        "C901",
        "--output-format",
        "json",
        "--exit-zero",
    ]
    # Isolated from a project's own settings, so that any project can be counted.
    setting = f"lint.mccabe.max-complexity={MAX_COMPLEXITY}"
    found = subprocess.run(
        [*command, "--config", setting, *ROOTS], cwd=root, capture_output=True, check=True
    )
    places = []
    for problem in json.loads(found.stdout):
        path = Path(problem["filename"]).relative_to(root.resolve())
        packages[package_of(path)].complex += 1
        places.append(f"{path}:{problem['location']['row']}: {problem['message']}")
    return places


def main() -> None:
    """Print the table and the functions that branch too much."""
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    packages: dict[str, Counts] = defaultdict(Counts)
    for name in ROOTS:
        for path in sorted((root / name).rglob("*.py")):
            add_file(packages[package_of(path.relative_to(root))], path.read_text())

    places = count_complex(root, packages)
    print(
        f"{'package':26} files   lines    nodes  a line  airless  comments   "
        f">{MAX_LINE}  complex  docstr."
    )
    for name, counts in sorted(packages.items()):
        print(counts.row(name))

    product = sum(c.nodes for name, c in packages.items() if name.split("/")[0] in ROOTS[:4])
    report = sum(c.nodes for name, c in packages.items() if name.startswith("colorgan/report"))
    print(
        f"\nsyntax nodes: colorgan, shards, datasets and launcher {product:,}, "
        f"of which report/ {report:,}"
    )
    if places:
        print("over complexity", MAX_COMPLEXITY)
        print("\n".join(f"  {place}" for place in places))


if __name__ == "__main__":
    main()
