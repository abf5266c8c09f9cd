"""Ensembles of all exits so far: geometric (ZTW), arithmetic, uniform; one table, fitted for every exit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ztw.errors import ZtwError, unknown
from ztw.exits.logits import check_logits, class_labels, floored
from ztw.exits.newton import minimise
from ztw.exits.objectives import GeometricObjective, mixture_objective

# Samples on which a fit first comes near its minimum, so that few steps over all of them are left.
DRAFT = 4096


class Ensemble(nn.Module, ABC):
    """An ensemble per exit: exit m answers from the predictions of exits 1 ... m.

    One of your own is a class with `combine`, and `fit_exit` where it has something to fit: what is fitted is
    kept in buffers (`register_buffer` in `__init__`, which takes these three arguments). A kind that adds up
    its members is a `LinearEnsemble`, which `infer` computes faster. With `include_final` false the backbone's own
    exit answers for itself (the 2023 code); otherwise it is ensembled like the others (the 2021 code).
    """

    def __init__(self, exits: int, classes: int, include_final: bool = True) -> None:
        super().__init__()
        self.exits, self.classes, self.include_final = exits, classes, include_final

    def forward(self, logits: Tensor) -> Tensor:
        """logits (K, N, C) of single exits -> ensembled log-probabilities (K, N, C); NaN is refused."""
        check_logits(logits)
        if logits.shape[0] != self.exits or logits.shape[2] != self.classes:
            raise ZtwError(
                f"logits {tuple(logits.shape)}: ensemble of {self.exits} exits, {self.classes} classes"
            )
        answers = self._unnormalised(logits)
        if not self.ensembled(self.exits - 1):
            answers[-1] = floored(logits[-1])
        return answers.log_softmax(-1)

    def _unnormalised(self, logits: Tensor) -> Tensor:
        """Unnormalised log-probabilities (K, N, C) of the ensembles of logits (K, N, C)."""
        log_probs = floored(logits)
        with torch.autocast(logits.device.type, enabled=False):
            return torch.stack([self.combine(log_probs[: exit + 1]) for exit in range(self.exits)])

    def ensembled(self, exit: int) -> bool:
        """Whether this exit (from 0) is ensembled or answers for itself."""
        return self.include_final or exit < self.exits - 1

    @abstractmethod
    def combine(self, log_probs: Tensor) -> Tensor:
        """Log-probabilities (m, N, C) of exits 1 ... m, finite, N may be 0 -> what exit m answers, (N, C).

        The answer is of log-probabilities, normalised or not, each sample's from its own alone.
        """

    def start(self, samples: int, device: torch.device) -> IncrementalEnsemble:
        """The ensemble of so many samples before its first exit, for `infer`."""
        return KeptMembers(self)

    def macs(self, exit: int) -> float:
        """Multiply-accumulates this ensemble adds at one exit: one per member and class."""
        return float((exit + 1) * self.classes) if self.ensembled(exit) else 0.0

    def fit(self, logits: Tensor, labels: Tensor) -> None:
        """Fit every exit's parameters; logits (K, N, C), labels (N,)."""
        log_probs, labels = floored(logits.detach().cpu().float()), labels.cpu()
        with torch.autocast("cpu", enabled=False):
            for exit in range(self.exits):
                if self.ensembled(exit):
                    self.fit_exit(exit, log_probs[: exit + 1], labels)

    def fit_exit(self, exit: int, log_probs: Tensor, labels: Tensor) -> None:
        """Fit the parameters of one exit m = exit + 1, if there are any: log_probs (m, N, C), labels (N,)."""


class LinearEnsemble(Ensemble):
    """An ensemble that is linear in what a member contributes, so that `infer` adds each up once.

    total_m = c_m + sum_{j<=m} a_mj member(p_j), and exit m's unnormalised log-probabilities are finish(total_m).
    """

    def _unnormalised(self, logits: Tensor) -> Tensor:
        coefficients, constants = (tensor.to(logits) for tensor in self.linear())
        with torch.autocast(logits.device.type, enabled=False):
            total = (coefficients @ self.member(logits).flatten(1)).view(logits.shape) + constants[:, None]
        return self.finish(total)

    def combine(self, log_probs: Tensor) -> Tensor:
        """See `Ensemble`."""
        exit = len(log_probs) - 1
        coefficients, constants = (tensor[exit].to(log_probs) for tensor in self.linear())
        total = torch.tensordot(coefficients[: exit + 1], self.member(log_probs), 1) + constants
        return self.finish(total)

    def start(self, samples: int, device: torch.device) -> IncrementalEnsemble:
        """See `Ensemble`."""
        return RunningTotals(self, samples, device)

    @abstractmethod
    def member(self, logits: Tensor) -> Tensor:
        """What single exits contribute, of the shape of their logits (..., C); finite."""

    @abstractmethod
    def linear(self) -> tuple[Tensor, Tensor]:
        """The coefficients a (K, K), lower triangular, and the constants c (K, C)."""

    @abstractmethod
    def finish(self, total: Tensor) -> Tensor:
        """Totals (..., C) -> unnormalised log-probabilities (..., C)."""


class WeightedEnsemble(LinearEnsemble):
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

    def member(self, logits: Tensor) -> Tensor:
        """log p."""
        return floored(logits)

    def linear(self) -> tuple[Tensor, Tensor]:
        """The mean's weights, and the bias."""
        members = torch.arange(1, self.exits + 1, device=self.weight.device)
        return self.weight / members[:, None], self.bias

    def finish(self, total: Tensor) -> Tensor:
        """They are log-probabilities already."""
        return total

    def fit_exit(self, exit: int, log_probs: Tensor, labels: Tensor) -> None:
        """By minimising its cross-entropy."""
        members = exit + 1
        start = torch.cat([torch.ones(members), torch.zeros(self.classes)]).double()
        if exit:  # the ensemble of the exit before, the new member not yet in it
            start[:exit] = self.weight[exit - 1, :exit] * members / exit
            start[exit] = 0
            start[members:] = self.bias[exit - 1]
        lower = torch.cat([torch.zeros(members), torch.full((self.classes,), -torch.inf)]).double()
        if len(labels) > 2 * DRAFT:
            few = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:DRAFT]
            draft = GeometricObjective(log_probs[:, few], labels[few])
            start = minimise(draft, start, lower, tolerance=1e-5)
        solution = minimise(GeometricObjective(log_probs, labels), start, lower)
        self.weight[exit, :members] = solution[:members].float()
        self.bias[exit] = solution[members:].float()


class Mixture(LinearEnsemble):
    """What ensembles share that add up probabilities."""

    def member(self, logits: Tensor) -> Tensor:
        """p."""
        return logits.softmax(-1)

    def finish(self, total: Tensor) -> Tensor:
        """log q, floored."""
        return total.clamp(min=torch.finfo(total.dtype).tiny).log()


class ArithmeticEnsemble(Mixture, WeightedEnsemble):
    """q_m = (sum_{j<=m} a_mj p_j + c_m) / normaliser, a = exp(w) >= 0, c = exp(b) >= 0 (ZTW 2021, appendix).

    weight: (K, K), row m holds a_m1 ... a_mm; bias: c (K, C). The scale of (a, c) is free and set so
    that each exit's add up to 1; q_m is then a mixture, its likelihood concave in (a, c).
    """

    def linear(self) -> tuple[Tensor, Tensor]:
        """The shares of the mixture."""
        return self.weight, self.bias

    def fit_exit(self, exit: int, log_probs: Tensor, labels: Tensor) -> None:
        """By minimising its cross-entropy."""
        members = exit + 1
        likelihood = log_probs.gather(2, labels.expand(members, -1)[..., None])[..., 0].double().exp()
        components = torch.cat([likelihood.T, nn.functional.one_hot(labels, self.classes)], dim=1)
        start = torch.full((members + self.classes,), 0.1 / self.classes, dtype=torch.float64)
        start[:members] = 0.9 / members
        solution = minimise(lambda x: mixture_objective(x, components), start, torch.zeros_like(start))
        solution = solution / solution.sum()
        self.weight[exit, :members] = solution[:members].float()
        self.bias[exit] = solution[members:].float()


class UniformEnsemble(Mixture):
    """q_m = mean_{j<=m} p_j: nothing to fit."""

    def linear(self) -> tuple[Tensor, Tensor]:
        """Every member counts alike."""
        shares = torch.ones(self.exits, self.exits).tril()
        return shares / shares.sum(1, keepdim=True), torch.zeros(self.exits, self.classes)


class IncrementalEnsemble(ABC):
    """An ensemble computed exit by exit, for `infer`."""

    @abstractmethod
    def append(self, exit: int, logits: Tensor) -> Tensor:
        """logits float32 (n, C) of the next exit (from 0) -> its unnormalised log-probabilities (n, C)."""

    @abstractmethod
    def select(self, places: Tensor) -> None:
        """Keep only the samples at these places (int64)."""

    @abstractmethod
    def join(self, others: Sequence[Any]) -> None:
        """Add the samples of others of the same ensemble, which have had the same exits appended."""


class KeptMembers(IncrementalEnsemble):
    """Any ensemble: what every exit so far said is kept, m of (n, C), and combined anew at each."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble, self.members = ensemble, list[Tensor]()

    def append(self, exit: int, logits: Tensor) -> Tensor:
        """See `IncrementalEnsemble`."""
        self.members.append(floored(logits))
        if not self.ensemble.ensembled(exit):
            return self.members[-1]
        with torch.autocast(logits.device.type, enabled=False):
            return self.ensemble.combine(torch.stack(self.members))

    def select(self, places: Tensor) -> None:
        """See `IncrementalEnsemble`."""
        self.members = [member.index_select(0, places) for member in self.members]

    def join(self, others: Sequence[KeptMembers]) -> None:
        """See `IncrementalEnsemble`."""
        of_exits = zip(self.members, *(other.members for other in others), strict=True)
        self.members = [torch.cat(members) for members in of_exits]


class RunningTotals(IncrementalEnsemble):
    """A linear ensemble: totals (K, n, C), what the exits so far add up to at each."""

    def __init__(self, ensemble: LinearEnsemble, samples: int, device: torch.device) -> None:
        coefficients, constants = ensemble.linear()
        self.ensemble, self.coefficients = ensemble, coefficients.to(device)
        self._set_totals(constants.to(device)[:, None].repeat(1, samples, 1))

    def _set_totals(self, totals: Tensor) -> None:
        self.totals, self.flat = totals, totals.view(len(totals), -1)

    def append(self, exit: int, logits: Tensor) -> Tensor:
        """See `IncrementalEnsemble`."""
        if not self.ensemble.ensembled(exit):
            return floored(logits)
        member = self.ensemble.member(logits)
        # earlier exits' coefficients are 0: one operation is faster than picking the later ones
        self.flat.addr_(self.coefficients.select(1, exit), member.view(-1))
        return self.ensemble.finish(self.totals.select(0, exit))

    def select(self, places: Tensor) -> None:
        """See `IncrementalEnsemble`."""
        self._set_totals(self.totals.index_select(1, places))

    def join(self, others: Sequence[RunningTotals]) -> None:
        """See `IncrementalEnsemble`."""
        self._set_totals(torch.cat([self.totals, *(other.totals for other in others)], dim=1))


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
    labels = class_labels(labels)
    ensemble = build_ensemble(kind, logits.shape[0], logits.shape[2], include_final)
    ensemble.fit(logits, labels)
    return ensemble
