"""Metadata of the built-in data sets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetMetadata:
    """Metadata of a data set.

    Args:
        num_classes: number of classes; None = the number of class folders.
        size: side of the images in pixels.
        channels: 1 for greyscale, 3 for colour.
        mean, std: per channel, of pixels scaled to [0, 1]; None = measured on the training images.
        flip, crop_padding, colour_jitter: augmentation. The padding is in pixels, the jitter is a share.
        files: file below the data root -> SHA-256.
        url: URL of the folder with the files.
        gzipped: whether each file is downloaded as FILE.gz.
        archive: name of a folder, or of its zip file, below the data root.
        archive_sha256: SHA-256 of the zip file.
        digest: digest of the archive's files, see `ztw.data.tiny_imagenet`.
        counts: split -> images per class.
        streamed: whether images are read from class folders on each use, for data sets larger than memory.
        source: where a user gets the data set, for messages.
    """

    num_classes: int | None
    size: int | None
    channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    flip: bool = False
    crop_padding: int = 0
    colour_jitter: float = 0.0
    files: dict[str, str] | None = None
    url: str | None = None
    gzipped: bool = False
    archive: str | None = None
    archive_sha256: str | None = None
    digest: str | None = None
    counts: dict[str, int] | None = None
    streamed: bool = False
    source: str | None = None


_CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

DATASETS: dict[str, DatasetMetadata] = {
    "fashion_mnist": DatasetMetadata(
        num_classes=10,
        size=28,
        channels=1,
        mean=(0.2860,),
        std=(0.3530,),
        flip=True,
        crop_padding=2,
        files={  # SHA-256 of unpacked files, because gzip headers differ between distributions
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
        url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        gzipped=True,
    ),
    "cifar10": DatasetMetadata(
        10,
        32,
        3,
        *_CIFAR10_STATISTICS,
        flip=True,
        crop_padding=4,
        files={"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        url="https://www.cs.toronto.edu/~kriz",
    ),
    "cifar100": DatasetMetadata(
        100,
        32,
        3,
        (0.507, 0.487, 0.441),
        (0.267, 0.256, 0.276),
        flip=True,
        crop_padding=4,
        files={"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
        url="https://www.cs.toronto.edu/~kriz",
    ),
    "svhn": DatasetMetadata(
        10,
        32,
        3,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        crop_padding=4,  # no flip: a mirrored digit is not a digit
        files={
            "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        },
        url="https://ufldl.stanford.edu/housenumbers",
    ),
    "tiny_imagenet": DatasetMetadata(
        200,
        64,
        3,
        (0.4802, 0.4481, 0.3975),
        (0.2302, 0.2265, 0.2262),
        flip=True,
        crop_padding=8,
        colour_jitter=0.2,
        url="https://cs231n.stanford.edu",
        archive="tiny-imagenet-200",
        archive_sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
        digest="eceabd779e714bd9198bfe3da9a54b30d584e6a40a6c8cd33ccf51987aadb308",
        counts={"train": 500, "test": 50},
    ),
    "imagenet": DatasetMetadata(
        1000,
        224,
        3,
        *_IMAGENET_STATISTICS,
        flip=True,
        streamed=True,
        source="https://image-net.org, after registration",
    ),
    "digits": DatasetMetadata(10, 8, 1, (0.306,), (0.3763,)),
}

# A user's folder of class folders. Classes, mean and std are measured.
IMAGE_FOLDER = DatasetMetadata(None, None, 3, None, None, flip=True, crop_padding=4)
# A streamed folder. Measuring mean and std would read every image, so ImageNet's are used.
STREAMED_FOLDER = DatasetMetadata(None, None, 3, *_IMAGENET_STATISTICS, flip=True, streamed=True)
