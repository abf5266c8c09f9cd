"""Test the job that times methods: in both runtimes, with shared exports, and with failures in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import small_network, stripes

import ztw
from ztw.device import Compute
from ztw.evaluation.names import BACKBONE
from ztw.evaluation.timing import time_in_turn
from ztw.files import read_json
from ztw.jobs.cell import CellNetworks, StaticNetwork
from ztw.jobs.job import Job
from ztw.jobs.latency_bench import MeasureLatencySettings, in_groups, without_onnx
from ztw.jobs.measure_latency import measure_latency
from ztw.models.network import static_network
from ztw.onnx.memory import peak_memory
from ztw.progress import Note
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.settings import (
    DataSettings,
    EvaluationSettings,
    HardwareSettings,
    LatencySettings,
    MethodSettings,
)
from ztw.study.training_settings import BackboneBuild, IcSet

IMAGES = stripes(60)


class DecodeError(Exception):
    """An error that protobuf raises for a graph that is nested too deep."""


class FakeRunner:
    """The parts of a runner that the job reads."""

    content, threads = b"", torch.get_num_threads()

    def __init__(self, *_, **__) -> None:
        pass


CELL = Cell("stripes", "resnet8", 0)
ENSEMBLE = {"kind": "geometric", "exits": 3, "num_classes": 5, "include_final": True, "seconds": 1}


class Networks(CellNetworks):
    """A cell with one early-exit network for all methods, and a static network."""

    record = {"sha256": "images"}  # noqa: RUF012

    def backbone(self) -> ztw.Backbone:
        return small_network(placement=[0, 1]).backbone

    def of_method(self, name: str) -> ztw.EarlyExitNetwork:
        network = small_network(placement=[0, 1])
        return static_network(network.backbone) if self.methods[name].static else network

    def predictions(self, network: ztw.EarlyExitNetwork, name: str, split: str) -> Any:
        return ztw.predict(network, IMAGES, progress=False)


@pytest.fixture(autouse=True)
def layout(tmp_path, monkeypatch) -> Layout:
    """A study whose files are texts, because the job only hashes them."""
    found = Layout(tmp_path)
    for file in (
        found.backbone(CELL),
        found.ics(CELL, "i"),
        found.predictions(CELL, "i", "validation"),
        found.int8_predictions(CELL, "i", "validation"),
        found.ensemble(CELL, "i", "geometric"),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    metadata(found.ensemble(CELL, "i", "geometric")).write_text(json.dumps(ENSEMBLE))
    monkeypatch.setattr("ztw.jobs.measure_latency.CellNetworks", Networks)
    monkeypatch.setattr("ztw.jobs.exports.peak_memory", lambda runner: None)  # takes a second each
    monkeypatch.setattr("ztw.jobs.latency_bench.cell_splits", lambda *_: {"test": IMAGES, "train": IMAGES})
    return found


METHODS = {
    "sdn": MethodSettings(ics="i", rule="max_softmax"),
    "per-exit": MethodSettings(ics="i", rule="max_softmax", thresholds="per_exit"),
    "entropy": MethodSettings(ics="i", rule="entropy"),
    "ensemble": MethodSettings(ics="i", rule="max_softmax", ensemble="geometric"),
    "small": MethodSettings(static="resnet8"),
    "sdn-int8": MethodSettings(ics="i", rule="max_softmax", int8=True),
    "small-int8": MethodSettings(static="resnet8", int8=True),
}


def plan_of(
    names: list[str], *runtimes: str, sizes: tuple[int, ...] = (1, 8), **changed: Any
) -> MeasureLatencySettings:
    """Return settings for some of METHODS, with changes."""
    plan = MeasureLatencySettings(
        images=DataSettings(),
        build=BackboneBuild(),
        statics=dict.fromkeys(("small", "small-int8"), StaticNetwork("resnet8", "resnet8", BackboneBuild())),
        sets={"i": IcSet(connection="independent", epochs=1)},
        methods={name: METHODS[name] for name in names},
        evaluation=EvaluationSettings(budgets=(0.8, "max"), points=50),
        latency=LatencySettings(batch_sizes=sizes, images=8, runtimes=runtimes),  # type: ignore[arg-type]
        hardware=HardwareSettings(precision="fp32", device="cpu"),
    )
    return dataclasses.replace(plan, **changed)


def measured(
    tmp_path, plan: MeasureLatencySettings, code: str = "digest"
) -> tuple[dict[str, Any], list[str]]:
    """Run the job; return the content of its file, and the reported lines."""
    said: list[str] = []
    job = Job(Layout(tmp_path), said.append, {"code": code})
    measure_latency(job, CELL, plan)
    return read_json(job.layout.latency(CELL)), said


def timed(tmp_path, methods: list[str], *runtimes: str, sizes: tuple[int, ...] = (1, 8)) -> Any:
    """Run the job; return its rows, and the reported lines."""
    found, said = measured(tmp_path, plan_of(methods, *runtimes, sizes=sizes))
    return found["rows"], said


def test_times_with_one_thread_and_with_all(tmp_path, monkeypatch):
    monkeypatch.setattr("ztw.jobs.exports.peak_memory", peak_memory)
    plan = plan_of(["small"], "pytorch", "onnxruntime", sizes=(8,))
    latency = plan.latency.model_copy(update={"threads": (1, 2, "all")})
    before = torch.get_num_threads()
    found, _ = measured(tmp_path, dataclasses.replace(plan, latency=latency))
    assert torch.get_num_threads() == before
    counts = list(dict.fromkeys([1, 2, before]))
    assert [row["threads"] for row in found["rows"]] == sorted(
        [count for count in counts for _ in found["rows"][:: len(counts)]], key=counts.index
    )
    exported = [row for row in found["rows"] if row["runtime"] == "onnxruntime"]
    assert all(row["file_mb"] > 0.1 and row["peak_mb"] > row["file_mb"] for row in exported)
    others = [row for row in found["rows"] if row["runtime"] == "pytorch"]
    assert all(row["file_mb"] is None and row["peak_mb"] is None for row in others)


def test_every_method_is_timed_in_both_runtimes(tmp_path):
    """Methods are timed in turn, each with times of the backbone; a static network is timed once."""
    rows, said = timed(tmp_path, ["sdn", "per-exit", "small"], "pytorch", "onnxruntime")
    expected: list[tuple[Any, ...]] = []
    for method, budgets in {"sdn": (0.8, "max"), "per-exit": (0.8, "max"), "small": (None,)}.items():
        expected += [(BACKBONE, None, "pytorch", method), (BACKBONE, None, "onnxruntime", method)]
        for runtime in ("pytorch", "onnxruntime"):
            expected += [(method, budget, runtime, method) for budget in budgets]
    found = [
        tuple(row[key] for key in ("method", "budget", "runtime", "beside", "batch_size")) for row in rows
    ]
    assert found == [(*call, size) for size in (1, 8) for call in expected]
    assert all(row["median_ms"] > 0 for row in rows)
    assert {row["precision"] for row in rows} == {"fp32"}
    assert {row["threads"] for row in rows} == {torch.get_num_threads()}
    assert {row["differs"] for row in rows} == {0.0}, "the same answers from the same exits"
    assert not any(isinstance(line, Note) for line in said)
    exported = [line.split("%  ")[1] for line in said if "exporting" in line]
    assert exported == [f"{BACKBONE}, exporting", "sdn, exporting", "small, exporting"], (
        "methods share an export"
    )
    assert said[-1].startswith("100 %  sdn to small, batches of 8")
    assert said[-1].endswith("0:00 left")


@pytest.mark.parametrize(
    ("place", "error", "reason"),
    [
        (
            "export",
            ztw.ZtwError("resnet8: ONNX cannot hold it (sort)"),
            "resnet8: ONNX cannot hold it (sort)",
        ),
        ("export", RuntimeError("nested\ntoo deep"), "RuntimeError: nested too deep"),
        ("export", RecursionError("maximum recursion depth"), "RecursionError: maximum recursion depth"),
        ("run", DecodeError("Error parsing message"), "DecodeError: Error parsing message"),
        ("run", MemoryError(), "memory ran out: raise mem_mb of measure_latency"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_in_onnx_runtime_is_reported_and_has_no_row(
    tmp_path, layout, monkeypatch, place, error, reason
):
    """After any failure of an export, or of the first call, the study continues with PyTorch's times."""

    class Failing(FakeRunner):
        def __call__(self, *_, **__) -> None:
            raise error

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(
        "ztw.jobs.exports.export_onnx", refuse if place == "export" else lambda *_, **__: None
    )
    monkeypatch.setattr("ztw.jobs.exports.OnnxRunner", Failing)
    found, said = measured(tmp_path, plan_of(["sdn", "entropy"], "pytorch", "onnxruntime", sizes=(8,)))
    assert {row["runtime"] for row in found["rows"]} == {"pytorch"}
    told = {one["method"]: one["reason"] for one in found["left_out"]}
    assert list(told) == [BACKBONE, "sdn", "entropy"]
    assert all(text.startswith(reason) for text in told.values())
    notes = [line for line in said if isinstance(line, Note)]
    assert notes == [f"{name}: not timed in ONNX Runtime: {text}" for name, text in told.items()]
    kept = layout.method_latency(CELL, "sdn").exists()
    assert kept == isinstance(error, ztw.ZtwError), "another error may not happen again"


def test_different_predictions_are_reported(tmp_path, monkeypatch):
    class Wrong(FakeRunner):
        def __call__(self, images: torch.Tensor, rule: ztw.ExitRule | None = None) -> ztw.ExitResult:
            return ztw.ExitResult(torch.zeros(len(images), 5), torch.full((len(images),), 9))

    monkeypatch.setattr("ztw.jobs.exports.export_onnx", lambda *_, **__: None)
    monkeypatch.setattr("ztw.jobs.exports.OnnxRunner", Wrong)
    rows, said = timed(tmp_path, ["sdn"], "pytorch", "onnxruntime", sizes=(8,))
    assert [row["differs"] for row in rows if row["runtime"] == "onnxruntime"] == [1.0] * 3
    assert "sdn at budget 0.8: 100% of the predictions differ in ONNX Runtime" in said


def test_int8_is_timed_in_onnx_runtime_only(tmp_path):
    rows, said = timed(tmp_path, ["sdn-int8", "small-int8"], "pytorch", "onnxruntime", sizes=(8,))
    own = [row for row in rows if row["method"] != BACKBONE]
    found = [(row["method"], row["budget"]) for row in own]
    assert found == [("sdn-int8", 0.8), ("sdn-int8", "max"), ("small-int8", None)]
    assert {(row["runtime"], row["precision"], row["differs"]) for row in own} == {
        ("onnxruntime", "int8", None)
    }
    assert {row["precision"] for row in rows if row["method"] == BACKBONE} == {"fp32"}
    assert all(row["median_ms"] > 0 for row in rows)
    assert said[-1].startswith("100 %  sdn-int8 to small-int8")
    assert said[-1].endswith("0:00 left")
    assert not any(isinstance(line, Note) for line in said)


PACKAGES = "ONNX: the package onnx is not installed; pip install 'ztw[onnx]'"


@pytest.mark.parametrize("reason", ["packages", "not asked for"])
def test_without_onnx_runtime_pytorch_is_timed_alone(tmp_path, monkeypatch, reason):
    def missing():
        raise ztw.ZtwError(PACKAGES)

    if reason == "packages":
        monkeypatch.setattr("ztw.jobs.latency_bench.need_onnx", missing)
    runtimes = ("pytorch",) if reason == "not asked for" else ("pytorch", "onnxruntime")
    found, said = measured(tmp_path, plan_of(["sdn"], *runtimes, sizes=(8,)))
    assert [row["runtime"] for row in found["rows"]] == ["pytorch"] * 3
    wanted = [PACKAGES] if reason == "packages" else []
    assert [(one["method"], one["reason"]) for one in found["left_out"]] == [(None, text) for text in wanted]
    assert [line for line in said if isinstance(line, Note)] == [
        f"latency.runtimes: onnxruntime is left out: {text}" for text in wanted
    ]


def test_on_a_gpu_onnx_runtime_is_left_out():
    assert "device cuda" in str(without_onnx(LatencySettings(), torch.device("cuda")))


@pytest.fixture
def timings(monkeypatch) -> list[int]:
    """The number of calls of each timing."""
    counts: list[int] = []

    def counted(calls: Any, *others: Any) -> Any:
        counts.append(len(calls))
        return time_in_turn(calls, *others)

    monkeypatch.setattr("ztw.jobs.latency_bench.time_in_turn", counted)
    return counts


def small_plan(*names: str, **changed: Any) -> MeasureLatencySettings:
    return plan_of(list(names), "pytorch", sizes=(8,), **changed)


def test_a_method_that_was_timed_is_not_timed_again(tmp_path, timings):
    first, _ = measured(tmp_path, small_plan("sdn"))
    assert timings == [3]
    both, said = measured(tmp_path, small_plan("entropy", "sdn"))
    assert timings == [3, 3], "the one that is new, and the backbone beside it"
    assert [row for row in both["rows"] if row["beside"] == "sdn"] == first["rows"]
    assert [row["beside"] for row in both["rows"]] == ["entropy"] * 3 + ["sdn"] * 3, "in the study's order"
    assert said[-1].startswith("100 %  entropy"), "the kept one is no part of the work"
    assert measured(tmp_path, small_plan("entropy", "sdn"))[0] == both
    assert len(timings) == 2


def test_what_was_timed_before_a_kill_is_kept(tmp_path, layout, timings, monkeypatch):
    monkeypatch.setattr("ztw.jobs.latency_bench.GROUP", 1)
    of_method = Networks.of_method

    def killed(self: Networks, name: str) -> ztw.EarlyExitNetwork:
        if name == "entropy":
            raise KeyboardInterrupt
        return of_method(self, name)

    monkeypatch.setattr(Networks, "of_method", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, small_plan("sdn", "entropy"))
    monkeypatch.setattr(Networks, "of_method", of_method)
    assert not layout.latency(CELL).exists()
    found, _ = measured(tmp_path, small_plan("sdn", "entropy"))
    assert len(timings) == 2, "each method once"
    assert {row["beside"] for row in found["rows"]} == {"sdn", "entropy"}


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (5, [5]), (6, [3, 3]), (9, [4, 5]), (11, [3, 4, 4])])
def test_methods_are_timed_in_even_groups(count, sizes):
    methods = {str(number): METHODS["sdn"] for number in range(count)}
    groups = in_groups(methods)
    assert [len(group) for group in groups] == sizes
    assert [name for group in groups for name in group] == list(methods)


DECIDES: dict[str, tuple[str, Callable[[Layout], Any]]] = {
    "budgets": ("settings", lambda _: small_plan("ensemble", evaluation=EvaluationSettings(budgets=(0.7,)))),
    "images": ("settings", lambda _: small_plan("ensemble", images=DataSettings(validation_fraction=0.3))),
    "rule": (
        "method",
        lambda _: small_plan(
            "ensemble", methods={"ensemble": METHODS["ensemble"].model_copy(update={"rule": "entropy"})}
        ),
    ),
    "backbone": ("weights", lambda files: files.backbone(CELL).write_text("trained again")),
    "ics": ("weights", lambda files: files.ics(CELL, "i").write_text("trained again")),
    "validation logits": (
        "weights",
        lambda files: files.predictions(CELL, "i", "validation").write_text("others"),
    ),
    "ensemble": ("weights", lambda files: files.ensemble(CELL, "i", "geometric").write_text("fitted again")),
    "kind of ensemble": (
        "network",
        lambda files: metadata(files.ensemble(CELL, "i", "geometric")).write_text(
            json.dumps({**ENSEMBLE, "kind": "uniform"})
        ),
    ),
}


@pytest.mark.parametrize("changed", DECIDES)
def test_a_change_measures_times_again(tmp_path, layout, timings, changed):
    part, change = DECIDES[changed]
    measured(tmp_path, small_plan("ensemble"))
    plan = change(layout)
    other = plan if isinstance(plan, MeasureLatencySettings) else small_plan("ensemble")
    _, said = measured(tmp_path, other)
    assert len(timings) == 2
    assert said[0] == f"ensemble: timed again, because {part} changed"


def test_other_code_measures_all_times_again(tmp_path, timings):
    measured(tmp_path, small_plan("ensemble"))
    measured(tmp_path, small_plan("ensemble"), code="edited")
    assert len(timings) == 2


@pytest.mark.parametrize("changed", ["threads", "software", "data set"])
def test_another_machine_or_data_set_measures_all_times_again(tmp_path, timings, changed, monkeypatch):
    measured(tmp_path, small_plan("sdn"))
    if changed == "threads":
        monkeypatch.setattr(
            Compute, "describe", lambda _: {"device": "cpu", "precision": "fp32", "threads": 9}
        )
    elif changed == "software":
        monkeypatch.setattr("ztw.jobs.measure_latency.versions", lambda: {"torch": "9"})
    else:
        monkeypatch.setattr(Networks, "record", {"sha256": "others"})
    measured(tmp_path, small_plan("sdn"))
    assert len(timings) == 2


def test_the_machine_s_name_and_the_fit_of_an_ensemble_change_nothing(tmp_path, layout, timings, monkeypatch):
    """A container has a new name at every start, and every fit of an ensemble another duration."""
    measured(tmp_path, small_plan("ensemble"))
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    metadata(layout.ensemble(CELL, "i", "geometric")).write_text(json.dumps({**ENSEMBLE, "seconds": 2}))
    measured(tmp_path, small_plan("ensemble"))
    assert len(timings) == 1


def test_an_altered_file_of_times_is_not_used(tmp_path, layout, timings):
    measured(tmp_path, small_plan("sdn"))
    file = layout.method_latency(CELL, "sdn")
    file.write_text(file.read_text().replace("median_ms", "median_us"))
    found, said = measured(tmp_path, small_plan("sdn"))
    assert len(timings) == 2
    assert "altered since it was written" in said[0]
    assert all(row["median_ms"] > 0 for row in found["rows"])
