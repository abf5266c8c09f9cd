"""What every ensemble is: fitted and applied for all exits at once, or carried along exit by exit by `infer`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ztw.errors import ZtwError
from ztw.exits.logits import check_logits, floored


class Ensemble(nn.Module, ABC):
    """An ensemble per exit: exit m answers from the predictions of exits 1 ... m.

    One of your own is a class with `combine`, and `fit_exit` where it has something to fit: what is fitted is
    kept in buffers (`register_buffer` in `__init__`, which takes these three arguments). A kind that adds up
    its members is a `LinearEnsemble`, which `infer` computes faster. With `include_final` false the backbone's own
    exit answers for itself (the 2023 code); otherwise it is ensembled like the others (the 2021 code).
    """

    def __init__(self, exits: int, num_classes: int, include_final: bool = True) -> None:
        super().__init__()
        self.exits, self.num_classes, self.include_final = exits, num_classes, include_final

    def forward(self, logits: Tensor) -> Tensor:
        """logits (K, N, C) of single exits -> ensembled log-probabilities (K, N, C); NaN is refused."""
        logits = check_logits(logits).logits
        if logits.shape[0] != self.exits or logits.shape[2] != self.num_classes:
            raise ZtwError(
                f"logits {tuple(logits.shape)}: ensemble of {self.exits} exits, {self.num_classes} classes"
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
        return float((exit + 1) * self.num_classes) if self.ensembled(exit) else 0.0

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
