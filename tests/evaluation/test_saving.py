"""Test saved networks: loaded from the folder alone, they predict the same; damaged files are named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import pixel_network, small_network
from own_models import Blocks, Cnn, Plain, Transformer
from torch import nn

import ztw
from ztw.files import write_json

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def network_of(model: nn.Module, **how) -> ztw.EarlyExitNetwork:
    torch.manual_seed(0)
    backbone = ztw.as_backbone(model, (3, 16, 16), **how)
    network = ztw.build_network(backbone, "cascade", head="pool", pooling="avg", layer_norm=True).eval()
    logits = network(torch.randn(40, 3, 16, 16)).detach()
    network.ensemble = ztw.fit_ensemble(logits, torch.arange(40) % 5)
    return network


MODELS = {
    "cnn": lambda: network_of(Cnn(), at=["act", "drop"]),
    "transformer": lambda: network_of(Transformer()),
    "blocks": lambda: network_of(Blocks()),
    "resnet18": lambda: network_of(torchvision.models.resnet18(num_classes=5), at=["layer1", "layer2"]),
    "folded": lambda: ztw.fold_batch_norm(small_network("boosted")),
    "built": lambda: small_network("cascade_detached", [0, 2]),
    "built, torchvision": lambda: ztw.build_network(
        ztw.build_backbone("torchvision/mobilenet_v3_small", 7, size=32), placement=[2, 5], width=0.25
    ),
    "built, timm": lambda: ztw.build_network(
        ztw.build_backbone("timm/test_efficientnet", 7, size=32), head="pool", placement=[0.5]
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_loaded_as_saved(name, tmp_path):
    network = MODELS[name]().eval()
    told: list[str] = []
    rng = torch.get_rng_state()
    ztw.save(network, tmp_path / "net", progress=told.append)
    again, rule = ztw.load(tmp_path / "net")
    assert torch.equal(rng, torch.get_rng_state())
    assert told == []
    assert rule is None
    assert not again.training
    images = torch.randn(3, *network.backbone.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(again(images), network(images), atol=1e-5, rtol=1e-4)
        mode = ztw.MaxSoftmax(0.5)
        left, found = network.infer(images, mode), again.infer(images, mode)
    assert left.exit_index.tolist() == found.exit_index.tolist()
    torch.testing.assert_close(left.logits, found.logits, atol=1e-5, rtol=1e-4)
    facts = json.loads((tmp_path / "net/network.json").read_text())
    assert facts["macs"]["exits"] == ztw.macs(again).tolist() == ztw.macs(network).tolist()
    assert facts["backbone"].keys() == ({"build_backbone"} if name == "built" else {"stages", "classifier"})
    assert again.backbone.arch == network.backbone.arch
    ztw.save(again, tmp_path / "copy", progress=told.append)
    assert (tmp_path / "copy/weights.safetensors").read_bytes() == (
        tmp_path / "net/weights.safetensors"
    ).read_bytes()
    assert told == []
    if name != "folded":  # for inference only
        again.train()(torch.randn(4, *network.backbone.input_shape)).sum().backward()


def test_in_a_fresh_process_without_the_model_s_code(tmp_path):
    network, rule = network_of(Cnn(), at=["conv1", "act"]), ztw.Entropy([1 / 3, 0.1 + 0.2])
    names, normalisation = ("a", "b b", "ü", 'd"', "[e]"), ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    ztw.save(network, tmp_path / "net", rule, class_names=names, normalisation=normalisation)
    torch.save({"images": IMAGES, "logits": network(IMAGES)}, tmp_path / "expected.pt")
    code = (
        "import sys, torch, ztw\n"
        "network, rule = ztw.load(sys.argv[1])\n"
        "expected = torch.load(sys.argv[2], weights_only=True)\n"
        "torch.testing.assert_close(network(expected['images']), expected['logits'], atol=1e-5, rtol=1e-4)\n"
        "assert rule == ztw.Entropy([1 / 3, 0.1 + 0.2]), rule\n"
        f"assert network.class_names == {names}\n"
        f"assert network.normalisation == {normalisation}\n"
        "assert type(network.ensemble).__name__ == 'GeometricEnsemble'\n"
        "assert 'own_models' not in sys.modules and 'mlflow' not in sys.modules and 'snakemake' not in sys.modules\n"
    )
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        code,
        str(tmp_path / "net"),
        str(tmp_path / "expected.pt"),
    ]
    subprocess.run(command, check=True, cwd=tmp_path)


@torch.library.custom_op("ztw_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Doubled(Blocks):
    """A model with an operation that is not PyTorch's."""

    def forward(self, x):
        return super().forward(twice(x))


def test_a_backbone_that_cannot_be_described_needs_the_model(tmp_path):
    network = network_of(Doubled())
    told: list[str] = []
    ztw.save(network, tmp_path / "net", ztw.Patience(1), progress=told.append)
    assert len(told) == 1
    assert "ztw.load(" in told[0]
    assert "model=<a new instance of your model>): the operation ztw_tests.twice" in told[0]
    with pytest.raises(
        ztw.ZtwError, match="backbone could not be described; call load with model=<a Doubled>"
    ):
        ztw.load(tmp_path / "net")
    again, rule = ztw.load(tmp_path / "net", model=Doubled())
    assert rule == ztw.Patience(1)
    torch.testing.assert_close(again(IMAGES), network(IMAGES))
    with pytest.raises(ztw.ZtwError, match="net"):
        ztw.load(tmp_path / "net", model=Cnn())


def by_hand() -> ztw.Backbone:
    model = Plain("flow")
    seen = [nn.Sequential(nn.Flatten(), Hidden(model.a))]
    whole = nn.Sequential(*seen, model.b)
    return ztw.as_backbone(whole, (3, 4, 4), stages=seen, classifier=model.b)


class Hidden(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(x) + 1


def test_a_backbone_cut_by_hand(tmp_path):
    network, told = ztw.build_network(by_hand()).eval(), list[str]()
    ztw.save(network, tmp_path / "net", progress=told.append)
    assert "model=<a Backbone made as this one>" in told[0]
    with pytest.raises(ztw.ZtwError, match="call load with model=<a Backbone made as the saved one>"):
        ztw.load(tmp_path / "net")
    again, _ = ztw.load(tmp_path / "net", model=by_hand())
    images = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(again(images), network(images))


CALLS = {
    "takes": ["x"],
    "tensors": {},
    "in_eval": {
        "nodes": [{"name": "a", "op": "torch.load", "args": ["/tmp/x"]}],
        "output": {"node": "a"},
    },
    "in_training": None,
    "linear": None,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "net"
    ztw.save(small_network("cascade", [0, 1]), folder, ztw.MaxSoftmax([0.5, 0.7]))
    return folder


@pytest.fixture
def saved(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "net"))


def edit(folder: Path, **changes) -> None:
    """Change network.json, and write it with a valid seal."""
    facts = json.loads((folder / "network.json").read_text())
    write_json(folder / "network.json", {**facts, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "version 1 of the format, this ztw reads 3"),
        ({"format": "x"}, "not a network that ztw.save has written"),
        ({"num_classes": 6}, "the backbone takes .* and has 5 classes"),
        ({"placement": [0, 2]}, "does not fit the network"),
        ({"placement": [0, 9]}, "placement 9: resnet8 has blocks 0..2"),
        ({"placement": [0]}, "does not fit the network"),
        ({"connection": "independent"}, "does not fit the network; .*shape"),
        ({"connection": "nope"}, "unknown connection 'nope'"),
        ({"heads": {"head": "nope"}}, "unknown head 'nope'"),
        ({"heads": {"head": "pool"}}, "does not fit the network"),
        ({"heads": 3}, "not as ztw.save writes it"),
        ({"ensemble": {"kind": "nope", "include_final": True}}, "unknown ensemble 'nope'"),
        ({"ensemble": {"kind": "geometric", "include_final": True}}, "missing: ensemble.bias"),
        ({"rules": [{"budget": None, "rule": "nope"}]}, "unknown exit rule 'nope'"),
        (
            {"rules": [{"budget": None, "rule": "max_softmax", "threshold": [0.5]}]},
            "1 thresholds, must be one or 2",
        ),
        ({"rules": None}, "not as ztw.save writes it"),
        ({"class_names": ["a"]}, "must be 5 names"),
        ({"normalisation": {"mean": [0.1], "std": [0]}}, "std above 0"),
        ({"weights": []}, "not as ztw.save writes it"),
        ({"backbone": {}}, "not as ztw.save writes it"),
        (
            {"backbone": {"build_backbone": {"arch": "resnet8", "weights": "DEFAULT"}}},
            "build_backbone: must not name weights",
        ),
        (
            {"backbone": {"stages": [CALLS], "classifier": CALLS}},
            "may not call .*'torch.load'",
        ),
        ({"backbone": {"build_backbone": {"arch": "nope"}}}, "unknown architecture 'nope'"),
    ],
)
def test_an_edited_file_is_named(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        ztw.load(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_files_are_named(saved):
    facts = (saved / "network.json").read_text()
    (saved / "network.json").write_text(facts[:-20])
    with pytest.raises(ztw.ZtwError, match=r"network.json: altered since it was written"):
        ztw.load(saved)
    (saved / ".network.json.sha256").unlink()
    with pytest.raises(ztw.ZtwError, match=r"network.json: cannot be read"):
        ztw.load(saved)
    (saved / "network.json").write_text(facts)
    weights = saved / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ztw.ZtwError, match=r"weights.safetensors: altered or truncated \(SHA-256"):
        ztw.load(saved)
    weights.unlink()
    with pytest.raises(ztw.ZtwError, match=r"weights.safetensors: missing"):
        ztw.load(saved)
    with pytest.raises(ztw.ZtwError, match=r"nowhere/network.json: missing; give a folder"):
        ztw.load("nowhere")


def test_a_budget_it_has_no_rule_for(saved):
    with pytest.raises(ztw.ZtwError, match=r"budget 0.5: .* has rules for none"):
        ztw.load(saved, budget=0.5)
    with pytest.raises(ztw.ZtwError, match="model= is not needed"):
        ztw.load(saved, model=Blocks())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rule": 0.9}, "rule 0.9: must be an exit rule .* ztw.MaxSoftmax"),
        ({"rule": ztw.MaxSoftmax([0.1])}, "MaxSoftmax: 1 thresholds, must be one or 3"),
        ({"class_names": ["a"]}, r'class_names: \["a"\], must be 5 names'),
        ({"class_names": "abcde"}, "must be 5 names"),
        ({"normalisation": 0.5}, r"normalisation 0.5: must be \(mean, std\), 1 numbers each"),
        ({"normalisation": ([0.5], [0.0])}, "std above 0"),
    ],
)
def test_wrong_arguments(how, message, tmp_path):
    with pytest.raises(ztw.ZtwError, match=message):
        ztw.save(small_network(), tmp_path / "net", **how)
    assert not (tmp_path / "net").exists()


def test_networks_that_cannot_be_saved(tmp_path):
    with pytest.raises(ztw.ZtwError, match="heads were not made by build_network"):
        ztw.save(pixel_network("independent").eval(), tmp_path / "net")
    with pytest.raises(ztw.ZtwError, match="save: Backbone, must be an EarlyExitNetwork"):
        ztw.save(small_network().backbone, tmp_path / "net")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(ztw.ZtwError, match=r"file: is a file, must be a folder or a new path"):
        ztw.save(small_network(), tmp_path / "file")


def test_tied_weights(tmp_path):
    class Tied(Blocks):
        def __init__(self) -> None:
            super().__init__()
            self.blocks[2] = self.blocks[0]

    network = network_of(Tied())
    ztw.save(network, tmp_path / "net")
    torch.testing.assert_close(ztw.load(tmp_path / "net")[0](IMAGES), network(IMAGES), atol=1e-5, rtol=1e-4)
