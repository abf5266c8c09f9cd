"""Small modules of all exits, with inputs of every kind, to be exported and nested without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ztw
from ztw.batch import InputSpec, pick, tensors_of
from ztw.onnx.form import BOUNDS, Form
from ztw.onnx.nesting import nest
from ztw.onnx.write import METADATA, SCHEMA, exported

CLASSES, WIDTH, WORDS = 3, 16, 50


class Flat(nn.Module):
    """Logits and a score for each exit from its features; the last exit has no score."""

    exits = 3

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, CLASSES) for _ in range(self.exits))

    def features(self, *inputs: Tensor) -> Sequence[Tensor]:
        """The features (N, width) of each exit."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for head, features in zip(self.heads, self.features(*inputs), strict=True):
            logits = 3 * head(features)
            outputs += [logits, logits.softmax(-1).amax(-1)]
        return tuple(outputs[:-1])


class Attention(nn.Module):
    """Self-attention and a residual block, as in a text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.wide, self.narrow = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """From (N, T, width) and a mask (N or 1, 1, T or 1, T) of what may be seen."""
        batch, length = x.shape[:2]
        query, key, value = (
            part.view(batch, length, 4, -1).transpose(1, 2) for part in self.mix(x).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(query, key, value, mask)
        x = self.norm(x + self.out(seen.transpose(1, 2).reshape(batch, length, WIDTH)))
        return x + self.narrow(F.gelu(self.wide(x)))


class Text(Flat):
    """A text encoder with a mask of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(64, WIDTH)
        self.blocks = nn.ModuleList(Attention() for _ in range(3))

    def features(self, *inputs: Tensor) -> Sequence[Tensor]:
        tokens, mask = inputs
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        found = []
        for block in self.blocks:
            x = block(x, mask[:, None, None].bool())
            found.append(x[:, 0])
        return found


class Causal(Text):
    """A text decoder: each token sees those before it. The last token is classified."""

    def features(self, *inputs: Tensor) -> Sequence[Tensor]:
        (tokens,) = inputs
        length = tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        x = self.words(tokens) + self.places(torch.arange(length))
        found = []
        for block in self.blocks:
            x = block(x, mask)
            found.append(x[:, -1])
        return found


class LengthFirst(Text):
    """The text encoder with values (T, N, width) between the exits."""

    def features(self, *inputs: Tensor) -> Sequence[Tensor]:
        tokens, mask = inputs
        x, found = self.words(tokens).transpose(0, 1) * 2, []
        for block in self.blocks:
            x = block(x.transpose(0, 1), mask[:, None, None].bool()).transpose(0, 1) * 2
            found.append(x[0])
        return found


class Recurrent(Flat):
    """PyTorch's three recurrent layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        lstm = nn.LSTM(WIDTH, WIDTH // 2, num_layers=2, bidirectional=True, batch_first=True)
        gru = nn.GRU(WIDTH, WIDTH, bias=False)
        rnn = nn.RNN(WIDTH, WIDTH // 2, nonlinearity="relu", bidirectional=True, batch_first=True)
        self.blocks = nn.ModuleList([lstm, gru, rnn])

    def features(self, *inputs: Tensor) -> Sequence[Tensor]:
        (tokens,) = inputs
        x, found = self.words(tokens), []
        for block in self.blocks:
            x = block(x)[0] if block.batch_first else block(x.transpose(0, 1))[0].transpose(0, 1)
            found.append(x[:, -1])
        return found


class Two(Flat):
    """Two tensors of numbers; later exits need the second again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, WIDTH), nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH + 4, WIDTH) for _ in range(3))

    def features(self, *inputs: Tensor) -> Sequence[Tensor]:
        one, other = inputs
        x, found = F.relu(self.first(one) + self.second(other)), []
        for block in self.blocks:
            x = F.relu(block(torch.cat([x, other], -1)))
            found.append(x)
        return found


def tokens(count: int, length: int) -> Tensor:
    """Random tokens (count, length)."""
    return torch.randint(1, WORDS, (count, length), generator=torch.Generator().manual_seed(count * length))


def padded(count: int, length: int) -> dict[str, Tensor]:
    """Tokens, and a mask of different lengths."""
    lengths = torch.randint(1, length + 1, (count,), generator=torch.Generator().manual_seed(length))
    return {
        "input_ids": tokens(count, length),
        "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
    }


def file_of(module: Flat, inputs: InputSpec, path: Path) -> Path:
    """Export and nest a module, for the rule max_softmax."""
    form = Form(module.exits, CLASSES, inputs, False)
    model = nest(exported(module, form, type(module).__name__), form)
    bounds = np.full(module.exits - 1, 0.5, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(bounds, BOUNDS))
    facts: dict[str, Any] = {"schema": SCHEMA, "ztw": "test", "exits": module.exits, "num_classes": CLASSES}
    facts |= {"inputs": inputs.to_json(), "log_probabilities": False, "class_names": None}
    facts |= {"rule": {"rule": "max_softmax", "threshold": 0.5}, "macs": [1, 2, 3], "backbone_macs": 4}
    onnx.helper.set_model_props(model, {METADATA: json.dumps(facts)})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@torch.no_grad()
def logits_of(module: Flat, batch: Any) -> Tensor:
    """The logits (K, N, classes) of every exit."""
    return torch.stack(module(*tensors_of(batch))[::2])


def assert_as_flat(module: Flat, runner: ztw.OnnxRunner, batches: Sequence[Any]) -> None:
    """In batches, and one by one, each sample leaves where its scores say, with the logits of that exit."""
    exits: set[int] = set()
    for batch in batches:
        logits = logits_of(module, batch)
        torch.testing.assert_close(runner.logits(batch), logits, atol=1e-4, rtol=1e-4)
        scores = logits[:-1].softmax(-1).amax(-1)
        middle = scores.median(1).values + 1e-4 if logits.shape[1] > 1 else scores[:, 0] - 1e-3
        for thresholds in (middle.tolist(), [1.0] * len(middle), [0.0] * len(middle)):
            rule = ztw.MaxSoftmax(tuple(min(max(value, 0.0), 1.0) for value in thresholds))
            expected, answering = ztw.simulate_exits(logits, rule)
            answers = logits[answering, torch.arange(logits.shape[1])]
            singles = [pick(batch, torch.tensor([row])) for row in range(min(3, len(expected)))]
            found = [runner(batch, rule), *(runner(single, rule) for single in singles)]
            assert torch.equal(found[0].exit_index, expected)
            assert [int(one.exit_index) for one in found[1:]] == expected[: len(singles)].tolist()
            for result, wanted in zip(found, (answers, *answers[: len(singles)].split(1)), strict=True):
                torch.testing.assert_close(result.logits, wanted, atol=1e-4, rtol=1e-4)
            exits |= set(expected.tolist())
    assert exits == set(range(module.exits))
