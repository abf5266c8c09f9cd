"""Facts about the images of a study's data sets, a user's folders included. Imports no torch."""

from __future__ import annotations

from ztw.catalogue.datasets import DATASETS
from ztw.study.settings import DataSettings


def image_size(data: DataSettings, dataset: str) -> int:
    """Side of a data set's images in pixels."""
    if dataset in data.image_folders:
        return data.image_folders[dataset].size
    return DATASETS[dataset].size or 0


def image_channels(data: DataSettings, dataset: str) -> int:
    """1 for grey images, 3 for colour; those of a folder are read as colour."""
    return 3 if dataset in data.image_folders else DATASETS[dataset].channels


def is_streamed(data: DataSettings, dataset: str) -> bool:
    """Whether a data set's images are read as they are needed."""
    if dataset in data.image_folders:
        return data.image_folders[dataset].stream
    return DATASETS[dataset].streamed
