"""Size, channels and streaming of a study's data sets, image folders included. Imports no torch."""

from __future__ import annotations

from ztw.catalogue.datasets import DATASETS
from ztw.study.settings import DataSettings


def image_size(data: DataSettings, dataset: str) -> int:
    """Return the side of a data set's images in pixels."""
    if dataset in data.image_folders:
        return data.image_folders[dataset].size
    return DATASETS[dataset].size or 0


def image_channels(data: DataSettings, dataset: str) -> int:
    """Return 1 for greyscale, 3 for colour. Image folders are read as colour."""
    return 3 if dataset in data.image_folders else DATASETS[dataset].channels


def is_streamed(data: DataSettings, dataset: str) -> bool:
    """Return whether images are read when they are used."""
    if dataset in data.image_folders:
        return data.image_folders[dataset].stream
    return DATASETS[dataset].streamed
