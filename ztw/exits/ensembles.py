"""The ensembles: geometric (ZTW), arithmetic and uniform, in one table, ENSEMBLES."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ztw.errors import unknown
from ztw.exits.ensemble_base import Ensemble, LinearEnsemble
from ztw.exits.logits import check_logits, floored
from ztw.exits.objectives import GeometricObjective, minimise, mixture_objective

# Samples of a first, approximate fit. The fit to all samples then needs few steps.
DRAFT = 4096


class WeightedEnsemble(LinearEnsemble):
    """Base class with weights (K, K), lower triangular, and a bias per class (K, C) for each exit."""

    weight: Tensor
    bias: Tensor

    def __init__(self, exits: int, num_classes: int, include_final: bool = True) -> None:
        super().__init__(exits, num_classes, include_final)
        self.register_buffer("weight", torch.ones(exits, exits).tril())
        self.register_buffer("bias", torch.zeros(exits, num_classes))


class GeometricEnsemble(WeightedEnsemble):
    """Weighted geometric mean of probabilities (ZTW 2021).

    q_m = softmax(mean_{j<=m} s_mj log p_j + b_m), s_mj = exp(w_mj) >= 0. Row m of `weight` (K, K) holds s_m1 ... s_mm;
    `bias` is b (K, C). The cross-entropy is convex in (s, b), so the fit optimises s >= 0 instead of w.
    """

    def member(self, logits: Tensor) -> Tensor:
        """Return log p."""
        return floored(logits)

    def linear(self) -> tuple[Tensor, Tensor]:
        """Return the weights divided by the number of members, and the bias."""
        members = torch.arange(1, self.exits + 1, device=self.weight.device)
        return self.weight / members[:, None], self.bias

    def finish(self, total: Tensor) -> Tensor:
        """Return the totals, which are log-probabilities already."""
        return total

    def fit_exit(self, exit: int, log_probs: Tensor, labels: Tensor) -> None:
        """Minimise the cross-entropy of one exit."""
        members = exit + 1
        start = torch.cat([torch.ones(members), torch.zeros(self.num_classes)]).double()
        if exit:  # start from the previous exit's ensemble, with weight 0 for the new member
            start[:exit] = self.weight[exit - 1, :exit] * members / exit
            start[exit] = 0
            start[members:] = self.bias[exit - 1]
        lower = torch.cat([torch.zeros(members), torch.full((self.num_classes,), -torch.inf)]).double()
        if len(labels) > 2 * DRAFT:
            few = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:DRAFT]
            draft = GeometricObjective(log_probs[:, few], labels[few])
            start = minimise(draft, start, lower, tolerance=1e-5)
        solution = minimise(GeometricObjective(log_probs, labels), start, lower)
        self.weight[exit, :members] = solution[:members].float()
        self.bias[exit] = solution[members:].float()


class Mixture(LinearEnsemble):
    """Base class of ensembles that average probabilities."""

    def member(self, logits: Tensor) -> Tensor:
        """Return p."""
        return logits.softmax(-1)

    def finish(self, total: Tensor) -> Tensor:
        """Return log q, with a lower limit that keeps it finite."""
        return total.clamp(min=torch.finfo(total.dtype).tiny).log()


class ArithmeticEnsemble(Mixture, WeightedEnsemble):
    """Weighted arithmetic mean of probabilities (ZTW 2021, appendix).

    q_m = (sum_{j<=m} a_mj p_j + c_m) / normaliser, a = exp(w) >= 0, c = exp(b) >= 0. Row m of `weight` (K, K) holds
    a_m1 ... a_mm; `bias` is c (K, C). The scale of (a, c) is arbitrary. Here they sum to 1 at each exit. q_m is then
    a mixture, and its log-likelihood is concave in (a, c).
    """

    def linear(self) -> tuple[Tensor, Tensor]:
        """Return the shares of the mixture."""
        return self.weight, self.bias

    def fit_exit(self, exit: int, log_probs: Tensor, labels: Tensor) -> None:
        """Minimise the cross-entropy of one exit."""
        members = exit + 1
        likelihood = log_probs.gather(2, labels.expand(members, -1)[..., None])[..., 0].double().exp()
        components = torch.cat([likelihood.T, nn.functional.one_hot(labels, self.num_classes)], dim=1)
        start = torch.full((members + self.num_classes,), 0.1 / self.num_classes, dtype=torch.float64)
        start[:members] = 0.9 / members
        solution = minimise(lambda x: mixture_objective(x, components), start, torch.zeros_like(start))
        solution = solution / solution.sum()
        self.weight[exit, :members] = solution[:members].float()
        self.bias[exit] = solution[members:].float()


class UniformEnsemble(Mixture):
    """Mean of the probabilities, q_m = mean_{j<=m} p_j. It has no parameters."""

    def linear(self) -> tuple[Tensor, Tensor]:
        """Return equal weights for all members, and constants of 0."""
        shares = torch.ones(self.exits, self.exits).tril()
        return shares / shares.sum(1, keepdim=True), torch.zeros(self.exits, self.num_classes)


ENSEMBLES: dict[str, type[Ensemble]] = {
    "geometric": GeometricEnsemble,
    "arithmetic": ArithmeticEnsemble,
    "uniform": UniformEnsemble,
}


def build_ensemble(kind: str, exits: int, num_classes: int, include_final: bool = True) -> Ensemble:
    """Create an unfitted ensemble of a kind in ENSEMBLES, see `Ensemble`; raise ZtwError for an unknown kind."""
    if kind not in ENSEMBLES:
        raise unknown("ensemble", kind, ENSEMBLES)
    return ENSEMBLES[kind](exits, num_classes, include_final)


def fit_ensemble(
    logits: Tensor, labels: Tensor, kind: str = "geometric", include_final: bool = True
) -> Ensemble:
    """Fit an ensemble of the exits to labelled logits.

    Args:
        logits: (K, N, C) of single exits.
        labels: int (N,).
        kind: "geometric", "arithmetic", "uniform" or a registered name.
        include_final: see `Ensemble`.

    Returns:
        The fitted ensemble. Assign it to `network.ensemble` to use it in `infer`.

    Raises:
        ZtwError: for an unknown kind, and for invalid logits or labels.

    Example:
        >>> import torch, ztw
        >>> logits, labels = torch.randn(3, 100, 10), torch.arange(100) % 10
        >>> ensemble = ztw.fit_ensemble(logits, labels)
        >>> ensemble(logits).shape
        torch.Size([3, 100, 10])
    """
    logits, labels, _ = check_logits(logits, labels)
    ensemble = build_ensemble(kind, logits.shape[0], logits.shape[2], include_final)
    ensemble.fit(logits, labels)
    return ensemble
