"""Find the images that a user names, and read them as a network takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ztw.data.augmentation import normalise
from ztw.data.folders import EXTENSIONS
from ztw.data.images import read_rgb, shown
from ztw.data.streamed import centre_crop
from ztw.errors import ZtwError
from ztw.files import is_left_behind
from ztw.models.network import EarlyExitNetwork
from ztw.progress import Note, on_screen


@dataclass(frozen=True)
class Reader:
    """How images become the input of a network.

    Args:
        shape: (channels, height, width).
        mean, std: of each channel, for pixels in [0, 1].
        crop: whether to crop the centre, as for ImageNet, instead of resizing the whole image.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: bool = False

    def __post_init__(self) -> None:
        channels, height, width = self.shape
        if channels not in (1, 3):
            raise ZtwError(f"the network takes images of {channels} channels, must be 1 or 3 to read files")
        if self.crop and height != width:
            raise ZtwError(f"--crop: the network takes images of {height}x{width} pixels, must be square")

    @classmethod
    def of(cls, network: EarlyExitNetwork, name: Path | str, crop: bool) -> Self:
        """Return the reader for a saved network; raise ZtwError if it takes no images."""
        shape = network.backbone.input_shape
        if shape is None:
            raise ZtwError(f"{name}: takes {', '.join(network.backbone.inputs.names)}, must take images")
        mean, std = network.normalisation or ((0.0,) * shape[0], (1.0,) * shape[0])
        if network.normalisation is None:
            on_screen(Note(f"{name}: has no normalisation (ztw.save's normalisation=); pixels are in [0, 1]"))
        return cls(shape, mean, std, crop)

    def pixels(self, path: Path | str) -> np.ndarray:
        """Read an image as uint8 (C, H, W); raise ZtwError if it cannot be read."""
        image = read_rgb(path, str(path))
        channels, height, width = self.shape
        if self.crop:
            image = centre_crop(image, height)
        elif image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if channels == 1:
            image = image.convert("L")
        return np.array(image).reshape(height, width, channels).transpose(2, 0, 1)

    def batches(self, paths: Sequence[Path], size: int) -> Iterator[tuple[list[Path], Tensor]]:
        """Yield the paths and normalised images float32 (N, C, H, W) of each batch.

        An image that cannot be read is left out with a note. The only image raises ZtwError.
        """
        for start in range(0, len(paths), size):
            found: dict[Path, Tensor] = {}
            for path in paths[start : start + size]:
                try:
                    found[path] = torch.from_numpy(self.pixels(path))
                except ZtwError as error:
                    if len(paths) == 1:
                        raise
                    on_screen(Note(f"left out: {error}"))
            if found:
                yield list(found), normalise(torch.stack(list(found.values())), self.mean, self.std)


def image_files(place: Path) -> list[Path]:
    """Return a file, or all images in a folder and its subfolders, sorted; raise ZtwError if there are none."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ZtwError(f"{shown(place)}: no such image or folder")
    found = sorted(path for path in place.rglob("*") if _is_image(path.relative_to(place), path))
    if not found:
        raise ZtwError(f"{shown(place)}: has no images ({' '.join(EXTENSIONS)})")
    return found


def _is_image(below: Path, path: Path) -> bool:
    hidden = any(part.startswith(".") or is_left_behind(part) for part in below.parts)
    return not hidden and path.suffix.lower() in EXTENSIONS and path.is_file()
