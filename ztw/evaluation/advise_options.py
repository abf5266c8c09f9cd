"""The options of an advice: networks and files that can run, with their predictions, not yet timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.batch import converted
from ztw.data.dataset import Data
from ztw.errors import ZtwError, reason
from ztw.evaluation.advice_option import FIXED, MODEL, ONNX, PYTORCH, Option, measured, median
from ztw.evaluation.advise_files import Candidate, Exported, Folder, on_cpu
from ztw.evaluation.cross_fit import CrossFitted, HeldOut, cross_fit, with_or_without_ensemble
from ztw.evaluation.operating_point import predict, predict_onnx
from ztw.evaluation.turn_times import Call
from ztw.models.backbone import Backbone
from ztw.models.costs import fixed_exit_macs, macs
from ztw.models.network import EarlyExitNetwork, static_network
from ztw.onnx.runner import OnnxRunner
from ztw.progress import Report


@dataclass
class Maker:
    """Make the options of a model, one after the other. An option that fails gets a reason.

    Args:
        held_out: the samples to judge by.
        calibration: a batch of training samples for int8.
        threads: of ONNX Runtime.
        allowed_loss: see `advise`. Thresholds aim at half of it, because the other half of the samples, and new ones,
            lose more than those that chose the thresholds.
        seed: of the halves.
        report: receives lines about the progress, or None.
    """

    held_out: Data
    calibration: Any
    threads: int
    allowed_loss: float
    seed: int
    report: Report | None = None
    folder: Folder = field(default_factory=Folder)
    found: list[Candidate | Option] = field(default_factory=list)
    judged: HeldOut | None = None

    def say(self, line: str, start: str = "") -> None:
        """Report a line about the progress."""
        if self.report is not None:
            self.report(f"{start}advise: {line}")

    def attempt(self, name: str, kind: str, int8: bool, make: Callable[[], Candidate | None]) -> None:
        """Add what `make` returns, or the reason why it fails."""
        self.say(name)
        try:
            made: Candidate | Option | None = make()
        except Exception as error:  # of a model, an exporter or a runtime: anything
            made = Option(name, kind, int8, reason=reason(error)[:300])
        if made is not None:
            self.found.append(made)

    def failed(self, name: str, kind: str, error: Exception) -> None:
        """Add an option with the reason why it failed."""
        self.found.append(Option(name, kind, reason=reason(error)[:300]))

    def correct(self, logits: Tensor) -> Tensor:
        """Return bool (N,), whether logits (N, C) are right."""
        assert self.judged is not None
        return logits.argmax(-1) == self.judged.labels

    def predict(self, network: EarlyExitNetwork) -> Tensor:
        """Return the logits (K, N, C) of the held-out samples."""
        logits, labels = predict(network, self.held_out, progress=False)
        if self.judged is None:
            self.judged = HeldOut(labels, logits[-1].argmax(-1) == labels, self.allowed_loss / 2, self.seed)
        self._check_order(labels)
        return logits

    def predict_file(self, file: Path) -> Tensor:
        """Return the logits (K, N, C) of the held-out samples by a file, without early exits."""
        logits, labels = predict_onnx(self.runner(file), self.held_out)
        self._check_order(labels)
        return logits

    def _check_order(self, labels: Tensor) -> None:
        assert self.judged is not None
        if not torch.equal(labels, self.judged.labels):
            raise ZtwError(
                "held_out: gives its samples in another order each time; use a DataLoader without shuffle"
            )

    def runner(self, file: Path) -> OnnxRunner:
        """Return a runner that stores nothing."""
        return OnnxRunner(file, threads=self.threads, cache=False)

    def path(self, name: str) -> Path:
        """Return the path of an option's file."""
        return self.folder.path / f"{len(self.found)}-{''.join(x if x.isalnum() else '-' for x in name)}.onnx"

    def static(self, name: str, kind: str, backbone: Backbone, logits: Tensor | None = None) -> Tensor:
        """Add a network without exits, in float32 and int8; return its logits (N, C)."""
        network = static_network(backbone).eval()
        logits = self.predict(network)[0] if logits is None else logits
        self.one_exit(name, kind, network, self.correct(logits))
        return logits

    def one_exit(
        self,
        name: str,
        kind: str,
        network: EarlyExitNetwork,
        correct: Tensor,
        in_int8: Callable[[], Tensor] | None = None,
    ) -> None:
        """Add a network of one exit, in float32 and int8.

        Args:
            correct: bool (N,), in float32.
            in_int8: computes the same in int8; None = by the file.
        """
        network = on_cpu(network)
        exported, cost = Exported(network, self.calibration), float(macs(network)[-1])
        own: dict[str, Call] = {PYTORCH: lambda batch: _run(network, batch)}

        def in_float() -> Candidate:
            calls, file = dict(own), None
            try:
                file = exported.write(self.path(name), None, int8=False)
                calls[ONNX] = self.runner(file)
            except Exception as error:
                if kind == MODEL:
                    self.found.append(Option(name, kind, reason=reason(error)[:300]))
            return Candidate(name, kind, False, correct, cost, calls, network, None, file)

        def quantised() -> Candidate:
            title = f"{name}, int8"
            file = exported.write(self.path(title), None, int8=True)
            right = self.correct(self.predict_file(file)[0]) if in_int8 is None else in_int8()
            return Candidate(title, kind, True, right, cost, {ONNX: self.runner(file)}, None, None, file)

        self.attempt(name, kind, False, in_float)
        self.attempt(f"{name}, int8", kind, True, quantised)

    def several_exits(
        self, name: str, kind: str, network: EarlyExitNetwork, logits: Tensor, fixed: bool = False
    ) -> None:
        """Add a network with exits, in float32 and int8, and optionally cut after one exit.

        Args:
            logits: (K, N, C), in float32.
            fixed: whether to add the rule "fixed_exit".
        """
        assert self.judged is not None
        network = on_cpu(network)
        judged, cost = self.judged, macs(network)
        plain = Exported(network, self.calibration)
        in_int8: list[Tensor] = []  # the logits, once for the exits and for the fixed exit

        def logits8() -> Tensor:
            if not in_int8:
                in_int8.append(self.predict_file(plain.write(self.path("raw"), None, int8=True)))
            return in_int8[0]

        if fixed:
            self.cut(network, logits, logits8)
        fitted = with_or_without_ensemble(logits, cost, judged, self.allowed_loss)
        network.ensemble = fitted.ensemble
        exported = plain if fitted.ensemble is None else Exported(network, self.calibration)

        def in_float() -> Candidate:
            own: dict[str, Call] = {PYTORCH: lambda batch: network.infer(batch, fitted.rule)}
            calls, file = dict(own), None
            with suppress(Exception):  # PyTorch remains
                file = exported.write(self.path(name), fitted.rule, int8=False)
                calls[ONNX] = self.runner(file)
            return self._with_rule(name, kind, fitted, calls, network, file)

        def quantised() -> Candidate:
            title = f"{name}, int8"
            again = cross_fit(logits8(), cost, judged, ensembled=fitted.ensemble is not None, source=logits)
            file = exported.write(self.path(title), again.rule, int8=True)
            return self._with_rule(title, kind, again, {ONNX: self.runner(file)}, None, file)

        self.attempt(name, kind, False, in_float)
        self.attempt(f"{name}, int8", kind, True, quantised)

    def leave_out_what_does_not_run(self, batch: Any) -> None:
        """Remove calls that fail on a batch; an option without calls gets the reason."""
        for number, one in enumerate(self.found):
            if isinstance(one, Candidate):
                works, why = {}, ""
                for runtime, call in one.calls.items():
                    try:
                        call(batch)
                        works[runtime] = call
                    except Exception as error:
                        why = reason(error)[:300]
                failed = Option(one.name, one.kind, one.int8, reason=why)
                self.found[number] = replace(one, calls=works) if works else failed

    def is_model(self, number: int) -> bool:
        """Return whether an option is the model as it is, whose runtimes are all shown."""
        one = self.found[number]
        return one.kind == MODEL and not one.int8

    def options(self, times: Sequence[tuple[int, str, list[float]]]) -> list[Option]:
        """Return all options in their order; times: (number, runtime, milliseconds in each round)."""
        assert self.judged is not None
        base_ms = min(
            (row for number, _, row in times if self.is_model(number)), key=lambda row: median(tuple(row))
        )
        done: list[Option] = []
        for number, one in enumerate(self.found):
            if isinstance(one, Option):
                done.append(one)
            else:
                found = [(runtime, row) for place, runtime, row in times if place == number]
                done += [self._option(one, runtime, row, base_ms) for runtime, row in found]
        return done

    def _option(self, one: Candidate, runtime: str, row: list[float], base_ms: list[float]) -> Option:
        assert self.judged is not None
        return measured(
            one.name,
            one.kind,
            one.correct,
            self.judged.base,
            one.macs,
            row,
            base_ms,
            int8=one.int8,
            runtime=runtime,
            rule=one.rule,
            network=one.network,
            file=one.file,
            owner=self.folder,
        )

    def _with_rule(
        self,
        name: str,
        kind: str,
        fitted: CrossFitted,
        calls: dict[str, Call],
        network: EarlyExitNetwork | None,
        file: Path | None,
    ) -> Candidate:
        return Candidate(
            name,
            kind,
            network is None,
            fitted.correct,
            fitted.macs,
            calls,
            network,
            fitted.rule,
            file,
            fitted.fraction,
        )

    def cut(self, network: EarlyExitNetwork, logits: Tensor, logits8: Callable[[], Tensor]) -> None:
        """Add the network cut after its cheapest exit within the allowed loss."""
        assert self.judged is not None
        judged, cost = self.judged, fixed_exit_macs(network)
        fitted = cross_fit(logits, cost, judged, "fixed_exit")
        exit = fitted.rule.only_exit or network.exits
        if exit == network.exits:
            why = f"every exit before the last one loses more than {100 * judged.aim:.2g} points, half of allowed_loss"
            self.found.append(Option("fixed exit", FIXED, reason=why))
            return
        self.one_exit(
            f"fixed exit {exit}",
            FIXED,
            network.cut_after(exit).eval(),
            fitted.correct,
            lambda: self._cut_correct(logits8(), logits, cost),
        )

    def _cut_correct(self, logits8: Tensor, logits: Tensor, cost: Tensor) -> Tensor:
        """Return bool (N,) in int8, at the exit that the other half chose in float32."""
        assert self.judged is not None
        return cross_fit(logits8, cost, self.judged, "fixed_exit", chosen_on=logits).correct


def _run(network: EarlyExitNetwork, batch: Any) -> Tensor:
    with torch.inference_mode():
        return network.backbone(converted(batch, torch.device("cpu")))
