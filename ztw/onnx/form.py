"""The names and the form of an exported network. Imports no onnx."""

from __future__ import annotations

from dataclasses import dataclass

IMAGES, BOUNDS, LOGITS, EXIT_INDEX = "images", "bounds", "logits", "exit_index"


@dataclass(frozen=True)
class Form:
    """The form of a graph with exits.

    Args:
        exits: number of exits K.
        num_classes: number of classes C.
        shape: (channels, height, width) of an image.
        log_probabilities: whether the logits are normalised at the end, as `infer` does with an ensemble.
    """

    exits: int
    num_classes: int
    shape: tuple[int, ...]
    log_probabilities: bool


def answer(exit: int) -> str:
    """Return the name of the output of a flat graph that holds the logits of an exit (from 0)."""
    return f"answer_{exit}"


def score(exit: int) -> str:
    """Return the name of the output of a flat graph that holds the score of an exit (from 0)."""
    return f"score_{exit}"
