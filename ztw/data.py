"""Data sets: one table of facts, images as uint8 tensors, a held-out split, batched augmentation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ztw.checkpoints import read_tensors
from ztw.errors import ZtwError, unknown
from ztw.files import sha256


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set before it is read.

    mean and std are per channel, of pixels scaled to [0, 1]; None where they are measured on the
    training images. files maps a file name below the data root to its SHA-256; url is the folder they
    are downloaded from, None where torchvision knows it. archive: a folder below the data root, or a
    zip of it, whose files have this digest (`ztw.fetch.Digest`) and these counts of images per class
    in each split. streamed: too big for memory, read from folders of class folders as it is used.
    """

    classes: int | None
    size: int | None
    channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    source: str
    flip: bool = False
    crop_padding: int = 0
    colour_jitter: float = 0.0
    files: dict[str, str] | None = None
    url: str | None = None
    archive: str | None = None
    digest: str | None = None
    counts: dict[str, int] | None = None
    streamed: bool = False


_CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

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
    "svhn": DatasetFacts(
        10,
        32,
        3,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        source="Stanford",
        crop_padding=4,  # no flips: digits are no digits any more
        files={
            "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        },
        url="http://ufldl.stanford.edu/housenumbers",
    ),
    "tiny_imagenet": DatasetFacts(
        200,
        64,
        3,
        (0.4802, 0.4481, 0.3975),
        (0.2302, 0.2265, 0.2262),
        source="Stanford",
        flip=True,
        crop_padding=8,
        colour_jitter=0.2,
        url="http://cs231n.stanford.edu",
        archive="tiny-imagenet-200",
        digest="eceabd779e714bd9198bfe3da9a54b30d584e6a40a6c8cd33ccf51987aadb308",
        counts={"train": 500, "test": 50},
    ),
    "imagenet": DatasetFacts(
        1000,
        224,
        3,
        *_IMAGENET_STATISTICS,
        source="https://image-net.org, after registration",
        flip=True,
        streamed=True,
    ),
    "digits": DatasetFacts(10, 8, 1, (0.306,), (0.3763,), source="scikit-learn"),
}

# A user's own folder of class folders; its classes, mean and std are read from the images.
IMAGE_FOLDER = DatasetFacts(None, None, 3, None, None, source="image_folder", flip=True, crop_padding=4)
# One that is streamed: nobody has read all its pixels, so ImageNet's mean and std stand in.
STREAMED_FOLDER = DatasetFacts(
    None, None, 3, *_IMAGENET_STATISTICS, source="image_folder", flip=True, streamed=True
)


def dataset_facts(name: str, image_folders: dict | None = None) -> DatasetFacts:
    """The facts of a built-in data set, or those every `image_folder` of the config shares.

    Raises ZtwError for a name that is neither.
    """
    folder = (image_folders or {}).get(name)
    if folder is not None:
        return STREAMED_FOLDER if folder.get("stream") else IMAGE_FOLDER
    if name not in DATASETS:
        raise unknown("data set", name, [*DATASETS, *(image_folders or {})])
    return DATASETS[name]


class Data(ABC):
    """Labelled images that can be fed to a network, wherever they are kept.

    labels: int64 (N,), on `device`; mean and std per channel, of pixels in [0, 1].
    """

    labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where labels and batches are."""

    @abstractmethod
    def take(self, indices: Tensor) -> Self:
        """The subset at `indices` (int64); no image is read or copied."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """The same set for a network on `device`."""

    @abstractmethod
    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, augmented: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See the function `batches`."""


@dataclass(frozen=True)
class ImageSet(Data):
    """Decoded images, perhaps memory-mapped, with what is needed to feed them to a network.

    stored: uint8 (M, channels, size, size), read where a batch needs it; index: int64 (N,), which of
    them belong to the set, in order, None for all; labels: int64 (N,), theirs.
    mean and std per channel in [0, 1]; flip, crop_padding, colour_jitter: see `augment`.
    """

    stored: Tensor
    labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False
    crop_padding: int = 0
    colour_jitter: float = 0.0
    index: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.stored.device

    @property
    def images(self) -> Tensor:
        """uint8 (N, channels, size, size): a copy, unless the set is whole; batches do without it."""
        return self.stored if self.index is None else self.stored[self.index]

    def _at(self, indices: Tensor) -> Tensor:
        return self.stored[indices if self.index is None else self.index[indices]]

    def take(self, indices: Tensor) -> Self:
        """The subset at `indices` (int64); shares the stored images."""
        indices = indices.to(self.device)
        index = indices if self.index is None else self.index[indices]
        return replace(self, labels=self.labels[indices], index=index)

    def to(self, device: torch.device) -> Self:
        """The same set on `device`: on the CPU itself, on a GPU a copy of the images taken."""
        if device.type == self.device.type == "cpu":
            return self
        images = torch.empty((len(self), *self.stored.shape[1:]), dtype=self.stored.dtype, device=device)
        for start in range(0, len(self), 4096):  # never a second copy in the CPU's memory
            part = torch.arange(start, min(start + 4096, len(self)), device=self.device)
            images[start : start + 4096] = self._at(part)
        return replace(self, stored=images, labels=self.labels.to(device), index=None)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, augmented: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See the function `batches`."""
        for indices in batch_indices(len(self), batch_size, generator):
            indices = indices.to(self.device)
            images = self._at(indices)
            if augmented and generator is not None:
                images = augment(images, self.flip, self.crop_padding, generator, self.colour_jitter)
            yield normalise(images, self.mean, self.std), self.labels[indices]


def load_split(prepared: dict[str, Any], split: str) -> Data:
    """Open one split that `ztw.fetch.prepare_dataset` has made ready; images are read when they are used.

    prepared: the record `prepare_dataset` returned, perhaps with a study's own flip, crop_padding,
    colour_jitter, mean, std, workers; split: "train" or "test".
    Raises ZtwError when the decoded file is missing, truncated or not what the record says.
    """
    path = Path(prepared["decoded"][split])
    hint = "delete it and the study's data/*.json, and run again to decode it anew"
    tensors = read_tensors(path, hint)  # memory-mapped
    if not is_unaltered(path, prepared, split):
        raise ZtwError(f"{path}: altered since it was decoded (its SHA-256 differs); {hint}")
    common = {
        "labels": tensors["labels"],
        "classes": prepared["classes"],
        "mean": tuple(prepared["mean"]),
        "std": tuple(prepared["std"]),
        "flip": prepared["flip"],
        "colour_jitter": prepared.get("colour_jitter", 0.0),
    }
    if prepared.get("streamed"):
        from ztw.streaming import StreamedSet

        files = (tensors["text"], tensors["ends"])
        place, size, workers = Path(prepared["folder"]), prepared["size"], prepared.get("workers")
        return StreamedSet(folder=place, files=files, size=size, workers=workers, **common)
    return ImageSet(stored=tensors["images"], crop_padding=prepared["crop_padding"], **common)


def stamp(path: Path) -> list[int]:
    """Size in bytes and time of change in ns: equal to what was recorded, the file needs no hashing."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def is_unaltered(path: Path, record: dict[str, Any], split: str) -> bool:
    """Whether a decoded file is what its record says, by its stamp or else by its SHA-256."""
    return record.get("stamps", {}).get(split) == stamp(path) or sha256(path) == record["sha256"][split]


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


def augment(
    images: Tensor, flip: bool, padding: int, generator: torch.Generator, colour_jitter: float = 0.0
) -> Tensor:
    """Flip each image with probability 1/2, crop it at a random offset after zero padding, jitter its colours.

    images: uint8 (N, C, H, W), any device; generator: on the CPU, so that every device sees the
    same augmentation. Returns uint8, or float32 in [0, 255] after colour jitter.
    """
    count, _, height, width = images.shape
    if flip:
        flipped = torch.rand(count, generator=generator).lt(0.5).to(images.device)
        images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
    if padding:
        offsets = torch.randint(2 * padding + 1, (2, count, 1), generator=generator).to(images.device)
        rows = offsets[0] + torch.arange(height, device=images.device)  # (N, H)
        columns = offsets[1] + torch.arange(width, device=images.device)  # (N, W)
        padded = torch.nn.functional.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
        sample = torch.arange(count, device=images.device).view(-1, 1, 1)
        images = padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if colour_jitter:
        factors = jitter_factors(count, colour_jitter, generator)
        images = adjust_colours(images, *factors.to(images.device))
    return images


def jitter_factors(count: int, strength: float, generator: torch.Generator) -> Tensor:
    """(3, count): factors of brightness, contrast and saturation, uniform in [1 - strength, 1 + strength]."""
    return torch.empty(3, count).uniform_(1 - strength, 1 + strength, generator=generator)


def adjust_colours(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Brightness, then contrast, then saturation, by torchvision's formulas, without its rounding between.

    images: uint8 or float (N, C, H, W) in [0, 255]; the factors (N,) per image, 1 leaves it as it is.
    Returns float32 in [0, 255].
    """
    brightness, contrast, saturation = (f.view(-1, 1, 1, 1) for f in (brightness, contrast, saturation))
    images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    images.mul_(brightness).clamp_(0, 255)
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    images.mul_(contrast).add_(mean * (1 - contrast)).clamp_(0, 255)
    grey = _grey(images) * (1 - saturation)
    return images.mul_(saturation).add_(grey).clamp_(0, 255)


def _grey(images: Tensor) -> Tensor:
    """(N, 1, H, W): luma of RGB images (ITU-R 601); others as they are."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def batch_indices(count: int, batch_size: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Positions int64 (B,) of each batch, in order or shuffled; no last batch of one when shuffled."""
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    for indices in order.split(batch_size):
        if generator is None or len(indices) > 1 or count == 1:
            yield indices


def batches(
    data: Data, batch_size: int, generator: torch.Generator | None = None, augmented: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images float32 (B, C, H, W), labels int64 (B,)); shuffled when a generator is given.

    Training passes (with a generator) drop a last batch of one image, which BatchNorm cannot use.
    """
    return data.batches(batch_size, generator, augmented)
