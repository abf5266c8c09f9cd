"""What the methods of a cell are timed with: the images, the backbone alone, the networks in every runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ztw.data.splits import cell_splits
from ztw.device import autocast
from ztw.errors import ZtwError
from ztw.evaluation.curves import Answers, Costs
from ztw.evaluation.methods import rules_at_budgets
from ztw.evaluation.names import BACKBONE
from ztw.evaluation.timing import (
    Timed,
    Timing,
    share_that_differs,
    take_batches,
    time_in_turn,
    times_of,
)
from ztw.exits.rules import ExitRule
from ztw.jobs.cell import CellNetworks
from ztw.jobs.exports import Exports, LeftOut
from ztw.models.backbone import Backbone
from ztw.models.costs import macs
from ztw.models.network import EarlyExitNetwork
from ztw.models.onnx_write import need_onnx
from ztw.models.operations import backbone_macs
from ztw.progress import Progress, Report
from ztw.study.settings import (
    DataSettings,
    EvaluationSettings,
    HardwareSettings,
    LatencySettings,
    MethodSettings,
)

PYTORCH, ONNX = "pytorch", "onnxruntime"
Found = dict[str, list[dict[str, Any]]]  # "rows", "left_out"


@dataclasses.dataclass(frozen=True)
class LatencyPlan:
    """What is timed (methods, at the budgets of the evaluation), how, on which images and hardware.

    code: what changes with the code of the job and of plugins.
    """

    methods: Mapping[str, MethodSettings]
    evaluation: EvaluationSettings
    latency: LatencySettings
    data: DataSettings
    hardware: HardwareSettings
    code: Any = None


@dataclasses.dataclass(frozen=True)
class Call:
    """What is timed: a method at a budget, None for a static network, in a runtime."""

    method: str
    budget: Any
    runtime: str
    run: Callable[[Tensor], Any]

    @property
    def timing(self) -> Timing:
        """Calls of a method in a runtime run one network, with other thresholds at every budget."""
        return Timing(self.run, None if self.budget is None else (self.method, self.runtime))


class Bench:
    """What the methods of a cell are timed with: the images, the backbone alone, the exports.

    missing: the methods that it will time; their share that is done is reported.
    """

    def __init__(
        self,
        networks: CellNetworks,
        plan: LatencyPlan,
        computing: tuple[torch.device, str],
        where: Mapping[str, Mapping[str, Any]],
        missing: Mapping[str, MethodSettings],
        report: Report,
    ) -> None:
        self.networks, self.plan, self.where = networks, plan, where
        self.device, self.precision = computing
        test = cell_splits(networks.record, plan.data, networks.cell.seed, report)["test"]
        sizes = plan.latency.batch_sizes
        self.batches = {size: take_batches(test, size, plan.latency.images, self.device) for size in sizes}
        self.without_onnx = without_onnx(plan.latency, self.device)
        self.exports = Exports([batches[0] for batches in self.batches.values()])
        self.backbone = networks.backbone().eval()
        self.macs = backbone_macs(self.backbone)
        self.backbone.to(self.device)
        self.turns = sum(map(times_of, sizes))
        self.progress = Progress(sum(map(self._steps, missing.values())), report)

    @property
    def runtimes(self) -> int:
        """How many runtimes there are to time in."""
        return 1 if ONNX not in self.plan.latency.runtimes or self.without_onnx else 2

    def _steps(self, method: MethodSettings) -> int:
        """Steps of a method that ONNX can hold and whose budgets are all feasible."""
        calls = 1 if method.static else len(self.plan.evaluation.budgets)
        return 1 + (1 + calls) * self.runtimes * self.turns

    def measure(self, name: str, method: MethodSettings) -> tuple[Found, bool]:
        """What is found of a method, and whether it would be found again, so that it can be kept."""
        calls, left_out = self._calls(name, method)
        self.progress.total += 1 + len(calls) * self.turns - self._steps(method)
        self.progress.step(lambda: name)
        rows: list[dict[str, Any]] = []
        for size, batches in self.batches.items():
            with torch.inference_mode(), autocast(self.device, self.precision):
                step = partial(self.progress.step, partial("{}, batches of {}".format, name, size))
                timed = time_in_turn([call.timing for call in calls], batches, self.device, step)
            rows += self._rows(name, size, calls, timed)
        told: list[dict[str, Any]] = [
            {"method": of, "runtime": ONNX, "reason": one.reason} for of, one in left_out.items()
        ]
        if self.without_onnx:
            told.append({"method": None, "runtime": ONNX, "reason": self.without_onnx})
        return {"rows": rows, "left_out": told}, all(one.lasting for one in left_out.values())

    def _rows(
        self, name: str, size: int, calls: Sequence[Call], timed: Sequence[Timed]
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        reference: dict[tuple[str, Any], list[Any]] = {}
        for call, found in zip(calls, timed, strict=True):  # PyTorch's come first
            expected = reference.setdefault((call.method, call.budget), found.answers)
            facts = {"method": call.method, "budget": call.budget, "runtime": call.runtime, "beside": name}
            facts |= {"batch_size": size, "differs": share_that_differs(found.answers, expected)}
            rows.append({**facts, **found.times, **self.where[call.runtime]})
        return rows

    def _calls(self, name: str, method: MethodSettings) -> tuple[list[Call], dict[str, LeftOut]]:
        """The backbone alone, and a method at every budget, or once if it is static; who is left out, and why."""
        left_out: dict[str, LeftOut] = {}
        calls = self._alone(BACKBONE, self.backbone, left_out)
        network = self.networks.of_method(method)
        if method.static:
            return calls + self._alone(name, network.backbone.to(self.device), left_out), left_out
        held_out = Answers(*self.networks.answers(network, method, "validation"))
        costs = Costs(macs(network), self.macs)
        rules = rules_at_budgets(held_out, costs, method, self.plan.evaluation)
        network.to(self.device)
        of_method = partial(Call, name)
        calls += [of_method(at, PYTORCH, partial(network.infer, rule=rule)) for at, rule in rules.items()]
        shared = (method.ics, method.ensemble, method.rule)
        if rules and (runner := self._runner(name, shared, network, list(rules.values()), left_out)):
            calls += [of_method(at, ONNX, partial(runner, rule=rule)) for at, rule in rules.items()]
        return calls, left_out

    def _alone(self, name: str, backbone: Backbone, left_out: dict[str, LeftOut]) -> list[Call]:
        """A network without exits, in every runtime."""
        calls = [Call(name, None, PYTORCH, backbone)]
        if runner := self._runner(name, name, backbone, [None], left_out):
            calls.append(Call(name, None, ONNX, runner))
        return calls

    def _runner(
        self,
        name: str,
        shared: Any,
        network: EarlyExitNetwork | Backbone,
        rules: Sequence[ExitRule | None],
        left_out: dict[str, LeftOut],
    ) -> Callable[..., Any] | None:
        """The network in ONNX Runtime; None where that is not timed, or cannot be, and then `left_out` says why."""
        if self.runtimes == 1:
            return None
        if shared not in self.exports.made:
            self.progress.begin(f"{name}, exporting")
        found = self.exports.runner(shared, network, rules)
        if isinstance(found, LeftOut):
            left_out[name] = found
            return None
        return found


def without_onnx(latency: LatencySettings, device: torch.device) -> str | None:
    """Why nothing at all is timed in ONNX Runtime although the study wants it; None where it is, or need not be."""
    if ONNX not in latency.runtimes:
        return None
    if device.type != "cpu":
        return f"the study computes on {device.type}"
    try:
        need_onnx()
    except ZtwError as error:
        return str(error)
    return None
