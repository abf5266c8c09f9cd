"""Test how an image is read: all modes of files, the orientation, and incomplete files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ztw
from ztw.data.images import check_image, check_images, read_rgb

GREYS = np.array([[0, 128, 255], [255, 128, 0]])


def read(path: Path) -> np.ndarray:
    """Return the red channel of a grey image."""
    rgb = np.asarray(read_rgb(path, str(path)))
    assert (rgb == rgb[:, :, :1]).all()
    return rgb[:, :, 0]


def saved(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


@pytest.mark.parametrize(
    "name", ["grey.png", "grey.tif", "grey.pgm", "big-endian.tif", "twelve-bits.tif", "float.tif"]
)
def test_greys_of_more_than_eight_bits_are_scaled(tmp_path, name):
    path = tmp_path / name
    if name == "big-endian.tif":
        path.write_bytes(tiff(16, (GREYS * 257).astype(">u2").tobytes(), b"MM"))
    elif name == "twelve-bits.tif":
        # two pixels are three bytes; a row is three pixels and padding
        path.write_bytes(tiff(12, bytes.fromhex("000fff8000") + bytes.fromhex("fff8000000")))
    elif name == "float.tif":
        saved(path, (GREYS / 255).astype(np.float32))
    else:
        saved(path, (GREYS * 257).astype(np.uint16))
    expected = GREYS if "twelve" not in name else np.array([[0, 255, 128], [255, 128, 0]])
    assert np.abs(read(path).astype(int) - expected).max() <= (1 if "twelve" in name else 0)


def tiff(bits: int, data: bytes, order: bytes = b"II") -> bytes:
    """Return the bytes of a grey TIFF of 3 x 2 pixels."""
    e = "<" if order == b"II" else ">"
    tags = [(256, 3, 3), (257, 3, 2), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 134)]
    tags += [(277, 3, 1), (278, 3, 2), (279, 4, len(data))]
    entries = b"".join(
        struct.pack(f"{e}HHI", tag, kind, 1)
        + (struct.pack(f"{e}HH", v, 0) if kind == 3 else struct.pack(f"{e}I", v))
        for tag, kind, v in tags
    )
    head = order + struct.pack(f"{e}HI", 42, 8) + struct.pack(f"{e}H", len(tags)) + entries + bytes(4)
    return head.ljust(134, b"\0") + data


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0.0, 255.0]], np.float32), r"pixels lie in 0..255, must lie in 0..1"),
        (np.array([[-1.0, 1.0]], np.float32), r"pixels lie in -1..1, must lie in 0..1"),
        (np.array([[0.5, np.nan]], np.float32), r"pixels lie in nan..nan"),
        (np.array([[0, 70000]], np.int32), "32-bit or signed integers; save the image with 8 or 16 bits"),
    ],
)
def test_pixels_with_an_unknown_white_point_are_refused(tmp_path, pixels, message):
    path = saved(tmp_path / "a.tif", pixels)
    with pytest.raises(ztw.ZtwError, match=rf"a.tif: unreadable image \({message}"):
        read_rgb(path, str(path))
    with pytest.raises(ztw.ZtwError, match=message):
        check_image(str(path))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_modes(tmp_path, mode):
    path = saved(tmp_path / "a.png", np.array([[0, 255]], np.uint8), mode)
    assert read(path).tolist() == [[0, 255]]


@pytest.mark.parametrize("transparency", [0, bytes([0, 100])])
def test_transparency_is_dropped_and_colours_stay(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putdata([0, 1])
    image.putpalette([200, 200, 200, 50, 50, 50])
    image.save(tmp_path / "a.png", transparency=transparency)
    assert read(tmp_path / "a.png").tolist() == [[200, 50]]
    rgba = np.array([[[9, 9, 9, 0], [70, 70, 70, 128]]], np.uint8)
    assert read(saved(tmp_path / "b.png", rgba)).tolist() == [[9, 70]]


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 55)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - 200).max() <= 1


def test_16_bit_colour_keeps_its_high_byte(tmp_path):
    pixels = np.zeros((1, 2, 3), np.uint16)
    pixels[0, 1] = 65535
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, raw))
    assert read(tmp_path / "a.png").tolist() == [[0, 255]]


def png(width: int, height: int, bits: int, colour: int, raw: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_images_are_upright(tmp_path, orientation, suffix):
    from PIL import ImageOps

    image = Image.fromarray(
        np.kron(np.array([[0, 80, 160], [200, 40, 255]]), np.ones((8, 8))).astype(np.uint8)
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    image.convert("RGB").save(path, exif=exif, lossless=True)
    with Image.open(path) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert np.array_equal(np.asarray(read_rgb(path, "a")), np.asarray(expected))
    assert expected.size == ((24, 16) if orientation < 5 else (16, 24))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_is_ignored(tmp_path):
    Image.new("L", (4, 4), 7).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (read(tmp_path / "a.jpg") == 7).all()


def jpeg(size: int = 64) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0, 3, 30, 0.5, 0.95])
def test_a_truncated_image_is_found(tmp_path, format, kept):
    stream = io.BytesIO()
    with Image.open(io.BytesIO(jpeg())) as image:
        image.save(stream, format)
    content, path = stream.getvalue(), tmp_path / "a.img"
    path.write_bytes(content)
    check_image(str(path))
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ztw.ZtwError, match=r"a.img: unreadable image"):
        check_image(str(path))


def test_padding_after_an_image_is_allowed(tmp_path):
    for padding in (b"\0" * 9, b"\0" * 999):
        (tmp_path / "a.jpg").write_bytes(jpeg() + padding)
        check_image(str(tmp_path / "a.jpg"))


def test_a_truncated_jpeg_with_a_thumbnail_is_found(tmp_path):
    exif = b"Exif\0\0" + jpeg(8)  # has an end marker, too
    with Image.open(io.BytesIO(jpeg())) as image:
        image.save(tmp_path / "a.jpg", exif=exif)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ztw.ZtwError, match=r"a.jpg: unreadable image"):
        check_image(str(tmp_path / "a.jpg"))


def test_all_unreadable_images_are_found_in_order(tmp_path):
    paths = []
    for index in range(1200):
        path = tmp_path / f"{index}.jpg"
        path.write_bytes(jpeg(8) if index % 400 else b"no image")
        paths.append(str(path))
    problems = check_images(iter(paths), len(paths), lambda text: None)
    assert [problem.split(": unreadable")[0] for problem in problems] == [paths[i] for i in (0, 400, 800)]
