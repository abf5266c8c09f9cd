"""Read image files as RGB, check that they are complete, and decode many files in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from ztw.errors import ZtwError, reason
from ztw.progress import Report

SHOWN = 20  # an error lists at most this many images
ORIENTATION, BITS_PER_SAMPLE = 0x0112, 258  # tags of EXIF and TIFF
UPRIGHT = {  # EXIF orientation -> transposition of the stored pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# format -> end marker of a complete file; images of other formats are decoded for the check
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
TAIL = 64  # bytes at the end that may hold the marker, because some programs add padding


class UnreadableImagesError(ZtwError):
    """Some images cannot be used; problems: one text per image, its name and the reason."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        count = f"{len(problems)} images cannot be used: " if len(problems) > 1 else ""
        super().__init__(f"{count}{'; '.join(problems[:SHOWN])}{more}")


def shown(path: object) -> str:
    """Return a path that can be printed, even if its bytes are not UTF-8."""
    return os.fsencode(str(path)).decode("utf-8", "backslashreplace")


def read_rgb(file: Path | str | IO[bytes], name: str) -> Image.Image:
    """Decode an image file to upright 8-bit RGB.

    Applies EXIF's orientation, unlike torchvision's ImageFolder. Divides 16-bit greyscale by 257 and multiplies
    floats in 0..1 by 255. Drops transparency and keeps the stored colours.

    Args:
        file: path or open file.
        name: name in errors.

    Raises:
        ZtwError: if the file cannot be decoded, or holds floats outside 0..1 or 32-bit integers.
    """
    try:
        with Image.open(file) as image:
            image.load()
            image.info.pop("transparency", None)  # Pillow drops it too, with a warning
            return _upright(image, _eight_bits(image).convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises any exception for a broken file
        raise ZtwError(f"{shown(name)}: unreadable image ({reason(error, name, file)})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale greyscale images of more than 8 bits to 8 bits; refuse formats with an unknown white point."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        white = 1.0
    elif image.mode == "I" and image.format == "TIFF":
        raise ValueError("32-bit or signed integers; save the image with 8 or 16 bits")
    else:
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
        white = float(2 ** bits[0] - 1)
    if not 0 <= low <= high <= white:  # also false for NaN
        raise ValueError(f"pixels lie in {low:g}..{high:g}, must lie in 0..{white:g}")
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def _upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the pixels may be fine in spite of a broken EXIF block
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


def check_image(path: str) -> None:
    """Check that an image is readable and complete, by its header and end if it is JPEG or PNG, else by decoding it.

    Raises:
        ZtwError: if the image is unreadable or incomplete.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            plain, end = not image.mode.startswith(("I", "F")), ENDS.get(str(image.format))
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            if plain and end is not None and end in file.read():
                return
    except Exception:  # read_rgb reports it
        pass
    read_rgb(path, path)


def check_images(paths: Iterator[str], total: int, report: Report) -> list[str]:
    """Check images in threads; return the name and problem of each unusable image."""

    def problems_of(paths: list[str]) -> list[str]:
        return [problem for path in paths if (problem := _problem(path))]

    problems: list[str] = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, total, 10_000):
            report(f"checking images: {start}/{total}")
            chunks = [list(islice(paths, 500)) for _ in range(20)]
            problems += [problem for found in pool.map(problems_of, chunks) for problem in found]
    return problems


def _problem(path: str) -> str | None:
    try:
        check_image(path)
    except ZtwError as error:
        return str(error)
    return None


def decode_in_threads(
    decode: Callable[..., np.ndarray], arguments: Iterable[tuple], total: int, what: str, report: Report
) -> Iterator[np.ndarray]:
    """Decode images in order, 1000 at a time, in threads.

    Pillow releases the GIL. Arguments are read while images are decoded.

    Raises:
        UnreadableImagesError: at the end, with all images that cannot be decoded.
    """
    rest, problems = iter(arguments), list[str]()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, total, 1000):
            report(f"{what}: {start}/{total} images")
            decoded = _gather([pool.submit(decode, *each) for each in islice(rest, 1000)], problems)
            if not problems:
                yield np.stack(decoded)
    if problems:
        raise UnreadableImagesError(problems)


def _gather(futures: Iterable[Future[np.ndarray]], problems: list[str]) -> list[np.ndarray]:
    """Return the results; add errors to `problems`."""
    results = []
    for future in futures:
        try:
            results.append(future.result())
        except ZtwError as error:
            problems.append(str(error))
    return results
