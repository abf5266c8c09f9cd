"""The job that times a cell's methods on this machine."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.data.splits import cell_splits
from ztw.device import autocast, computed_on
from ztw.errors import ZtwError
from ztw.evaluation.curves import Answers, Costs
from ztw.evaluation.methods import rules_at_budgets
from ztw.evaluation.names import BACKBONE
from ztw.evaluation.timing import share_that_differs, take_batches, time_in_turn
from ztw.exits.rules import ExitRule
from ztw.files import write_json
from ztw.jobs.cell import CellNetworks, compute_on
from ztw.models.backbone import Backbone
from ztw.models.checkpoints import versions
from ztw.models.costs import macs
from ztw.models.network import EarlyExitNetwork
from ztw.models.onnx_runner import OnnxRunner
from ztw.models.onnx_write import need_onnx, write_onnx
from ztw.models.operations import backbone_macs
from ztw.progress import Note, Report
from ztw.study.settings import (
    DataSettings,
    EvaluationSettings,
    HardwareSettings,
    LatencySettings,
    MethodSettings,
)

PYTORCH, ONNX = "pytorch", "onnxruntime"
# Share of the timed images that may be answered otherwise in ONNX Runtime before a user is told: scores that lie on a
# threshold fall to either side of it.
FEW = 0.02


@dataclasses.dataclass(frozen=True)
class LatencyPlan:
    """What is timed (methods, at the budgets of the evaluation), how, on which images and hardware."""

    methods: Mapping[str, MethodSettings]
    evaluation: EvaluationSettings
    latency: LatencySettings
    data: DataSettings
    hardware: HardwareSettings


@dataclasses.dataclass(frozen=True)
class Call:
    """What is timed: a method at a budget, None for a static network, in a runtime."""

    method: str
    budget: Any
    runtime: str
    run: Callable[[Tensor], Any]


def measure_latency(networks: CellNetworks, plan: LatencyPlan, output: str, report: Report) -> None:
    """Time every method at every budget in every runtime; writes rows as JSON.

    Thresholds are those chosen on the validation split, for ONNX Runtime the same as for PyTorch. `differs` of a row
    is the share of the timed images that leave elsewhere or get another class than in PyTorch. What ONNX Runtime
    cannot run here is left out with a Note.
    """
    device, precision = compute_on(plan.hardware)
    test = cell_splits(networks.record, plan.data, networks.cell.seed, report)["test"]
    exports = Exports(report) if _has_onnx(plan.latency, device, report) else None
    calls = _calls(networks, plan, device, exports)
    where = {PYTORCH: computed_on(device, precision), ONNX: computed_on(device, "fp32")}
    rows: list[dict[str, Any]] = []
    for size in plan.latency.batch_sizes:
        report(f"{len(calls)} times, batches of {size}")
        batches = take_batches(test, size, plan.latency.images, device)
        with torch.inference_mode(), autocast(device, precision):
            found = time_in_turn([call.run for call in calls], batches, device)
        reference: dict[tuple[str, Any], list[Any]] = {}
        for call, timed in zip(calls, found, strict=True):  # PyTorch's come first
            expected = reference.setdefault((call.method, call.budget), timed.answers)
            facts = {"method": call.method, "budget": call.budget, "runtime": call.runtime}
            differs = share_that_differs(timed.answers, expected)
            if differs > FEW:
                at = "" if call.budget is None else f" at budget {call.budget}"
                report(
                    Note(
                        f"{call.method}{at}: {differs:.0%} of the images are answered otherwise in ONNX Runtime"
                    )
                )
            rows.append(
                {**facts, "batch_size": size, **timed.times, "differs": differs, **where[call.runtime]}
            )
    write_json(output, {**dataclasses.asdict(networks.cell), "rows": rows, "versions": versions()})


def _has_onnx(latency: LatencySettings, device: torch.device, report: Report) -> bool:
    """Whether ONNX Runtime is timed, too."""
    if ONNX not in latency.runtimes:
        return False
    if device.type != "cpu":
        report(Note(f"latency.runtimes: onnxruntime is left out, the study computes on {device.type}"))
        return False
    try:
        need_onnx()
    except ZtwError as error:
        report(Note(f"latency.runtimes: onnxruntime is left out: {error}"))
        return False
    return True


def _calls(
    networks: CellNetworks, plan: LatencyPlan, device: torch.device, exports: Exports | None
) -> list[Call]:
    """All that is timed: the backbone alone, static networks as they are, the others at every budget."""
    backbone = networks.backbone().eval()
    calls = _alone(BACKBONE, backbone, device, exports)
    base = backbone_macs(backbone)
    for name, method in plan.methods.items():
        network = networks.of_method(method)
        if method.static:
            calls += _alone(name, network.backbone, device, exports)
            continue
        held_out = Answers(*networks.answers(network, method, "validation"))
        rules = rules_at_budgets(held_out, Costs(macs(network), base), method, plan.evaluation)
        network.to(device)
        of_method = partial(Call, name)
        calls += [of_method(at, PYTORCH, partial(network.infer, rule=rule)) for at, rule in rules.items()]
        shared = (method.ics, method.ensemble, method.rule)
        any_rule = next(iter(rules.values()), None)
        if exports and any_rule and (runner := exports.runner(name, shared, network, any_rule)):
            calls += [of_method(at, ONNX, partial(runner, rule=rule)) for at, rule in rules.items()]
    return calls


def _alone(name: str, backbone: Backbone, device: torch.device, exports: Exports | None) -> list[Call]:
    """A network without exits, in every runtime."""
    calls = [Call(name, None, PYTORCH, backbone.to(device))]
    if exports and (runner := exports.runner(name, name, backbone, None)):
        calls.append(Call(name, None, ONNX, runner))
    return calls


class Exports:
    """Networks in ONNX Runtime, with the job's threads. Methods that share one export it once."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.made: dict[Any, OnnxRunner | ZtwError] = {}

    def runner(
        self, name: str, shared: Any, network: EarlyExitNetwork | Backbone, rule: ExitRule | None
    ) -> OnnxRunner | None:
        """The runner of a network; None, with a Note, where ONNX cannot hold it.

        shared: what those have in common that share an export; rule: any of its kind, thresholds come with the calls.
        """
        if shared not in self.made:
            self.report(f"exporting {name}")
            self.made[shared] = _exported(network, rule)
        found = self.made[shared]
        if isinstance(found, ZtwError):
            self.report(Note(f"{name}: not timed in ONNX Runtime: {found}"))
            return None
        return found


def _exported(network: EarlyExitNetwork | Backbone, rule: ExitRule | None) -> OnnxRunner | ZtwError:
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = write_onnx(network, rule, Path(folder, "network.onnx"))
            return OnnxRunner(file, torch.get_num_threads(), cache=False)
        except ZtwError as error:
            return error
