"""The interval of a mean over trainings. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95
FEWEST = 3  # trainings that an interval over trainings needs


def over_trainings(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of the seeds' differences, by Student's t; NaN for fewer than 3 seeds."""
    n = len(differences)
    if n < FEWEST:
        return math.nan, math.nan
    mean, half = float(np.mean(differences)), stdtrit(n - 1, (1 + LEVEL) / 2) * np.std(differences, ddof=1)
    return mean - float(half) / math.sqrt(n), mean + float(half) / math.sqrt(n)
