"""Test tables: the known table of an oracle, aggregation by hand, and the content of files."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from metrics_by_hand import at_budget, metric, result, results

import ztw
from ztw.evaluation.curves import Costs, SplitPredictions
from ztw.evaluation.methods import Evaluation, evaluate_method
from ztw.evaluation.metric_rows import backbone_metrics, metric_records
from ztw.evaluation.names import BACKBONE
from ztw.reporting import tables
from ztw.reporting.readable import ROUNDED, Block, blocks
from ztw.reporting.results import read_metrics, write_metrics
from ztw.study.kinds import CASCADE, EARLY_EXITS, FIXED_EXIT, STATIC
from ztw.study.settings import EvaluationSettings, MethodSettings

BUDGETS = (0.2, 0.25, 0.5, 0.75, 1.0, "max")
SDN = MethodSettings(ics="independent", rule="max_softmax")


def settings(budgets: tuple = BUDGETS, protocols: tuple = ("held-out", "paper")) -> EvaluationSettings:
    return EvaluationSettings(budgets=budgets, protocols=protocols, points=50)


def oracle() -> tuple[SplitPredictions, torch.Tensor]:
    """Return predictions of four exits at 25, 50, 75, 100 % of the cost.

    The samples of group k are right and confident from exit k on, and wrong and unconfident before.
    """
    group = torch.arange(4).repeat_interleave(25)
    labels = torch.arange(100) % 2
    right = torch.arange(4)[:, None] >= group  # (exits, samples)
    label_prob = torch.where(right, 0.99, 0.4)[..., None]
    is_label = torch.nn.functional.one_hot(labels, 2).bool()
    probs = torch.where(is_label, label_prob, 1 - label_prob)
    return SplitPredictions(probs.log(), labels), torch.tensor([25.0, 50.0, 75.0, 100.0], dtype=torch.float64)


def evaluated(
    validation: SplitPredictions, test: SplitPredictions, cost: torch.Tensor, budgets: tuple
) -> Evaluation:
    return evaluate_method(validation, test, {"ztw": Costs(cost, 100.0)}, SDN, settings(budgets))


def values(found: Evaluation, name: str, protocol: str = "", budget: str = "") -> list[float]:
    """Return the values of a metric, in the order of the exits."""
    rows = found.metrics
    own = rows["metric"].eq(name) & rows["protocol"].eq(protocol) & rows["budget"].eq(budget)
    return rows[own].sort_values("exit")["value"].tolist()


def test_the_oracle_table_is_known():
    answers, cost = oracle()
    found = evaluated(answers, answers, cost, BUDGETS)
    rows = tables.accuracy_table(result(metric_records(found.metrics)), ["sdn"], settings())
    # thresholds below 0.6: all leave at exit 1; from 0.6 to 0.99: group k leaves at exit k, all right, cost 62.5 %
    expected = [
        ("0.2", math.nan, math.nan, 0),
        ("0.25", 0.25, 0.25, 1),
        ("0.5", 0.25, 0.25, 1),
        ("0.75", 1.0, 0.625, 1),
        ("1.0", 1.0, 1.0, 1),
        ("max", 1.0, 0.625, 1),
    ]
    assert "held-out@0.2" not in found.correct, "infeasible"
    assert found.correct["held-out@0.25"].sum() == 25
    assert found.correct["paper@0.75"].all()
    for protocol in ("held-out", "paper"):
        own = rows[rows["protocol"] == protocol].to_dict("records")
        for row, (budget, mean, relative_cost, n) in zip(own, expected, strict=True):
            assert (row["budget"], row["n"]) == (budget, n)
            assert row["mean"] == pytest.approx(mean, nan_ok=True)
            assert row["relative_cost"] == pytest.approx(relative_cost, nan_ok=True)
    assert values(found, "exit_fraction", "held-out", "0.75") == [0.25] * 4
    assert values(found, "accuracy") == [0.25, 0.5, 0.75, 1.0]


def test_without_a_validation_part_there_is_only_the_test_split():
    answers, cost = oracle()
    both = evaluated(answers, answers, cost, BUDGETS)
    costs = {"ztw": Costs(cost, 100.0)}
    found = evaluate_method(None, answers, costs, SDN, settings(protocols=("paper",)))
    assert values(found, "accuracy", "paper", "0.75") == values(both, "accuracy", "paper", "0.75") == [1.0]
    assert set(found.curves["split"]) == {"test"}
    assert values(both, "temperature")
    assert not values(found, "temperature"), "there is nothing to fit one on"


def test_held_out_chooses_on_validation_and_reports_the_test_split():
    validation, cost = oracle()
    # on the test split, exit 1 is confident and wrong on all samples: a threshold chosen on it would differ
    sure = torch.tensor([0.01, 0.99]).log().expand(4, 10, 2)
    test = SplitPredictions(sure, torch.zeros(10).long())
    found = evaluated(validation, test, cost, (0.75,))
    (parameter,) = values(found, "parameter", "held-out", "0.75")
    assert 0.6 <= parameter < 0.99
    assert values(found, "accuracy", "held-out", "0.75") == [0.0]
    assert values(found, "relative_cost", "held-out", "0.75") == pytest.approx([0.25]), (
        "realised, not promised"
    )


def test_rows_of_the_backbone_and_null_for_what_is_not_a_number():
    rows = backbone_metrics(763530.0, 0.9)
    assert dict(zip(rows["metric"], rows["value"], strict=True)) == {
        "backbone_macs": 763530.0,
        "backbone_accuracy": 0.9,
    }
    assert len(backbone_metrics(1.0, None)) == 1, "no IC set left the backbone as it was"
    (record,) = metric_records(backbone_metrics(math.nan, None))
    assert record == metric("backbone_macs", None)
    assert type(record["exit"]) is int


def test_mean_and_std_by_hand():
    found = results(
        result(at_budget("0.5", 0.8, 0.4, "paper"), seed=0),
        result(at_budget("0.5", 0.9, 0.5, "paper"), seed=1),
        result(at_budget("0.5", math.nan, math.nan, "paper"), seed=2),
    )
    (row,) = tables.accuracy_table(found, ["sdn"], settings((0.5,), ("paper",))).to_dict("records")
    assert row["n"] == 2
    assert row["mean"] == pytest.approx(0.85)
    assert row["std"] == pytest.approx(0.05 * math.sqrt(2))
    assert row["relative_cost"] == pytest.approx(0.45)


def test_rows_keep_the_order_of_the_study():
    methods, budgets = ["ztw", "a"], (1.0, 0.5, "max")
    rows = [row for budget in budgets for row in at_budget(str(budget), 0.5, 0.5)]
    found = results(*(result(rows, method) for method in methods))
    table = tables.accuracy_table(found, methods, settings(budgets, ("held-out",)))
    assert table["method"].tolist() == ["ztw"] * 3 + ["a"] * 3
    assert table["budget"].tolist() == ["1.0", "0.5", "max"] * 2


def test_a_missing_result_or_metric_is_named():
    one = settings((0.5,), ("paper",))
    found = result([metric("overthinking", 0.1)])
    with pytest.raises(ztw.ZtwError, match="no result of ztw on d/a"):
        tables.accuracy_table(found, ["sdn", "ztw"], one)
    with pytest.raises(
        ztw.ZtwError, match=r"sdn on d/a/seed0 has no accuracy at budget 0.5 by protocol paper"
    ):
        tables.accuracy_table(found, ["sdn"], one)


def test_the_content_of_the_files(tmp_path):
    infeasible = at_budget("0.25", math.nan, math.nan)
    found = results(
        result([*infeasible, *at_budget("max", 0.9, 1.2)]),
        result([*infeasible, *at_budget("max", 0.8, 1.2)], "my_method"),
    )
    rows = tables.accuracy_table(found, ["sdn", "my_method"], settings((0.25, "max"), ("held-out",)))
    names = [str(tmp_path / f"t.{kind}") for kind in ("csv", "md", "tex")]
    tables.write_tables(rows, {("d", "a", "held-out", "max", "my_method", "sdn")}, {}, *names)
    csv, md, tex = (Path(name).read_text() for name in names)
    assert csv.splitlines()[:3] == [
        "dataset,arch,method,budget,mean,std,n,relative_cost,protocol",
        "d,a,sdn,0.25,,,0,,held-out",
        "d,a,sdn,max,0.900000,,1,1.200000,held-out",
    ]
    assert "| method | 25 % | Max |\n|---|---:|---:|\n" in md
    assert "| sdn | - | **90.0** |" in md
    assert "| my_method | - | 80.0 ≈ |" in md, "the file of differences calls it noise"
    assert "within noise of the best" in md
    assert "validation split (protocol held-out)" in md
    for part in (
        "\\begin{tabular}{lrr}\n\\toprule\nmethod & 25 \\% & Max \\\\\n\\midrule",
        "sdn & - & \\textbf{90.0} \\\\",
        "my\\_method & - & 80.0 $\\approx$ \\\\\n\\bottomrule",
        "one seed, n = 1",
        "booktabs",
    ):
        assert part in tex


def test_networks_without_early_exits_are_a_group_with_a_best_of_their_own(tmp_path):
    accuracies = {"small": 0.86, "sdn": 0.8, "ztw": 0.83, "a-b": 0.7, "cut": 0.6}
    kinds = {"small": STATIC, "sdn": EARLY_EXITS, "ztw": EARLY_EXITS, "a-b": CASCADE, "cut": FIXED_EXIT}
    found = results(*(result(at_budget("max", value, 1.0), name) for name, value in accuracies.items()))
    rows = tables.accuracy_table(found, list(kinds), settings(("max",), ("held-out",)))
    names = [str(tmp_path / f"t.{kind}") for kind in ("csv", "md", "tex")]
    noise = {
        ("d", "a", "held-out", "max", first, second) for first, second in (("ztw", "small"), ("a-b", "small"))
    }
    tables.write_tables(tables.with_kinds(rows, kinds), noise, {}, *names)
    csv, md, tex = (Path(name).read_text() for name in names)
    assert csv.splitlines()[0].endswith(",protocol,kind")
    assert [line.split(",")[-1] for line in csv.splitlines()[1:]] == list(kinds.values())
    assert md.splitlines()[4:] == [
        "| *early exits* |  |",
        "| sdn | 80.0 |",
        "| ztw | **83.0** |",
        "| *static networks, cascades of networks, fixed exits* |  |",
        "| small | **86.0** |",
        "| a-b | 70.0 ≈ |",
        "| cut | 60.0 |",
    ]
    assert "\\midrule\n\\textit{early exits} &  \\\\\nsdn" in tex
    assert "\\midrule\n\\textit{static networks, cascades of networks, fixed exits} &  \\\\\nsmall" in tex


def test_equal_numbers_with_different_marks_are_explained():
    accuracies = {"best": 0.88, "near": 0.8701, "far": 0.8699}
    found = results(*(result(at_budget("max", value, 1.0), name) for name, value in accuracies.items()))
    rows = tables.accuracy_table(found, list(accuracies), settings(("max",), ("held-out",)))
    noise = {("d", "a", "held-out", "max", "near", "best")}
    (block,) = blocks(rows.to_dict("records"), noise, {("d", "a"): "Mixed."})
    assert [entry.text for (entry,) in block.rows.values()] == ["88.0", "87.0", "87.0"]
    assert block.note == f"{ROUNDED} Mixed."
    (block,) = blocks(rows.to_dict("records"), {*noise, ("d", "a", "held-out", "max", "far", "best")})
    assert block.note == "", "both have a mark"


def test_metrics_round_trip(tmp_path):
    found = results(
        result([*at_budget("1.0", 1 / 3, math.nan), metric("ece", 0.1, exit=2)]),
        result(at_budget("max", 2.0, 1e-20), "NA", seed=1),
    )
    write_metrics(found, tmp_path / "m.csv")
    back = read_metrics(tmp_path / "m.csv")
    assert back.to_csv() == found.to_csv(), "budgets stay text, values exact, NA a name, NaN is NaN"
    assert math.isnan(back["value"][1])


def test_per_exit_by_hand():
    first = [metric("ece", 0.1, exit=1), metric("ece", math.nan, exit=2), metric("overthinking", 0.5)]
    shares = metric("exit_fraction", 0.5, exit=1, protocol="paper", budget="0.5")
    found = results(result([*first, shares]), result([metric("ece", 0.3, exit=1)], seed=1))
    one, two = tables.per_exit_table(found).to_dict("records")
    assert (one["exit"], one["metric"], one["n"]) == (1, "ece", 2)
    assert one["mean"] == pytest.approx(0.2)
    assert (two["exit"], two["n"]) == (2, 0)


def test_allowed_loss_by_hand():
    def at(loss: float) -> list[dict]:
        where = {"protocol": "held-out", "budget": "0.01"}
        return [
            metric("loss_at_allowed_loss", loss, **where),
            metric("relative_cost_at_allowed_loss", 0.5, **where),
        ]

    found = results(result(at(0.02)), result(at(-0.01), seed=1))
    (row,) = tables.allowed_loss_table(found).to_dict("records")
    assert (row["protocol"], row["allowed_loss"], row["largest"]) == ("held-out", 0.01, 0.02)
    assert row["accuracy_loss"] == pytest.approx(0.005)
    assert (row["relative_cost"], row["n"]) == (0.5, 2)


def test_a_study_without_allowed_losses_has_an_empty_table(tmp_path):
    tables.write_csv(tables.allowed_loss_table(result(at_budget("0.5", 0.9, 0.5))), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().split() == [",".join(tables.ALLOWED_LOSS)]


def test_a_csv_is_empty_where_there_is_no_value(tmp_path):
    """In all columns of numbers, and in the budget of a network without budgets."""
    rows = [
        {"budget": "0.5", "mean": math.nan, "std": 0.1, "n": 1},
        {"budget": "-", "mean": 0.5, "std": math.nan, "n": 2},
        {"budget": "max", "mean": 0.5, "std": 0.25, "n": 2},
    ]
    tables.write_csv(pd.DataFrame(rows), tmp_path / "new.csv")
    lines = (tmp_path / "new.csv").read_text().splitlines()
    assert lines == ["budget,mean,std,n", "0.5,,0.100000,1", ",0.500000,,2", "max,0.500000,0.250000,2"]
    assert pd.read_csv(tmp_path / "new.csv")["mean"].dtype == "float64"


def with_backbones(
    *accuracies: float, budgets: tuple = (0.5, 1.0, "max"), joint: bool = False
) -> list[Block]:
    """Return the blocks of one method and of backbones with these accuracies, one per seed."""
    rows = [row for budget in budgets for row in at_budget(str(budget), 0.99, 0.5)]
    found = results(
        *(
            result([*rows, *([] if joint else [metric("backbone_accuracy", accuracy)])], seed=seed)
            for seed, accuracy in enumerate(accuracies)
        )
    )
    table = tables.accuracy_table(found, ["sdn"], settings(budgets, ("held-out",)))
    return blocks(tables.with_backbone(table, found).to_dict("records"))


def test_the_backbone_s_own_accuracy_is_the_first_row():
    """At budgets that allow the backbone. The spread shows a failed seed. The backbone gets no mark."""
    (block,) = with_backbones(0.993, 0.753)
    assert list(block.rows) == [BACKBONE, "sdn"]
    assert [entry.text for entry in block.rows[BACKBONE]] == ["-", "87.3 ± 17.0", "87.3 ± 17.0"]
    (block,) = with_backbones(0.999)
    assert {entry.mark for entry in block.rows[BACKBONE]} == {""}
    assert {entry.mark for entry in block.rows["sdn"]} == {"best"}, "compared with methods alone"


def test_a_backbone_that_fits_no_budget_is_in_the_title():
    (block,) = with_backbones(0.993, 0.753, budgets=(0.25, 0.5))
    assert block.title.endswith("; backbone alone: 87.3 ± 17.0")


def test_where_every_set_trains_the_backbone_it_has_no_row():
    (block,) = with_backbones(0.9, joint=True)
    assert list(block.rows) == ["sdn"]


def test_the_backbone_is_a_row_of_every_protocol_in_the_csv(tmp_path):
    rows = [
        *at_budget("max", 0.9, 1.2),
        *at_budget("max", 0.9, 1.2, "paper"),
        metric("backbone_accuracy", 0.8),
    ]
    found = result(rows)
    table = tables.accuracy_table(found, ["sdn"], settings(("max",)))
    tables.write_csv(tables.with_backbone(table, found), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines()[1:] == [
        "d,a,backbone alone,,0.800000,,1,1.000000,held-out",
        "d,a,sdn,max,0.900000,,1,1.200000,held-out",
        "d,a,backbone alone,,0.800000,,1,1.000000,paper",
        "d,a,sdn,max,0.900000,,1,1.200000,paper",
    ]
