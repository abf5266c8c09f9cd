"""Test the comparison of published accuracies with ours."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from metrics_by_hand import at_budget, result, results

import ztw
from ztw.reporting.published import comparison_table, read_published
from ztw.reporting.tables import accuracy_table
from ztw.study.config import check_study, read_config
from ztw.study.published_values import has_published
from ztw.study.settings import EvaluationSettings

HEADER = "source,table,dataset,arch,method,budget,value\n"
SHIPPED = Path(__file__).parents[2] / "config/published.csv"


def test_published_values_stand_beside_ours(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(HEADER + "a paper,2,d,a,sdn,0.50,88.0\na paper,2,d,a,other,max,90\n")
    evaluation = EvaluationSettings(budgets=(0.5,), protocols=("paper",))
    rows = accuracy_table(result(at_budget("0.5", 0.9, 0.5, "paper")), ["sdn"], evaluation)
    published = read_published(path)
    (row,) = comparison_table(rows, published, ["held-out", "paper"]).to_dict("records")
    assert (row["source"], row["published"], row["protocol"]) == ("a paper", 88.0, "paper")
    assert row["difference"] == pytest.approx(2.0)
    assert math.isnan(row["low"]), "one seed says nothing of its spread"
    assert comparison_table(rows, published.iloc[:0], ["paper"]).empty, "no row without a published value"


def test_a_study_has_a_comparison_only_if_a_value_is_filled_in(tmp_path):
    path = tmp_path / "published.csv"
    study = check_study(read_config(SHIPPED.parent / "quick.yaml"))
    for line, expected in (
        ("", False),
        ("p,1,fashion_mnist,resnet20,sdn,0.50,88.0\n", True),
        ("p,1,fashion_mnist,resnet20,sdn,max,88.0\n", True),
        ("p,1,fashion_mnist,resnet20,sdn,0.4,88.0\n", False),
        ("p,1,fashion_mnist,resnet20,another,0.5,88.0\n", False),
        ("p,1,cifar10,resnet20,sdn,0.5,88.0\n", False),
        ("p,1,fashion_mnist,resnet20,sdn,half,88.0\n", True),
    ):
        path.write_text(HEADER + line)
        assert has_published(path, study) == expected, line
    path.write_text("a,b\n1,2\n")
    assert has_published(path, study), "the job that reads it names the error"
    assert has_published(tmp_path / "none.csv", study)


def test_made_up_values_filled_in_for_three_seeds_get_an_interval(tmp_path):
    """By hand: accuracies 89, 90 and 91 % are 90 ± 1; t(0.975, 2) = 4.3027, and 4.3027 / sqrt(3) = 2.4841."""
    path = tmp_path / "published.csv"
    path.write_text(HEADER + "made up,1,d,a,sdn,0.5,88.0\nmade up,1,d,a,sdn,max,93.5\n")
    evaluation = EvaluationSettings(budgets=(0.5, "max"), protocols=("paper",))
    found = [
        result(
            [*at_budget("0.5", accuracy, 0.5, "paper"), *at_budget("max", accuracy, 1.0, "paper")], seed=seed
        )
        for seed, accuracy in enumerate((0.89, 0.90, 0.91))
    ]
    rows = comparison_table(
        accuracy_table(results(*found), ["sdn"], evaluation), read_published(path), ["paper"]
    )
    half, full = rows.to_dict("records")
    assert (half["difference"], half["low"], half["high"]) == (
        pytest.approx(2.0),
        pytest.approx(2.0 - 2.4841, abs=1e-4),
        pytest.approx(2.0 + 2.4841, abs=1e-4),
    )
    assert full["high"] < 0, "below the published value by more than our seeds vary"


@pytest.mark.parametrize(
    "line", ["p,1,d,a,m,0.5,x", "p,1,d,a,m,0.5,101", "p,1,d,a,m,most,90", "p,1,d,a,m,0.5", "p,1,d,a,m,0,90"]
)
def test_wrong_published_values_are_refused(tmp_path, line):
    path = tmp_path / "published.csv"
    path.write_text(HEADER + line + "\n")
    with pytest.raises(ztw.ZtwError, match="line 2: value"):
        read_published(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a csv table"),
        (b"source\xff\n", "not a csv table"),
        (b"a,b\n", "columns a, b; must be source,"),
    ],
)
def test_a_broken_file_of_published_values_is_named(tmp_path, content, message):
    path = tmp_path / "published.csv"
    path.write_bytes(content)
    with pytest.raises(ztw.ZtwError, match=message):
        read_published(path)
    with pytest.raises(ztw.ZtwError, match=r"none\.csv: cannot be read"):
        read_published(tmp_path / "none.csv")


def test_the_shipped_published_values_can_be_read():
    rows = read_published(SHIPPED)
    assert rows["value"].between(0, 100).all()
