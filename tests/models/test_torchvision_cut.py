"""Test that torchvision's models compute the same after the cut into stages."""

from __future__ import annotations

import copy
import os
import urllib.error
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision_models import check_same_answers, check_stages, fill

import ztw
from ztw.batch import InputSpec
from ztw.catalogue.torchvision import TORCHVISION_BLOCKS
from ztw.models.cut import cut_model
from ztw.models.torchvision_cut import WEIGHTS, cut


# other models: tests/slow/test_torchvision.py
@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_stages_compute_what_the_model_computes(name):
    check_stages(name)


def test_vision_transformer():
    torch.manual_seed(0)
    small = {"patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    twins = [torchvision.models.VisionTransformer(32, **small, dropout=0.1) for _ in range(2)]
    backbone = cut_model(twins[0], "small", InputSpec.of_shape((3, 32, 32)), 1000)
    assert backbone.feature_shapes == [(17, 16)] * 3
    check_same_answers(backbone, fill(twins[1], 32))
    hidden = next(iter(backbone.features(torch.zeros(1, 3, 32, 32))))
    assert not torch.equal(*(backbone.train().stages[1](hidden) for _ in range(2))), "dropout"


def test_another_number_of_classes_and_float32_logits():
    backbone = ztw.build_backbone("torchvision/mobilenet_v3_small", num_classes=7, size=64).eval()
    assert backbone.num_classes == 7
    assert backbone.state_dict()["classifier.classifier.3.weight"].shape == (7, 1024)
    assert "stages.0.features.0.0.weight" in backbone.state_dict()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backbone(torch.randn(2, 3, 64, 64)).dtype == torch.float32


def test_dropout_stochastic_depth_and_batchnorm_follow_the_mode():
    backbone = copy.deepcopy(
        ztw.build_backbone("torchvision/efficientnet_b0", num_classes=7, size=32)
    ).train()
    images = torch.randn(4, 3, 32, 32)
    *_, last = backbone.features(images)
    assert not torch.equal(*(list(backbone.features(images))[-1] for _ in range(2))), "stochastic depth"
    assert not torch.equal(backbone.classifier(last), backbone.classifier(last)), "dropout"
    counter = backbone.state_dict()["stages.0.features.0.1.num_batches_tracked"]
    assert counter == 3
    backbone.eval()
    torch.testing.assert_close(backbone(images), backbone(images))
    assert counter == 3
    backbone.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_network_with_exits():
    backbone = ztw.build_backbone("torchvision/resnet18", num_classes=5, size=64)
    network = ztw.build_network(backbone, "cascade_detached", placement=[1, 5]).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        logits = network(images)
    assert logits.shape == (3, 3, 5)
    torch.testing.assert_close(
        network.infer(images, ztw.MaxSoftmax(1.0)).logits, logits[-1], atol=1e-4, rtol=1e-4
    )
    assert ztw.macs(network).diff().gt(0).all()


class Planted:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pretrained_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    with pytest.raises(ztw.ZtwError, match=r"by hand .*/hub/checkpoints/mobilenet_v3_small-047dcff4.pth$"):
        ztw.build_backbone("torchvision/mobilenet_v3_small", 7, weights="DEFAULT")
    model = torchvision.models.mobilenet_v3_small(weights=None)
    torch.save(model.state_dict(), tmp_path / "hub/checkpoints/mobilenet_v3_small-047dcff4.pth")
    backbone = ztw.build_backbone("torchvision/mobilenet_v3_small", 7, weights="DEFAULT")
    found = backbone.state_dict()["stages.0.features.0.0.weight"]
    torch.testing.assert_close(found, model.state_dict()["features.0.0.weight"])
    planted = {"features.0.0.weight": Planted(tmp_path / "ran")}
    torch.save(planted, tmp_path / "hub/checkpoints/mobilenet_v3_small-047dcff4.pth")
    with pytest.raises(ztw.ZtwError, match="no pretrained weights"):
        ztw.build_backbone("torchvision/mobilenet_v3_small", 7, weights="DEFAULT")
    assert not (tmp_path / "ran").exists(), "a file in torch's cache runs no code"
    (tmp_path / "hub/checkpoints/mobilenet_v3_small-047dcff4.pth").write_bytes(b"PK\3\4 broken")
    with pytest.raises(ztw.ZtwError, match="no pretrained weights"):
        ztw.build_backbone("torchvision/mobilenet_v3_small", 7, weights="DEFAULT")


def test_every_model_has_first_weights():
    for name in TORCHVISION_BLOCKS:
        assert set(WEIGHTS) <= set(torchvision.models.get_model_weights(name).__members__), name


def test_the_first_weights_differ_from_the_best(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    wanted = {}
    for name in ("DEFAULT", "IMAGENET1K_V1"):
        monkeypatch.setattr(torch.hub, "urlopen", refuse)
        with pytest.raises(ztw.ZtwError) as caught:
            ztw.build_backbone("torchvision/resnet50", 1000, size=64, weights=name)
        wanted[name] = str(caught.value)
    assert "hub/checkpoints/resnet50-11ad3fa6.pth" in wanted["DEFAULT"]
    assert "hub/checkpoints/resnet50-0676ba61.pth" in wanted["IMAGENET1K_V1"], "76.13 %, of ZTW's time"


def refuse(*args, **kwargs):
    raise urllib.error.URLError("no network")


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("torchvision/nope", {}, "unknown torchvision model 'nope'; known: resnet18, "),
        ("torchvision/swin_t", {}, "unknown torchvision model 'swin_t'"),
        ("torchvision/resnet18", {"channels": 1}, "takes images of 3 channels, not 1"),
        (
            "torchvision/resnet18",
            {"weights": "mine"},
            "unknown weights 'mine'; known: None, DEFAULT, IMAGENET1K_V1",
        ),
        ("torchvision/resnet18", {"shortcut": "pad"}, "only the CIFAR ResNets have it"),
        (
            "torchvision/resnet18",
            {"ic_features": "after_relu"},
            "only the CIFAR ResNets have it, not torchvision/",
        ),
        (
            "torchvision/resnet18",
            {"init": "released"},
            "init 'released': only the paper's architectures have it",
        ),
        (
            "resnet20",
            {"last_norm_momentum": 0.9},
            "last_norm_momentum 0.9: only wide_resnet_32_4 has it, not resn",
        ),
        (
            "resnet20",
            {"ic_features": "inside"},
            "unknown ic_features 'inside'; known: before_relu, after_relu",
        ),
        ("resnet20", {"init": "zero"}, "unknown init 'zero'; known: torch, released"),
        ("torchvision/vit_b_16", {"size": 40}, "cannot take images of 40x40 pixels"),
        (
            "torchvision/vit_b_16",
            {"size": 32, "weights": "DEFAULT"},
            "need images of 224x224 pixels, not 32x32",
        ),
        ("torchvision/densenet121", {"size": 8}, "cannot take images of 8x8 pixels"),
        ("resnet20", {"weights": "DEFAULT"}, "'DEFAULT': only torchvision's models .*resnet20"),
        ("resnet20", {"shortcut": "zero"}, "unknown shortcut 'zero'; known: conv, pad"),
        ("vgg16_bn", {"shortcut": "pad"}, "only the CIFAR ResNets have it, not vgg16_bn"),
        ("resnet999", {}, "unknown architecture 'resnet999'; known: resnet8, .*torchvision/<name>"),
    ],
)
def test_errors_are_one_line(arch, options, message):
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        ztw.build_backbone(arch, 7, **options)
    assert "\n" not in str(caught.value)


class Block(nn.Module):
    def __init__(self, functional_dropout: bool) -> None:
        super().__init__()
        self.linear, self.functional_dropout = nn.Linear(4, 4), functional_dropout

    def forward(self, x):
        hidden = F.relu(self.linear(x))
        return F.dropout(hidden, training=self.training) if self.functional_dropout else hidden


def test_models_that_cannot_be_cut():
    vectors = InputSpec.of_shape((4,))
    with pytest.raises(ztw.ZtwError, match=r"^mine: has no blocks to cut after; name modules with at="):
        cut_model(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "mine", vectors, 3)
    with pytest.raises(
        ztw.ZtwError, match=r"^mine: has no blocks to cut after; it needs at least two layers"
    ):
        cut_model(nn.Linear(4, 3), "mine", vectors, 3)
    backbone = cut_model(nn.Sequential(Block(True), Block(True), nn.Sigmoid()), "mine", vectors, 4)
    assert len(backbone.stages) == 1  # no layer with weights follows the second block
    backbone = cut_model(nn.Sequential(Block(False), Block(False), nn.Linear(4, 3)), "mine", vectors, 3)
    assert len(backbone.stages) == 2
    assert backbone.classifier(torch.zeros(1, 4)).shape == (1, 3)


def test_cut_is_what_build_backbone_calls():
    with pytest.raises(ztw.ZtwError, match=r"unknown torchvision model"):
        cut("torchvision/alexnet", 10, 3, 64)
