"""Export LSTMs, GRUs and RNNs as operations of ONNX, for sequences of any length.

torch.onnx.export would unroll some of them, for the length of the example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# kind -> places of ONNX's gates in PyTorch's weights
GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}


def _layer(
    x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor, hidden: Tensor, cell: Tensor, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    raise NotImplementedError("only torch.onnx.export uses it")


def _fake_layer(
    x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor, hidden: Tensor, cell: Tensor, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    directions, samples, width = hidden.shape
    return x.new_empty(x.shape[0], directions, samples, width), hidden.clone(), hidden.clone()


# One layer in ONNX's layout: from x (T, N, I) and states (directions, N, H) to outputs (T, directions, N, H) and the
# last states
layer = torch.library.custom_op("ztw::recurrent_layer", _layer, mutates_args=())
layer.register_fake(_fake_layer)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translation of a layer, for torch.onnx.export."""
    from onnxscript import opset20 as op

    def translated(
        x: Any, weight: Any, recurrence: Any, bias: Any, hidden: Any, cell: Any, kind: str
    ) -> tuple[Any, ...]:
        both: Any = {"hidden_size": recurrence.shape[2]}
        both["direction"] = "bidirectional" if recurrence.shape[0] == 2 else "forward"
        if kind == "lstm":
            return op.LSTM(x, weight, recurrence, bias, None, hidden, cell, **both)
        if kind == "gru":
            output, last = op.GRU(x, weight, recurrence, bias, None, hidden, linear_before_reset=1, **both)
        else:
            activations = [kind.removeprefix("rnn_").capitalize()] * recurrence.shape[0]
            output, last = op.RNN(x, weight, recurrence, bias, None, hidden, activations=activations, **both)
        return output, last, last

    return {torch.ops.ztw.recurrent_layer.default: translated}


class Recurrent(TorchFunctionMode):
    """Context in which PyTorch's recurrent functions consist of layers."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the functions, except those of packed sequences and of LSTMs with projections."""
        name = getattr(func, "__name__", "").removesuffix(".input")
        if name in GATES and len(args) == 9 and _is_plain(name, args):
            return _layers(name, *args)
        return func(*args, **(kwargs or {}))


def _is_plain(kind: str, args: Sequence[Any]) -> bool:
    """Return whether the arguments are those of a padded sequence, without projections."""
    _, states, weights = args[:3]
    if kind != "lstm":
        return isinstance(states, Tensor) and isinstance(weights, list | tuple)
    return isinstance(states, list | tuple) and states[0].shape[2] == states[1].shape[2]


def _layers(
    kind: str,
    x: Tensor,
    states: Any,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Compute torch.lstm, torch.gru, torch.rnn_tanh or torch.rnn_relu, without dropout, layer by layer."""
    directions, held = 1 + bidirectional, 2 + 2 * has_biases
    hidden, cell = (states[0], states[1]) if kind == "lstm" else (states, states)
    x, lasts, cells = x.transpose(0, 1) if batch_first else x, list[Tensor](), list[Tensor]()
    for number in range(num_layers):
        rows = slice(number * directions, (number + 1) * directions)
        own = [weights[held * place : held * (place + 1)] for place in range(rows.start, rows.stop)]
        weight, recurrence = (torch.stack([_gates(part[place], kind) for part in own]) for place in (0, 1))
        if has_biases:
            bias = torch.stack([torch.cat([_gates(part[2], kind), _gates(part[3], kind)]) for part in own])
        else:
            bias = weight.new_zeros(directions, 2 * weight.shape[1])
        output, last, last_cell = layer(x, weight, recurrence, bias, hidden[rows], cell[rows], kind)
        x = output.transpose(1, 2).flatten(2)  # (T, N, directions * H)
        lasts.append(last)
        cells.append(last_cell)
    x, last = x.transpose(0, 1) if batch_first else x, torch.cat(lasts)
    return (x, last, torch.cat(cells)) if kind == "lstm" else (x, last)


def _gates(weight: Tensor, kind: str) -> Tensor:
    """Return the rows of a weight or bias in ONNX's order of gates."""
    parts = weight.chunk(len(GATES[kind]))
    return torch.cat([parts[place] for place in GATES[kind]])
