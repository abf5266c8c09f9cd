"""One image file: its pixels as RGB, and whether it is whole; many of them in threads."""

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

SHOWN = 20  # unreadable images an error names
ORIENTATION, BITS_PER_SAMPLE = 0x0112, 258  # tags of EXIF and TIFF
UPRIGHT = {  # EXIF orientation -> what turns the stored pixels the way the picture was taken
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What the last bytes of a whole file hold; other formats are decoded to find out.
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
TAIL = 64  # bytes: some programs pad


class UnreadableImagesError(ZtwError):
    """Images that cannot be used, each with its name and the reason; problems: all of them."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        count = f"{len(problems)} images cannot be used: " if len(problems) > 1 else ""
        super().__init__(f"{count}{'; '.join(problems[:SHOWN])}{more}")


def shown(path: object) -> str:
    """A path as it can be printed anywhere, even where its bytes are no UTF-8."""
    return os.fsencode(str(path)).decode("utf-8", "backslashreplace")


def read_rgb(file: Path | str | IO[bytes], name: str) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright; raises ZtwError with its name when that cannot be done.

    EXIF's orientation is applied, which torchvision's ImageFolder does not. 16-bit greys are divided by 257,
    floats in 0..1 multiplied by 255; other floats and 32-bit integers are refused. Transparency is dropped:
    a pixel keeps the colour it is stored with.
    """
    try:
        with Image.open(file) as image:
            image.load()
            image.info.pop("transparency", None)  # Pillow warns of it, and drops it all the same
            return _upright(image, _eight_bits(image).convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # Pillow fails on a broken file in any way there is
        raise ZtwError(f"{shown(name)}: unreadable image ({reason(error, name, file)})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits scaled to 8, where it is known what is white."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        white = 1.0
    elif image.mode == "I" and image.format == "TIFF":
        raise ValueError("32-bit or signed integers; save it with 8 or 16 bits")
    else:
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
        white = float(2 ** bits[0] - 1)
    if not 0 <= low <= high <= white:  # NaN as well
        raise ValueError(f"its pixels lie in {low:g}..{high:g}, must lie in 0..{white:g}")
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def _upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing of the pixels
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


def check_image(path: str) -> None:
    """Raise ZtwError unless an image's header can be read and the file goes to its end.

    Cheap for JPEG and PNG that end as they should; anything else is decoded.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            plain, end = not image.mode.startswith(("I", "F")), ENDS.get(str(image.format))
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            if plain and end is not None and end in file.read():
                return
    except Exception:  # said by read_rgb, in its words
        pass
    read_rgb(path, path)


def check_images(paths: Iterator[str], total: int, report: Report) -> list[str]:
    """What is wrong with images, each with its name; [] where all are whole."""

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
    """Decode images in order, 1000 at a time; Pillow lets go of the GIL, and arguments are read meanwhile.

    Raises UnreadableImagesError, at the end, naming all that cannot be decoded.
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
    """The results of those that have one; the errors of the others are added to `problems`."""
    results = []
    for future in futures:
        try:
            results.append(future.result())
        except ZtwError as error:
            problems.append(str(error))
    return results
