"""Export a network to one ONNX file with early exits, in float32 or int8."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ztw.batch import Batch
from ztw.exits.rules import ExitRule
from ztw.models.backbone import Backbone
from ztw.models.network import EarlyExitNetwork
from ztw.onnx.write import need_onnx, write_onnx


def export_onnx(
    network: EarlyExitNetwork | Backbone,
    rule: ExitRule | str | None,
    path: Path | str,
    *,
    quantise: Batch | None = None,
) -> Path:
    """Write a network as one ONNX graph with early exits.

    The inputs are the network's, by name, e.g. images (N, C, H, W), and bounds (K - 1,). The default of the bounds is
    the rule's thresholds, on the scale of its scores. The outputs are logits float32 (N, num_classes),
    log-probabilities with an ensemble, and exit_index int64 (N,). A Backbone has no bounds and no exit_index. Any ONNX
    runtime can run the file; `OnnxRunner` optimises it for this machine. The file's metadata describe it as JSON under
    the key "ztw".

    Args:
        network: a network, or a Backbone alone.
        rule: e.g. MaxSoftmax(0.9) or "max_softmax 0.9"; None for a Backbone.
        path: of the file.
        quantise: a batch of the training data, e.g. images (N, C, H, W); convolutions and matrix products are then
            quantised to int8. Choose the thresholds again afterwards.

    Returns:
        The path.

    Raises:
        ZtwError: for a rule that does not fit, a network that ONNX cannot hold or that computes other logits there, and
            if the packages of ztw[onnx] are missing.

    Example:
        >>> import torch, ztw
        >>> network = ztw.build_network(ztw.build_backbone("resnet8"), placement=[0])
        >>> path = ztw.export_onnx(network, "max_softmax 0.9", "network.onnx")
        >>> ztw.OnnxRunner(path)(torch.randn(4, 3, 32, 32)).logits.shape
        torch.Size([4, 10])
    """
    if quantise is None:
        return write_onnx(network, rule, path)
    need_onnx()
    from ztw.onnx.int8 import quantised

    return write_onnx(network, rule, path, partial(quantised, given=quantise))
