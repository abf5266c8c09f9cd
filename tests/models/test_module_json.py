"""Test traced modules in JSON: loaded modules compute the same, and a file can call only allowed functions."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from own_models import Swish
from torch import nn

import ztw
from ztw.models.module_json import NotDescribedError, describe_module, module_from

LEAVES = [
    (nn.Conv2d(4, 6, 3, (2, 1), 1, groups=2, bias=False, padding_mode="reflect"), (4, 8, 8)),
    (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2), (4, 8, 8)),
    (nn.ConvTranspose2d(4, 6, 3, 2, output_padding=1), (4, 8, 8)),
    (nn.BatchNorm2d(4, eps=0.1, momentum=None, affine=False), (4, 8, 8)),
    (nn.GroupNorm(2, 4, eps=0.1), (4, 8, 8)),
    (nn.LayerNorm((8, 8), elementwise_affine=False), (4, 8, 8)),
    (nn.LayerNorm(8, bias=False), (4, 8)),
    (nn.InstanceNorm2d(4, affine=True), (4, 8, 8)),
    (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (4, 8, 8)),
    (nn.AvgPool2d(3, count_include_pad=False, padding=1), (4, 8, 8)),
    (nn.AdaptiveAvgPool2d((2, None)), (4, 8, 8)),
    (nn.LPPool2d(2, 3), (4, 8, 8)),
    (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (4, 8, 8)),
    (nn.PixelShuffle(2), (4, 8, 8)),
    (nn.ZeroPad2d((1, 2, 0, 1)), (4, 8, 8)),
    (nn.Flatten(2), (4, 8, 8)),
    (nn.Unflatten(1, (2, 2)), (4, 8, 8)),
    (nn.Linear(8, 3, bias=False), (4, 8)),
    (nn.Dropout(0.3, inplace=True), (4, 8)),
    (nn.PReLU(4), (4, 8, 8)),
    (nn.LeakyReLU(0.3, inplace=True), (4, 8, 8)),
    (nn.ELU(0.5), (4, 8)),
    (nn.Hardtanh(-2, 3), (4, 8)),
    (nn.GELU("tanh"), (4, 8)),
    (nn.Softmax(1), (4, 8)),
    (nn.Sigmoid(), (4, 8)),
    (nn.Hardswish(), (4, 8)),
    (nn.Identity(), (4, 8)),
    (nn.TransformerEncoderLayer(8, 2, 5, 0.3, F.gelu, 0.1, True, True, bias=False), (4, 8)),
    (nn.TransformerEncoderLayer(8, 4, 5, activation="relu"), (4, 8)),
    (torchvision.ops.StochasticDepth(0.3, "row"), (4, 8, 8)),
    (torchvision.ops.Permute([0, 2, 1]), (4, 8)),
]


@pytest.mark.parametrize(("leaf", "shape"), LEAVES, ids=lambda value: type(value).__name__)
def test_a_layer_is_read_as_written(leaf, shape):
    facts = json.loads(json.dumps(describe_module(leaf)))
    again = module_from(facts)
    assert type(again) is type(leaf)
    again.load_state_dict(leaf.state_dict())
    x = torch.randn(2, *shape)
    torch.testing.assert_close(again.eval()(x.clone()), leaf.eval()(x.clone()))
    assert repr(again) == repr(leaf)


class Functions(nn.Module):
    """Functions, methods, operators and arguments of every kind."""

    shift: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({"one": nn.LayerNorm(8), "two": Swish()})
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3))
        self.register_buffer("shift", torch.randn(3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        x = F.pad(F.conv2d(x, self.weight, stride=(1, 1)), (1, 1, 1, 1), value=0.5) - self.shift
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        a, b = torch.split(x, [8, 8], dim=-1)
        x = torch.cat([a, b[..., ::2, :].repeat(1, 1, 2, 1)], dim=2).clamp(min=-math.inf, max=3.0)
        x = x.view(n, -1, width * height // 8).mean((1,), keepdim=True, dtype=torch.float32)
        x = self.norms["two"](self.norms["one"](x))
        x, _ = self.attention(x, x, x, need_weights=False)
        x *= 2
        return torch.einsum("nij,nkj->ni", x, x.softmax(-1)) / x.size(-1) + torch.ones(3)[:1]


def test_a_graph_is_read_as_written():
    module = Functions().eval()
    facts = json.loads(json.dumps(describe_module(module)))
    assert facts["tensors"]["weight"] == {"kind": "parameter", "shape": [3, 3, 3, 3], "dtype": "float32"}
    again = module_from(facts).eval()
    own = {name: value for name, value in module.state_dict().items() if name in again.state_dict()}
    buffers = {
        "shift": module.shift,
        **{key: torch.ones(1) for key in again.state_dict() if "constant" in key},
    }
    again.load_state_dict({**own, **buffers})
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again(x), module(x))


def graph(**changes) -> dict:
    """Return the description of relu(x), with changes of its node."""
    node = {"name": "a", "op": "function", "of": "torch.relu", "args": [{"node": "x"}], **changes}
    return {
        "nodes": [{"name": "x", "op": "input"}, node],
        "output": {"node": "a"},
        "modules": {"relu": {"class": "torch.nn.ReLU", "options": {}}},
        "tensors": {},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"of": "torch.load", "args": ["/tmp/file"]},
        {"of": "torch.save"},
        {"of": "torch.hub.load"},
        {"of": "torch.from_file", "args": ["/etc/passwd"]},
        {"of": "torch.compile"},
        {"of": "os.system", "args": ["true"]},
        {"of": "builtins.eval", "args": ["1"]},
        {"of": "operator.methodcaller", "args": ["x"]},
        {"of": "operator.attrgetter", "args": ["x"]},
        {"of": "getattr", "args": [{"node": "x"}, "__class__"]},
        {"of": "getattr", "args": [{"node": "x"}, "shape"], "kwargs": {"a": 1}},
        {"op": "method", "of": "__reduce__"},
        {"op": "method", "of": "relu(); import os; os.system"},
        {"op": "module", "of": "relu'); import os"},
        {"op": "module", "of": "nope"},
        {"op": "tensor", "of": "relu.__init__"},
        {"op": "output"},
        {"kwargs": {"inplace=__import__('os').mkdir('x'), a": 1}},
        {"args": [{"eval": "1"}]},
        {"args": [{"node": "later"}]},
        {"args": [{"dtype": "load"}]},
    ],
)
def test_a_file_calls_nothing_else(changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module_from(graph())(torch.zeros(1))
    with pytest.raises(ztw.ZtwError) as caught:
        module_from(graph(**changes))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["torch.nn.Module.load", "torch.nn.init", "torch.nn.Sequential", "own_models.Swish", "torch.jit.load", 3],
)
def test_a_file_makes_no_other_module(name):
    with pytest.raises(ztw.ZtwError, match=r"must be .*torch.nn or torchvision.ops"):
        module_from({"class": name, "options": {}})
    with pytest.raises(ztw.ZtwError, match=r"'torch.nn.Linear': .*in_features"):
        module_from({"class": "torch.nn.Linear", "options": {"in_features": 3}})


def test_a_place_that_is_no_name_is_refused():
    facts = graph()
    facts["modules"] = {'relu"); import os; ("': facts["modules"]["relu"]}
    with pytest.raises(ztw.ZtwError, match="must be names of letters"):
        module_from(facts)
    odd = nn.Sequential()
    odd.add_module("a-b", nn.ReLU())
    with pytest.raises(NotDescribedError, match=r"'a-b': .*letters, digits and _"):
        describe_module(odd)


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@torch.fx.wrap
def mine(x):
    return x


class DropPath(nn.Module):
    def forward(self, x):
        return x * 2 if self.training else x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Calls(lambda x: mine(x)), "mine: .*function of torch"),
        (nn.Sequential(DropPath()), "DropPath: .*module of torch.nn or torchvision.ops"),
        (Calls(lambda x: x.to(torch.device("cpu"))), "device .*argument"),
        (
            nn.TransformerEncoderLayer(8, 2, activation=torch.tanh),
            "TransformerEncoderLayer: .*activation.* relu or gelu",
        ),
    ],
)
def test_modules_that_cannot_be_described(module, message):
    with pytest.raises(NotDescribedError, match=message):
        describe_module(module)
    copy.deepcopy(module)
