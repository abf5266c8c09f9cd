"""Write logits for a study that starts from them (examples/numpy_logits.yaml). They are made up, with NumPy alone."""

import argparse
from pathlib import Path

import numpy as np

import ztw

CLASSES = 10
COST = [3e6, 7e6, 12e6, 18e6, 25e6]  # MACs of a sample that leaves at each exit
BASE_COST = 20e6  # MACs of the network without exits
SKILLS = [1.5, 2.2, 2.9, 3.5, 4.0]  # of the exits: how far the right class stands out
SMALL_COST, SMALL_SKILL = 8e6, 2.6  # a smaller network without exits


def samples(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and difficulties (N,). Every seed and every network has the same samples in the same order."""
    rng = np.random.default_rng(len(split))
    return rng.integers(CLASSES, size=count), rng.uniform(0.5, 2.0, size=count)


def predictions(split: str, count: int, skills: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (K, N, C) and labels (N,), as your own network would."""
    labels, difficulty = samples(split, count)
    rng = np.random.default_rng([seed, len(split)])
    shared = rng.normal(size=(count, CLASSES))  # what all exits get wrong
    logits = []
    for skill in skills:
        noise = 0.8 * shared + 0.6 * rng.normal(size=(count, CLASSES))
        logits.append(skill * np.eye(CLASSES)[labels] + difficulty[:, None] * noise)
    return np.stack(logits), labels


def main(folder: Path, seeds: int = 2, count: int = 2000) -> None:
    """Write two files a seed: a network with five exits, and a smaller one without early exits."""
    for seed in range(seeds):
        for name, skills, cost in (("exits", SKILLS, COST), ("small", [SMALL_SKILL], [SMALL_COST])):
            ztw.write_predictions(
                folder / f"made-up-{name}-seed{seed}.npz",
                validation=predictions("validation", count // 2, skills, seed),
                test=predictions("test", count, skills, seed),
                cost=cost,
                base_cost=BASE_COST,
                origin="made up by examples/numpy_logits.py",
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/logits"))
    try:
        main(parser.parse_args().folder)
    except ztw.ZtwError as error:
        parser.error(str(error))
