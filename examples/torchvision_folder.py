"""Add early exits to torchvision's ResNet-18, with images in train/<class>/*.png and held_out/<class>/*.png."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

import ztw

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def main(
    images: Path, folder: Path, size: int = 224, epochs: float = 5, weights: str | None = "DEFAULT"
) -> ztw.OperatingPoint:
    """Run all steps and write the network to `folder`. Backbone and exits are trained together: the last layer is new.

    Args:
        images: the folder with train/ and held_out/.
        size: images are resized to this side in pixels.
        weights: of torchvision; "DEFAULT" downloads ImageNet's once.
    """
    torch.manual_seed(0)
    ready = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augmented = transforms.Compose(
        [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *ready]
    )
    plain = transforms.Compose([transforms.Resize((size, size)), *ready])
    training = ImageFolder(str(images / "train"), augmented)
    held_out = ImageFolder(str(images / "held_out"), plain)

    model = resnet18(weights=weights)
    model.fc = nn.Linear(model.fc.in_features, len(training.classes))
    backbone = ztw.as_backbone(model, input_shape=(3, size, size))
    network = ztw.build_network(backbone, placement=[0.25, 0.5, 0.75])
    if torch.cuda.is_available():
        network.cuda()
    loader = DataLoader(training, batch_size=32, shuffle=True)
    ztw.train_exits(network, loader, epochs=epochs, regime="joint", checkpoints=folder / "checkpoints")
    point = ztw.choose_threshold(network, DataLoader(held_out, batch_size=64), allowed_loss=0.01)
    print(
        f"{point.chosen_by}: accuracy {point.accuracy:.3f} at {point.relative_cost:.2f} of the backbone's MACs"
    )
    ztw.save(network, folder, rule=point.rule, class_names=training.classes, normalisation=(MEAN, STD))
    return point


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="the folder that holds train/ and held_out/")
    parser.add_argument("folder", type=Path, help="the folder for the network")
    given = parser.parse_args()
    main(given.images, given.folder)
