"""ztw: the reference benchmark for early-exit neural networks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ztw.version import __version__

if TYPE_CHECKING:
    from ztw.device import keep_freed_memory
    from ztw.errors import ZtwError
    from ztw.evaluation.bootstrap import Difference, paired_difference
    from ztw.evaluation.compare import Agreement, compare_exported
    from ztw.evaluation.metrics import accuracy_at_budget, at_budget, exit_accuracy, hindsight_improvability
    from ztw.evaluation.operating_point import OperatingPoint, choose_threshold, predict
    from ztw.evaluation.published_logits import Predictions, load_predictions
    from ztw.evaluation.saving import load, save
    from ztw.exits.ensembles import ENSEMBLES, Ensemble, LinearEnsemble, fit_ensemble
    from ztw.exits.inference import ExitResult
    from ztw.exits.rules import (
        RULES,
        Entropy,
        ExitRule,
        MaxSoftmax,
        MaxSoftmaxOrBest,
        Patience,
        ThresholdRule,
    )
    from ztw.exits.sweep import Curve, decide, sweep
    from ztw.exits.threshold_base import ThresholdChoice
    from ztw.exits.thresholds import THRESHOLDS, Candidates, candidates
    from ztw.models.architectures import BACKBONES, build_backbone
    from ztw.models.backbone import Backbone
    from ztw.models.building import build_network
    from ztw.models.costs import macs
    from ztw.models.cut import as_backbone
    from ztw.models.folding import fold_batch_norm
    from ztw.models.heads import HEADS
    from ztw.models.network import CONNECTIONS, EarlyExitNetwork
    from ztw.onnx.export import export_onnx
    from ztw.onnx.runner import OnnxRunner
    from ztw.registration import register
    from ztw.training.regimes import train_exits

# Where each public name lives. They are imported on first use, because checking a config must not
# wait for torch.
_HOME = {
    "device": ("keep_freed_memory",),
    "errors": ("ZtwError",),
    "models.costs": ("macs",),
    "evaluation.compare": ("Agreement", "compare_exported"),
    "evaluation.bootstrap": ("Difference", "paired_difference"),
    "evaluation.operating_point": ("OperatingPoint", "choose_threshold", "predict"),
    "evaluation.metrics": (
        "accuracy_at_budget",
        "at_budget",
        "exit_accuracy",
        "hindsight_improvability",
    ),
    "evaluation.published_logits": ("Predictions", "load_predictions"),
    "evaluation.saving": ("load", "save"),
    "exits.ensembles": ("ENSEMBLES", "Ensemble", "LinearEnsemble", "fit_ensemble"),
    "exits.inference": ("ExitResult",),
    "exits.rules": (
        "RULES",
        "Entropy",
        "ExitRule",
        "MaxSoftmax",
        "MaxSoftmaxOrBest",
        "Patience",
        "ThresholdRule",
    ),
    "exits.threshold_base": ("ThresholdChoice",),
    "exits.sweep": ("Curve", "decide", "sweep"),
    "exits.thresholds": ("THRESHOLDS", "Candidates", "candidates"),
    "models.architectures": ("BACKBONES", "build_backbone"),
    "models.backbone": ("Backbone",),
    "models.cut": ("as_backbone",),
    "models.folding": ("fold_batch_norm",),
    "models.heads": ("HEADS",),
    "models.building": ("build_network",),
    "models.network": ("CONNECTIONS", "EarlyExitNetwork"),
    "onnx.export": ("export_onnx",),
    "onnx.runner": ("OnnxRunner",),
    "training.regimes": ("train_exits",),
    "registration": ("register",),
}

__all__ = [
    "BACKBONES",
    "CONNECTIONS",
    "ENSEMBLES",
    "HEADS",
    "RULES",
    "THRESHOLDS",
    "Agreement",
    "Backbone",
    "Candidates",
    "Curve",
    "Difference",
    "EarlyExitNetwork",
    "Ensemble",
    "Entropy",
    "ExitResult",
    "ExitRule",
    "LinearEnsemble",
    "MaxSoftmax",
    "MaxSoftmaxOrBest",
    "OnnxRunner",
    "OperatingPoint",
    "Patience",
    "Predictions",
    "ThresholdChoice",
    "ThresholdRule",
    "ZtwError",
    "__version__",
    "accuracy_at_budget",
    "as_backbone",
    "at_budget",
    "build_backbone",
    "build_network",
    "candidates",
    "choose_threshold",
    "compare_exported",
    "decide",
    "exit_accuracy",
    "export_onnx",
    "fit_ensemble",
    "fold_batch_norm",
    "hindsight_improvability",
    "keep_freed_memory",
    "load",
    "load_predictions",
    "macs",
    "paired_difference",
    "predict",
    "register",
    "save",
    "sweep",
    "train_exits",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"ztw.{module}"), name)
    raise AttributeError(f"module 'ztw' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
