"""study.json: written and read back, older files read, damaged ones refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.drawn_runs import study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colorgan.errors import UsageError
from colorgan.report.page import report_page
from colorgan.report.report_data import read_folders
from colorgan.study.record import (
    ArmRecord,
    ComparisonRecord,
    ProtocolRecord,
    StudyRecord,
    read_study,
    write_study,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    arm = ArmRecord(
        name="gan",
        values=(0.1, None, 0.3, 0.4),
        pretraining_seeds=("0", "1"),
        settings={"stages": [{"epochs": 4, "learning_rate": 0.1}]},
    )
    compared = ComparisonRecord(arm="gan", against="scratch", difference=0.1, verdict="better")
    protocol = ProtocolRecord(
        name="voc", title="VOC", seeds=("0", "1"), arms=(arm,), comparisons=(compared,)
    )
    write_study(tmp_path, StudyRecord(protocols=(protocol,), core_minutes={"pack": 0.5}))
    found = read_study(tmp_path)

    assert found.protocols == (protocol,)
    assert found.core_minutes == {"pack": 0.5}
    assert not list(tmp_path.glob(".*"))


def test_all_runs_and_arms_are_kept(tmp_path: Path) -> None:
    """Else the table would show other means than the verdict's."""
    values = tuple(index / 60 for index in range(60))
    arms = tuple(ArmRecord(name=f"arm-{index}", values=values) for index in range(14))
    write_study(tmp_path, StudyRecord(protocols=(ProtocolRecord(name="voc", arms=arms),)))
    assert read_study(tmp_path).protocols[0].arms == arms
    assert len(arms[0].values) == 60


def test_a_study_of_an_older_version_is_read(tmp_path: Path) -> None:
    """Without pretraining seeds, costs and predictions."""
    folder = study(tmp_path / "s")
    found = read_study(folder)
    assert [len(arm.values) for arm in found.protocols[0].arms] == [2, 2]
    assert found.protocols[0].arms[0].pretraining_seeds == ()
    assert found.core_minutes == {}


KEYS = sorted(ProtocolRecord.model_fields)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(fields=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6), more=JSON)
def test_any_study_json_is_read_or_refused_in_a_sentence(
    tmp_path: Path, fields: dict[str, Any], more: Any
) -> None:
    text = json.dumps({"protocols": [{"name": "n", **fields}, more], "core_minutes": more})
    (tmp_path / "study.json").write_text(text)
    assert "<script>alert" not in report_page(read_folders([tmp_path]), {})


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_in_a_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "study.json").write_bytes(data)
    with pytest.raises(UsageError, match="holds no protocols"):
        read_study(tmp_path)
