"""The house: floors, imports that run down, front doors for outsiders, no circle.

CONTRIBUTING.md draws the same map. `python tests/test_house.py` prints it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
ROOTS = ("colorgan", "shards", "datasets", "launcher")

# From the ground up: a package imports from lower floors only, never from its own floor or a higher
# one.
COLORGAN_FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "color", "devices"),
    ("files", "launchers"),
    ("config", "models", "distributed"),
    ("checkpoints", "data"),
    ("evaluation", "training"),
    ("runs", "probes"),
    ("tasks", "study"),
    ("report", "doctor", "completion", "api", "demo"),
    ("console",),
)
# errors.py, files.py, records.py and a file per record on disk are the ground of shards; packing
# and loading never touch each other.
SHARDS_FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "extras", "records"),
    ("files",),
    ("samples_table", "rejections", "summary", "foreign_labels"),
    ("manifest", "order"),
    ("images", "storage"),
    ("decoding",),
    ("packing", "loading"),
)
DATASETS_FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("corpora", "download"),
    ("sample",),
    ("opening",),
)
FLOORS = {"colorgan": COLORGAN_FLOORS, "shards": SHARDS_FLOORS, "datasets": DATASETS_FLOORS}
# Between the projects' packages: who may import what, and from where.
CROSSINGS = {
    ("colorgan.data", "shards"),
    ("datasets", "shards.records"),
    # Words alone, which need neither torch nor DALI.
    ("colorgan", "shards.extras"),
}
# What other packages import of a package; within it every module may be imported.
FRONT_DOORS = {
    "colorgan.config": {
        "command_line",
        "command",
        "first_line",
        "json_schema",
        "recipe",
        "settings",
        "progress",
    },
    "colorgan.models": {
        "model_folder",
        "model_config",
        "generator",
        "unet",
        "layers",
        "discriminator",
        "detector",
        "timm_encoder",
        "backbones",
        "export",
        "hub",
        "modes",
        "colorizing",
        "weights_file",
        "color_classes",
        "framing",
        "photo_input",
        "predictors",
        "pretrained",
        "pyramid",
    },
    "colorgan.distributed": {"launch_profile", "ranks", "strategy", "phase", "state"},
    "colorgan.checkpoints": {"checkpoint", "writer", "consolidation"},
    "colorgan.training": {"automatic", "loop", "plan", "memory", "schedules", "work"},
    "colorgan.evaluation": {
        "evaluate",
        "settings",
        "record",
        "metrics",
        "generator_scores",
        "reconstruction_scores",
        "downstream",
        "losses",
        "strips",
        "picture_grids",
    },
    "colorgan.runs": {"run", "reading", "provenance", "recipe", "log"},
    "colorgan.tasks": {
        "pretraining",
        "finetuning",
        "colorization",
        "sample_data",
        "consolidating",
        "photo_coloring",
        "predicting",
        "embedding",
        "encoder_import",
        "model_card",
    },
    "colorgan.probes": {"probe", "features", "record", "settings", "scikit_learn"},
    "colorgan.study": {"study", "settings", "record", "single_runs"},
    "colorgan.report": {"page"},
    "colorgan.demo": {"page"},
    "colorgan.doctor": {"examine", "settings"},
    "shards.loading": {"loader", "samples", "label_scan", "shard_set", "boxes"},
    "shards.packing": {
        "pack",
        "appending",
        "indexing",
        "merging",
        "rebuilding",
        "verifying",
        "report",
    },
}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    files = [path for root in ROOTS for path in sorted((PROJECT / root).rglob("*.py"))]
    return {module_name(path): path for path in files}


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def arrows() -> dict[str, set[str]]:
    """Return the project's modules that each module imports."""
    known = modules()
    return {
        name: {other for other in imports_of(path) if other in known} - {name}
        for name, path in known.items()
    }


def room(module: str) -> str:
    """`colorgan.models.unet` -> `colorgan.models`; a file in a root is a room of its own."""
    return ".".join(module.split(".")[:2])


def floor_of(module: str) -> int | None:
    root, *rest = module.split(".")
    for number, names in enumerate(FLOORS.get(root, ())):
        if rest and rest[0] in names:
            return number
    return None


ARROWS = arrows()


def test_every_file_stands_on_a_floor() -> None:
    homeless = [
        name
        for name in ARROWS
        if name.split(".")[0] in FLOORS and "." in name and floor_of(name) is None
    ]
    assert not homeless


def test_imports_run_down() -> None:
    upward = [
        f"{name} -> {other}"
        for name, others in ARROWS.items()
        for other in others
        if name.split(".")[0] == other.split(".")[0] != "launcher"
        and room(name) != room(other)
        and "." in other
        and (floor_of(name) or 0) <= (floor_of(other) or 0)
    ]
    assert not upward


def test_packages_meet_in_few_places_only() -> None:
    def allowed(name: str, other: str) -> bool:
        return any(
            (name == source or name.startswith(f"{source}."))
            and (other == target or other.startswith(f"{target}."))
            for source, target in CROSSINGS
        )

    crossing = [
        f"{name} -> {other}"
        for name, others in ARROWS.items()
        for other in others
        if not name.startswith("launcher")
        and name.split(".")[0] != other.split(".")[0]
        and "." in other
        and not allowed(name, other)
    ]
    assert not crossing


def test_outsiders_use_the_front_doors() -> None:
    wrong = [
        f"{name} -> {other}"
        for name, others in ARROWS.items()
        for other in others
        if room(other) in FRONT_DOORS
        and room(name) != room(other)
        and other.count(".") >= 2
        and other.split(".")[2] not in FRONT_DOORS[room(other)]
    ]
    assert not wrong


def circles() -> list[list[str]]:
    """Return groups of modules that import one another in a circle (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in ARROWS[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = []
            while not group or group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in ARROWS:
        if name not in index:
            visit(name)
    return found


def test_no_circle() -> None:
    assert not circles()


def test_scripts_import_only_packages() -> None:
    for name, others in ARROWS.items():
        if name.startswith("launcher."):
            assert not {other for other in others if other.startswith("launcher")}, name
            if name != "launcher.pack":
                assert not {other for other in others if other.startswith("datasets")}, name


@pytest.mark.parametrize("library", ["nvidia", "deepspeed"])
def test_only_one_file_imports_each_heavy_library(library: str) -> None:
    users = [
        name
        for name, path in modules().items()
        if any(each == library or each.startswith(f"{library}.") for each in imports_of(path))
    ]
    assert len(users) == 1


def print_map() -> None:
    """Print each floor with its rooms: files, lines, and the rooms that each imports."""
    lines: dict[str, int] = defaultdict(int)
    files: dict[str, int] = defaultdict(int)
    uses: dict[str, set[str]] = defaultdict(set)
    for name, path in modules().items():
        lines[room(name)] += len(path.read_text().splitlines())
        files[room(name)] += 1
        uses[room(name)] |= {room(other) for other in ARROWS[name] if "." in other} - {room(name)}
    for root, floors in FLOORS.items():
        print(root)
        for number, names in reversed(list(enumerate(floors, 1))):
            for each in names:
                name = f"{root}.{each}"
                below = ", ".join(sorted(other.removeprefix(f"{root}.") for other in uses[name]))
                print(
                    f"  floor {number}  {each:12} {files[name]:3} files {lines[name]:5} lines  "
                    f"-> {below or 'nothing'}"
                )
    total = sum(len(others) for others in ARROWS.values())
    print(f"{len(lines)} rooms, {total} imports between modules, {len(circles())} circles")


if __name__ == "__main__":
    print_map()
