"""Compare accuracies by a paired bootstrap: is a difference larger than the noise of the test split?

Each draw with replacement is the same for both methods and all seeds, because they predict the same images. The
percentile interval (Efron & Tibshirani 1993, chapter 13) covers the choice of the test samples only. It does not cover
the spread between trainings or the choice of thresholds. Of many intervals, some exclude 0 by chance.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.tensors import as_tensor

Row = dict[str, Any]
# budget -> method -> seed -> bool (N,)
Correct = Mapping[Any, Mapping[str, Mapping[Any, Tensor]]]

CHUNK = 2_000_000  # counts in memory at once
LARGEST = 2**24  # float32 represents integers exactly below this


def pairs_at_budgets(
    correct: Correct, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> list[Row]:
    """Compare every pair of methods at every budget, with the same draws for all pairs.

    A pair is compared on the seeds of both methods, and left out if they have no seed in common.

    Args:
        correct: budget -> method -> seed -> bool (N,), whether each test sample is classified correctly. The samples
            and their order must be the same everywhere. Leave out seeds for which a budget is infeasible.
        resamples: number of draws.
        level: coverage of the interval, in (0, 1).
        seed: seed of the draws.

    Returns:
        Rows in the order of budgets and pairs: budget, first, second, difference (of mean accuracies, first - second),
        low and high (interval), within_noise (the interval contains 0), seeds. Differences are in [-1, 1].

    Raises:
        ZtwError: as in `paired_difference`.
    """
    if not 0 < level < 1:
        raise ZtwError(f"level {level!r}: must lie between 0 and 1")
    columns, right = _columns(correct)
    if not columns:
        return []
    drawn = _resampled(right, resamples, seed)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    rows = []
    for budget, first, second, seeds in _pairs(correct):
        plus, minus = ([columns[budget, method, one] for one in seeds] for method in (first, second))
        total = len(seeds) * right.shape[1]
        low, high = ((drawn[plus].sum(0) - drawn[minus].sum(0)) / total).quantile(tails).tolist()
        difference = int(right[plus].sum() - right[minus].sum()) / total
        interval = {"difference": difference, "low": low, "high": high}
        rows.append(
            {"budget": budget, "first": first, "second": second}
            | interval
            | {"within_noise": low <= 0 <= high, "seeds": seeds}
        )
    return rows


class Difference(NamedTuple):
    """Difference of two accuracies with its confidence interval, from `paired_difference`.

    Attributes:
        difference: accuracy of the first method - accuracy of the second, in [-1, 1].
        low: lower end of the interval, in [-1, 1].
        high: upper end of the interval, in [-1, 1].
    """

    difference: float
    low: float
    high: float


def paired_difference(
    first: Tensor, second: Tensor, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Compare the accuracies of two methods on the same test samples by a paired bootstrap.

    Args:
        first: bool (N,), whether the first method classifies each sample correctly.
        second: bool (N,), the same of the second method, for the same samples in the same order.
        resamples: number of draws.
        level: coverage of the interval, in (0, 1).
        seed: seed of the draws.

    Returns:
        The difference with its percentile interval (Efron & Tibshirani 1993). If the interval contains 0, the
        difference is within the noise of the test split.

    Raises:
        ZtwError: if the numbers of samples differ, and for values other than 0 and 1 or an invalid level.

    Example:
        >>> import torch, ztw
        >>> first, second = torch.tensor([1, 1, 1, 0]), torch.tensor([1, 0, 1, 0])
        >>> ztw.paired_difference(first, second)
        Difference(difference=0.25, low=0.0, high=0.75)
    """
    correct = {"": {"first": {0: first}, "second": {0: second}}}
    (row,) = pairs_at_budgets(correct, resamples, level, seed)
    return Difference(row["difference"], row["low"], row["high"])


def _pairs(correct: Correct) -> Iterator[tuple]:
    """Yield (budget, first, second, common seeds) of every pair of methods with a common seed."""
    for budget, methods in correct.items():
        for first, second in combinations(methods, 2):
            seeds = [seed for seed in methods[first] if seed in methods[second]]
            if seeds:
                yield budget, first, second, seeds


def _columns(correct: Correct) -> tuple[dict[tuple[Hashable, ...], int], Tensor]:
    """Return the row number of each (budget, method, seed), and the rows, 0 or 1 (M, N)."""
    found: dict[tuple[Hashable, ...], Tensor] = {}
    for budget, methods in correct.items():
        for method, of_seed in methods.items():
            for seed, right in of_seed.items():
                found[budget, method, seed] = _checked(f"{method}, seed {seed}", right)
    sizes = {len(right) for right in found.values()}
    if len(sizes) > 1:
        raise ZtwError(f"correct: must have the same test samples, got {sorted(sizes)} samples")
    return {key: place for place, key in enumerate(found)}, torch.stack([*found.values()] or [torch.empty(0)])


def _checked(name: str, right: Tensor) -> Tensor:
    right = as_tensor(right, name)
    if right.dim() != 1 or not 0 < len(right) < LARGEST:
        raise ZtwError(f"{name}: shape {tuple(right.shape)}, must be (samples,), 1 to {LARGEST - 1}")
    right = right.cpu()
    if not ((right == 0) | (right == 1)).all():
        raise ZtwError(f"{name}: must be right (1) or wrong (0), got {right.unique()[:5].tolist()}")
    return right.to(torch.uint8)


def _resampled(right: Tensor, resamples: int, seed: int) -> Tensor:
    """Count the correct predictions in each draw of N samples: (M, resamples), integers in float64.

    float32 adds integers below 2^24 exactly in any order, so the result is the same on every machine.
    """
    if resamples < 1:
        raise ZtwError(f"resamples {resamples!r}: must be at least 1")
    samples = right.shape[1]
    generator = torch.Generator().manual_seed(seed)
    numbers = right.float()
    chunk = max(1, CHUNK // samples)
    parts = []
    for start in range(0, resamples, chunk):
        draws = min(chunk, resamples - start)
        picked = torch.randint(samples, (draws, samples), generator=generator)
        picked += samples * torch.arange(draws)[:, None]
        counts = torch.bincount(picked.flatten(), minlength=draws * samples).view(draws, samples)
        parts.append(numbers @ counts.float().T)
    return torch.cat(parts, dim=1).double()
