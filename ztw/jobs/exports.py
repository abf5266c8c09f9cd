"""Export networks to ONNX Runtime for timing, or record why that is impossible."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ztw.data.dataset import Data
from ztw.errors import ZtwError
from ztw.exits.rules import ExitRule
from ztw.models.backbone import Backbone
from ztw.models.network import EarlyExitNetwork
from ztw.onnx.export import export_onnx
from ztw.onnx.memory import peak_memory
from ztw.onnx.runner import OnnxRunner
from ztw.progress import describe, memory_ran_out

# Training images that calibrate int8. ONNX Runtime takes the largest values, which more images hardly change.
CALIBRATION = 500


@dataclass(frozen=True)
class LeftOut:
    """Reason why a network is not timed in ONNX Runtime; lasting: whether another try on this machine must fail."""

    reason: str
    lasting: bool


@dataclass(frozen=True)
class Exported:
    """A network in ONNX Runtime.

    Args:
        first: runs it with PyTorch's number of threads.
        file_mb: size of its file, in millions of bytes.
        peak_mb: peak memory of one sample, see `peak_memory`; None = unknown.
    """

    first: OnnxRunner
    file_mb: float
    peak_mb: float | None
    others: dict[int, OnnxRunner] = field(default_factory=dict)

    def runner(self, threads: int) -> OnnxRunner:
        """Return the runner with a number of threads."""
        if threads == self.first.threads:
            return self.first
        if threads not in self.others:
            self.others[threads] = copy.copy(self.first)
            self.others[threads].threads = threads
        return self.others[threads]


class Exports:
    """Export networks to ONNX Runtime. Methods that share a network share the export.

    A failure does not end the job, because PyTorch's times remain.

    Args:
        batches: one of each size, to try an exported network.
    """

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches = batches
        self.made: dict[Hashable, Exported | LeftOut] = {}

    def export(
        self,
        shared: Hashable,
        network: EarlyExitNetwork | Backbone,
        rules: Sequence[ExitRule | None],
        quantise: Tensor | None = None,
    ) -> Exported | LeftOut:
        """Export a network and try it with its rules.

        Args:
            shared: key of the export; methods with the same key share it.
            rules: rules of one kind; the thresholds are inputs of the exported network.
            quantise: images that calibrate int8; None = float32.
        """
        if shared not in self.made:
            self.made[shared] = _tried(lambda: exported(network, rules[0], quantise))
        found = self.made[shared]
        return found if isinstance(found, LeftOut) else _tried(lambda: self._run(found, rules))

    def _run(self, found: Exported, rules: Sequence[ExitRule | None]) -> Exported:
        """Run every batch with every rule, as a check and a warm-up."""
        for rule in rules:
            for batch in self.batches:
                found.first(batch, rule=rule)
        return found


def _tried(make: Callable[[], Exported]) -> Exported | LeftOut:
    """Return the exported network, or the reason of the failure."""
    try:
        return make()
    except Exception as error:  # ONNX and ONNX Runtime raise errors of many types, some of them private
        known = isinstance(error, ZtwError) or memory_ran_out(error)
        text = describe(error, "measure_latency") if known else f"{type(error).__name__}: {error}"
        return LeftOut(" ".join(text.split())[:300], isinstance(error, ZtwError))


def exported(
    network: EarlyExitNetwork | Backbone, rule: ExitRule | None, quantise: Tensor | None
) -> Exported:
    """Export a network, and measure the size of its file and the memory that it needs."""
    runner = in_onnx_runtime(network, rule, quantise)
    peak = peak_memory(runner)
    return Exported(runner, len(runner.content) / 1e6, None if peak is None else peak / 1e6)


def in_onnx_runtime(
    network: EarlyExitNetwork | Backbone, rule: ExitRule | None, quantise: Tensor | None = None
) -> OnnxRunner:
    """Export a network, in int8 if `quantise` has images for the calibration; keep no file."""
    with tempfile.TemporaryDirectory() as folder:
        file = export_onnx(network, rule, Path(folder, "network.onnx"), quantise=quantise)
        return OnnxRunner(file, torch.get_num_threads(), cache=False)


def calibration_images(train: Data, seed: int) -> Tensor:
    """Draw the training images (N, C, H, W) that calibrate int8: the same in every job of a cell, not augmented."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(train), generator=generator)[:CALIBRATION]
    return torch.cat([images for images, _ in train.take(drawn).batches(CALIBRATION)])
