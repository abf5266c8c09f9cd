"""Test that every torchvision model of the table is cut into the table's number of blocks."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torchvision_models import assert_cut_whole, check_stages, fill

import ztw
from ztw.batch import InputSpec
from ztw.catalogue.torchvision import TORCHVISION_BLOCKS
from ztw.models.cut import cut_model
from ztw.models.import_weights import load_foreign


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize("name", TORCHVISION_BLOCKS)
def test_number_of_blocks(name):
    model = torchvision.models.get_model(name, weights=None)
    size = 299 if name == "inception_v3" else 224 if name.startswith("vit_") else 64
    backbone = cut_model(model, name, InputSpec.of_shape((3, size, size)), 7)
    assert_cut_whole(model, backbone, TORCHVISION_BLOCKS[name])


# one model of each family; more in tests/models/test_torchvision_cut.py
@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "mnasnet0_5", "efficientnet_b0", "regnet_y_400mf", "densenet121", "convnext_tiny"],
)
def test_stages_compute_what_the_model_computes(name):
    check_stages(name)


@pytest.mark.usefixtures("uninitialised")
def test_vision_transformer_for_other_sizes():
    backbone = ztw.build_backbone("torchvision/vit_b_32", 7, size=64)
    assert backbone.feature_shapes == [(5, 768)] * 12
    assert "classifier.encoder.ln.weight" in backbone.state_dict()


def test_a_cascade_of_two_models(tmp_path):
    torch.manual_seed(0)
    members = []
    for name in ("mobilenet_v3_small", "resnet18"):
        members.append(ztw.build_backbone(f"torchvision/{name}", 10, size=64))
        model = fill(torchvision.models.get_model(name, num_classes=10), 64)
        load_foreign(members[-1], model.state_dict(), name)
    network = ztw.model_cascade(members)
    images = torch.randn(24, 3, 64, 64)
    with torch.no_grad():
        logits = network(images)
    scores = logits[0].softmax(-1).amax(-1).sort().values
    place = 8 + int(scores[8:16].diff().argmax())
    rule = ztw.MaxSoftmax(float(scores[place : place + 2].mean()))
    ztw.save(network, tmp_path / "net", rule)
    loaded, _ = ztw.load(tmp_path / "net")
    runner = ztw.OnnxRunner(ztw.export_onnx(loaded, rule, tmp_path / "net.onnx"), cache=False)
    expected = network.infer(images, rule)
    assert expected.exit_index.bincount().tolist() == [23 - place, place + 1]
    for found in (loaded.infer(images, rule), runner(images)):
        assert torch.equal(found.exit_index, expected.exit_index)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-3, rtol=1e-3)
