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
    """Export a network to one ONNX file with early exits.

    Any ONNX runtime can run the file. `OnnxRunner` optimises it for this machine. A file of a Backbone has no `bounds`
    and no `exit_index`. The same holds for the rule "fixed_exit": the file computes only this exit.

    - One input for each tensor that the network takes, e.g. `images`: float32 (N, C, H, W). N is free.
    - Input `bounds`: float32 (K - 1,), by default the rule's thresholds on the scale of its scores.
    - Output `logits`: float32 (N, num_classes). With an ensemble, log-probabilities.
    - Output `exit_index`: int64 (N,), from 0.
    - Metadata `ztw`: a description in JSON.

    Args:
        network: an EarlyExitNetwork or a Backbone.
        rule: a rule with its parameter, e.g. MaxSoftmax(0.9) or "max_softmax 0.9"; None for a Backbone.
        path: the file to write.
        quantise: a batch of training data, e.g. images (N, C, H, W), to quantise convolutions and matrix products to
            int8. Choose new thresholds afterwards, because int8 changes the scores.

    Returns:
        The path.

    Raises:
        ZtwError: if the packages of ztw[onnx] are missing, for a rule or images that do not fit the network, and for a
            network that cannot be exported, or whose logits differ in ONNX.

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
