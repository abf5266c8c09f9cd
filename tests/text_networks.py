"""A tiny network for texts of any length, by hand, and texts that it can learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import ztw
from ztw.batch import Input, InputSpec

WORDS, WIDTH, CLASSES = 12, 8, 3
EXAMPLE = [[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]]
MASK_OF_EXAMPLE = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
SPEC = InputSpec(
    (
        Input("input_ids", (None,), "int64", EXAMPLE),
        Input("attention_mask", (None,), "int64", MASK_OF_EXAMPLE),
    ),
    "dict",
)


def mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean (N, D) of the tokens (N, T, D) that the mask (N, T) keeps."""
    kept = mask[..., None].to(tokens.dtype)
    return (tokens * kept).sum(1) / kept.sum(1).clamp(min=1)


class Embed(nn.Module):
    """The first stage: from a batch, a dict or a tuple, to a state."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        ids, mask = batch.values() if isinstance(batch, dict) else batch
        tokens = self.words(ids)
        return {"features": tokens, "attention_mask": mask, "first": mean(tokens, mask)}


class Mix(nn.Module):
    """A later stage, which needs the mask and a value of the first stage."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens, mask = state["features"], state["attention_mask"]
        mixed = tokens + torch.tanh(self.linear(tokens + (mean(tokens, mask) + state["first"])[:, None]))
        return {**state, "features": mixed}


class Classify(nn.Module):
    """The classifier: from a state to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, CLASSES)

    def forward(self, state: dict[str, Tensor]) -> Tensor:
        return self.linear(mean(state["features"], state["attention_mask"]))


class Head(nn.Module):
    """An IC: from (tokens, mask) to logits."""

    def __init__(self, previous: int) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH + previous, CLASSES)

    def forward(self, features: tuple[Tensor, Tensor], previous: Tensor | None = None) -> Tensor:
        pooled = mean(*features)
        return self.linear(pooled if previous is None else torch.cat([pooled, previous], 1))


def text_network(connection: str = "independent", form: str = "dict") -> ztw.EarlyExitNetwork:
    """Three stages with an IC after each of the first two, in eval mode."""
    torch.manual_seed(0)
    spec = InputSpec(SPEC.inputs, form)
    backbone = ztw.Backbone("words", [Embed(), Mix(), Mix()], Classify(), spec)
    heads = [Head(CLASSES * (connection.startswith("cascade") and exit > 0)) for exit in range(2)]
    return ztw.EarlyExitNetwork(backbone, heads, (0, 1), connection).eval()


def texts(count: int = 96) -> tuple[dict[str, Tensor], Tensor]:
    """Texts of up to 7 words, of 3 classes: which of the words 1 to 3 is in them. The rest of a row is padding, 0."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    ids = torch.randint(4, WORDS, (count, 7), generator=generator)
    length = torch.randint(3, 8, (count,), generator=generator)
    mask = (torch.arange(7) < length[:, None]).long()
    place = torch.randint(0, 3, (count,), generator=generator)
    ids[torch.arange(count), place] = labels + 1
    return {"input_ids": ids * mask, "attention_mask": mask}, labels


def shortened(rows: list[Any]) -> dict[str, Tensor]:
    """As a collator of Hugging Face's: one dict of samples ({...}, label), as long as the longest."""
    ids, mask = (torch.stack([row[name] for row, _ in rows]) for name in ("input_ids", "attention_mask"))
    longest = int(mask.sum(1).max())
    labels = torch.tensor([int(label) for _, label in rows])
    return {"input_ids": ids[:, :longest], "attention_mask": mask[:, :longest], "labels": labels}
