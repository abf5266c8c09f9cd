"""Ask whether early exits pay for a CNN on the digits of scikit-learn (pip install scikit-learn)."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ztw


class Net(nn.Module):
    """A CNN with `depth` convolutions of `width` channels."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        channels = [1] + depth * [width]
        self.convs = nn.ModuleList(nn.Conv2d(before, width, 3, padding=1) for before in channels[:-1])
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """images (N, 1, 8, 8) -> logits (N, 10)."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.fc(x.mean((2, 3)))


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Train the model; use your own training here."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model


def main(folder: Path, epochs: int = 20, width: int = 32, exit_epochs: float | None = None) -> ztw.Advice:
    """Print the advice, and write what it recommends to `folder`."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(digits.target)
    training, held_out = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])
    model = train(Net(width, depth=6), *training, epochs)
    smaller = train(Net(width // 2, depth=3), *training, epochs)

    advice = ztw.advise(
        model, training, held_out, alternatives={"half": smaller}, allowed_loss=0.01, epochs=exit_epochs
    )
    print(advice)
    advice.best.save(folder)
    runner = ztw.OnnxRunner(folder / "model.onnx", threads=1)
    result = runner(held_out[0][:5])
    print(f"classes of five images: {result.logits.argmax(-1).tolist()}, right: {held_out[1][:5].tolist()}")
    return advice


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir(), "advised"))
    main(parser.parse_args().folder)
