"""Models like those of users, for the tests of cutting and saving."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

# Functions that make a layer's weights computed ones
COMPUTED_WEIGHTS: dict[str, Any] = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "two": lambda layer: prune.random_unstructured(
        parametrizations.weight_norm(layer, "weight"), "bias", 0.5
    ),
}


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
        hidden = F.gelu(self.conv3(x))
        hidden += x
        x = F.adaptive_avg_pool2d(hidden, 4)[..., :4]
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
    """Two Linears; how: what it does or returns that other models do not."""

    seen: Tensor

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(48, 8), nn.Linear(8, 3), how
        self.rounds = Rounds()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        mean = x.mean() if self.how == "mean" else 0
        hidden = torch.relu(self.a(x.flatten(1))) - mean
        if self.how == "dropout":
            hidden = F.dropout(hidden, training=self.training)
        if self.how == "flow" and hidden.sum() > 0:
            hidden = hidden + 1
        if self.how == "random":
            hidden = hidden * torch.rand(1)
        if self.how == "counts":
            self.seen += 1
            hidden = hidden * self.seen
        if self.how == "integers":
            hidden = self.rounds(hidden).float()
        answer = self.b(hidden)
        made = {
            "dict": {"out": answer, "hidden": hidden},
            "tuple": (answer, hidden),
            "object": SimpleNamespace(logits=answer),
            "softmax": answer.softmax(-1),
            "map": x,
            "text": "logits",
            "empty": (),
            "nothing": None,
            "unused": hidden[:, :3],
        }
        return made.get(self.how, answer)

    @staticmethod
    def logits_of(answer: Any) -> Tensor:
        """The logits in what the model returns."""
        if isinstance(answer, dict):
            return answer["out"]
        return answer[0] if isinstance(answer, tuple) else getattr(answer, "logits", answer)


class Rounds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round().long()


class EncoderBlock(nn.Module):
    """Attention under a mask, with dropout as a function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-1, -2) / (d // 2) ** 0.5 + mask).softmax(-1)
        hidden = (F.dropout(weights, 0.1, self.training) @ v).transpose(1, 2).reshape(n, t, d)
        x = x + F.dropout(self.out(hidden), 0.1, self.training)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """A text classifier: token ids and their mask, positions from the length."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(24, 16)
        self.blocks = nn.ModuleList(EncoderBlock(16) for _ in range(3))
        self.fc = nn.Linear(16, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        mask = torch.zeros(input_ids.shape[0], 1, 1, input_ids.shape[1], device=input_ids.device)
        mask = mask.masked_fill(attention_mask[:, None, None] == 0, float("-inf"))
        for block in self.blocks:
            x = block(x, mask)
        kept = attention_mask[..., None].to(x.dtype)
        return {"logits": self.fc((x * kept).sum(1) / kept.sum(1)), "tokens": x}


class TwoInputs(nn.Module):
    """An image and numbers, by position; the numbers are needed in every block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table = nn.Conv2d(3, 8, 3, 2), nn.Linear(5, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.fc = nn.Linear(8, 4)

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        x = F.relu(self.conv(image)).mean((2, 3))
        for layer in self.layers:
            x = torch.tanh(layer(x) * self.table(numbers))
        return self.fc(x)


class Signals(nn.Sequential):
    """A 1-D CNN for signals of two channels."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for channels in (2, 8, 8):
            layers += [nn.Conv1d(channels, 8, 5, 2), nn.BatchNorm1d(8), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4))


class Scaled(nn.Module):
    """Blocks that pass two tensors: a residual stream and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ScaledBlock() for _ in range(3))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().mean(1, keepdim=True)
        for block in self.blocks:
            x, scale = block(x, scale)
        return self.fc(x * scale)


class ScaledBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.layer(x * scale))
        return x + hidden, 1 + scale * hidden.std(1, keepdim=True)
