"""Accuracies at budgets from the files of a published study, by code of its own: nothing of ztw is imported.

The definitions are those of config/README.md:

- A sample leaves at the first exit with a confidence above the threshold, else at the last exit.
- Thresholds to try: `points` at equal distances, from the lowest confidence of the held-out samples to the best
  possible one; as many quantiles of the confidences; and one below all.
- Within a budget, the threshold with the highest mean cost on held-out samples is used; at budget "max" the one with
  the highest accuracy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

Array = np.ndarray
BUDGETS = [0.25, 0.5, 0.75, 1.0, "max"]  # the default of evaluation.budgets
# Types of a safetensors file
TYPES = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "u1"}
TINY = np.finfo("f4").tiny  # the smallest probability, so that its logarithm is finite


class Skipped(Exception):  # noqa: N818
    """A method cannot be recomputed; the text says why."""


@dataclass(frozen=True)
class Exits:
    """Logits (K, N, C) and labels (N,) of each split, and the MACs (K,) up to each exit."""

    splits: dict[str, tuple[Array, Array]]
    cost: Array


class AtBudget(NamedTuple):
    """An operating point: cost (share of the backbone's) and accuracy on held-out samples, accuracy on test samples."""

    cost: float
    held_out: float
    accuracy: float


# Files


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the arrays and the metadata of a file: 8 bytes of length, a JSON header, then the numbers."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    texts = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        flat = np.frombuffer(content[start + first : start + last], TYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    return arrays, texts


def read_exits(cell: Path, name: str) -> Exits:
    """Read the published logits of an IC set or a static row."""
    path = cell / "predictions" / f"{name}.safetensors"
    if not path.is_file():
        raise Skipped("no published logits")
    arrays, texts = read_safetensors(path)
    splits = {
        split: (arrays[f"{split}_logits"].astype("f4"), arrays[f"{split}_labels"].astype(int))
        for split in ("validation", "test")
    }
    return Exits(splits, np.array(json.loads(texts["cost"])))


def published_metrics(cell: Path, method: str) -> dict[tuple[str, str, str, int], float | None]:
    """Return (protocol, budget, metric, exit) -> value, from a method's metrics file."""
    rows = json.loads((cell / "metrics" / f"{method}.json").read_text())["metrics"]
    return {(row["protocol"], row["budget"], row["metric"], row["exit"]): row["value"] for row in rows}


# Exits of a method


def softmax(logits: Array) -> Array:
    """Return probabilities, in single precision as networks compute them."""
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def cascade(members: list[Exits]) -> Exits:
    """Join networks: each is an exit, and a sample pays for every network that it reached."""
    splits = {}
    for split, (_, labels) in members[0].splits.items():
        if any((one.splits[split][1] != labels).any() for one in members):
            raise Skipped("its networks have other labels")
        splits[split] = (np.concatenate([one.splits[split][0] for one in members]), labels)
    return Exits(splits, np.cumsum([one.cost[-1] for one in members]))


def ensembled(exits: Exits, kind: str, weights: dict[str, Array], include_final: bool) -> Exits:
    """Combine exit m with all exits before it; log-probabilities take the place of logits.

    Over all exits j <= m: `geometric` is the mean of s_mj log p_j, plus b_m; `arithmetic` is log(sum of a_mj p_j, plus
    c_m); `uniform` is log(mean of p_j). Combining at exit m costs m C further MACs.
    """
    count = len(exits.cost)
    lower = np.tril(np.ones((count, count), "f4"))
    members = lower.sum(1, keepdims=True)
    if kind == "geometric":
        share, constant = weights["weight"] / members, weights["bias"]
    elif kind == "arithmetic":
        share, constant = weights["weight"], weights["bias"]
    else:
        share, constant = lower / members, np.zeros(1, "f4")
    splits = {}
    for split, (logits, labels) in exits.splits.items():
        single = np.maximum(softmax(logits), TINY)
        terms = np.log(single) if kind == "geometric" else single
        total = np.tensordot(share, terms, 1) + np.broadcast_to(constant, (count, terms.shape[2]))[:, None]
        combined = total if kind == "geometric" else np.log(np.maximum(total, TINY))
        if not include_final:
            combined[-1] = np.log(single[-1])
        splits[split] = (combined, labels)
    added = np.arange(1, count + 1) * float(splits["test"][0].shape[2])
    if not include_final:
        added[-1] = 0
    return Exits(splits, exits.cost + added.cumsum())


# Rules and thresholds


def negative_entropy(logits: Array) -> Array:
    """Return the sum of p log p; 0 log 0 is 0."""
    shares = softmax(logits)
    return (shares * np.log(np.maximum(shares, TINY))).sum(-1)


def agreements(logits: Array) -> Array:
    """Return the number of exits in a row that predict as the exit before them, up to each exit."""
    predicted = logits.argmax(-1)
    counts = np.zeros(predicted.shape)
    for exit in range(1, len(counts)):
        counts[exit] = np.where(predicted[exit] == predicted[exit - 1], counts[exit - 1] + 1, 0)
    return counts


def exit_numbers(logits: Array) -> Array:
    """Return the number of each exit."""
    return np.broadcast_to(np.arange(1.0, len(logits) + 1)[:, None], logits.shape[:2])


# Rule -> its confidence (K, N) for logits (K, N, C)
CONFIDENCE = {
    "max_softmax": lambda logits: softmax(logits).max(-1),
    "entropy": negative_entropy,
    "patience": agreements,
    "fixed_exit": exit_numbers,
}
BEST = {"max_softmax": 1.0, "entropy": 0.0}


def thresholds(rule: str, confidence: Array, points: int) -> Array:
    """Return the thresholds to try on the confidences (K, N) of the held-out samples, in increasing order."""
    if len(confidence) == 1:
        return np.zeros(1)
    if rule in ("patience", "fixed_exit"):
        return np.arange(len(confidence)) + (0.5 if rule == "fixed_exit" else -0.5)
    flat = np.sort(confidence.astype(float), axis=None)
    even = np.linspace(flat[0], max(BEST[rule], flat[-1]), points)
    quantiles = flat[np.linspace(0, len(flat) - 1, points).astype(int)]
    return np.unique(np.concatenate([[flat[0] - 1e-6 * max(1, abs(flat[0]))], even, quantiles]))


def exit_of(confidence: Array, threshold: float) -> Array:
    """Return the exit (from 0) at which each sample leaves."""
    passes = confidence > threshold
    passes[-1] = True
    return passes.argmax(0)


def scores(rule: str, split: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return confidences (K, N), and whether each exit is correct (K, N)."""
    logits, labels = split
    return CONFIDENCE[rule](logits), logits.argmax(-1) == labels


def at_budgets(
    exits: Exits, base: float, rule: str, points: int, budgets: list[float | str]
) -> dict[str, AtBudget]:
    """Return budget -> operating point, for feasible budgets; base: MACs of the backbone alone."""
    confidence, correct = scores(rule, exits.splits["validation"])
    on_test, correct_on_test = scores(rule, exits.splits["test"])
    tried, samples = thresholds(rule, confidence, points), np.arange(confidence.shape[1])
    left = [exit_of(confidence, threshold) for threshold in tried]
    # from the numbers of samples, so that equal numbers give equal costs
    numbers = np.array([np.bincount(exit, minlength=len(exits.cost)) for exit in left])
    cost = numbers @ exits.cost / (len(samples) * base)
    accuracy = np.array([correct[exit, samples].mean() for exit in left])
    found = {}
    for budget in budgets:
        row = chosen(cost, accuracy, budget)
        if row is not None:
            exit = exit_of(on_test, tried[row])
            right = correct_on_test[exit, np.arange(len(exit))].mean()
            found[text(budget)] = AtBudget(float(cost[row]), float(accuracy[row]), float(right))
    return found


def chosen(cost: Array, accuracy: Array, budget: float | str) -> int | None:
    """Return the row of the threshold for a budget; None if none is cheap enough."""
    rows = np.argsort(cost, kind="stable")
    if budget == "max":
        return int(rows[accuracy[rows].argmax()])
    within = rows[cost[rows] <= float(budget) * (1 + 1e-9)]
    return int(within[-1]) if len(within) else None


def text(budget: float | str) -> str:
    """Write a budget as the metrics files do."""
    return budget if isinstance(budget, str) else str(float(budget))


# A published study


class Study:
    """A published study: its folder and config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
        self.methods = {name: row or {} for name, row in self.config["methods"].items()}
        self.evaluation = self.config.get("evaluation") or {}
        self.budgets: list[float | str] = self.evaluation.get("budgets", BUDGETS)

    def cells(self) -> list[Path]:
        """List the folders of all cells."""
        return sorted(path.parent for path in self.folder.glob("*/**/seed*/metrics"))

    def kind(self, method: str) -> str:
        """Return the kind of a method in the frontier."""
        row = self.methods[method]
        if "static" in row:
            return "static network"
        if "cascade_of" in row:
            return "cascade of networks"
        return "fixed exit" if row.get("rule") == "fixed_exit" else "early exits"

    def exits(self, cell: Path, method: str) -> Exits:
        """Return what a method's rule sees, and its costs."""
        row = self.methods[method]
        if row.get("int8"):
            raise Skipped("int8")
        if row.get("thresholds", "shared") != "shared":
            raise Skipped(f"thresholds {row['thresholds']}")
        if row.get("rule", "max_softmax") not in CONFIDENCE:
            raise Skipped(f"rule {row['rule']}")
        members = row.get("cascade_of")
        exits = cascade([read_exits(cell, one) for one in members]) if members else None
        exits = exits or read_exits(cell, method if "static" in row else row["ics"])
        if row.get("rule") == "fixed_exit":  # only one head counts, so the costs are others
            published = published_metrics(cell, method)
            base = published["", "", "backbone_macs", 0] or 0.0
            shares = [published["", "", "relative_cost", exit + 1] or 0.0 for exit in range(len(exits.cost))]
            return Exits(exits.splits, np.array(shares) * base)
        return self._with_ensemble(cell, method, exits)

    def _with_ensemble(self, cell: Path, method: str, exits: Exits) -> Exits:
        name, section = self.methods[method].get("ensemble"), self.config.get("ensembles") or {}
        if name is None:
            return exits
        own = {"kind": name, **section, **(section.get("sets") or {}).get(name, {})}
        if own["kind"] not in ("geometric", "arithmetic", "uniform"):
            raise Skipped(f"ensemble {own['kind']}")
        path = cell / "ensembles" / f"{method}.safetensors"
        weights: dict[str, Array] = {}
        if own["kind"] != "uniform":
            if not path.is_file():
                raise Skipped("no published weights of its ensemble")
            weights, _ = read_safetensors(path)
        return ensembled(exits, own["kind"], weights, own.get("include_final", True))
