"""Quantise a flat graph to int8, with ONNX Runtime's static quantisation."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto

from ztw.batch import InputSpec, size_of, tensors_of
from ztw.errors import ZtwError
from ztw.tensors import as_tensor

BATCH = 32  # samples per batch of the calibration
ACTIVATIONS = ("Relu", "Clip")  # ReLU and ReLU6
# the classifier of a model of a cascade, whose stages are in a stage
OF_MEMBER = re.compile(r"backbone\.stages\.\d+\.backbone\.classifier\b")
SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note of the modules that a node is from


def quantised(flat: ModelProto, inputs: InputSpec, given: Any) -> ModelProto:
    """Quantise all convolutions, and the matrix products of the backbone's stages, to int8.

    An activation function after a convolution is quantised with it. Otherwise the scale would also cover the values
    that it cuts off: with ReLU6, an EfficientNet-Lite2 lost 33 points of accuracy instead of one.

    Linears that compute logits, ensembles and scores stay in float32: they cost little, and small errors can change
    exits. Weights have one scale per channel and 7 bits, because 8 bits overflow on CPUs without VNNI instructions.
    Activations have 8 bits.

    Args:
        flat: the graph of all exits.
        inputs: what the network takes.
        given: a batch, to calibrate the ranges of the activations.

    Raises:
        ZtwError: unless there is at least one sample, and the network accepts them.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    try:
        batch = inputs.check(given)
    except ZtwError as error:
        raise ZtwError(f"quantise: {error}") from error
    if not size_of(batch):
        raise ZtwError("quantise: no samples, must be at least one")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a preparation that has been done
    try:
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
            onnx.save(flat, given)
            quantize_static(
                given,
                made,
                _Batches(inputs, batch),
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
    nodes = list(filter(_is_layer(flat), flat.graph.node))
    outputs = {name for node in nodes if node.op_type == "Conv" for name in node.output}
    nodes += [node for node in flat.graph.node if node.op_type in ACTIVATIONS and node.input[0] in outputs]
    return [node.name for node in nodes]


def _is_layer(flat: ModelProto) -> Callable[[NodeProto], bool]:
    """Return a function that tells the convolutions, and the stages' products with weights, from other nodes."""
    weights = {tensor.name for tensor in flat.graph.initializer}

    def is_layer(node: NodeProto) -> bool:
        if node.op_type not in ("Gemm", "MatMul"):
            return node.op_type == "Conv"
        in_stage = any(".stages." in name and not OF_MEMBER.search(name) for name in _origin(node))
        return in_stage and not weights.isdisjoint(node.input)

    return is_layer


def _origin(node: NodeProto) -> Iterator[str]:
    """Yield the names of a node's weights, and of the modules that it is from; it may have a weight's transpose."""
    yield from node.input
    yield from (item.value for item in node.metadata_props if item.key == SCOPES)


class _Batches:
    """Batches of images for calibration, in the interface of ONNX Runtime's CalibrationDataReader."""

    def __init__(self, inputs: InputSpec, batch: Any) -> None:
        tensors = [
            as_tensor(given, name).cpu() for name, given in zip(inputs.names, tensors_of(batch), strict=True)
        ]
        self.arrays = {
            item.name: tensor.to(getattr(torch, item.dtype)).numpy()
            for item, tensor in zip(inputs.inputs, tensors, strict=True)
        }
        self.starts = iter(range(0, len(tensors[0]), BATCH))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        start = next(self.starts, None)
        if start is None:
            return None
        return {name: array[start : start + BATCH] for name, array in self.arrays.items()}

    def set_range(self, start_index: int, end_index: int) -> None:
        """Not supported; ONNX Runtime does not call it here."""
        raise NotImplementedError
