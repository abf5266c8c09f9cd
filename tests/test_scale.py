"""Test the estimated cost of studies: for the measured study it equals the measured cost."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import scale  # type: ignore[import-not-found]  # noqa: E402

QUICK = ROOT / "config/quick.yaml"


def test_the_measured_study_takes_the_hours_that_were_measured():
    measured = pd.read_csv(scale.MEASURED).set_index("rule").drop("all")
    hours = scale.hours(QUICK, 2, measured.jobs.to_dict())
    for rule, row in measured.iterrows():
        assert 3600 * hours[rule] == pytest.approx(row.working + row.overhead, rel=1e-6), rule


def test_work_and_bytes_by_hand():
    """ResNet-20 has ten exits with its own. The data: 10,000 training, 6,000 validation and 10,000 test images."""
    ((work, size),) = scale.works(QUICK)
    assert size["predictions"] == 3 * 26_000 * 10 * 10 * 4
    assert work["evaluate"] == 9 * 16_000 * 10 * 10
    assert work["train_backbone"] == pytest.approx(2 * 54_000 * 3 * 31.0e6, rel=0.01)
    of_two = pd.read_csv(scale.MEASURED).set_index("rule").seconds["train_backbone"]
    assert scale.hours(QUICK, 4, {"train_backbone": 4})["train_backbone"] == pytest.approx(
        2 * of_two / 3600, rel=1e-3
    )


def test_a_larger_study_differs_in_its_seeds_only(tmp_path):
    grown = scale.read_config(scale.times_as_many_seeds(QUICK, 10, tmp_path))
    assert grown == {**scale.read_config(QUICK), "seeds": list(range(20))}
