"""ztw: the reference benchmark for early-exit neural networks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ztw.backbone import Backbone
    from ztw.backbones import BACKBONES, build_backbone
    from ztw.costs import backbone_macs, backbone_paper_ops, macs, paper_ops
    from ztw.device import keep_freed_memory
    from ztw.ensembles import ENSEMBLES, Ensemble, fit_ensemble
    from ztw.errors import ZtwError
    from ztw.evaluation import (
        Curve,
        accuracy_at_budget,
        at_budget,
        decide,
        exit_accuracy,
        hindsight_improvability,
        sweep,
    )
    from ztw.folding import fold_batch_norm
    from ztw.heads import HEADS
    from ztw.inference import ExitResult
    from ztw.network import IC_MODES, EarlyExitNetwork, build_network
    from ztw.rules import RULES, Entropy, ExitRule, MaxSoftmax, MaxSoftmaxOrBest, Patience
    from ztw.thresholds import THRESHOLDS, Candidates, candidates

# Where each public name lives. They are imported on first use, because checking a config must not
# wait for torch.
_HOME = {
    "backbone": ("Backbone",),
    "backbones": ("BACKBONES", "build_backbone"),
    "costs": ("backbone_macs", "backbone_paper_ops", "macs", "paper_ops"),
    "device": ("keep_freed_memory",),
    "ensembles": ("ENSEMBLES", "Ensemble", "fit_ensemble"),
    "errors": ("ZtwError",),
    "evaluation": (
        "Curve",
        "accuracy_at_budget",
        "at_budget",
        "decide",
        "exit_accuracy",
        "hindsight_improvability",
        "sweep",
    ),
    "folding": ("fold_batch_norm",),
    "heads": ("HEADS",),
    "inference": ("ExitResult",),
    "network": ("IC_MODES", "EarlyExitNetwork", "build_network"),
    "rules": ("RULES", "Entropy", "ExitRule", "MaxSoftmax", "MaxSoftmaxOrBest", "Patience"),
    "thresholds": ("THRESHOLDS", "Candidates", "candidates"),
}

__all__ = [
    "BACKBONES",
    "ENSEMBLES",
    "HEADS",
    "IC_MODES",
    "RULES",
    "THRESHOLDS",
    "Backbone",
    "Candidates",
    "Curve",
    "EarlyExitNetwork",
    "Ensemble",
    "Entropy",
    "ExitResult",
    "ExitRule",
    "MaxSoftmax",
    "MaxSoftmaxOrBest",
    "Patience",
    "ZtwError",
    "accuracy_at_budget",
    "at_budget",
    "backbone_macs",
    "backbone_paper_ops",
    "build_backbone",
    "build_network",
    "candidates",
    "decide",
    "exit_accuracy",
    "fit_ensemble",
    "fold_batch_norm",
    "hindsight_improvability",
    "keep_freed_memory",
    "macs",
    "paper_ops",
    "sweep",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"ztw.{module}"), name)
    raise AttributeError(f"module 'ztw' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
