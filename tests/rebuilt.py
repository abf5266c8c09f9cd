"""Check that rebuilt tables and figures equal the published ones."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

OF_THE_RUN = "pipeline.csv"  # made from a run, not from its cells
# Allowed mean difference of a picture's pixels: 2e-7 for equal figures, 1.3e-3 if one curve is 0.1 points higher
SHADE = 5e-4


def assert_rebuilt(published: Path, again: Path) -> None:
    """Check that every table is equal to the last digit, and every figure nearly equal."""
    made = names(published, "tables") - {OF_THE_RUN}
    assert {"metrics.csv", "accuracy_at_budget.md", "differences.csv", "devices.csv"} <= made
    assert made == names(again, "tables") - {OF_THE_RUN}
    for name in sorted(made):
        first, second = ((folder / "tables" / name).read_text() for folder in (published, again))
        assert first == second, name
    figures = names(published, "figures")
    assert figures == names(again, "figures") != set()
    for figure in sorted(figures):
        picture, other = (plt.imread(folder / "figures" / figure) for folder in (published, again))
        assert picture.shape == other.shape, figure
        assert np.abs(picture - other).mean() < SHADE, figure


def names(folder: Path, kind: str) -> set[str]:
    return {path.name for path in (folder / kind).iterdir()}
