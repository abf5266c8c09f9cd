"""Whether tables and figures that were made again say what the published ones do."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

OF_THE_RUN = "pipeline.csv"  # which cells do not hold
# Mean difference of a picture's pixels: 2e-7 when nothing differs, 1.3e-3 when one curve lies 0.1 points higher
SHADE = 5e-4


def assert_rebuilt(published: Path, again: Path) -> None:
    """Every table to the last digit, and every figure."""
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
