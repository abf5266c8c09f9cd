"""Add early exits to a vision transformer of timm (pip install timm), with generated images."""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import torch

import ztw


def main(folder: Path, size: int = 32, samples: int = 512, epochs: float = 2) -> ztw.OperatingPoint | None:
    """Run all steps and write the network to `folder`. Without timm, print a line and return None."""
    try:
        timm = import_module("timm")
    except ModuleNotFoundError:
        print("timm is not installed: pip install timm", file=sys.stderr)
        return None
    torch.manual_seed(0)
    labels = torch.arange(samples) % 4
    images = torch.randn(samples, 3, size, size)
    images[torch.arange(samples), labels % 3] += 1.0 + (labels // 3)[:, None, None]  # colour by class
    half = samples // 2
    training, held_out = (images[:half], labels[:half]), (images[half:], labels[half:])

    # pretrained=True downloads weights; you can train the model first
    model = timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=4, pretrained=False)
    backbone = ztw.as_backbone(model, input_shape=(3, size, size))  # one stage per transformer block
    network = ztw.build_network(backbone, placement=[2, 5, 8])
    ztw.train_exits(network, training, epochs=epochs, regime="joint", batch_size=32)
    network.ensemble = ztw.fit_ensemble(*ztw.predict(network, held_out))
    point = ztw.choose_threshold(network, held_out, risk=(0.05, 0.1))
    print(
        f"{point.chosen_by}: accuracy {point.accuracy:.3f} at {point.relative_cost:.2f} of the backbone's MACs"
    )
    ztw.save(network, folder, rule=point.rule)
    return point


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir(), "timm-vit-ee"))
    main(parser.parse_args().folder)
