"""probe.json: written and read back, and damaged ones never more than a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.drawn_runs import probed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colorgan.errors import UsageError
from colorgan.probes.record import read_probe, write_probe
from colorgan.report.rendering import render
from colorgan.report.sections.probes import best_of, probe_tables

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = ("model", "seed", "levels", "linear", "lowshot", "knn", "data", "classes")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    drawn = read_probe(
        probed(
            tmp_path / "drawn",
            "g/generator",
            3,
            0.1,
        )
    )
    fields = json.loads((tmp_path / "drawn" / "probe.json").read_text())
    (tmp_path / "again").mkdir()
    path = write_probe(tmp_path / "again", fields)
    again = read_probe(path.parent)

    assert (again.linear, again.low_shot, again.knn) == (drawn.linear, drawn.low_shot, drawn.knn)
    assert (
        again.best_linear,
        again.best_knn,
        again.seed,
    ) == (1, (1, 5), "3")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_probe(tmp_path / "again", {"mAP": float("nan")})
    assert read_probe(path.parent) == again


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
    level=JSON,
)
def test_any_probe_json_is_read_or_refused_in_a_sentence(
    tmp_path: Path, changes: dict[str, Any], level: Any
) -> None:
    folder = tmp_path / "p"
    if not folder.exists():
        probed(folder, "g", 0, 0.1)
        (folder / "whole.json").write_text((folder / "probe.json").read_text())
    fields = json.loads((folder / "whole.json").read_text())
    fields["linear"]["levels"].append(level)
    (folder / "probe.json").write_text(json.dumps({**fields, **changes}))

    try:
        found = read_probe(folder)
    except UsageError as error:
        assert "holds no scores" in str(error)
    else:
        assert found.linear or found.low_shot or found.knn
        assert render(probe_tables({"arm": [found]}))
        best_of([found])
