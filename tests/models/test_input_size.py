"""Test networks that resize their images."""

from __future__ import annotations

import pytest
import torch
from onnx_networks import assert_as_infer, rule_through_the_middle

import ztw
from ztw.errors import ZtwError
from ztw.models.costs import backbone_macs


@pytest.mark.parametrize("arch", ["resnet8", "mobilenet"])
def test_network_computes_the_resized_images(arch):
    torch.manual_seed(0)
    small = ztw.build_backbone(arch, 5, size=32).eval()
    resizing = ztw.build_backbone(arch, 5, size=96, input_size=32).eval()
    weights = zip(resizing.state_dict(), small.state_dict().values(), strict=True)
    resizing.load_state_dict(dict(weights))
    images = torch.randn(4, 3, 96, 96)
    # in the middle of every 3x3 pixels lies the one that bilinear interpolation to a third takes
    torch.testing.assert_close(resizing(images), small(images[:, :, 1::3, 1::3]), atol=1e-5, rtol=1e-5)
    assert resizing.input_shape == (3, 96, 96)
    assert resizing.feature_shapes == small.feature_shapes
    assert backbone_macs(resizing) == backbone_macs(small)


def test_cascade_of_two_input_sizes_is_saved_and_exported(tmp_path):
    torch.manual_seed(0)
    members = [
        ztw.build_backbone("resnet8", 10, size=32, input_size=16),
        ztw.build_backbone("resnet8", size=32),
    ]
    for member in members:  # differences as between the logits of a trained network
        for weight in member.classifier.parameters():
            weight.data.mul_(20)
    network = ztw.model_cascade(members)
    rule = rule_through_the_middle(network, "max_softmax")
    ztw.save(network, tmp_path / "net", rule)
    loaded, _ = ztw.load(tmp_path / "net")
    assert "input_size" in (tmp_path / "net" / "network.json").read_text()
    assert_as_infer(
        loaded,
        rule,
        ztw.OnnxRunner(ztw.export_onnx(loaded, rule, tmp_path / "net.onnx"), threads=1, cache=False),
    )


@pytest.mark.parametrize("size", [0, 1.5])
def test_wrong_size(size):
    with pytest.raises(ZtwError, match=f"input_size {size}: must be None or a number of pixels, at least 1"):
        ztw.build_backbone("resnet8", input_size=size)
