"""Time the methods of a cell and the backbone alone, in every runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch

from ztw.data.splits import cell_splits
from ztw.device import Compute
from ztw.errors import ZtwError
from ztw.evaluation.curves import Costs, SplitPredictions
from ztw.evaluation.methods import rules_at_budgets
from ztw.evaluation.names import BACKBONE
from ztw.evaluation.timing import (
    Timed,
    Timing,
    share_that_differs,
    take_batches,
    time_in_turn,
    turns_of,
)
from ztw.evaluation.turn_times import torch_threads
from ztw.exits.rules import ExitRule, exit_rule
from ztw.jobs.cell import CellNetworks, StaticNetwork
from ztw.jobs.exports import Exported, Exports, LeftOut, calibration_images
from ztw.models.backbone import Backbone
from ztw.models.costs import fixed_exit_macs, macs
from ztw.models.network import EarlyExitNetwork
from ztw.onnx.write import need_onnx
from ztw.progress import Progress, Report
from ztw.study.settings import (
    DataSettings,
    EvaluationSettings,
    HardwareSettings,
    LatencySettings,
    MethodSettings,
)
from ztw.study.training_settings import BackboneBuild, IcSet

PYTORCH, ONNX = "pytorch", "onnxruntime"
Found = dict[str, list[dict[str, Any]]]  # "rows", "left_out"
# Largest number of methods timed in turn. A large group spreads a call's turns over fast and slow phases of the
# machine. A small group needs less memory, and a killed job loses less.
GROUP = 5


@dataclasses.dataclass(frozen=True)
class MeasureLatencySettings:
    """The timed methods, their budgets, images and hardware."""

    images: DataSettings
    build: BackboneBuild
    statics: dict[str, StaticNetwork]
    sets: dict[str, IcSet]
    methods: dict[str, MethodSettings]
    evaluation: EvaluationSettings
    latency: LatencySettings
    hardware: HardwareSettings


@dataclasses.dataclass(frozen=True)
class Call:
    """A call to time: a method at a budget (None for a static network).

    Args:
        run: a network or its `infer` in PyTorch, or the exported network.
        rule: where samples leave; None for a static network.
        int8: in int8, not float.
    """

    method: str
    budget: Any
    run: Callable[..., Any] | Exported
    rule: ExitRule | None = None
    int8: bool = False

    @property
    def runtime(self) -> str:
        """The runtime."""
        return ONNX if isinstance(self.run, Exported) else PYTORCH

    def timing(self, threads: int) -> Timing:
        """Return the call for `time_in_turn`. A method's calls in a runtime differ in thresholds only."""
        run: Callable[..., Any] = self.run.runner(threads) if isinstance(self.run, Exported) else self.run
        if self.rule is not None:
            run = partial(run, rule=self.rule)
        return Timing(run, None if self.budget is None else (self.method, self.runtime))

    @property
    def size(self) -> dict[str, float | None]:
        """The size of the exported file and the peak memory of a sample, in millions of bytes."""
        if isinstance(self.run, Exported):
            return {"file_mb": self.run.file_mb, "peak_mb": self.run.peak_mb}
        return {"file_mb": None, "peak_mb": None}


class Bench:
    """Prepare the images, the backbone and the networks of a cell, and time them.

    Args:
        where: runtime -> description of hardware and precision.
        missing: the methods without stored times.
    """

    def __init__(
        self,
        networks: CellNetworks,
        plan: MeasureLatencySettings,
        compute: Compute,
        where: Mapping[str, Mapping[str, Any]],
        missing: Mapping[str, MethodSettings],
        report: Report,
    ) -> None:
        self.networks, self.plan, self.where = networks, plan, where
        self.compute, self.device = compute, compute.device
        splits = cell_splits(networks.record, plan.images, networks.cell.seed, report)
        sizes = plan.latency.batch_sizes
        self.batches = {
            size: take_batches(splits["test"], size, plan.latency.images, self.device) for size in sizes
        }
        self.calibration = None
        if any(method.int8 for method in missing.values()):
            self.calibration = calibration_images(splits["train"], networks.cell.seed)
        self.threads = thread_counts(plan.latency)
        self.without_onnx = without_onnx(plan.latency, self.device)
        self.exports = Exports([batches[0] for batches in self.batches.values()])
        self.backbone = networks.backbone().eval()
        self.macs = macs(self.backbone)
        self.backbone.to(self.device)
        self.groups = in_groups(missing)
        self.progress = Progress(sum(map(self._steps, self.groups)), report)

    @property
    def runtimes(self) -> int:
        """The number of runtimes."""
        return 1 if ONNX not in self.plan.latency.runtimes or self.without_onnx else 2

    def _steps(self, group: Mapping[str, MethodSettings]) -> int:
        """Return the number of steps of a group if all budgets are feasible and all methods can be exported."""
        budgets = len(self.plan.evaluation.budgets)
        calls = self.runtimes  # of the backbone
        for method in group.values():
            calls += (1 if method.static else budgets) * (self.runtimes - method.int8)
        return len(group) + calls * self._turns(len(group))

    def _turns(self, methods: int) -> int:
        return sum(turns_of(size, methods) for size in self.batches) * len(self.threads)

    def measure(self, group: dict[str, MethodSettings]) -> dict[str, tuple[Found, bool]]:
        """Time the methods of a group; return each method's results, and whether to store them."""
        left_out: dict[str, LeftOut] = {}
        calls = self._alone(BACKBONE, self.backbone, left_out)
        for name, method in group.items():
            calls += self._calls(name, method, left_out)
            self.progress.done += 1
        self.progress.total += len(group) + len(calls) * self._turns(len(group)) - self._steps(group)
        names = " to ".join(dict.fromkeys([next(iter(group)), next(reversed(group))]))
        rows: list[dict[str, Any]] = []
        for size, threads in product(self.batches, self.threads):
            with torch.inference_mode(), self.compute.autocast(), torch_threads(threads):
                step = partial(self.progress.step, partial("{}, batches of {}".format, names, size))
                timings, turns = [call.timing(threads) for call in calls], turns_of(size, len(group))
                timed = time_in_turn(timings, self.batches[size], turns, self.device, step)
            rows += self._rows({"batch_size": size, "threads": threads}, calls, timed)
        return {name: self._of_method(name, rows, left_out) for name in group}

    def _rows(
        self, how: Mapping[str, int], calls: Sequence[Call], timed: Sequence[Timed]
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        reference: dict[tuple[str, Any], list[Any]] = {}
        for call, found in zip(calls, timed, strict=True):  # PyTorch comes first
            row = {"method": call.method, "budget": call.budget, "runtime": call.runtime}
            row |= {"differs": None, **found.times, **call.size, **self.where[call.runtime], **how}
            if call.int8:  # PyTorch does not compute the method
                row["precision"] = "int8"
            else:
                expected = reference.setdefault((call.method, call.budget), found.predictions)
                row["differs"] = share_that_differs(found.predictions, expected)
            rows.append(row)
        return rows

    def _of_method(
        self, name: str, rows: Sequence[dict[str, Any]], left_out: Mapping[str, LeftOut]
    ) -> tuple[Found, bool]:
        """Return a method's rows and the backbone's rows of a group, and whether to store them."""
        names = BACKBONE, name
        own = [{**row, "beside": name} for row in rows if row["method"] in names]
        missing = {of: left_out[of] for of in names if of in left_out}
        told: list[dict[str, Any]] = [
            {"method": of, "runtime": ONNX, "reason": one.reason} for of, one in missing.items()
        ]
        if self.without_onnx:
            told.append({"method": None, "runtime": ONNX, "reason": self.without_onnx})
        return {"rows": own, "left_out": told}, all(one.lasting for one in missing.values())

    def _calls(self, name: str, method: MethodSettings, left_out: dict[str, LeftOut]) -> list[Call]:
        """Return the calls of a method; add it to `left_out` if ONNX Runtime cannot run it."""
        network = self.networks.of_method(name)
        if method.static:
            return self._alone(name, network.backbone.to(self.device), left_out, method.int8)
        held_out = SplitPredictions(*self.networks.predictions(network, name, "validation"))
        single = exit_rule(method.rule).single
        costs = Costs(fixed_exit_macs(network) if single else macs(network), self.macs)
        rules = rules_at_budgets(held_out, costs, method, self.plan.evaluation)
        network.to(self.device)
        of_method = partial(Call, name, int8=method.int8)
        calls = []
        if not method.int8:
            calls = [of_method(at, network.infer, rule) for at, rule in rules.items()]
        shared = (self.networks.source(name), method.ensemble, method.rule, method.int8)
        # A file of the rule "fixed_exit" holds the cut network, so each exit has a file of its own
        files = [{at: rule} for at, rule in rules.items()] if single else [rules] if rules else []
        for of_file in files:
            own = (*shared, str(list(of_file.values()))) if single else shared
            if found := self._export(name, own, network, list(of_file.values()), left_out, method.int8):
                calls += [of_method(at, found, rule) for at, rule in of_file.items()]
        return calls

    def _alone(
        self, name: str, backbone: Backbone, left_out: dict[str, LeftOut], int8: bool = False
    ) -> list[Call]:
        """Return the calls of a network without exits."""
        calls = [] if int8 else [Call(name, None, backbone)]
        if found := self._export(name, name, backbone, [None], left_out, int8):
            calls.append(Call(name, None, found, int8=int8))
        return calls

    def _export(
        self,
        name: str,
        shared: Any,
        network: EarlyExitNetwork | Backbone,
        rules: Sequence[ExitRule | None],
        left_out: dict[str, LeftOut],
        int8: bool = False,
    ) -> Exported | None:
        """Return the network in ONNX Runtime; None if ONNX Runtime is not timed, or fails (see `left_out`)."""
        if self.runtimes == 1:
            return None
        if shared not in self.exports.made:
            self.progress.begin(f"{name}, exporting")
        found = self.exports.export(shared, network, rules, self.calibration if int8 else None)
        if isinstance(found, LeftOut):
            left_out[name] = found
            return None
        return found


def in_groups(methods: Mapping[str, MethodSettings]) -> list[dict[str, MethodSettings]]:
    """Divide the methods into groups of similar size, at most GROUP each."""
    names = list(methods)
    count = -(-len(names) // GROUP)
    ends = [place * len(names) // max(1, count) for place in range(count + 1)]
    return [{name: methods[name] for name in names[start:end]} for start, end in pairwise(ends)]


def thread_counts(latency: LatencySettings) -> list[int]:
    """Return the numbers of threads to time with, each once."""
    return list(
        dict.fromkeys(torch.get_num_threads() if count == "all" else count for count in latency.threads)
    )


def without_onnx(latency: LatencySettings, device: torch.device) -> str | None:
    """Return why ONNX Runtime cannot be timed here; None if it can, or if the study does not ask for it."""
    if ONNX not in latency.runtimes:
        return None
    if device.type != "cpu":
        return f"the study uses device {device.type}, and ONNX Runtime is timed on the CPU only"
    try:
        need_onnx()
    except ZtwError as error:
        return str(error)
    return None
