"""Networks in ONNX Runtime for the job that times them, or the reason why they are not there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.exits.rules import ExitRule
from ztw.models.backbone import Backbone
from ztw.models.network import EarlyExitNetwork
from ztw.onnx.runner import OnnxRunner
from ztw.onnx.write import write_onnx
from ztw.progress import describe, memory_ran_out


@dataclass(frozen=True)
class LeftOut:
    """Why a network is not timed in ONNX Runtime; lasting: whether another try on this machine ends alike."""

    reason: str
    lasting: bool


class Exports:
    """Networks in ONNX Runtime, with the job's threads. Methods that share one export it once.

    batches: one of each size; they are tried before anything is timed. Nothing that goes wrong here ends the job: a
    study has its other results, and PyTorch's times.
    """

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches = batches
        self.made: dict[Hashable, OnnxRunner | LeftOut] = {}

    def runner(
        self, shared: Hashable, network: EarlyExitNetwork | Backbone, rules: Sequence[ExitRule | None]
    ) -> OnnxRunner | LeftOut:
        """The runner of a network, tried with its rules.

        shared: what those have in common that share an export; rules: of one kind, thresholds come with the calls.
        """
        if shared not in self.made:
            self.made[shared] = _tried(lambda: _exported(network, rules[0]))
        found = self.made[shared]
        return found if isinstance(found, LeftOut) else _tried(lambda: self._run(found, rules))

    def _run(self, runner: OnnxRunner, rules: Sequence[ExitRule | None]) -> OnnxRunner:
        """Run every batch by every rule, which also makes what the runner makes when first called."""
        for rule in rules:
            for batch in self.batches:
                runner(batch, rule=rule)
        return runner


def _tried(make: Callable[[], OnnxRunner]) -> OnnxRunner | LeftOut:
    """What is made, or why it is not."""
    try:
        return make()
    except Exception as error:  # ONNX and ONNX Runtime raise errors of many types, some of them not public
        known = isinstance(error, ZtwError) or memory_ran_out(error)
        text = describe(error, "measure_latency") if known else f"{type(error).__name__}: {error}"
        return LeftOut(" ".join(text.split())[:300], isinstance(error, ZtwError))


def _exported(network: EarlyExitNetwork | Backbone, rule: ExitRule | None) -> OnnxRunner:
    with tempfile.TemporaryDirectory() as folder:
        file = write_onnx(network, rule, Path(folder, "network.onnx"))
        return OnnxRunner(file, torch.get_num_threads(), cache=False)
