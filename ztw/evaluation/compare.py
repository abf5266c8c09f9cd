"""How far an exported network answers as the network it was made from: what int8 costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ztw.errors import ZtwError
from ztw.evaluation.metrics import exit_accuracy
from ztw.evaluation.operating_point import predict, predict_onnx
from ztw.exits.rules import ExitRule
from ztw.exits.sweep import simulate_exits
from ztw.models.network import EarlyExitNetwork
from ztw.onnx.runner import OnnxRunner


@dataclass(frozen=True)
class Agreement:
    """On held-out samples, by exit (K of them): accuracy in [0, 1] of the network, and of its exported form.

    exits_changed: the share of samples that leave elsewhere by the rule; answers_changed: that get another class.
    """

    accuracy: tuple[float, ...]
    exported_accuracy: tuple[float, ...]
    exits_changed: float
    answers_changed: float


def compare_exported(
    network: EarlyExitNetwork, runner: OnnxRunner, held_out: Any, rule: ExitRule | str | None = None
) -> Agreement:
    """Compare a network with its exported form, e.g. in int8; held_out: images and labels, see `ztw.train_exits`.

    rule: None = the file's. Raises ZtwError for a file of another network, by its exits and classes.
    """
    rule = runner.rule if rule is None else rule
    if rule is None or (network.exits, network.backbone.num_classes) != (
        runner.exits,
        runner.form.num_classes,
    ):
        raise ZtwError(f"{runner.path}: was not exported from this network")
    logits, labels = predict(network, held_out, progress=False)
    before = logits if network.ensemble is None else network.ensemble(logits)
    after, _ = predict_onnx(runner, held_out)
    (left, answering), (left_after, answering_after) = (
        simulate_exits(before, rule),
        simulate_exits(after, rule),
    )
    samples = range(len(labels))
    said, said_after = before[answering, samples].argmax(-1), after[answering_after, samples].argmax(-1)
    return Agreement(
        tuple(exit_accuracy(before, labels).tolist()),
        tuple(exit_accuracy(after, labels).tolist()),
        float((left != left_after).double().mean()),
        float((said != said_after).double().mean()),
    )
