"""Writing a network as ONE ONNX file that stops early, in float32 or in int8."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from ztw.exits.rules import ExitRule
from ztw.models.backbone import Backbone
from ztw.models.network import EarlyExitNetwork
from ztw.onnx.write import need_onnx, write_onnx


def export_onnx(
    network: EarlyExitNetwork | Backbone,
    rule: ExitRule | str | None,
    path: Path | str,
    *,
    quantise: Tensor | None = None,
) -> Path:
    """Write a network as one ONNX graph that really stops.

    Its inputs are images (N, C, H, W) and bounds (K - 1,), by default the rule's thresholds on the scale of its scores.
    Its outputs are logits float32 (N, num_classes), log-probabilities with an ensemble, and exit_index int64 (N,),
    which a Backbone has not. Any runtime for ONNX can read the file; `OnnxRunner` makes it fast on this machine. The
    file's metadata says, as JSON under "ztw", what is in it.

    Args:
        network: or a Backbone: the whole network alone.
        rule: e.g. MaxSoftmax(0.9) or "max_softmax 0.9"; None for a Backbone.
        path: of the file.
        quantise: images (N, C, H, W) of the training data, for convolutions and products in int8. Choose thresholds
            again afterwards.

    Returns:
        The path.

    Raises:
        ZtwError: for a rule that does not fit, a network that ONNX cannot hold or that answers otherwise there, and
            when the packages of ztw[onnx] are missing.
    """
    if quantise is None:
        return write_onnx(network, rule, path)
    need_onnx()
    from ztw.onnx.int8 import quantised

    return write_onnx(network, rule, path, partial(quantised, images=quantise))
