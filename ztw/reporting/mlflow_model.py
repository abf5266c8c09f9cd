"""Load a network as a pyfunc model for MLflow: images in, a table of predictions out. Imports no mlflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ztw.errors import ZtwError
from ztw.evaluation.network_folder import rules_of
from ztw.evaluation.saving import load
from ztw.exits.rules import rule_from


class Served:
    """A saved network with its rules, by budget."""

    def __init__(self, folder: Path) -> None:
        self.network, _ = load(folder)
        self.rules = {budget: rule_from(facts) for budget, facts in rules_of(folder).items()}

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify images by the rule of a budget.

        Args:
            images: float32 (N, C, H, W), normalised as in training.
            params: {"budget": text}, one of the network's budgets; default: the first one.

        Returns:
            One row per image: class (from 0), its probability, and the exit where the image left (from 1).

        Raises:
            ZtwError: if the network has no rule for the budget.
        """
        budget = (params or {}).get("budget", next(iter(self.rules)))
        if budget not in self.rules:
            raise ZtwError(f"budget {budget!r}: the network has rules for {', '.join(self.rules)}")
        result = self.network.infer(torch.from_numpy(images), self.rules[budget])
        probability, predicted = result.logits.softmax(-1).max(-1)
        return pd.DataFrame(
            {
                "class": predicted.numpy(),
                "probability": probability.double().numpy(),
                "exit": result.exit_index.numpy() + 1,
            }
        )


def _load_pyfunc(path: str) -> Served:
    """Load the model from its data folder. MLflow calls this function."""
    return Served(Path(path))
