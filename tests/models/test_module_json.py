"""Test parts as JSON: they compute the same after reading, and a file can call nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from own_models import Swish
from torch import nn

import ztw
from ztw.models.exporting import export_part
from ztw.models.module_json import describe_part, part_from

LEAVES = [
    (nn.Conv2d(4, 6, 3, (2, 1), 1, groups=2, bias=False, padding_mode="reflect"), (4, 8, 8)),
    (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2), (4, 8, 8)),
    (nn.ConvTranspose2d(4, 6, 3, 2, output_padding=1), (4, 8, 8)),
    (nn.BatchNorm2d(4, eps=0.1, momentum=0.3, affine=False), (4, 8, 8)),
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


def read_again(part: nn.Module, x: torch.Tensor) -> tuple[nn.Module, nn.Module]:
    """Return an exported part, and the part that its JSON gives, with the same weights."""
    exported = export_part(part, x)
    again = part_from(json.loads(json.dumps(describe_part(exported, x))))
    again.load_state_dict(exported.state_dict())
    return exported, again


@pytest.mark.parametrize(("leaf", "shape"), LEAVES, ids=lambda value: type(value).__name__)
def test_a_layer_is_read_as_written(leaf, shape):
    x = torch.randn(4, *shape)
    exported, again = read_again(leaf, x.clone())
    torch.testing.assert_close(again.eval()(x.clone()), leaf.eval()(x.clone()))
    outputs = []
    for part in (again, exported, leaf):
        torch.manual_seed(0)
        outputs.append(part.train()(x.clone()))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


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
    x = torch.randn(4, 3, 8, 8)
    module = Functions().eval()
    exported, again = read_again(module, x)
    facts = describe_part(exported, x)
    assert facts["tensors"]["weight"] == {"kind": "parameter", "shape": [3, 3, 3, 3], "dtype": "float32"}
    assert facts["tensors"]["shift"]["kind"] == "buffer"
    torch.testing.assert_close(again.eval()(x), module(x))


def part(**changes) -> dict[str, Any]:
    """Return the description of relu(x), with changes of its node."""
    node = {"name": "a", "op": "aten.relu.default", "args": [{"node": "x"}], **changes}
    graph = {"nodes": [node], "output": {"node": "a"}}
    return {"takes": ["x"], "tensors": {}, "in_eval": graph, "in_training": None, "linear": None}


@pytest.mark.parametrize(
    "changes",
    [
        {"op": "torch.load", "args": ["/tmp/file"]},
        {"op": "aten.from_file.default", "args": ["/etc/passwd"]},
        {"op": "aten.from_file.default", "args": ["x", True, 1]},
        {"op": "aten.relu.__class__"},
        {"op": "aten.__class__.__init__"},
        {"op": "aten.relu"},
        {"op": "aten.relu.default(x); import os; os.system"},
        {"op": "aten.relu.nope"},
        {"op": "prims.relu.default"},
        {"op": "os.system", "args": ["true"]},
        {"op": "builtins.eval", "args": ["1"]},
        {"op": "methodcaller", "args": ["x"]},
        {"op": "getattr", "args": [{"node": "x"}, "__class__"]},
        {"op": "tensor", "of": "relu.__init__"},
        {"op": "output"},
        {"kwargs": {"inplace=__import__('os').mkdir('x'), a": 1}},
        {"args": [{"eval": "1"}]},
        {"args": [{"node": "later"}]},
        {"args": [{"dtype": "load"}]},
        {"args": [{"layout": "load"}]},
        {"args": [{"float": "1e400"}]},
    ],
)
def test_a_file_calls_nothing_else(changes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part_from(part()).eval()(torch.zeros(1))
    with pytest.raises(ztw.ZtwError) as caught:
        part_from(part(**changes))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ['relu"); import os; ("', "a b", "", "a..b", 3])
def test_a_place_that_is_no_name_is_refused(name):
    with pytest.raises(ztw.ZtwError, match="must be names of letters"):
        part_from(
            {**part(), "takes": [name]} if not isinstance(name, int) else {**part(), "linear": linear(name)}
        )
    with pytest.raises(ztw.ZtwError, match="must be names of letters"):
        part_from({**part(), "linear": linear(name)})


def linear(name: object) -> dict[str, object]:
    return {"name": name, "in_features": 2, "out_features": 2, "bias": True}


def test_numbers_and_types_survive():
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = x.masked_fill(x > 0, -math.inf).to(torch.float64)
            ones = torch.full((x.size(0), 1, 1, 1), 2, dtype=torch.int32)
            return hidden.clone(memory_format=torch.channels_last) * ones

    x = torch.randn(4, 3, 2, 2)
    _, again = read_again(Odd(), x)
    assert again.eval()(x).dtype == torch.float64
    torch.testing.assert_close(again(x), Odd()(x))


def test_an_operation_of_another_library_cannot_be_saved():
    module = torchvision.ops.DeformConv2d(2, 2, 1)

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x, torch.zeros(x.size(0), 2, *x.shape[2:]))

    with pytest.raises(ztw.ZtwError, match=r"torchvision.deform_conv2d.* cannot be saved"):
        describe_part(Deformed(), torch.randn(4, 2, 4, 4))
