"""Models like those of users, for the tests of cutting and saving."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Cnn(nn.Module):
    """A CNN with functional calls, a batch size read at the start, its own activation and its own scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.act = nn.Conv2d(8, 8, 3, padding=1), Swish()
        self.conv3, self.drop = nn.Conv2d(8, 8, 3, padding="same"), nn.Dropout(0.2)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        x = self.act(self.conv2(x)) * self.scale
        x += F.gelu(self.conv3(x))
        x = F.adaptive_avg_pool2d(x, 4)[..., :4]
        return self.fc(self.drop(x.reshape(count, -1)))


class Transformer(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", **options)
        self.patch, self.encoder = (
            nn.Conv2d(3, 16, 4, 4),
            nn.TransformerEncoder(layer, 3, enable_nested_tensor=False),
        )
        self.token, self.head = nn.Parameter(torch.zeros(1, 1, 16)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.head(self.encoder(x)[:, 0])


class Block(nn.Module):
    """A residual block; how: a kind of code that torch.fx cannot trace."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(4, 4, 3, padding=1), how

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.conv(x))
        if self.how == "dropout":
            hidden = F.dropout(hidden, 0.5, self.training)
        if self.how == "flow" and hidden.mean() > 1e6:
            hidden = -hidden
        return x + hidden


class Blocks(nn.Module):
    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.Sequential(Block(how), Block(how), Block(how))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Plain(nn.Module):
    """Two Linears; how: a kind of code that cannot be cut."""

    seen: Tensor

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(48, 8), nn.Linear(8, 3), how
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        hidden = torch.relu(self.a(x.flatten(1)))
        if self.how == "dropout":
            hidden = F.dropout(hidden, training=self.training)
        if self.how == "flow" and hidden.sum() > 0:
            hidden = hidden + 1
        if self.how == "random":
            hidden = hidden * torch.rand(1)
        if self.how == "counts":
            self.seen += 1
        answer = self.b(hidden)
        made = {"dict": {"out": answer}, "tuple": (answer, hidden), "softmax": answer.softmax(-1), "map": x}
        return made.get(self.how, answer)
