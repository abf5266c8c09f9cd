"""Quantise a flat graph to int8, with ONNX Runtime's static quantisation."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from torch import Tensor

from ztw.errors import ZtwError
from ztw.onnx.form import IMAGES

BATCH = 32  # images per batch of the calibration


def quantised(flat: ModelProto, images: Tensor) -> ModelProto:
    """Quantise all convolutions, and the matrix products of the backbone's stages, to int8.

    Linears that compute logits, ensembles and scores stay in float32: they cost little, and small errors can change
    exits. Weights have one scale per channel and 7 bits, because 8 bits overflow on CPUs without VNNI instructions.
    Activations have 8 bits.

    Args:
        flat: the graph of all exits.
        images: (N, C, H, W), to calibrate the ranges of the activations.

    Raises:
        ZtwError: unless there is at least one image, of the network's size.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    dims = [dim.dim_value for dim in flat.graph.input[0].type.tensor_type.shape.dim[1:]]
    if not isinstance(images, Tensor):
        raise ZtwError(f"quantise: {type(images).__name__}, must be a tensor of images")
    if images.dim() != 4 or not len(images) or list(images.shape[1:]) != dims:
        raise ZtwError(
            f"quantise: images of shape {tuple(images.shape)}, must be (samples, {', '.join(map(str, dims))}),"
            " at least one"
        )
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a preparation that has been done
    try:
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
            onnx.save(flat, given)
            quantize_static(
                given,
                made,
                _Batches(images),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_quantize=_in_int8(flat),
            )
            return onnx.load(made)
    finally:
        logging.disable(before)


def _in_int8(flat: ModelProto) -> list[str]:
    return [
        node.name
        for node in flat.graph.node
        if node.op_type == "Conv"
        or (node.op_type in ("Gemm", "MatMul") and any(".stages." in name for name in node.input))
    ]


class _Batches:
    """Batches of images for calibration, in the interface of ONNX Runtime's CalibrationDataReader."""

    def __init__(self, images: Tensor) -> None:
        self.parts = iter(images.float().cpu().split(BATCH))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        part = next(self.parts, None)
        return None if part is None else {IMAGES: part.numpy()}

    def set_range(self, start_index: int, end_index: int) -> None:
        """Not supported; ONNX Runtime does not call it here."""
        raise NotImplementedError
