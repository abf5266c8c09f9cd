"""Base classes of ensembles. They compute all exits at once, or in `infer` exit by exit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ztw.errors import ZtwError
from ztw.exits.logits import check_logits, floored


class Ensemble(nn.Module, ABC):
    """Base class of ensembles: the prediction of exit m combines the predictions of exits 1 ... m.

    A subclass implements `combine`. If it has parameters, it also implements `fit_exit` and registers the parameters
    as buffers in `__init__`, which takes the arguments below. `infer` is faster with subclasses of `LinearEnsemble`.

    Args:
        exits: number of exits K.
        num_classes: number of classes C.
        include_final: True = the last exit is ensembled like the others (ZTW's code of 2021); False = it predicts alone
            (ZTW's code of 2023).

    Example:
        >>> import torch, ztw
        >>> class Last(ztw.Ensemble):
        ...     def combine(self, log_probs):
        ...         return log_probs[-1]
        >>> Last(exits=3, num_classes=10)(torch.randn(3, 8, 10)).shape
        torch.Size([3, 8, 10])
    """

    def __init__(self, exits: int, num_classes: int, include_final: bool = True) -> None:
        super().__init__()
        self.exits, self.num_classes, self.include_final = exits, num_classes, include_final

    def forward(self, logits: Tensor) -> Tensor:
        """Combine the logits of single exits.

        Args:
            logits: (K, N, C).

        Returns:
            Normalised log-probabilities (K, N, C).

        Raises:
            ZtwError: for another number of exits or classes, and for logits that are not finite.
        """
        logits = check_logits(logits).logits
        if logits.shape[0] != self.exits or logits.shape[2] != self.num_classes:
            raise ZtwError(
                f"logits: shape {tuple(logits.shape)}, the ensemble has {self.exits} exits and {self.num_classes}"
                " classes"
            )
        combined = self._unnormalised(logits)
        if not self.ensembled(self.exits - 1):
            combined[-1] = floored(logits[-1])
        return combined.log_softmax(-1)

    def _unnormalised(self, logits: Tensor) -> Tensor:
        """Return unnormalised log-probabilities (K, N, C) for logits (K, N, C)."""
        log_probs = floored(logits)
        with torch.autocast(logits.device.type, enabled=False):
            return torch.stack([self.combine(log_probs[: exit + 1]) for exit in range(self.exits)])

    def ensembled(self, exit: int) -> bool:
        """Return True if an exit (from 0) is ensembled, False if it predicts alone."""
        return self.include_final or exit < self.exits - 1

    @abstractmethod
    def combine(self, log_probs: Tensor) -> Tensor:
        """Combine the predictions of exits 1 ... m.

        Args:
            log_probs: (m, N, C), finite log-probabilities of the single exits; N may be 0.

        Returns:
            Log-probabilities (N, C) of exit m, normalised or not. Those of a sample must not depend on other samples.
        """

    def start(self, samples: int, device: torch.device) -> IncrementalEnsemble:
        """Return an object that computes the ensemble exit by exit, for a number of samples."""
        return StoredMembers(self)

    def macs(self, exit: int) -> float:
        """Return the multiply-accumulate operations (MACs) that the ensemble adds at an exit (from 0)."""
        return float((exit + 1) * self.num_classes) if self.ensembled(exit) else 0.0

    def fit(self, logits: Tensor, labels: Tensor) -> None:
        """Fit the parameters of every exit to logits (K, N, C) and labels (N,)."""
        log_probs, labels = floored(logits.detach().cpu().float()), labels.cpu()
        with torch.autocast("cpu", enabled=False):
            for exit in range(self.exits):
                if self.ensembled(exit):
                    self.fit_exit(exit, log_probs[: exit + 1], labels)

    def fit_exit(self, exit: int, log_probs: Tensor, labels: Tensor) -> None:
        """Fit the parameters of one exit (from 0), if it has any, to log_probs (exit + 1, N, C) and labels (N,)."""


class LinearEnsemble(Ensemble):
    """Base class of ensembles that are weighted sums over exits. `infer` computes each exit's term only once.

    total_m = c_m + sum_{j<=m} a_mj member(z_j) for logits z_j of exit j. The unnormalised log-probabilities of exit m
    are finish(total_m).

    Example:
        >>> import torch, ztw
        >>> class Product(ztw.LinearEnsemble):
        ...     def member(self, logits): return logits.log_softmax(-1)
        ...     def linear(self): return torch.ones(3, 3).tril(), torch.zeros(3, 10)
        ...     def finish(self, total): return total
        >>> Product(exits=3, num_classes=10)(torch.randn(3, 8, 10)).shape
        torch.Size([3, 8, 10])
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
        """Convert logits (..., C) of single exits to their finite terms (..., C) in the sum."""

    @abstractmethod
    def linear(self) -> tuple[Tensor, Tensor]:
        """Return the coefficients a (K, K), lower triangular, and the constants c (K, C)."""

    @abstractmethod
    def finish(self, total: Tensor) -> Tensor:
        """Convert totals (..., C) to unnormalised log-probabilities (..., C)."""


class IncrementalEnsemble(ABC):
    """An ensemble during `infer`, which computes it exit by exit."""

    @abstractmethod
    def append(self, exit: int, logits: Tensor) -> Tensor:
        """Add logits float32 (n, C) of the next exit (from 0); return its unnormalised log-probabilities (n, C)."""

    @abstractmethod
    def select(self, places: Tensor) -> None:
        """Keep only the samples at these indices (int64)."""

    @abstractmethod
    def join(self, others: Sequence[Any]) -> None:
        """Append the samples of others, which must be of the same ensemble and at the same exit."""


class StoredMembers(IncrementalEnsemble):
    """Any ensemble: stores the log-probabilities (n, C) of every exit so far, and combines all of them at each exit."""

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

    def join(self, others: Sequence[StoredMembers]) -> None:
        """See `IncrementalEnsemble`."""
        of_exits = zip(self.members, *(other.members for other in others), strict=True)
        self.members = [torch.cat(members) for members in of_exits]


class RunningTotals(IncrementalEnsemble):
    """A linear ensemble: updates the totals (K, n, C) of all exits at each exit."""

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
        # updating all totals is faster than selecting those of later exits; the others get coefficient 0
        self.flat.addr_(self.coefficients.select(1, exit), member.view(-1))
        return self.ensemble.finish(self.totals.select(0, exit))

    def select(self, places: Tensor) -> None:
        """See `IncrementalEnsemble`."""
        self._set_totals(self.totals.index_select(1, places))

    def join(self, others: Sequence[RunningTotals]) -> None:
        """See `IncrementalEnsemble`."""
        self._set_totals(torch.cat([self.totals, *(other.totals for other in others)], dim=1))
