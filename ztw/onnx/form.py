"""What an exported network is called and looks like; imports no onnx."""

from __future__ import annotations

from dataclasses import dataclass

IMAGES, BOUNDS, LOGITS, EXIT_INDEX = "images", "bounds", "logits", "exit_index"


@dataclass(frozen=True)
class Form:
    """What a graph of exits is: K exits, C classes, shape (channels, height, width) of an image.

    log_probabilities: whether what the exits answer with is normalised at the end, as `infer` does with an ensemble.
    """

    exits: int
    num_classes: int
    shape: tuple[int, ...]
    log_probabilities: bool


def answer(exit: int) -> str:
    """The output of a flat graph that an exit (from 0) answers with."""
    return f"answer_{exit}"


def score(exit: int) -> str:
    """The output of a flat graph that decides whether a sample leaves at an exit (from 0)."""
    return f"score_{exit}"
