"""One option of an advice: a way to run a model, with what was measured."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.evaluation.bootstrap import Difference, paired_difference
from ztw.evaluation.saving import save
from ztw.exits.rules import ExitRule
from ztw.models.network import EarlyExitNetwork

MODEL, ALTERNATIVE, FIXED, EXITS, CASCADE = "model", "smaller network", "fixed exit", "exits", "cascade"
ONNX, PYTORCH = "ONNX", "PyTorch"


@dataclass(frozen=True)
class Option:
    """One way to run a model, from `advise`.

    Attributes:
        name: e.g. "exits, int8".
        kind: "model", "smaller network", "fixed exit", "exits" or "cascade".
        int8: whether it is quantised.
        runtime: "ONNX" (ONNX Runtime) or "PyTorch".
        reason: why it was not measured; "" if it was. The numbers are then NaN or empty.
        accuracy: on held-out samples that chose nothing, in [0, 1].
        loss: the model's accuracy - accuracy, with a 95 % interval; None if not measured.
        macs: mean multiply-accumulate operations (MACs) of a sample.
        round_ms: the time of a call in each round, in milliseconds.
        speed_up: how many times as fast as the model, median of the rounds.
        speed_range: the smallest and the largest speed-up of the rounds.
        rule: with thresholds from all held-out samples; None without exits.
        network: in float32; None in int8.
        file: the measured ONNX file, or None. It is deleted with the advice; `save` copies it.
    """

    name: str
    kind: str
    int8: bool = False
    runtime: str = "ONNX"
    reason: str = ""
    accuracy: float = float("nan")
    loss: Difference | None = None
    macs: float = float("nan")
    round_ms: tuple[float, ...] = ()
    speed_up: float = float("nan")
    speed_range: tuple[float, float] = (float("nan"), float("nan"))
    rule: ExitRule | None = None
    network: EarlyExitNetwork | None = field(default=None, repr=False)
    file: Path | None = field(default=None, repr=False)
    owner: Any = field(default=None, repr=False, compare=False)  # deletes the file when nothing needs it

    @property
    def ms(self) -> float:
        """The time of a call, in milliseconds: the median of the rounds."""
        return median(self.round_ms)

    def save(self, folder: Path | str) -> None:
        """Write what runs: model.onnx, and in float32 also the network and its rule, for `ztw.load`.

        Raises:
            ZtwError: for an option that was not measured, and as `ztw.save`.
        """
        if self.reason:
            raise ZtwError(f"{self.name}: was not measured ({self.reason}), so there is nothing to save")
        folder = Path(folder)
        if self.network is not None:
            save(self.network, folder, rule=self.rule, progress=False)
        folder.mkdir(parents=True, exist_ok=True)
        if self.file is not None:
            shutil.copyfile(self.file, folder / "model.onnx")


def median(values: Sequence[float]) -> float:
    """Return the median; NaN without values."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5)) if values else float("nan")


def measured(
    name: str,
    kind: str,
    correct: Tensor,
    base_correct: Tensor,
    macs: float,
    round_ms: Sequence[float],
    base_ms: Sequence[float],
    **rest: Any,
) -> Option:
    """Return a measured option.

    Args:
        correct, base_correct: bool (N,), whether the option and the model classify each sample correctly.
        round_ms, base_ms: milliseconds of a call in each round.
        rest: further fields.
    """
    loss = paired_difference(base_correct, correct)
    # N samples without a difference do not exclude one below 3 / N (the rule of three)
    least = 0.0 if kind == MODEL and not rest.get("int8") else 3 / len(correct)
    loss = Difference(
        loss.difference, min(loss.low, loss.difference - least), max(loss.high, loss.difference + least)
    )
    ratios = [base / own for base, own in zip(base_ms, round_ms, strict=True)]
    accuracy = float(correct.double().mean())
    return Option(
        name,
        kind,
        accuracy=accuracy,
        loss=loss,
        macs=macs,
        round_ms=tuple(round_ms),
        speed_up=median(ratios),
        speed_range=(min(ratios), max(ratios)),
        **rest,
    )
