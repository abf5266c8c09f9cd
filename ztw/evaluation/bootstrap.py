"""Is a difference in accuracy more than the noise of the test split? A paired bootstrap over its samples.

The test samples are drawn again and again with replacement, the same draw for both methods and all seeds, because all
of them answer the same images (Efron and Tibshirani 1993, chapter 13: percentile interval). This covers the
choice of the test samples only. It does not cover how accuracy differs between trainings - with a few seeds
no interval does; look at their standard deviation -, nor the choice of thresholds on the validation split,
nor that of many pairs looked at some intervals exclude 0 by chance.
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

CHUNK = 2_000_000  # counts held at once
LARGEST = 2**24  # float32 counts exactly up to here


def pairs_at_budgets(
    correct: Correct, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> list[Row]:
    """Every pair of methods at every budget, from one set of draws.

    correct: budget -> method -> seed -> bool (N,), which test samples are right, the same samples in the same
    order for all; without the seeds for which the budget is infeasible. resamples: how often to draw; level:
    the interval's coverage, in (0, 1); seed: of the draws.
    A pair is compared on the seeds both have and skipped where there is none. Rows, budgets and pairs in the
    order given: budget, first, second, difference of the mean accuracies, first - second, low and high, the
    bounds of its interval, all in [-1, 1], within_noise (whether that contains 0, its ends included), seeds.
    Raises ZtwError for malformed input.
    """
    if not 0 < level < 1:
        raise ZtwError(f"level {level!r}: must lie between 0 and 1")
    columns, answers = _columns(correct)
    if not columns:
        return []
    drawn = _resampled(answers, resamples, seed)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    rows = []
    for budget, first, second, seeds in _pairs(correct):
        plus, minus = ([columns[budget, method, one] for one in seeds] for method in (first, second))
        answered = len(seeds) * answers.shape[1]
        low, high = ((drawn[plus].sum(0) - drawn[minus].sum(0)) / answered).quantile(tails).tolist()
        difference = int(answers[plus].sum() - answers[minus].sum()) / answered
        interval = {"difference": difference, "low": low, "high": high}
        rows.append(
            {"budget": budget, "first": first, "second": second}
            | interval
            | {"within_noise": low <= 0 <= high, "seeds": seeds}
        )
    return rows


class Difference(NamedTuple):
    """Of two accuracies, first - second; low, high: its interval; all in [-1, 1]."""

    difference: float
    low: float
    high: float


def paired_difference(
    first: Tensor, second: Tensor, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Difference:
    """How much more often one method is right than another on the same test samples, and what noise allows to say.

    first, second: bool (N,), which samples each answers rightly, in the same order; the others as in
    `pairs_at_budgets`. Where the interval holds 0, the difference is within the noise of the test split.
    Raises ZtwError for malformed input.
    """
    correct = {"": {"first": {0: first}, "second": {0: second}}}
    (row,) = pairs_at_budgets(correct, resamples, level, seed)
    return Difference(row["difference"], row["low"], row["high"])


def _pairs(correct: Correct) -> Iterator[tuple]:
    """(budget, first, second, common seeds) of every pair that has some."""
    for budget, methods in correct.items():
        for first, second in combinations(methods, 2):
            seeds = [seed for seed in methods[first] if seed in methods[second]]
            if seeds:
                yield budget, first, second, seeds


def _columns(correct: Correct) -> tuple[dict[tuple[Hashable, ...], int], Tensor]:
    """Where each (budget, method, seed) stands among the answers, and the answers, 0 or 1 (M, N)."""
    found: dict[tuple[Hashable, ...], Tensor] = {}
    for budget, methods in correct.items():
        for method, of_seed in methods.items():
            for seed, answers in of_seed.items():
                found[budget, method, seed] = _checked(f"{method}, seed {seed}", answers)
    sizes = {len(answers) for answers in found.values()}
    if len(sizes) > 1:
        raise ZtwError(f"correct: must be of the same test samples, got {sorted(sizes)} samples")
    return {key: place for place, key in enumerate(found)}, torch.stack([*found.values()] or [torch.empty(0)])


def _checked(name: str, answers: Tensor) -> Tensor:
    answers = as_tensor(answers, name)
    if answers.dim() != 1 or not 0 < len(answers) < LARGEST:
        raise ZtwError(f"{name}: shape {tuple(answers.shape)}, must be (samples,), 1 to {LARGEST - 1}")
    answers = answers.cpu()
    if not ((answers == 0) | (answers == 1)).all():
        raise ZtwError(f"{name}: must be right (1) or wrong (0), got {answers.unique()[:5].tolist()}")
    return answers.to(torch.uint8)


def _resampled(answers: Tensor, resamples: int, seed: int) -> Tensor:
    """How many right answers each draw of N samples holds: (M, resamples), whole numbers in float64.

    Whole numbers below 2^24 add up exactly in float32, in whatever order: the result is the same everywhere.
    """
    if resamples < 1:
        raise ZtwError(f"resamples {resamples!r}: must be at least 1")
    samples = answers.shape[1]
    generator = torch.Generator().manual_seed(seed)
    numbers = answers.float()
    chunk = max(1, CHUNK // samples)
    parts = []
    for start in range(0, resamples, chunk):
        draws = min(chunk, resamples - start)
        picked = torch.randint(samples, (draws, samples), generator=generator)
        picked += samples * torch.arange(draws)[:, None]
        counts = torch.bincount(picked.flatten(), minlength=draws * samples).view(draws, samples)
        parts.append(numbers @ counts.float().T)
    return torch.cat(parts, dim=1).double()
