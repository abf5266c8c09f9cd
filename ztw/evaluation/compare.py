"""Compare an exported network with the original, for example to measure the cost of int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ztw.errors import ZtwError
from ztw.evaluation.metrics import exit_accuracy
from ztw.evaluation.operating_point import predict, predict_onnx
from ztw.exits.rules import ExitRule, FixedExit, as_rule
from ztw.exits.sweep import simulate_exits
from ztw.models.network import EarlyExitNetwork
from ztw.onnx.runner import OnnxRunner


@dataclass(frozen=True)
class Agreement:
    """Agreement of an exported network with the original, from `compare_exported`.

    Attributes:
        accuracy: (K,), accuracy of each exit of the original, in [0, 1].
        exported_accuracy: (K,), the same for the exported network.
        exits_changed: share of samples that leave at another exit.
        answers_changed: share of samples with another predicted class.
    """

    accuracy: tuple[float, ...]
    exported_accuracy: tuple[float, ...]
    exits_changed: float
    answers_changed: float


def compare_exported(
    network: EarlyExitNetwork, runner: OnnxRunner, held_out: Any, rule: ExitRule | str | None = None
) -> Agreement:
    """Compare a network with its exported form, for example in int8.

    Args:
        network: the original.
        runner: the exported network.
        held_out: images and labels, see `train_exits`.
        rule: a rule with its parameter; None = the rule in the exported file.

    Returns:
        Accuracies, and shares of samples that differ.

    Raises:
        ZtwError: if the file has another number of exits or classes or no rule, and for invalid images or labels.

    Example:
        >>> import torch, ztw, tempfile
        >>> network = ztw.build_network(ztw.build_backbone("resnet8"), head="pool", progress=False).eval()
        >>> images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = ztw.export_onnx(network, "max_softmax 0.9", f"{folder}/int8.onnx", quantise=images)
        ...     agreement = ztw.compare_exported(network, ztw.OnnxRunner(path), (images, labels))
        >>> len(agreement.accuracy)
        4
    """
    rule = runner.rule if rule is None else rule
    only = None if rule is None else as_rule(rule).only_exit
    exits = network.exits if only is None else 1
    other = only is not None and as_rule(rule) != runner.rule  # type: ignore[arg-type]
    if (
        rule is None
        or other
        or (exits, network.backbone.num_classes) != (runner.exits, runner.form.num_classes)
    ):
        raise ZtwError(f"{runner.path}: was not exported from this network")
    logits, labels = predict(network, held_out, progress=False)
    before = logits if network.ensemble is None else network.ensemble(logits)
    if only is not None:  # the file has only this exit
        before, rule = before[only - 1 :][:1], FixedExit(1)
    after, _ = predict_onnx(runner, held_out)
    (left, source), (left_after, source_after) = simulate_exits(before, rule), simulate_exits(after, rule)
    samples = range(len(labels))
    predicted = before[source, samples].argmax(-1)
    predicted_after = after[source_after, samples].argmax(-1)
    return Agreement(
        tuple(exit_accuracy(before, labels).tolist()),
        tuple(exit_accuracy(after, labels).tolist()),
        float((left != left_after).double().mean()),
        float((predicted != predicted_after).double().mean()),
    )
