"""The job that times methods: in both runtimes, what they share once, and what cannot be left out and told."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from conftest import small_network, stripes

import ztw
from ztw.evaluation.names import BACKBONE
from ztw.files import read_json
from ztw.jobs.measure_latency import LatencyPlan, measure_latency
from ztw.models.network import static_network
from ztw.progress import Note
from ztw.study.settings import (
    Cell,
    DataSettings,
    EvaluationSettings,
    HardwareSettings,
    LatencySettings,
    MethodSettings,
)

IMAGES = stripes(60)


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the job asks of a cell: one network with ICs of two exits for all methods, and a static one."""

    cell = Cell("stripes", "resnet8", 0)
    record: Any = None

    def backbone(self) -> ztw.Backbone:
        return small_network(placement=[0, 1]).backbone

    def of_method(self, method: MethodSettings) -> ztw.EarlyExitNetwork:
        network = small_network(placement=[0, 1])
        return static_network(network.backbone) if method.static else network

    def answers(self, network: ztw.EarlyExitNetwork, method: MethodSettings, split: str) -> Any:
        return ztw.predict(network, IMAGES, report=None)


METHODS = {
    "sdn": MethodSettings(ics="i", rule="max_softmax"),
    "per-exit": MethodSettings(ics="i", rule="max_softmax", thresholds="per_exit"),
    "entropy": MethodSettings(ics="i", rule="entropy"),
    "small": MethodSettings(static="resnet8"),
}


@pytest.fixture(autouse=True)
def images(monkeypatch):
    monkeypatch.setattr("ztw.jobs.measure_latency.cell_splits", lambda *_: {"test": IMAGES})


def timed(tmp_path, methods: list[str], *runtimes: str, sizes: tuple[int, ...] = (1, 8), device: str = "cpu"):
    """(rows, what was reported)."""
    said: list[str] = []
    plan = LatencyPlan(
        methods={name: METHODS[name] for name in methods},
        evaluation=EvaluationSettings(budgets=(0.8, "max"), points=50),
        latency=LatencySettings(batch_sizes=sizes, images=8, runtimes=runtimes),  # type: ignore[arg-type]
        data=DataSettings(),
        hardware=HardwareSettings(precision="fp32", device=device),
    )
    measure_latency(Networks(), plan, str(tmp_path / "latency.json"), said.append)  # type: ignore[arg-type]
    return read_json(tmp_path / "latency.json")["rows"], said


def test_every_method_is_timed_in_both_runtimes(tmp_path):
    rows, said = timed(tmp_path, ["sdn", "per-exit"], "pytorch", "onnxruntime")
    expected: list[tuple[Any, ...]] = [(BACKBONE, None, "pytorch"), (BACKBONE, None, "onnxruntime")]
    for method in ("sdn", "per-exit"):
        for runtime in ("pytorch", "onnxruntime"):
            expected += [(method, budget, runtime) for budget in (0.8, "max")]
    found = [(row["method"], row["budget"], row["runtime"], row["batch_size"]) for row in rows]
    assert found == [(*call, size) for size in (1, 8) for call in expected]
    assert all(row["median_ms"] > 0 for row in rows)
    assert {row["precision"] for row in rows} == {"fp32"}
    assert {row["threads"] for row in rows} == {torch.get_num_threads()}
    assert {row["differs"] for row in rows} == {0.0}, "the same answers from the same exits"
    exported = [line for line in said if line.startswith("exporting")]
    assert exported == [f"exporting {BACKBONE}", "exporting sdn"], "methods share an export"
    assert not any(isinstance(line, Note) for line in said)


def test_a_static_network_is_timed_once_in_each_runtime(tmp_path):
    rows, _ = timed(tmp_path, ["sdn", "small"], "pytorch", "onnxruntime", sizes=(8,))
    found = [(row["budget"], row["runtime"]) for row in rows if row["method"] == "small"]
    assert found == [(None, "pytorch"), (None, "onnxruntime")]


def test_what_onnx_cannot_hold_is_told_and_has_no_row(tmp_path, monkeypatch):
    def refuse(*_):
        raise ztw.ZtwError("resnet8: ONNX cannot hold it (sort)")

    monkeypatch.setattr("ztw.jobs.measure_latency.write_onnx", refuse)
    rows, said = timed(tmp_path, ["sdn", "entropy"], "pytorch", "onnxruntime", sizes=(8,))
    assert {row["runtime"] for row in rows} == {"pytorch"}
    assert [line for line in said if isinstance(line, Note)] == [
        f"{name}: not timed in ONNX Runtime: resnet8: ONNX cannot hold it (sort)"
        for name in (BACKBONE, "sdn", "entropy")
    ]


def test_answers_that_differ_are_told(tmp_path, monkeypatch):
    class Wrong:
        def __init__(self, *_, **__) -> None:
            pass

        def __call__(self, images: torch.Tensor, rule: ztw.ExitRule | None = None) -> ztw.ExitResult:
            return ztw.ExitResult(torch.zeros(len(images), 5), torch.full((len(images),), 9))

    monkeypatch.setattr("ztw.jobs.measure_latency.write_onnx", lambda *_: None)
    monkeypatch.setattr("ztw.jobs.measure_latency.OnnxRunner", Wrong)
    rows, said = timed(tmp_path, ["sdn"], "pytorch", "onnxruntime", sizes=(8,))
    assert [row["differs"] for row in rows if row["runtime"] == "onnxruntime"] == [1.0] * 3
    assert "sdn at budget 0.8: 100% of the images are answered otherwise in ONNX Runtime" in said


@pytest.mark.parametrize("reason", ["cuda", "packages", "not asked for"])
def test_without_onnx_runtime_pytorch_is_timed_alone(tmp_path, monkeypatch, reason):
    def missing():
        raise ztw.ZtwError("ONNX: the package onnx is not installed; pip install 'ztw[onnx]'")

    if reason == "packages":
        monkeypatch.setattr("ztw.jobs.measure_latency.need_onnx", missing)
    runtimes = ("pytorch",) if reason == "not asked for" else ("pytorch", "onnxruntime")
    if reason == "cuda":
        from ztw.jobs.measure_latency import _has_onnx

        said: list[str] = []
        assert not _has_onnx(LatencySettings(), torch.device("cuda"), said.append)
    else:
        rows, said = timed(tmp_path, ["sdn"], *runtimes, sizes=(8,))
        assert [row["runtime"] for row in rows] == ["pytorch"] * 3
    assert [line for line in said if isinstance(line, Note)] == {
        "cuda": ["latency.runtimes: onnxruntime is left out, the study computes on cuda"],
        "packages": [
            "latency.runtimes: onnxruntime is left out: ONNX: the package onnx is not installed; pip install"
            " 'ztw[onnx]'"
        ],
        "not asked for": [],
    }[reason]
