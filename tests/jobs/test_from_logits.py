"""The jobs of a cell whose logits come from files."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ztw
from ztw.evaluation.published_logits import REFERENCE
from ztw.exits.logits import read_predictions
from ztw.files import read_json
from ztw.jobs.compute_latency import ComputeLatencySettings, compute_latency
from ztw.jobs.evaluate import EvaluateSettings, evaluate
from ztw.jobs.fit_ensembles import FitEnsemblesSettings, fit_ensembles
from ztw.jobs.import_predictions import ImportPredictionsSettings, import_predictions
from ztw.jobs.job import Job
from ztw.progress import Note
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.logits_settings import LogitsSet
from ztw.study.settings import DataSettings, EnsembleSettings, EvaluationSettings, MethodSettings
from ztw.study.training_settings import BackboneBuild

CELL = Cell("news", "mine", 3)
COST, BASE = [2e6, 1e7], 8e6
EVALUATED = ("validation", "test")


def given(seed: int = 0, exits: int = 2, classes: int = 3, size: int = 40) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = {split: rng.integers(3, size=size) for split in ("validation", "test", "train")}
    noise = np.random.default_rng(seed)
    splits: dict[str, Any] = {
        split: (2 * np.eye(classes)[own] + noise.normal(size=(exits, size, classes)), own)
        for split, own in labels.items()
    }
    return {**splits, "cost": COST[-exits:], "base_cost": BASE}


class Files:
    """Sets of logits in a folder, each by a file of its name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.layout, self.notes = folder, Layout(folder / "study"), list[Note]()
        self.sets: dict[str, LogitsSet] = {}

    def add(self, name: str, changes: dict[str, Any] | None = None, **settings: Any) -> Path:
        path = f"{self.folder}/{{dataset}}-{name}-{{arch}}{{seed}}.npz"
        self.sets[name] = LogitsSet(**{"path": path, "training": "separate", **settings})
        file = self.folder / f"news-{name}-mine3.npz"
        ztw.write_predictions(file, **{**given(), **(changes or {})})
        return file

    def imported(
        self, splits: tuple[str, ...] = EVALUATED, statics: tuple[str, ...] = (), times: bool = False
    ):
        wanted = ImportPredictionsSettings(
            self.sets, statics, dict.fromkeys(self.sets, splits), times, times, {}
        )
        import_predictions(Job(self.layout, self.report), CELL, wanted)

    def report(self, line: str) -> None:
        if isinstance(line, Note):
            self.notes.append(line)


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


def test_a_file_becomes_the_predictions_of_a_cell(files):
    file = files.add("a", {"origin": "a paper"}, connection="cascade")
    files.imported(("train", *EVALUATED))
    for split in ("train", *EVALUATED):
        logits, labels = read_predictions(files.layout.predictions(CELL, "a", split))
        expected = given()[split]
        assert (logits.numpy() == expected[0].astype(np.float32)).all()
        assert (labels.numpy() == expected[1]).all()
        saved = read_json(metadata(files.layout.predictions(CELL, "a", split)))
        assert (saved["ics"], saved["split"], saved["cost"], saved["base_cost"]) == ("a", split, COST, BASE)
        assert saved["settings"]["connection"] == "cascade"
        assert saved["origin"] == {
            "source": "logits",
            "file": file.name,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "note": "a paper",
        }
    assert files.notes == [
        "a study from logits has no networks: nothing to export, no models in MLflow, no measured times"
    ]


def test_a_note_does_not_miss_times_that_are_there(files):
    files.add("a", {"times": ztw.ExitTimes([1, 2], 2, "jax", "x")})
    files.imported(times=True)
    assert files.notes == ["a study from logits has no networks: nothing to export, no models in MLflow"]


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (given(exits=1), {}, "one exit, so nothing can leave early; name b in a method as static: b"),
        ({}, {"statics": ("b",)}, "2 exits, but methods name b as static, which has one"),
        (
            {"train": None},
            {"splits": ("train", *EVALUATED)},
            "has no train_logits, .* use fit_on: validation",
        ),
        ({}, {"times": True}, r"news-a-mine3.npz: has no times; write_predictions\(times=...\) adds them"),
        (given(classes=4), {}, "4 classes, .*news-a-mine3.npz has 3"),
        (
            {"test": given(size=30)["test"]},
            {},
            "other test labels than .*news-a-.*; all sets of a cell need the same",
        ),
        (
            {"validation": given()["test"]},
            {},
            "other validation labels than .*; all sets of a cell need the same samples in the same order",
        ),
        ({"base_cost": 9e6}, {}, r"base_cost 9e\+06, .*news-a-mine3.npz has 8e\+06; .* the same backbone"),
    ],
)
def test_sets_that_do_not_fit_together(files, change, settings, message):
    files.add("a")
    files.add("b", change)
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        files.imported(**settings)
    assert "\n" not in str(caught.value)
    assert str(files.folder) in str(caught.value)


def test_a_missing_file_is_named(files):
    files.add("a").unlink()
    with pytest.raises(ztw.ZtwError, match=r"news-a-mine3\.npz: no such file"):
        files.imported()


def evaluated(
    layout: Layout,
    cell: Cell,
    sets: dict[str, LogitsSet],
    methods: dict[str, MethodSettings],
    points: int = 100,
) -> None:
    settings = EvaluateSettings(
        images=DataSettings(),
        build=BackboneBuild(),
        statics={},
        sets={},
        logits=sets,
        methods=methods,
        evaluation=EvaluationSettings(points=points),
    )
    evaluate(Job(layout), cell, settings)


def metrics(layout: Layout, cell: Cell, method: str) -> dict[tuple, float]:
    rows = read_json(layout.metrics(cell, method))["metrics"]
    return {(row["protocol"], row["budget"], row["exit"], row["metric"]): row["value"] for row in rows}


def test_published_logits_scored_again_have_the_published_accuracies(tmp_path):
    """Published logits are in half precision."""
    cell, quick = Cell("fashion_mnist", "resnet20", 0), Layout(REFERENCE / "quick")
    path = f"{REFERENCE}/quick/{{dataset}}/{{arch}}/seed{{seed}}/predictions/independent.safetensors"
    files = Files(tmp_path)
    files.sets = {"independent": LogitsSet(path=path, training="separate")}
    wanted = ImportPredictionsSettings(files.sets, (), {"independent": EVALUATED}, False, False, {})
    import_predictions(Job(files.layout), cell, wanted)
    rules = {"sdn": "max_softmax", "pabee": "patience"}
    methods = {name: MethodSettings(ics="independent", rule=rule) for name, rule in rules.items()}
    evaluated(files.layout, cell, files.sets, methods, points=1000)
    for name in methods:
        found, published = metrics(files.layout, cell, name), metrics(quick, cell, name)
        at_budgets = [key for key in published if key[3] == "accuracy" and key[0]]
        assert len(at_budgets) == 10
        for key in [*at_budgets, ("", "", 0, "backbone_accuracy"), ("", "", 0, "backbone_macs")]:
            assert found[key] == pytest.approx(published[key], abs=3e-4), key


def test_costs_are_those_of_the_file_and_of_the_ensemble(files):
    files.add("joint", training="joint")
    files.add("small", given(exits=1))
    files.imported(statics=("small",))
    fit = EnsembleSettings(kind="geometric", fit_on="validation")
    fit_ensembles(Job(files.layout), CELL, FitEnsemblesSettings({"joint": {"geometric": fit}}))
    methods = {
        "plain": MethodSettings(ics="joint"),
        "ensemble": MethodSettings(ics="joint", ensemble="geometric"),
        "small": MethodSettings(static="small"),
    }
    evaluated(files.layout, CELL, files.sets, methods)
    shares = {
        name: [metrics(files.layout, CELL, name).get(("", "", exit, "relative_cost")) for exit in (1, 2)]
        for name in methods
    }
    assert shares["plain"] == [COST[0] / BASE, COST[1] / BASE]
    # one multiplication per member and class
    assert shares["ensemble"] == [(COST[0] + 3) / BASE, (COST[1] + 3 + 6) / BASE]
    assert shares["small"] == [COST[1] / BASE, None]
    for name in methods:
        assert ("", "", 0, "backbone_accuracy") not in metrics(files.layout, CELL, name), (
            "trained with the exits"
        )
        assert not files.layout.network(CELL, name).exists()
        assert read_json(files.layout.metrics(CELL, name))["cost_unit"] == "MACs (given)"


def test_the_backbone_is_the_last_exit_of_a_set_that_kept_it_frozen(files):
    files.add("joint", given(seed=1), training="joint")
    files.add("frozen", given(seed=2))
    files.imported()
    evaluated(files.layout, CELL, files.sets, {"plain": MethodSettings(ics="joint")})
    logits, labels = given(seed=2)["test"]
    accuracy = (logits[-1].argmax(-1) == labels).mean()
    found = metrics(files.layout, CELL, "plain")
    assert found["", "", 0, "backbone_accuracy"] == pytest.approx(accuracy)
    assert found["", "", 2, "accuracy"] != pytest.approx(accuracy)


def test_times_at_a_budget_are_those_of_the_exits_where_samples_leave(files):
    times = ztw.ExitTimes([1.0, 5.0], 4.0, "jax", "a TPU", "bf16", 2)
    files.add("a", {"times": [times, replace(times, runtime="other", backbone=2.0)]})
    files.add("small", {**given(exits=1), "times": replace(times, exits=[3.0])})
    files.imported(statics=("small",), times=True)
    methods = {"sdn": MethodSettings(ics="a"), "small": MethodSettings(static="small")}
    evaluated(files.layout, CELL, files.sets, methods)
    plan = ComputeLatencySettings(files.sets, methods, EvaluationSettings(points=100))
    compute_latency(Job(files.layout), CELL, plan)
    content = read_json(files.layout.latency(CELL))
    assert (content["dataset"], content["arch"], content["seed"], content["left_out"]) == (
        "news",
        "mine",
        3,
        [],
    )
    rows = {(row["runtime"], row["method"], row["budget"]): row for row in content["rows"]}
    found = metrics(files.layout, CELL, "sdn")
    for budget in (0.75, 1.0, "max"):
        share = found["held-out", str(budget), 1, "exit_fraction"]
        row = rows["jax", "sdn", budget]
        assert row["images_per_s"] == pytest.approx(1000 / (share * 1 + (1 - share) * 5))
        assert row["median_ms"] == (1 if share >= 0.5 else 5)
        assert (row["device"], row["precision"], row["threads"], row["batch_size"]) == ("a TPU", "bf16", 2, 1)
    assert (rows["jax", "small", None]["p95_ms"], rows["other", "sdn", "max"]["p95_ms"]) == (3, 5)
    alone = [row for row in content["rows"] if row["method"] == "backbone alone"]
    assert [(row["beside"], row["runtime"], row["median_ms"]) for row in alone] == [
        ("sdn", "jax", 4.0),
        ("sdn", "other", 2.0),
        ("small", "jax", 4.0),
    ]
