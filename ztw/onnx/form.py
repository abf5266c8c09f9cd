"""The names and shapes of an exported network's inputs and outputs. Imports no onnx."""

from __future__ import annotations

from dataclasses import dataclass

from ztw.batch import InputSpec
from ztw.errors import ZtwError

BOUNDS, LOGITS, EXIT_INDEX = "bounds", "logits", "exit_index"
# Prefixes of the nodes that nesting adds, and of those it repeats at an exit. `flatten` removes both.
OURS, REPEATED = "ztw:", "ztw-again:"


@dataclass(frozen=True)
class Form:
    """The sizes of an exported network.

    Args:
        exits: number of exits K.
        num_classes: number of classes C.
        inputs: what the network takes. The graph has one input for each tensor, of the same name.
        log_probabilities: whether the output `logits` is normalised, because there is an ensemble.

    Raises:
        ZtwError: for an input with the name of another value.
    """

    exits: int
    num_classes: int
    inputs: InputSpec
    log_probabilities: bool

    def __post_init__(self) -> None:
        taken = {BOUNDS, LOGITS, EXIT_INDEX, *map(answer, range(self.exits)), *map(score, range(self.exits))}
        for name in self.inputs.names:
            if name in taken or name.startswith((OURS, REPEATED)) or not name:
                raise ZtwError(
                    f"input {name!r}: the exported graph has another value of this name; rename it"
                )


def answer(exit: int) -> str:
    """Return the name of an exit's logits in a flat graph; exit: from 0."""
    return f"answer_{exit}"


def score(exit: int) -> str:
    """Return the name of an exit's score in a flat graph; exit: from 0."""
    return f"score_{exit}"
