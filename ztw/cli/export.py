"""Write a saved network as an ONNX file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ztw.cli.images import Reader, image_files
from ztw.cli.networks import network_and_rule
from ztw.onnx.export import export_onnx
from ztw.onnx.write import need_onnx

CALIBRATION = 256  # images for int8


def write(
    folder: Path, out: Path, rule: str | None, budget: str | None, int8: Path | None, crop: bool
) -> str:
    """Write the file, and return what it is in words; see the command's help for the arguments.

    Raises:
        ZtwError: for a network or images that cannot be used, and as `export_onnx`.
    """
    need_onnx()
    network, chosen = network_and_rule(folder, rule, budget)
    images = None if int8 is None else _calibration(Reader.of(network, folder, crop), int8)
    export_onnx(network, chosen, out, quantise=images)
    megabytes, form = out.stat().st_size / 1e6, "float32" if images is None else "int8"
    text = f"{out}: {megabytes:.1f} MB, {form}, {network.exits} exits, rule {chosen}\n"
    if images is None:
        return f"{text}run it: ztw.OnnxRunner({str(out)!r})(images)"
    return (
        f"{text}calibrated with {len(images)} images; choose new thresholds on held-out images:\n"
        f"ztw.choose_threshold(ztw.OnnxRunner({str(out)!r}), held_out, allowed_loss=0.01)"
    )


def _calibration(reader: Reader, place: Path) -> Tensor:
    """Read images from all parts of a folder, so that all classes take part."""
    paths = image_files(place)
    _, images = next(reader.batches(paths[:: max(1, len(paths) // CALIBRATION)][:CALIBRATION], CALIBRATION))
    return images
