"""Data sets as uint8 tensors in memory: one table of facts, a held-out split, batched augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ztw.checkpoints import read_tensors
from ztw.errors import ZtwError, unknown
from ztw.files import sha256


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set before it is read.

    mean and std are per channel, of pixels scaled to [0, 1]; None where they are measured on the
    training images. files maps a file name below the data root to its SHA-256.
    """

    classes: int | None
    size: int | None
    channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    source: str
    flip: bool = False
    crop_padding: int = 0
    files: dict[str, str] | None = None


_CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))

DATASETS: dict[str, DatasetFacts] = {
    "fashion_mnist": DatasetFacts(
        classes=10,
        size=28,
        channels=1,
        mean=(0.2860,),
        std=(0.3530,),
        source="torchvision, or Debian's package dataset-fashion-mnist",
        flip=True,
        crop_padding=2,
        files={  # unpacked: gzip headers differ between distributions
            "FashionMNIST/raw/train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "FashionMNIST/raw/train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "FashionMNIST/raw/t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "FashionMNIST/raw/t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        },
    ),
    "cifar10": DatasetFacts(
        10,
        32,
        3,
        *_CIFAR10_STATISTICS,
        source="torchvision",
        flip=True,
        crop_padding=4,
        files={"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
    ),
    "cifar100": DatasetFacts(
        100,
        32,
        3,
        (0.507, 0.487, 0.441),
        (0.267, 0.256, 0.276),
        source="torchvision",
        flip=True,
        crop_padding=4,
        files={"cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
    ),
    "digits": DatasetFacts(10, 8, 1, (0.306,), (0.3763,), source="scikit-learn"),
}

# A user's own folder of class folders; its classes, mean and std are read from the images.
IMAGE_FOLDER = DatasetFacts(None, None, 3, None, None, source="image_folder", flip=True, crop_padding=4)


def dataset_facts(name: str, image_folders: dict | None = None) -> DatasetFacts:
    """The facts of a built-in data set, or those every `image_folder` of the config shares.

    Raises ZtwError for a name that is neither.
    """
    if name in (image_folders or {}):
        return IMAGE_FOLDER
    if name not in DATASETS:
        raise unknown("data set", name, [*DATASETS, *(image_folders or {})])
    return DATASETS[name]


@dataclass(frozen=True)
class ImageSet:
    """Images in memory with what is needed to feed them to a network.

    images: uint8 (N, channels, size, size); labels: int64 (N,); mean and std per channel in [0, 1].
    """

    images: Tensor
    labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False
    crop_padding: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> ImageSet:
        """The subset at `indices` (int64)."""
        return self._replace(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> ImageSet:
        """The same set with its tensors on `device`."""
        return self._replace(self.images.to(device), self.labels.to(device))

    def _replace(self, images: Tensor, labels: Tensor) -> ImageSet:
        return ImageSet(images, labels, self.classes, self.mean, self.std, self.flip, self.crop_padding)


def load_split(prepared: dict, split: str) -> ImageSet:
    """Read one split that `ztw.fetch.prepare_dataset` has decoded.

    prepared: the record `prepare_dataset` returned; split: "train" or "test".
    Raises ZtwError when the decoded file is missing, truncated or not what the record says.
    """
    path = Path(prepared["decoded"][split])
    hint = "delete it and the study's data/*.json, and run again to decode it anew"
    tensors = read_tensors(path, hint)
    if sha256(path) != prepared["sha256"][split]:
        raise ZtwError(f"{path}: altered since it was decoded (its SHA-256 differs); {hint}")
    images, labels = tensors["images"], tensors["labels"]
    return ImageSet(
        images,
        labels,
        prepared["classes"],
        tuple(prepared["mean"]),
        tuple(prepared["std"]),
        prepared["flip"],
        prepared["crop_padding"],
    )


def held_out_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split training samples into (train, validation) indices, stratified by class and seeded.

    labels: int64 (N,); fraction: share of each class that is held out, in (0, 1).
    Raises ZtwError when the fraction leaves either part empty.
    """
    if not 0 < fraction < 1:
        raise ZtwError(f"validation fraction {fraction!r}: must lie strictly between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held_out[members[: round(fraction * len(members))]] = True
    if held_out.all() or not held_out.any():
        raise ZtwError(f"validation fraction {fraction!r} of {len(labels)} images leaves a part empty")
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (N, C, H, W) to float32 in channels_last memory, (x / 255 - mean) / std per channel."""
    shape = (1, -1, 1, 1)
    scale = torch.tensor(std, device=images.device).view(shape).mul(255).reciprocal()
    shift = torch.tensor(mean, device=images.device).view(shape).mul(255)
    return (images.float() - shift).mul_(scale).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, flip: bool, padding: int, generator: torch.Generator) -> Tensor:
    """Flip each image with probability 1/2 and crop it at a random offset after zero padding.

    images: uint8 (N, C, H, W), any device; generator: on the CPU, so that every device sees the
    same augmentation.
    """
    count, _, height, width = images.shape
    if flip:
        flipped = torch.rand(count, generator=generator).lt(0.5).to(images.device)
        images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
    if not padding:
        return images
    offsets = torch.randint(2 * padding + 1, (2, count, 1), generator=generator).to(images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)  # (N, H)
    columns = offsets[1] + torch.arange(width, device=images.device)  # (N, W)
    padded = torch.nn.functional.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    sample = torch.arange(count, device=images.device).view(-1, 1, 1)
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batches(
    data: ImageSet, batch_size: int, generator: torch.Generator | None = None, augmented: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images float32 (B, C, H, W), labels int64 (B,)); shuffled when a generator is given.

    Training passes (with a generator) drop a last batch of one image, which BatchNorm cannot use.
    """
    device = data.images.device
    order = torch.arange(len(data)) if generator is None else torch.randperm(len(data), generator=generator)
    for indices in order.split(batch_size):
        if generator is not None and len(indices) == 1 and len(data) > 1:
            continue
        indices = indices.to(device)
        images = data.images[indices]
        if augmented and generator is not None:
            images = augment(images, data.flip, data.crop_padding, generator)
        yield normalise(images, data.mean, data.std), data.labels[indices]
