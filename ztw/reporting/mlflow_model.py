"""A network as MLflow's pyfunc loads it: images in, a table of answers out. Imports no mlflow."""

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
    """A network of `ztw.save` and its rules, by budget."""

    def __init__(self, folder: Path) -> None:
        self.network, _ = load(folder)
        self.rules = {budget: rule_from(facts) for budget, facts in rules_of(folder).items()}

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Images (N, C, H, W) float32, normalised as in training -> a row each: class, probability, exit.

        class: from 0; probability: of that class; exit: where the image left, from 1. params: {"budget": ...}, as
        text, which of the network's budgets, by default its first. Raises ZtwError for one it has no rule for.
        """
        budget = (params or {}).get("budget", next(iter(self.rules)))
        if budget not in self.rules:
            raise ZtwError(f"budget {budget!r}: the network has rules for {', '.join(self.rules)}")
        result = self.network.infer(torch.from_numpy(images), self.rules[budget])
        probability, answer = result.logits.softmax(-1).max(-1)
        return pd.DataFrame(
            {
                "class": answer.numpy(),
                "probability": probability.double().numpy(),
                "exit": result.exit_index.numpy() + 1,
            }
        )


def _load_pyfunc(path: str) -> Served:
    """What MLflow calls with the folder of the model's data."""
    return Served(Path(path))
