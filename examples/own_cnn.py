"""Add early exits to your own CNN, on tensors: train, fit an ensemble, choose a threshold, save, load, run."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ztw


class Net(nn.Module):
    """A small CNN with functional calls in `forward`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 4 * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """images (N, 1, 16, 16) -> logits (N, classes)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x))
        return self.fc(torch.flatten(x, 1))


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy images (N, 1, 16, 16) and labels of five classes. A class is the position of a bright row."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (count,), generator=generator)
    images = torch.randn(count, 1, 16, 16, generator=generator)
    images[torch.arange(count), 0, 3 * labels] += 1.5
    return images, labels


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train the model; use your own training here."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def main(folder: Path, samples: int = 4000, epochs: int = 5) -> ztw.OperatingPoint:
    """Run all steps and write the network to `folder`."""
    torch.manual_seed(0)
    training, held_out, test = stripes(samples, 0), stripes(samples // 2, 1), stripes(samples // 2, 2)
    model = Net(num_classes=5)
    train(model, *training, epochs)

    backbone = ztw.as_backbone(model, input_shape=(1, 16, 16), at=["conv1", "conv2"])
    network = ztw.build_network(backbone, connection="cascade_detached", head="pool")
    ztw.train_exits(network, training, epochs=epochs)
    network.ensemble = ztw.fit_ensemble(*ztw.predict(network, held_out))
    point = ztw.choose_threshold(network, held_out, budget=0.7)
    print(
        f"{point.chosen_by}: accuracy {point.accuracy:.3f} at {point.relative_cost:.2f} of the backbone's MACs"
    )

    ztw.save(network, folder, rule=point.rule, class_names=[f"row {3 * label}" for label in range(5)])
    loaded, rule = ztw.load(folder)  # also in another process, without this file
    assert rule is not None
    result = loaded.infer(test[0], rule)
    right = (result.logits.argmax(-1) == test[1]).double().mean()
    print(f"test images: accuracy {right:.3f}, left at exits {torch.bincount(result.exit_index).tolist()}")

    runner = ztw.OnnxRunner(ztw.export_onnx(loaded, rule, folder / "network.onnx"), threads=1)
    same = (runner(test[0]).exit_index == result.exit_index).double().mean()
    print(f"ONNX Runtime: {same:.1%} of the test images leave at the same exit")
    return point


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir(), "own-cnn-ee"))
    main(parser.parse_args().folder)
