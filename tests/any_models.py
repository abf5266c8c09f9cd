"""Classifiers that people bring: torchvision's, timm's, Hugging Face's and their own, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from ztw.batch import Batch, mapped

CLASSES = 5


@dataclass(frozen=True)
class Case:
    """A model and how to cut it.

    Args:
        build: returns the model.
        example: a batch of at least 2 samples.
        at: the modules that a user would name.
        blocks: number of blocks that the default finds.
    """

    build: Callable[[], nn.Module]
    example: Any
    at: Sequence[str]
    blocks: int


class Lstms(nn.Module):
    """Words to classes by three LSTMs of one layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(nn.LSTM(16, 16, batch_first=True) for _ in range(3))
        self.classes = nn.Linear(16, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x, _ = layer(x)
        return self.classes(x[:, -1])


class TwoInputs(nn.Module):
    """Two vectors to classes, with F.dropout in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 16), nn.Linear(4, 16)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.classes = nn.Linear(16, CLASSES)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        x = F.relu(self.one(one) + self.other(other))
        x = F.relu(self.first(x))
        x = F.dropout(F.relu(self.second(x)), 0.1, self.training)
        return self.classes(x)


class Signals(nn.Module):
    """A 1-D CNN for signals (N, 2, 40)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(2, 8, 5), nn.BatchNorm1d(8)
        self.second, self.third = nn.Conv1d(8, 8, 5), nn.Conv1d(8, 8, 5)
        self.classes = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.third(F.relu(self.second(x))))
        return self.classes(x.mean(-1))


class Pair(nn.Module):
    """A block of two resolutions that takes and returns a pair of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        fine = F.relu(self.fine(fine))
        return fine, F.relu(self.coarse(coarse + F.avg_pool2d(fine, 2)))


class Scales(nn.Module):
    """A network whose blocks pass two maps, as MSDNet's do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Pair() for _ in range(3))
        self.classes = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.stem(images)
        coarse = F.max_pool2d(fine, 2)
        for block in self.blocks:
            fine, coarse = block(fine, coarse)
        return self.classes(coarse.mean((2, 3)))


def convolutions(change: Callable[[nn.Module], Any] = lambda layer: None) -> nn.Sequential:
    """Three convolutions, each changed, that end in a convolution and a pooling."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, CLASSES, 1)]
    for layer in layers:
        change(layer)
    return nn.Sequential(
        layers[0],
        nn.ReLU(),
        nn.MaxPool2d(2),
        layers[1],
        nn.ReLU(),
        layers[2],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(20, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, CLASSES),
    )


def torchvision_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)

    return build


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=CLASSES, **options)

    return build


def hugging_face(kind: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **options)
        task = "Image" if kind in ("ViT", "ResNet") else "Sequence"
        return getattr(transformers, f"{kind}For{task}Classification")(config)

    return build


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def texts(count: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Random token ids; all rows but the first end in padding."""
    generator = torch.Generator().manual_seed(count)
    kept = torch.randint(length // 2, length, (count,), generator=generator)
    kept[0] = length
    mask = (torch.arange(length) < kept[:, None]).long()
    return {
        "input_ids": torch.randint(1, 100, (count, length), generator=generator) * mask,
        "attention_mask": mask,
    }


SMALL = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
PLAIN = images(16)
CASES: dict[str, Case] = {
    "torchvision resnet18": Case(
        torchvision_model("resnet18"), images(64), ["layer1", "layer2", "layer3"], 8
    ),
    "torchvision efficientnet_b0": Case(
        torchvision_model("efficientnet_b0"), images(64), ["features.2", "features.4"], 16
    ),
    "torchvision swin_t": Case(torchvision_model("swin_t"), images(64), ["features.1", "features.3"], 15),
    "torchvision vit_b_16": Case(
        torchvision_model("vit_b_16", image_size=32),
        images(32),
        ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_3"],
        12,
    ),
    "torchvision vgg11_bn": Case(
        torchvision_model("vgg11_bn"), images(64), ["features.7", "features.14"], 10
    ),
    "torchvision squeezenet1_1": Case(
        torchvision_model("squeezenet1_1"), images(64), ["features.5", "features.8"], 8
    ),
    "torchvision regnet_y_400mf": Case(
        torchvision_model("regnet_y_400mf"), images(64), ["trunk_output.block1", "trunk_output.block2"], 16
    ),
    "timm efficientnet_b0": Case(timm_model("efficientnet_b0"), images(64), ["blocks.1", "blocks.3"], 16),
    "timm mobilenetv4_conv_small": Case(
        timm_model("mobilenetv4_conv_small"), images(64), ["blocks.1", "blocks.2"], 17
    ),
    "timm ghostnet_100": Case(timm_model("ghostnet_100"), images(64), ["blocks.2", "blocks.4"], 16),
    "timm repvgg_a0": Case(timm_model("repvgg_a0"), images(64), ["stages.0", "stages.1"], 22),
    "timm eva02_tiny": Case(
        timm_model("eva02_tiny_patch14_224", img_size=56), images(56), ["blocks.2", "blocks.5"], 12
    ),
    "timm vit_tiny": Case(
        timm_model("vit_tiny_patch16_224", img_size=64), images(64), ["blocks.2", "blocks.5"], 12
    ),
    "Hugging Face ViT": Case(
        hugging_face("ViT", num_hidden_layers=3, image_size=32, patch_size=8, **SMALL),
        images(32),
        ["vit.layers.0", "vit.layers.1"],
        3,
    ),
    "Hugging Face ResNet": Case(
        hugging_face(
            "ResNet",
            embedding_size=16,
            hidden_sizes=[16, 32, 64, 64],
            depths=[1, 1, 1, 1],
            layer_type="basic",
        ),
        images(64),
        [f"resnet.encoder.stages.{number}" for number in range(3)],
        5,
    ),
    "Hugging Face BERT": Case(
        hugging_face("Bert", vocab_size=100, num_hidden_layers=4, **SMALL),
        texts(),
        [f"bert.encoder.layer.{number}" for number in range(3)],
        4,
    ),
    "Hugging Face DistilBERT": Case(
        hugging_face("DistilBert", vocab_size=100, dim=48, n_layers=3, n_heads=4, hidden_dim=96),
        texts(),
        ["distilbert.transformer.layer.0", "distilbert.transformer.layer.1"],
        3,
    ),
    "MLP": Case(mlp, torch.randn(2, 20), ["1", "3"], 3),
    "1-D CNN": Case(Signals, torch.randn(2, 2, 40), ["first", "second"], 3),
    "three LSTMs": Case(Lstms, torch.arange(18).view(2, 9), ["layers.0", "layers.1"], 3),
    "two inputs": Case(TwoInputs, (torch.randn(2, 8), torch.randn(2, 4)), ["first", "second"], 2),
    "blocks that pass two maps": Case(Scales, PLAIN, ["blocks.0", "blocks.1"], 2),
    "ends in convolution and pooling": Case(convolutions, PLAIN, ["1", "4"], 2),
    "weight_norm": Case(lambda: convolutions(parametrizations.weight_norm), PLAIN, ["1", "4"], 2),
    "spectral_norm": Case(lambda: convolutions(parametrizations.spectral_norm), PLAIN, ["1", "4"], 2),
    "pruning": Case(lambda: convolutions(pruned), PLAIN, ["1", "4"], 2),
    "torch.compile": Case(lambda: cast(nn.Module, torch.compile(convolutions())), PLAIN, ["1", "4"], 2),
}


def build(name: str) -> nn.Module:
    """Return a model in eval mode; statistics of BatchNorms are those of random inputs."""
    torch.manual_seed(0)
    case = CASES[name]
    model = case.build()
    inner = cast(nn.Module, getattr(model, "_orig_mod", model))
    norms: list[Any] = [part for part in inner.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.momentum = None
        with torch.no_grad():
            inner.train()(batch_like(case.example, 16))
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()


def batch_like(example: Any, count: int) -> Any:
    """Return a random batch of `count` samples in the form of an example; integers are drawn from the example's."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(example, dict):
        return texts(count)

    def draw(tensor: Tensor) -> Tensor:
        shape = (count, *tensor.shape[1:])
        if tensor.is_floating_point():
            return torch.randn(shape, generator=generator)
        return torch.randint(0, int(tensor.max()) + 1, shape, generator=generator)

    return mapped(example, draw)


def one_of(batch: Batch, row: int = 0) -> Any:
    """Return a batch of one sample."""
    return mapped(batch, lambda tensor: tensor[row : row + 1])
