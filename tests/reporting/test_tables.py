"""Tables: an oracle whose whole table is known, aggregation by hand, and what a reader sees."""

from __future__ import annotations

import math

import pytest
import torch

import ztw
from ztw.evaluation.methods import Answers, Costs, Evaluation, evaluate_method
from ztw.jobs.compare_methods import run_compare_methods
from ztw.reporting import published as more_tables
from ztw.reporting import tables
from ztw.reporting.differences import read_noise
from ztw.reporting.results import read_metrics, write_metrics
from ztw.tensors import write_tensors

BUDGETS: list[float | str] = [0.2, 0.25, 0.5, 0.75, 1.0, "max"]


def oracle() -> tuple[Answers, torch.Tensor]:
    """Four exits at 25, 50, 75, 100 % of the cost; sample group k is sure and right from exit k on, unsure
    and wrong before."""
    group = torch.arange(4).repeat_interleave(25)
    labels = torch.arange(100) % 2
    right = torch.arange(4)[:, None] >= group  # (exits, samples)
    label_prob = torch.where(right, 0.99, 0.4)[..., None]
    is_label = torch.nn.functional.one_hot(labels, 2).bool()
    probs = torch.where(is_label, label_prob, 1 - label_prob)
    return Answers(probs.log(), labels), torch.tensor([25.0, 50.0, 75.0, 100.0], dtype=torch.float64)


def evaluated(
    validation: Answers, test: Answers, cost: torch.Tensor, budgets: list, points: int
) -> Evaluation:
    evaluation = {"budgets": budgets, "protocols": ["held-out", "paper"], "points": points}
    costs = {"macs": Costs(cost, 100.0)}
    return evaluate_method(validation, test, costs, "max_softmax", "shared", evaluation)


def result(seed: int, metrics: dict, method: str = "sdn") -> dict:
    return {"dataset": "d", "arch": "a", "seed": seed, "method": method, "metrics": metrics}


def test_the_oracle_table_is_known():
    answers, cost = oracle()
    found = evaluated(answers, answers, cost, BUDGETS, 50)
    metrics = found.metrics
    rows = tables.accuracy_table([result(0, metrics)], ["sdn"], BUDGETS, ["held-out", "paper"])
    # below 0.6 all leave at exit 1; from 0.6 to 0.99 group k leaves at exit k, all right, at 62.5 %
    expected = [
        (0.2, math.nan, math.nan, 0),
        (0.25, 0.25, 0.25, 1),
        (0.5, 0.25, 0.25, 1),
        (0.75, 1.0, 0.625, 1),
        (1.0, 1.0, 1.0, 1),
        ("max", 1.0, 0.625, 1),
    ]
    assert "held-out@0.2" not in found.correct, "infeasible"
    assert found.correct["held-out@0.25"].sum() == 25
    assert found.correct["paper@0.75"].all()
    for protocol in ("held-out", "paper"):
        own = [row for row in rows if row["protocol"] == protocol]
        for row, (budget, mean, relative_cost, n) in zip(own, expected, strict=True):
            assert (row["budget"], row["n"]) == (budget, n)
            assert row["mean"] == pytest.approx(mean, nan_ok=True)
            assert row["relative_cost"] == pytest.approx(relative_cost, nan_ok=True)
    shares = [metrics[f"held-out/exit_fraction_{k}_at_0.75"] for k in (1, 2, 3, 4)]
    assert shares == [0.25] * 4
    assert [metrics[f"exit_{k}/accuracy"] for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


def test_held_out_chooses_on_validation_and_reports_the_test_split():
    validation, cost = oracle()
    # on the test split everything is sure at exit 1, and wrong: a threshold chosen there would differ
    sure = torch.tensor([0.01, 0.99]).log().expand(4, 10, 2)
    test = Answers(sure, torch.zeros(10).long())
    metrics = evaluated(validation, test, cost, [0.75], 50).metrics
    parameter = metrics["held-out/parameter_at_0.75"]
    assert 0.6 <= parameter < 0.99
    assert metrics["held-out/accuracy_at_0.75"] == 0.0
    assert metrics["held-out/relative_cost_at_0.75"] == pytest.approx(0.25), "realised, not promised"


def test_mean_and_std_by_hand():
    results = [
        result(0, {"paper/accuracy_at_0.5": 0.8, "paper/relative_cost_at_0.5": 0.4}),
        result(1, {"paper/accuracy_at_0.5": 0.9, "paper/relative_cost_at_0.5": 0.5}),
        result(2, {"paper/accuracy_at_0.5": math.nan, "paper/relative_cost_at_0.5": math.nan}),
    ]
    (row,) = tables.accuracy_table(results, ["sdn"], [0.5], ["paper"])
    assert row["n"] == 2
    assert row["mean"] == pytest.approx(0.85)
    assert row["std"] == pytest.approx(0.05 * math.sqrt(2))
    assert row["relative_cost"] == pytest.approx(0.45)
    assert tables.accuracy_name(row, seeds=2) == "85.0 ± 7.1"
    assert tables.accuracy_name(row, seeds=3) == "85.0 ± 7.1 (n=2)"


def test_a_missing_result_or_metric_is_named():
    with pytest.raises(ztw.ZtwError, match="no result of ztw on d/a"):
        tables.accuracy_table([result(0, {})], ["ztw"], [0.5], ["paper"])
    with pytest.raises(ztw.ZtwError, match=r"sdn on d/a/seed0 has no metric 'paper/accuracy_at_0.5'"):
        tables.accuracy_table([result(0, {})], ["sdn"], [0.5], ["paper"])


def written(tmp_path) -> dict[str, str]:
    metrics = {
        "held-out/accuracy_at_0.25": math.nan,
        "held-out/relative_cost_at_0.25": math.nan,
        "held-out/accuracy_at_max": 0.9,
        "held-out/relative_cost_at_max": 1.2,
    }
    worse = {**metrics, "held-out/accuracy_at_max": 0.8}
    rows = tables.accuracy_table(
        [result(0, metrics), result(0, worse, "my_method")], ["sdn", "my_method"], [0.25, "max"], ["held-out"]
    )
    names = {kind: str(tmp_path / f"t.{kind}") for kind in ("csv", "md", "tex")}
    same = {("d", "a", "held-out", "max", "my_method", "sdn")}
    tables.write_tables(rows, same, names["csv"], names["md"], names["tex"])
    return names


def test_what_the_files_say(tmp_path):
    names = written(tmp_path)
    from pathlib import Path

    csv = Path(names["csv"]).read_text().splitlines()
    assert csv[0] == "dataset,arch,method,budget,mean,std,n,relative_cost,protocol"
    assert csv[1] == "d,a,sdn,0.25,-,-,0,-,held-out"
    assert csv[2] == "d,a,sdn,max,0.900000,-,1,1.200000,held-out"
    md = Path(names["md"]).read_text()
    assert "| sdn | - | **90.0** |" in md
    assert "| my_method | - | 80.0 ≈ |" in md, "the file of differences calls it noise"
    assert "within noise of the best" in md
    assert "validation split (protocol held-out)" in md
    tex = Path(names["tex"]).read_text()
    for part in (
        "\\toprule",
        "\\midrule",
        "\\bottomrule",
        "my\\_method & - & 80.0 $\\approx$",
        "25 \\%",
        "booktabs",
    ):
        assert part in tex
    assert [row["mean"] for row in tables.read_csv(names["csv"])][1] == 0.9


def test_metrics_round_trip(tmp_path):
    results = [result(0, {"a": 0.1, "b": math.nan}), result(1, {"a": 1 / 3, "b": 2.0})]
    write_metrics(results, tmp_path / "m.csv")
    back = read_metrics(tmp_path / "m.csv", "d", "a")["sdn"]
    assert [row["metrics"]["a"] for row in back] == [0.1, 1 / 3]
    assert math.isnan(back[0]["metrics"]["b"])
    assert read_metrics(tmp_path / "m.csv", "d", "other") == {}


def test_per_exit_and_allowed_loss_by_hand():
    values = {"exit_1/ece": 0.1, "exit_2/ece": math.nan, "held-out/accuracy_loss_allowed_0.01": 0.02}
    values["held-out/relative_cost_allowed_0.01"] = 0.5
    other = {**values, "exit_1/ece": 0.3, "held-out/accuracy_loss_allowed_0.01": -0.01}
    results = [result(0, values), result(1, other)]
    first, second = more_tables.per_exit_table(results)
    assert (first["exit"], first["metric"], first["n"]) == (1, "ece", 2)
    assert first["mean"] == pytest.approx(0.2)
    assert (second["exit"], second["n"]) == (2, 0)
    (row,) = more_tables.allowed_loss_table(results)
    assert (row["protocol"], row["allowed_loss"], row["largest"]) == ("held-out", 0.01, 0.02)
    assert row["accuracy_loss"] == pytest.approx(0.005)


HEADER = "source,table,dataset,arch,method,budget,value\n"


def test_published_values_stand_beside_ours(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(HEADER + "a paper,2,d,a,sdn,0.50,88.0\na paper,2,d,a,other,max,90\n")
    metrics = {"paper/accuracy_at_0.5": 0.9, "paper/relative_cost_at_0.5": 0.5}
    rows = tables.accuracy_table([result(0, metrics)], ["sdn"], [0.5], ["paper"])
    (row,) = more_tables.comparison_table(rows, more_tables.read_published(path), ["held-out", "paper"])
    assert (row["source"], row["published"], row["protocol"]) == ("a paper", 88.0, "paper")
    assert row["difference"] == pytest.approx(2.0)
    (alone,) = more_tables.comparison_table(rows, [], ["paper"])
    assert math.isnan(alone["published"])
    assert alone["ours"] == 90.0


@pytest.mark.parametrize(
    "line", ["p,1,d,a,m,0.5,x", "p,1,d,a,m,0.5,101", "p,1,d,a,m,most,90", "p,1,d,a,m,0.5"]
)
def test_wrong_published_values_are_refused(tmp_path, line):
    path = tmp_path / "published.csv"
    path.write_text(HEADER + line + "\n")
    with pytest.raises(ztw.ZtwError, match="line 2: value"):
        more_tables.read_published(path)


def test_the_shipped_published_file_is_empty():
    assert more_tables.read_published("config/published.csv") == []


def test_differences_of_methods(tmp_path):
    right = torch.tensor([1] * 80 + [0] * 20, dtype=torch.uint8)
    files = {}
    for method, answers in {"a": right, "b": right.clone(), "c": 1 - right}.items():
        files["d", "x", 0, method] = str(tmp_path / f"{method}.safetensors")
        write_tensors(files["d", "x", 0, method], {"held-out@0.5": answers})
    evaluation = {"protocols": ["held-out"], "budgets": [0.5, 1.0]}
    run_compare_methods(files, evaluation, tmp_path / "differences.csv", lambda text: None)
    pairs = read_noise(tmp_path / "differences.csv")
    assert ("d", "x", "held-out", "0.5", "b", "a") in pairs
    assert not [pair for pair in pairs if "c" in pair[4:]]


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.9085, 90.9), ((0.9079 + 0.9091) / 2, 90.9), (0.90849, 90.8), (0.0005, 0.1), (1.0, 100.0), (0.0, 0.0)],
)
def test_a_tie_is_rounded_up_before_and_after_the_csv(share, shown):
    kept = float(f"{share:.6f}")
    for value in (share, kept, math.nextafter(share, 0), math.nextafter(share, 2)):
        assert tables.percent(value) == shown
    assert math.isnan(tables.percent(math.nan))
