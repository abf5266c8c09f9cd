"""Ensembles of all exits so far: geometric (ZTW), arithmetic, uniform; one table, fitted for every exit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ztw.errors import ZtwError, unknown
from ztw.evaluation import check_logits

# A probability below this is 0 in float32; flooring it keeps log-probabilities finite.
LOG_FLOOR = float(torch.tensor(torch.finfo(torch.float32).tiny).log())
# Probabilities held in float64 at once while fitting: few enough to stay near the processor.
CHUNK = 250_000
# Samples on which a fit first comes near its minimum, so that few steps over all of them are left.
DRAFT = 4096


class Ensemble(nn.Module):
    """An ensemble per exit: exit m answers from the predictions of exits 1 ... m.

    With `include_final` false the backbone's own exit answers for itself (the 2023 code);
    otherwise it is ensembled like the others (the 2021 code).
    """

    def __init__(self, exits: int, classes: int, include_final: bool = True) -> None:
        super().__init__()
        self.exits, self.classes, self.include_final = exits, classes, include_final

    def forward(self, logits: Tensor) -> Tensor:
        """logits (K, N, C) of single exits -> ensembled log-probabilities (K, N, C)."""
        if logits.shape[0] != self.exits or logits.shape[2] != self.classes:
            raise ZtwError(
                f"logits {tuple(logits.shape)}: ensemble of {self.exits} exits, {self.classes} classes"
            )
        log_probs = logits.log_softmax(-1)
        return torch.stack([self.combine(exit, log_probs[: exit + 1]) for exit in range(self.exits)])

    def ensembled(self, exit: int) -> bool:
        """Whether this exit (from 0) is ensembled or answers for itself."""
        return self.include_final or exit < self.exits - 1

    def combine(self, exit: int, log_probs: Tensor) -> Tensor:
        """Answer of one exit (from 0): log_probs (exit + 1, N, C) -> log-probabilities (N, C)."""
        return self.scores(exit, log_probs.clamp(min=LOG_FLOOR)).log_softmax(-1)

    def scores(self, exit: int, log_probs: Tensor) -> Tensor:
        """The same, not normalised, from log_probs that are at least LOG_FLOOR."""
        return self._combine(exit, log_probs) if self.ensembled(exit) else log_probs[-1]

    def macs(self, exit: int) -> float:
        """Multiply-accumulates this ensemble adds at one exit: one per member and class."""
        return float((exit + 1) * self.classes) if self.ensembled(exit) else 0.0

    def fit(self, logits: Tensor, labels: Tensor) -> None:
        """Fit every exit's parameters by minimising its cross-entropy; logits (K, N, C), labels (N,)."""
        log_probs, labels = logits.detach().cpu().float().log_softmax(-1).clamp(min=LOG_FLOOR), labels.cpu()
        for exit in range(self.exits):
            if self.ensembled(exit):
                self._fit_exit(exit, log_probs[: exit + 1], labels)

    @abstractmethod
    def _combine(self, exit: int, log_probs: Tensor) -> Tensor:
        """Unnormalised log-probabilities (N, C) from finite log_probs (exit + 1, N, C)."""

    @abstractmethod
    def _fit_exit(self, exit: int, log_probs: Tensor, labels: Tensor) -> None:
        """Fit one exit's parameters."""


class WeightedEnsemble(Ensemble):
    """An ensemble with a weight for each member, (K, K) lower triangular, and a bias for each class, (K, C)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, exits: int, classes: int, include_final: bool = True) -> None:
        super().__init__(exits, classes, include_final)
        self.register_buffer("weight", torch.ones(exits, exits).tril())
        self.register_buffer("bias", torch.zeros(exits, classes))


class GeometricEnsemble(WeightedEnsemble):
    """q_m = softmax(mean_{j<=m} s_mj log p_j + b_m), s_mj = exp(w_mj) >= 0 (ZTW 2021).

    weight: (K, K), row m holds s_m1 ... s_mm; bias: (K, C). The cross-entropy is convex in (s, b),
    so that it is fitted in s with a bound instead of in w.
    """

    def _combine(self, exit: int, log_probs: Tensor) -> Tensor:
        weight = self.weight[exit, : exit + 1].to(log_probs)
        bias = self.bias[exit].to(log_probs)
        total = weight @ log_probs.flatten(1)
        return torch.add(bias, total.view(log_probs.shape[1:]), alpha=1 / (exit + 1))

    def _fit_exit(self, exit: int, log_probs: Tensor, labels: Tensor) -> None:
        members = exit + 1
        start = torch.cat([torch.ones(members), torch.zeros(self.classes)]).double()
        if exit:  # the ensemble of the exit before, the new member not yet in it
            start[:exit] = self.weight[exit - 1, :exit] * members / exit
            start[exit] = 0
            start[members:] = self.bias[exit - 1]
        lower = torch.cat([torch.zeros(members), torch.full((self.classes,), -torch.inf)]).double()
        if len(labels) > 2 * DRAFT:
            few = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:DRAFT]
            some, theirs = log_probs[:, few], labels[few]
            start = minimise(lambda x: _geometric_terms(x, some, theirs), start, lower, tolerance=1e-5)
        solution = minimise(lambda x: _geometric_terms(x, log_probs, labels), start, lower)
        self.weight[exit, :members] = solution[:members].float()
        self.bias[exit] = solution[members:].float()


def _geometric_terms(x: Tensor, log_probs: Tensor, labels: Tensor) -> tuple[float, Tensor, Tensor]:
    """Mean cross-entropy, gradient and Hessian of the geometric ensemble in x = (s, b), in float64."""
    members, samples, _ = log_probs.shape
    value = torch.zeros((), dtype=torch.float64)
    gradient, hessian = torch.zeros_like(x), torch.zeros(len(x), len(x), dtype=torch.float64)
    for chunk in torch.arange(samples).split(max(64, CHUNK // (members * log_probs.shape[2]))):
        part = slice(int(chunk[0]), int(chunk[-1]) + 1)
        features = log_probs[:, part].double() / members  # (m, n, C)
        log_q = (torch.einsum("j,jnc->nc", x[:members], features) + x[members:]).log_softmax(-1)
        value -= log_q.gather(1, labels[part, None]).sum()
        q = log_q.exp()
        error = q.clone()
        error[torch.arange(len(q)), labels[part]] -= 1
        weighted = features * q
        mean = weighted.sum(-1)  # (m, n): the features' expectation under q
        gradient[:members] += torch.einsum("jnc,nc->j", features, error)
        gradient[members:] += error.sum(0)
        hessian[:members, :members] += weighted.flatten(1) @ features.flatten(1).T - mean @ mean.T
        hessian[:members, members:] += weighted.sum(1) - mean @ q
        hessian[members:, members:] += torch.diag(q.sum(0)) - q.T @ q
    hessian[members:, :members] = hessian[:members, members:].T
    return float(value / samples), gradient / samples, hessian / samples


class ArithmeticEnsemble(WeightedEnsemble):
    """q_m = (sum_{j<=m} a_mj p_j + c_m) / normaliser, a = exp(w) >= 0, c = exp(b) >= 0 (ZTW 2021, appendix).

    weight: (K, K), row m holds a_m1 ... a_mm; bias: c (K, C). The scale of (a, c) is free and set so
    that each exit's add up to 1; q_m is then a mixture, its likelihood concave in (a, c).
    """

    def _combine(self, exit: int, log_probs: Tensor) -> Tensor:
        weighted = log_probs + self.weight[exit, : exit + 1].to(log_probs).log().view(-1, 1, 1)
        constant = self.bias[exit].to(log_probs).log().expand_as(log_probs[:1])
        return torch.cat([weighted, constant]).logsumexp(0)

    def _fit_exit(self, exit: int, log_probs: Tensor, labels: Tensor) -> None:
        members = exit + 1
        likelihood = log_probs.gather(2, labels.expand(members, -1)[..., None])[..., 0].double().exp()
        components = torch.cat([likelihood.T, nn.functional.one_hot(labels, self.classes)], dim=1)
        start = torch.full((members + self.classes,), 0.1 / self.classes, dtype=torch.float64)
        start[:members] = 0.9 / members
        solution = minimise(lambda x: _mixture_terms(x, components), start, torch.zeros_like(start))
        solution = solution / solution.sum()
        self.weight[exit, :members] = solution[:members].float()
        self.bias[exit] = solution[members:].float()


def _mixture_terms(x: Tensor, components: Tensor) -> tuple[float, Tensor, Tensor]:
    """Negative log-likelihood of a mixture, components (N, M); + sum(x) makes the best x add up to 1."""
    density = components @ x
    if not (density > 0).all():
        return float("inf"), torch.zeros_like(x), torch.zeros(len(x), len(x), dtype=x.dtype)
    ratio = components / density[:, None]
    value = float(x.sum() - 1 - density.log().mean())
    return value, 1 - ratio.mean(0), ratio.T @ ratio / len(ratio)


class UniformEnsemble(Ensemble):
    """q_m = mean_{j<=m} p_j: nothing to fit."""

    def _combine(self, exit: int, log_probs: Tensor) -> Tensor:
        return log_probs.logsumexp(0)

    def _fit_exit(self, exit: int, log_probs: Tensor, labels: Tensor) -> None:
        pass


def minimise(
    terms: Callable[[Tensor], tuple[float, Tensor, Tensor]],
    start: Tensor,
    lower: Tensor,
    tolerance: float = 1e-8,
    iterations: int = 100,
) -> Tensor:
    """Minimise a convex function over x >= lower by projected Newton steps (Bertsekas 1982).

    terms: x -> (value, gradient, Hessian). Stops when the projected gradient or the decrease of the
    value falls below `tolerance` (separable data have no finite minimiser, only a vanishing decrease).
    """
    x = start.clamp(min=lower)
    value, gradient, hessian = terms(x)
    for _ in range(iterations):
        free = (x > lower + 1e-12) | (gradient < 0)
        if not free.any() or float(gradient[free].abs().max()) < tolerance:
            break
        curvature = hessian[free][:, free]
        # a common shift of all biases changes nothing: the ridge makes the Hessian invertible
        ridge = 1e-9 * (1 + float(curvature.diagonal().max()))
        step = torch.zeros_like(x)
        step[free] = -torch.linalg.solve(
            curvature + ridge * torch.eye(len(curvature), dtype=x.dtype), gradient[free]
        )
        for halvings in range(40):  # until the projected point decreases the value enough (Armijo)
            candidate = torch.maximum(x + step * 0.5**halvings, lower)
            new_value, new_gradient, new_hessian = terms(candidate)
            if new_value <= value + 1e-4 * float(gradient @ (candidate - x)):
                break
        else:
            break
        decrease = value - new_value
        x, value, gradient, hessian = candidate, new_value, new_gradient, new_hessian
        if decrease < tolerance * max(abs(value), 1e-4):
            break
    return x


ENSEMBLES: dict[str, type[Ensemble]] = {
    "geometric": GeometricEnsemble,
    "arithmetic": ArithmeticEnsemble,
    "uniform": UniformEnsemble,
}


def build_ensemble(kind: str, exits: int, classes: int, include_final: bool = True) -> Ensemble:
    """An unfitted ensemble; raises ZtwError for an unknown kind."""
    if kind not in ENSEMBLES:
        raise unknown("ensemble", kind, ENSEMBLES)
    return ENSEMBLES[kind](exits, classes, include_final)


def fit_ensemble(
    logits: Tensor, labels: Tensor, kind: str = "geometric", include_final: bool = True
) -> Ensemble:
    """Fit an ensemble for every exit at once.

    logits: (K, N, C) of the single exits; labels: int64 (N,); kind: a name of ENSEMBLES.
    Raises ZtwError for an unknown kind and for malformed input.
    """
    check_logits(logits, labels)
    ensemble = build_ensemble(kind, logits.shape[0], logits.shape[2], include_final)
    ensemble.fit(logits, labels)
    return ensemble
