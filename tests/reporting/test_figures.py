"""Test the content of figures: lines, points, bands, labels."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from metrics_by_hand import metric, result, results

from ztw.evaluation.metrics import accuracy_at_budget
from ztw.evaluation.names import BACKBONE
from ztw.exits.sweep import Curve
from ztw.reporting.exit_figures import exit_accuracies, exit_shares, improvabilities
from ztw.reporting.figures import GRID, accuracy_against_cost, accuracy_within
from ztw.reporting.main_figure import main_figure
from ztw.reporting.style import FAMILIES, INT8, OTHERS, STATIC, exit_ticks, panels_of, save, style
from ztw.reporting.time_figures import accuracy_against_all_times, accuracy_against_time

ROOT = Path(__file__).parents[2]
ALONE = {"sdn": "frozen"}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def labelled(axes: Axes, label: str) -> Line2D:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def legend(owner: Axes | Figure) -> list[str]:
    found = owner.get_legend() if isinstance(owner, Axes) else owner.legends[0]
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def band(axes: Axes, x: float) -> tuple[float, float]:
    """Return the ends of the only band at x."""
    (area,) = axes.collections
    edge = np.asarray(area.get_paths()[0].vertices)
    heights = edge[np.isclose(edge[:, 0], x), 1]
    return float(heights.min()), float(heights.max())


def curve(
    method: str, seed: int, rows: list[tuple[float, float, float]], split: str = "test"
) -> pd.DataFrame:
    """Return a curve; rows: parameter, relative cost, accuracy."""
    table = pd.DataFrame(rows, columns=["parameter", "relative_cost", "accuracy"])
    return table.assign(method=method, seed=seed, split=split)


def exits(accuracies: list[float], seed: int = 0, method: str = "sdn") -> pd.DataFrame:
    """Return metrics of exits at equal steps of cost, and the backbone's accuracy."""
    rows = [metric("backbone_accuracy", 0.9)]
    for exit, accuracy in enumerate(accuracies, 1):
        rows += [
            metric("accuracy", accuracy, exit=exit),
            metric("hindsight_improvability", accuracy / 10, exit=exit),
            metric("relative_cost", exit / len(accuracies), exit=exit),
        ]
    return result(rows, method, seed)


@pytest.mark.parametrize("count", [1, 9, 12, 15, 30])
def test_no_two_methods_look_the_same(count):
    names = ["ztw", "sdn", *(f"method {index}" for index in range(count))]
    looks = style(dict.fromkeys(names, "frozen"))
    assert list(looks) == names
    assert len({(look["color"], look["marker"], look["linestyle"]) for look in looks.values()}) == count + 2


def test_a_known_method_looks_the_same_in_every_study_and_a_cascade_of_networks_is_grey():
    few = style({"ztw": "recycled", "mine": "frozen"})
    many = style({"mine": "frozen", "a-b": "networks", "c-d": "networks", "sdn": "frozen", "ztw": "recycled"})
    assert few["ztw"] == many["ztw"]
    assert few["ztw"]["color"] == "#D55E00"
    assert few["mine"]["color"] == "#0072B2", "the first that is free"
    assert many["mine"]["color"] not in {many["sdn"]["color"], many["ztw"]["color"]}
    assert many["a-b"]["color"] == many["c-d"]["color"]
    assert many["a-b"] != many["c-d"]


def test_of_many_methods_a_panel_shows_one_family_and_six_at_most():
    few = dict.fromkeys(["a", "b", "c"], "frozen") | dict.fromkeys(["d", "e", "f"], "recycled")
    assert panels_of(few) == [("", ["a", "b", "c", "d", "e", "f"])]
    many = {f"z{index}": "recycled" for index in range(7)} | few
    baselines, first, second = panels_of(many)
    assert baselines == (FAMILIES["frozen"], ["a", "b", "c"])
    assert first == (f"{FAMILIES['recycled']} (1/2)", ["z0", "z1", "z2", "z3", "z4"])
    assert second[1] == ["z5", "z6", "d", "e", "f"]


def test_a_curve_is_the_mean_of_the_seeds_in_a_band_of_one_standard_deviation():
    curves = [
        curve("sdn", 0, [(0.0, 0.5, 0.7), (0.9, 1.0, 0.8)]),
        curve("sdn", 1, [(0.0, 0.6, 0.8), (0.8, 1.0, 0.9)]),
        curve("sdn", 1, [(0.0, 0.1, 0.1)], split="validation"),
    ]
    metrics = results(exits([0.6, 0.8]), exits([0.7, 0.9], seed=1))
    (axes,) = accuracy_against_cost(pd.concat(curves), metrics, ALONE, "d, a").axes
    shown = dict(points(labelled(axes, "sdn")))
    assert min(shown) == pytest.approx(0.6), "where every seed has a threshold"
    assert max(shown) == pytest.approx(1.01), "a step beyond the costliest"
    at = {round(cost, 2): accuracy for cost, accuracy in shown.items()}
    assert at[0.6] == at[0.8] == pytest.approx(0.75), "the dearest threshold within the cost"
    assert at[1.0] == pytest.approx(0.85)
    spread = 0.05 * math.sqrt(2)
    assert band(axes, 1.0) == pytest.approx((0.85 - spread, 0.85 + spread))
    assert axes.get_title(loc="left") == "d, a"
    assert axes.get_ylabel() == "test accuracy (%), mean ± std of 2 seeds"
    assert axes.get_xlabel() == "mean cost of a sample (% of the backbone's MACs)"
    assert legend(axes) == ["sdn", BACKBONE]


def test_the_star_is_the_backbone_and_diamonds_are_static_networks():
    curves = [
        curve("sdn", 0, [(0.5, 0.5, 0.7)]),
        *(curve("small", seed, [(0.0, 0.3, 0.6 + seed / 10)]) for seed in (0, 1)),
        curve("smaller", 0, [(0.0, 0.1, 0.5)]),
    ]
    metrics = results(exits([0.6, 0.8]), exits([0.7, 0.9], seed=1))
    (axes,) = accuracy_against_cost(pd.concat(curves), metrics, ALONE, "d, a").axes
    star = labelled(axes, BACKBONE)
    assert (star.get_marker(), points(star)) == ("*", [(1.0, pytest.approx(0.9))])
    assert points(labelled(axes, "static networks")) == [(0.1, 0.5), (0.3, pytest.approx(0.65))]
    assert [text.get_text() for text in axes.texts] == ["smaller", "small"]
    assert star.get_color() == "black"
    (bars,) = (area for area in axes.collections if len(area.get_paths()) == 2)  # one error bar per network
    spread = 0.05 * math.sqrt(2)
    ends = sorted(float(y) for path in bars.get_paths() for y in np.asarray(path.vertices)[:, 1])
    assert ends == pytest.approx([0.5, 0.5, 0.65 - spread, 0.65 + spread]), "one seed has no spread"


def many_methods() -> tuple[pd.DataFrame, dict[str, str], dict[str, float]]:
    """Return curves of seven methods and five static networks, the methods' families and the networks' costs."""
    families = {f"z{index}": "recycled" for index in range(5)} | {"sdn": "frozen", "pabee": "frozen"}
    curves = [curve(name, 0, [(0.5, 0.1, 0.6), (0.9, 1.5, 0.9)]) for name in families]
    costs = {"resnet8": 0.15, "resnet20": 0.32, "resnet26": 0.43, "resnet32": 0.55, "resnet44": 0.7}
    curves += [curve(name, 0, [(0.0, cost, 0.87)]) for name, cost in costs.items()]
    return pd.concat(curves), families, costs


def test_names_of_static_networks_are_beside_their_marks_and_do_not_overlap():
    curves, families, costs = many_methods()
    metrics = results(*(exits([0.6, 0.8], method=name) for name in families))
    figure = accuracy_against_cost(curves, metrics, families, "d, a")
    figure.canvas.draw()
    for axes in figure.axes:
        places = {text.get_text(): text.get_window_extent() for text in axes.texts}
        assert list(places) == list(costs)
        assert not any(one.overlaps(other) for one, other in combinations(places.values(), 2))
        marks = {name: axes.transData.transform((cost, 0.87)) for name, cost in costs.items()}
        for name, place in places.items():
            middle = np.array([(place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2])
            assert min(marks, key=lambda other: math.dist(marks[other], middle)) == name


def test_the_main_figure_has_the_headline_methods_in_one_panel_with_their_names_at_the_lines():
    curves, families, costs = many_methods()
    lines = [("sdn", 0.6), ("z0", 0.7), ("small-int8", 0.8)]
    curves = curves[~curves["method"].isin(["sdn", "z0"])]
    more = [curve(name, seed, [(0.5, 0.2, low), (0.9, 1.5, 0.9)]) for name, low in lines for seed in (0, 1)]
    metrics = exits([0.6, 0.8])
    figure = main_figure(
        pd.concat([curves, *more]), metrics, families, ["sdn", "z0"], "d, a", "sdn wins", ["small-int8"]
    )
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "d, a: sdn wins"
    assert axes.get_xlim() == (0, 1.1)
    note, *names = axes.texts
    assert note.get_text() == f"n = 1: {', '.join(costs)}"
    assert [name.get_text() for name in names] == [*costs, BACKBONE, "z0", "sdn"]
    looks = style(families)
    assert [name.get_color() for name in names[-2:]] == [looks["z0"]["color"], looks["sdn"]["color"]]
    places = [name.get_window_extent() for name in names]
    assert not any(one.overlaps(other) for one, other in combinations(places, 2))
    ends = [line.get_xydata() for line in axes.lines if line.get_color() == looks["sdn"]["color"]]
    assert np.asarray(ends[0])[-1] == pytest.approx([1.1, 0.6])


def test_the_main_figure_reaches_methods_that_cost_more_than_the_backbone():
    rows = [curve("sdn", 0, [(0.1, 2.0, 0.5), (0.5, 3.0, 0.6)]), curve("ztw", 0, [(0.1, 0.3, 0.5)])]
    families = {"sdn": "frozen", "ztw": "recycled"}
    (axes,) = main_figure(pd.concat(rows), exits([0.5]), families, ["sdn", "ztw"], "t").axes
    assert axes.get_xlim() == (0, pytest.approx(2.1))


def test_a_long_finding_has_lines_of_its_own():
    rows = curve("sdn", 0, [(0.5, 0.5, 0.7), (0.9, 1.0, 0.8)])
    (axes,) = main_figure(rows, exits([0.6, 0.8]), ALONE, ["sdn"], "net on data", "much " * 15 + "more").axes
    first, *others = axes.get_title(loc="left").splitlines()
    assert first == "net on data:"
    assert " ".join(others) == "much " * 15 + "more"


def test_many_methods_have_a_panel_per_family_with_the_others_in_grey():
    families = {f"z{index}": "recycled" for index in range(5)} | {"sdn": "frozen", "pabee": "frozen"}
    curves = pd.concat([curve(name, 0, [(0.5, 0.5, 0.7), (0.9, 1.0, 0.8)]) for name in families])
    metrics = results(*(exits([0.6, 0.8], method=name) for name in families))
    figure = accuracy_against_cost(curves, metrics, families, "d, a")
    assert figure.get_suptitle() == "d, a"
    for axes, (family, shown) in zip(figure.axes, panels_of(families), strict=True):
        assert axes.get_title(loc="left") == family
        assert legend(axes) == shown
        faint = [line for line in axes.lines if line.get_label() == OTHERS]
        assert len(faint) == len(families) - len(shown)


def test_many_panels_are_in_rows():
    families = {
        f"{family}{index}": family for family in ("frozen", "recycled", "together") for index in range(7)
    }
    metrics = results(*(exits([0.6, index / 100], method=name) for index, name in enumerate(families)))
    figure = exit_accuracies(metrics, families, "d, a")
    assert len(figure.axes) == 6
    assert len({round(axes.get_position().y0, 3) for axes in figure.axes}) == 2


def test_no_star_without_an_ic_set_on_the_frozen_backbone():
    metrics = exits([0.6, 0.8])
    metrics = metrics[metrics["metric"] != "backbone_accuracy"]
    (axes,) = accuracy_against_cost(curve("sdn", 0, [(0.5, 0.5, 0.7)]), metrics, ALONE, "t").axes
    assert legend(axes) == ["sdn"]


def test_a_budget_gives_equal_accuracies_in_figures_and_tables():
    generator = np.random.default_rng(0)
    cost = generator.integers(1, 8, 40) / 8  # many rows have equal costs
    rows = pd.DataFrame({"relative_cost": cost, "accuracy": generator.random(40)})
    accuracy, costs = torch.tensor(rows["accuracy"]), torch.tensor(cost)
    drawn = Curve(costs, accuracy, costs, torch.empty(40, 0))
    expected = accuracy_at_budget(drawn, GRID.tolist(), 1.0).numpy()
    assert np.isnan(expected[0])
    assert len(np.unique(expected[~np.isnan(expected)])) == 7
    np.testing.assert_array_equal(accuracy_within(rows, GRID), expected)


def test_a_curve_is_drawn_to_its_most_expensive_point():
    """Heads on a small backbone can cost many times as much as the backbone."""
    rows = [(0.1, 0.9, 0.5), (0.5, 3.0, 0.6), (0.9, 11.6, 0.7)]
    (axes,) = accuracy_against_cost(curve("sdn", 0, rows), exits([0.5, 0.7]), ALONE, "t").axes
    assert points(labelled(axes, "sdn"))[-1] == pytest.approx((11.6, 0.7))


def test_patience_is_a_row_of_points():
    curves = [
        curve("pabee", 0, [(1.0, 0.5, 0.7), (2.0, 1.0, 0.8)]),
        curve("pabee", 1, [(1.0, 0.6, 0.8), (2.0, 1.0, 0.9)]),
    ]
    metrics = results(exits([0.6, 0.8], method="pabee"), exits([0.7, 0.9], 1, "pabee"))
    (axes,) = accuracy_against_cost(pd.concat(curves), metrics, {"pabee": "frozen"}, "d, a").axes
    assert points(labelled(axes, "pabee")) == [
        (pytest.approx(0.55), pytest.approx(0.75)),
        (pytest.approx(1.0), pytest.approx(0.85)),
    ]
    assert not axes.collections, "no band"


def test_accuracy_of_exits_with_its_band():
    metrics = results(exits([0.6, 0.8]), exits([0.7, 0.8], seed=1))
    (axes,) = exit_accuracies(metrics, ALONE, "d, a").axes
    assert points(labelled(axes, "sdn")) == [(1.0, pytest.approx(0.65)), (2.0, pytest.approx(0.8))]
    spread = 0.05 * math.sqrt(2)
    assert band(axes, 1.0) == pytest.approx((0.65 - spread, 0.65 + spread))
    assert band(axes, 2.0) == pytest.approx((0.8, 0.8))
    assert (axes.get_title(loc="left"), axes.get_xlabel()) == ("d, a", "exit")
    assert axes.get_ylabel() == "test accuracy (%)\nat this exit, mean ± std of 2 seeds"
    assert axes.get_xticks().tolist() == [1, 2]


def test_methods_that_share_their_exits_share_a_line():
    metrics = results(
        *(exits([0.6, last], method=name) for name, last in (("a", 0.8), ("b", 0.9), ("c", 0.8)))
    )
    (axes,) = exit_accuracies(metrics, dict.fromkeys("abc", "frozen"), "d, a").axes
    assert legend(axes) == ["a, c", "b"]
    assert points(labelled(axes, "a, c"))[1] == (2.0, 0.8)


def test_a_legend_in_a_panel_does_not_reach_the_next_panel():
    families = {"sdn": "frozen"} | dict.fromkeys(("sdn-original-ic-only", "cascaded-inference"), "frozen")
    families |= {f"ztw-of-another-kind-{k}": "recycled" for k in range(5)}
    last = dict(zip(families, (0.9, 0.8, 0.8, 0.7, 0.71, 0.72, 0.73, 0.74), strict=True))
    metrics = results(*(exits([0.6, own], method=method) for method, own in last.items()))
    figure = exit_accuracies(metrics, families, "d, a")
    figure.canvas.draw()
    first, second = (axes.get_legend() for axes in figure.axes)
    assert first is not None
    assert second is not None
    assert "sdn-original-ic-only, cascaded-inference" in legend(figure.axes[0])
    assert first.get_window_extent().x1 < second.get_window_extent().x0


def test_improvability_of_exits():
    (axes,) = improvabilities(exits([0.6, 0.8]), ALONE, "d, a").axes
    assert points(labelled(axes, "sdn")) == [(1.0, pytest.approx(0.06)), (2.0, pytest.approx(0.08))]
    assert axes.get_ylabel() == "hindsight improvability (%)\n(lower is better)"


def shares(values: list[float], seed: int, method: str = "sdn", budget: str = "0.5") -> pd.DataFrame:
    where = {"protocol": "held-out", "budget": budget}
    rows = [metric("exit_fraction", share, exit=exit, **where) for exit, share in enumerate(values, 1)]
    return result(rows, method, seed)


def test_shares_are_cumulative_and_a_panel_is_a_feasible_budget():
    metrics = results(
        shares([0.2, 0.3, 0.5], 0),
        shares([0.4, 0.1, 0.5], 1),
        shares([0.25, 0.75], 0, "few"),
        shares([math.nan] * 3, 0, budget="0.25"),
        result([metric("exit_fraction", 1.0, exit=1, protocol="paper", budget="1.0")]),
    )
    families = dict.fromkeys(["few", "sdn", "ztw"], "frozen")
    figure = exit_shares(metrics, families, ["sdn", "few"], ["0.25", "0.5", "1.0"], "held-out", "d, a")
    (half,) = figure.axes
    assert half.get_title(loc="left") == "budget 50 %"
    assert [y for _, y in points(labelled(half, "sdn"))] == pytest.approx([0.3, 0.5, 1.0])
    assert points(labelled(half, "few")) == [(1, 0.25), (2, 1.0)]
    assert labelled(half, "sdn").get_color() == style(families)["sdn"]["color"]
    assert half.get_xticks().tolist() == [1, 2, 3]
    assert legend(figure) == ["sdn", "few"]
    assert figure.get_suptitle() == "d, a"


def test_without_a_feasible_budget_the_panel_of_shares_is_empty():
    (axes,) = exit_shares(shares([math.nan] * 2, 0), ALONE, ["sdn"], ["0.5"], "held-out", "d, a").axes
    assert not axes.lines


@pytest.mark.parametrize(
    ("exits", "ticks"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 4, 7]), (28, [1, 5, 10, 15, 20, 28])]
)
def test_exits_are_counted_from_one(exits, ticks):
    axes = Figure().subplots()
    exit_ticks(axes, exits)
    assert axes.get_xticks().tolist() == ticks


def timed(*rows: tuple) -> pd.DataFrame:
    """Return times; rows: runtime, method, budget, batch size, relative time, accuracy."""
    columns = ["runtime", "method", "budget", "batch_size", "relative_time", "accuracy"]
    table = pd.DataFrame(rows, columns=columns).assign(device="cpu", threads=2, precision="fp32")
    table.loc[table["runtime"] == "pytorch", "precision"] = "bf16"
    return table


TIMES = timed(
    ("pytorch", BACKBONE, "-", 8, 4.0, 0.9),
    ("onnxruntime", BACKBONE, "-", 8, 1.0, 0.9),
    ("onnxruntime", "a smaller one", "-", 8, 0.4, 0.7),
    ("onnxruntime", "in int8", "-", 8, 0.2, 0.69),
    ("onnxruntime", "sdn", "0.5", 8, 0.6, 0.8),
    ("onnxruntime", "sdn", "1.0", 8, 0.8, 0.85),
    ("onnxruntime", "sdn", "max", 8, 1.3, 0.95),
    ("pytorch", "sdn", "0.5", 8, 2.4, 0.8),
    ("onnxruntime", "ablation", "0.5", 8, 0.7, 0.8),
    ("onnxruntime", BACKBONE, "-", 4, 1.0, 0.9),
    ("pytorch", BACKBONE, "-", 1, 3.0, 0.9),
    ("onnxruntime", BACKBONE, "-", 1, 1.0, 0.9),
    ("onnxruntime", "sdn", "0.5", 1, 0.9, 0.8),
    ("pytorch", "sdn", "0.5", 1, 0.5, 0.8),
)
TIMES.loc[TIMES["method"] == "in int8", "precision"] = "int8"
TIMED = dict.fromkeys(["sdn", "pabee", "ablation"], "frozen")


def test_accuracy_against_time_in_the_fastest_runtime_at_the_smallest_and_largest_batch():
    figure = accuracy_against_time(TIMES, TIMED, ["sdn", "pabee"], "d, a")
    one, eight = figure.axes
    hollow = "hollow marks: pytorch in bf16"
    assert one.get_title(loc="left") == f"batch size 1, 2 threads\nonnxruntime in fp32; {hollow}"
    assert eight.get_title(loc="left") == "batch size 8, 2 threads\nonnxruntime in fp32 or int8"
    assert points(labelled(one, "sdn")) == [(0.5, 0.8)], "PyTorch is faster here"
    assert labelled(one, "sdn").get_markerfacecolor() == "white"
    assert points(labelled(eight, "sdn")) == [(0.6, 0.8), (0.8, 0.85)], "the budget max is no point"
    assert labelled(eight, "sdn").get_markerfacecolor() == style(TIMED)["sdn"]["color"]
    assert points(labelled(eight, BACKBONE)) == [(1.0, 0.9)]
    assert points(labelled(eight, STATIC)) == [(0.4, 0.7)]
    assert points(labelled(eight, INT8)) == [(0.2, 0.69)], "a line of their own"
    assert [text.get_text() for text in eight.texts] == ["a smaller one", "in int8", BACKBONE, "sdn"]
    assert figure.get_suptitle() == "d, a, cpu"
    assert all(axes.get_xlim()[0] == 0 for axes in figure.axes)


def test_all_times_have_a_panel_per_runtime_threads_and_batch_size():
    single = TIMES[TIMES["batch_size"].eq(8)].assign(threads=1)
    figure = accuracy_against_all_times(pd.concat([TIMES, single]), TIMED, "d, a")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(titles) == 7, "without the panels that have no time"
    assert titles[0] == "pytorch, bf16, batch size 8, 1 thread"
    assert titles[-1] == "onnxruntime, fp32, int8, batch size 8, 2 threads"
    assert points(labelled(figure.axes[-1], "ablation")) == [(0.7, 0.8)]
    assert sorted(legend(figure)) == sorted([BACKBONE, "sdn", "ablation", STATIC, INT8])


def test_equal_figures_are_equal_files(tmp_path):
    for stem in ("first", "second"):
        save(exit_accuracies(exits([0.6, 0.8]), ALONE, "d, a"), tmp_path / stem)
    for kind in ("png", "pdf"):
        first, second = (Path(tmp_path / f"{stem}.{kind}").read_bytes() for stem in ("first", "second"))
        assert first == second
        assert len(first) > 1000


@pytest.mark.parametrize("place", ["matplotlibrc", "home/.config/matplotlib/matplotlibrc"])
def test_a_matplotlibrc_changes_no_figure(tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("text.usetex: True\naxes.facecolor: red\nsavefig.dpi: 30\n")
    said = (
        "import matplotlib, ztw.reporting.style\n"
        "print(*map(matplotlib.rcParams.get, ('text.usetex', 'axes.facecolor')))"
    )
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    environment.pop("XDG_CONFIG_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", said],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "white"]
