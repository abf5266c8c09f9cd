# ruff: noqa: F401
"""The public names of ztw. `ztw.<name>` imports this module on first use."""

from ztw.catalogue.architectures import list_backbones
from ztw.catalogue.parts import list_ensembles, list_heads, list_rules, list_thresholds
from ztw.errors import ZtwError
from ztw.evaluation.bootstrap import Difference, paired_difference
from ztw.evaluation.compare import Agreement, compare_exported
from ztw.evaluation.metrics import (
    accuracy_at_budget,
    exit_accuracy,
    hindsight_improvability,
    parameter_at_budget,
)
from ztw.evaluation.operating_point import OperatingPoint, choose_threshold, predict
from ztw.evaluation.published_logits import Predictions, load_predictions
from ztw.evaluation.saving import load, save
from ztw.exits.ensembles import Ensemble, LinearEnsemble, fit_ensemble
from ztw.exits.inference import ExitResult
from ztw.exits.rules import Entropy, ExitRule, MaxSoftmax, MaxSoftmaxOrBest, Patience, ThresholdRule
from ztw.exits.sweep import Curve, simulate_exits, sweep
from ztw.exits.threshold_base import Candidates, ThresholdChoice
from ztw.models.architectures import build_backbone
from ztw.models.backbone import Backbone
from ztw.models.building import build_network
from ztw.models.costs import macs
from ztw.models.cut import as_backbone
from ztw.models.folding import fold_batch_norm
from ztw.models.network import EarlyExitNetwork, list_connections
from ztw.onnx.export import export_onnx
from ztw.onnx.runner import OnnxRunner
from ztw.registration import register
from ztw.training.regimes import train_exits
