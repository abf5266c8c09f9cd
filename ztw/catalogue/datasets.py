"""What is known of every data set before it is read: one table of facts and checksums. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set before it is read.

    size: side of the images in pixels. mean and std are per channel, of pixels scaled to [0, 1]; None where
    they are measured on the training images. flip, crop_padding (pixels), colour_jitter (share): the
    augmentation that suits it. files maps a file name below the data root to its SHA-256; url is the folder
    they are downloaded from, where each is FILE.gz if gzipped. archive: a folder below the data root, or a zip
    of it, whose files have this digest (`ztw.data.tiny_imagenet.Digest`) and these counts of images per
    class in each split; archive_sha256: of the zip that is downloaded. streamed: too big for memory, read
    from folders of class folders as it is used; source: where its user gets it.
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

DATASETS: dict[str, DatasetFacts] = {
    "fashion_mnist": DatasetFacts(
        num_classes=10,
        size=28,
        channels=1,
        mean=(0.2860,),
        std=(0.3530,),
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
        url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        gzipped=True,
    ),
    "cifar10": DatasetFacts(
        10,
        32,
        3,
        *_CIFAR10_STATISTICS,
        flip=True,
        crop_padding=4,
        files={"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        url="https://www.cs.toronto.edu/~kriz",
    ),
    "cifar100": DatasetFacts(
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
    "svhn": DatasetFacts(
        10,
        32,
        3,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        crop_padding=4,  # no flips: digits are no digits any more
        files={
            "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        },
        url="https://ufldl.stanford.edu/housenumbers",
    ),
    "tiny_imagenet": DatasetFacts(
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
    "imagenet": DatasetFacts(
        1000,
        224,
        3,
        *_IMAGENET_STATISTICS,
        flip=True,
        streamed=True,
        source="https://image-net.org, after registration",
    ),
    "digits": DatasetFacts(10, 8, 1, (0.306,), (0.3763,)),
}

# A user's own folder of class folders; its classes, mean and std are read from the images.
IMAGE_FOLDER = DatasetFacts(None, None, 3, None, None, flip=True, crop_padding=4)
# One that is streamed: nobody has read all its pixels, so ImageNet's mean and std stand in.
STREAMED_FOLDER = DatasetFacts(None, None, 3, *_IMAGENET_STATISTICS, flip=True, streamed=True)
