"""Test the export of every combination of rule, connection and ensemble, and of every backbone, against `infer`."""

from __future__ import annotations

import itertools

import pytest
import timm
import torch
from onnx_networks import assert_as_infer, network_of, rule_through_the_middle, spread_out
from torch import nn

import ztw
from ztw.catalogue.architectures import ARCHS

SIDES = {"torchvision/vit_b_16": 32, "torchvision/mobilenet_v2": 64, "torchvision/resnet18": 64}
BACKBONES = [*ARCHS, *SIDES]
ADAPTIVE = [rule for rule in ztw.list_rules() if rule != "fixed_exit"]  # see tests/models/test_fixed_exit.py


@pytest.mark.parametrize(
    ("rule", "connection", "kind"),
    [*itertools.product(ADAPTIVE, ztw.list_connections(), [None, *ztw.list_ensembles()])],
)
def test_every_combination(tmp_path, rule, connection, kind):
    network = network_of(connection, kind)
    chosen = rule_through_the_middle(network, rule, per_exit=True)
    path = ztw.export_onnx(network, chosen, tmp_path / "network.onnx")
    assert_as_infer(network, chosen, ztw.OnnxRunner(path, threads=1, cache=False))


@pytest.mark.parametrize("arch", BACKBONES)
def test_every_backbone(tmp_path, arch):
    torch.manual_seed(0)
    backbone = ztw.build_backbone(arch, size=SIDES.get(arch, 32))
    network = ztw.build_network(backbone, "cascade_detached", placement=[0.3, 0.6])
    norms = [part for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in norms:
        part.momentum = None  # statistics of exactly these images
    in_graph = not norms and any("running_var" in name for name, _ in backbone.named_buffers())
    images = torch.randn(16, *backbone.input_shape)
    with torch.no_grad():
        # In torchvision's graphs BatchNorm is no module, and keeps its momentum of 0.1. Without these statistics,
        # random weights give logits that differ by their own size between float32 and float64.
        for _ in range(200 if in_graph else 1):
            backbone.train()(images)
    network.eval()
    spread_out(network)
    with torch.no_grad():
        logits = network(torch.randn(64, *backbone.input_shape))
    network.ensemble = ztw.fit_ensemble(
        logits, (logits.sum(0) + logits.std() * torch.randn(64, 10)).argmax(-1)
    )
    chosen = rule_through_the_middle(network, "max_softmax", per_exit=True)
    runner = ztw.OnnxRunner(
        ztw.export_onnx(network, chosen, tmp_path / "network.onnx"), threads=1, cache=False
    )
    # with random weights in 110 layers, ONNX Runtime and PyTorch differ by up to 2e-4
    assert_as_infer(network, chosen, runner, tolerance=1e-3 if arch == "resnet110" else 1e-4)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv4_conv_small", "regnety_002"])
def test_models_of_timm(tmp_path, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).train()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None  # statistics of exactly these images
        model(torch.randn(16, 3, 64, 64))
    backbone = ztw.as_backbone(model.eval(), (3, 64, 64))
    network = ztw.build_network(backbone, "cascade_detached", "pool", placement=[0.3, 0.6]).eval()
    spread_out(network)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            ztw.fold_batch_norm(network)(images), network(images), atol=1e-3, rtol=1e-3
        )
    rule = rule_through_the_middle(network, "max_softmax", per_exit=True)
    path = ztw.export_onnx(network, rule, tmp_path / "network.onnx")
    assert_as_infer(network, rule, ztw.OnnxRunner(path, threads=1, cache=False))
