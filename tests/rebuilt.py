"""Whether tables and figures that were made again say what the published ones do."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

# `pipeline` is of the run itself; in `devices` the names of hosts are left out
MADE = ("accuracy_at_budget", "differences", "per_exit", "allowed_loss", "comparison", "latency", "metrics")
# Mean difference of a picture's pixels: 2e-7 when nothing differs, 1.3e-3 when one curve lies 0.1 points higher
SHADE = 5e-4


def assert_rebuilt(published: Path, again: Path) -> None:
    """Every table in all its forms, and every figure."""
    for name in MADE:
        file = published / f"tables/{name}.csv"
        if name == "latency" and not file.exists():
            continue
        first, second = (pd.read_csv(folder / f"tables/{name}.csv") for folder in (published, again))
        pd.testing.assert_frame_equal(first, second, rtol=1e-6, obj=name)
    texts = [path.name for path in published.glob("tables/*") if path.suffix in (".md", ".tex")]
    assert "accuracy_at_budget.md" in texts
    for text in texts:
        assert (published / "tables" / text).read_text() == (again / "tables" / text).read_text()
    figures = sorted(path.name for path in published.glob("figures/*.png"))
    assert figures == sorted(path.name for path in again.glob("figures/*.png"))
    for figure in figures:
        picture, other = (plt.imread(folder / "figures" / figure) for folder in (published, again))
        assert picture.shape == other.shape, figure
        assert np.abs(picture - other).mean() < SHADE, figure
