"""Check that a torchvision model computes the same after the cut into stages."""

from __future__ import annotations

import copy

import torch
import torchvision
from torch import nn

import ztw
from ztw.catalogue.torchvision import TORCHVISION_BLOCKS
from ztw.models.import_weights import load_foreign


def fill(model: nn.Module, size: int) -> nn.Module:
    """Set weights and BatchNorm statistics so that a model's outputs differ from image to image."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(float(name.endswith("weight"))).add_(0.1 * torch.rand_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(torch.randn(6, 3, size, size))
    return model.eval()


def check_same_answers(backbone: ztw.Backbone, model: nn.Module) -> None:
    """Load the model's weights into the backbone, and check equal outputs and that no stage overwrites features."""
    assert load_foreign(backbone, model.state_dict(), "the model") == "by name"
    model.to(memory_format=torch.channels_last)  # like the backbone, for the same kernels and rounding
    images = torch.randn(3, *backbone.input_shape)
    with torch.no_grad():
        expected = model(images)
        assert expected.std(0).mean() > 0.02, "a constant answer would test nothing"
        for twin in (backbone.eval(), copy.deepcopy(backbone).train().eval()):
            torch.testing.assert_close(twin(images), expected, atol=1e-5, rtol=1e-5)
        kept = [feature.clone() for feature in backbone.features(images)]
        for feature, before in zip(list(backbone.features(images)), kept, strict=True):
            torch.testing.assert_close(feature, before, msg="a later stage wrote into it")
    assert [tuple(feature.shape[1:]) for feature in kept] == backbone.feature_shapes


def assert_cut_whole(model: nn.Module, backbone: ztw.Backbone, blocks: int) -> None:
    """Check that each block is a stage with weights, and that no weight of the model is lost."""
    assert len(backbone.stages) == blocks
    parts = [*backbone.stages, backbone.classifier]
    assert sorted(key for part in parts for key in part.state_dict()) == sorted(model.state_dict())
    assert all(any(True for _ in stage.parameters()) for stage in backbone.stages)


def check_stages(name: str, size: int = 32) -> None:
    """Check that each block is a stage, and that the stages compute what the model computes."""
    torch.manual_seed(0)
    model = fill(torchvision.models.get_model(name, weights=None), size)
    backbone = ztw.build_backbone(f"torchvision/{name}", 1000, 3, size)
    check_same_answers(backbone, model)
    assert_cut_whole(model, backbone, TORCHVISION_BLOCKS[name])
