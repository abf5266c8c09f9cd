"""The names and shapes of an exported network's inputs and outputs. Imports no onnx."""

from __future__ import annotations

from dataclasses import dataclass

IMAGES, BOUNDS, LOGITS, EXIT_INDEX = "images", "bounds", "logits", "exit_index"


@dataclass(frozen=True)
class Form:
    """The sizes of an exported network.

    Args:
        exits: number of exits K.
        num_classes: number of classes C.
        shape: (channels, height, width) of an image.
        log_probabilities: whether the output `logits` is normalised, because there is an ensemble.
    """

    exits: int
    num_classes: int
    shape: tuple[int, ...]
    log_probabilities: bool


def answer(exit: int) -> str:
    """Return the name of an exit's logits in a flat graph; exit: from 0."""
    return f"answer_{exit}"


def score(exit: int) -> str:
    """Return the name of an exit's score in a flat graph; exit: from 0."""
    return f"score_{exit}"
