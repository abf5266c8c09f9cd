"""Parts as JSON: they come back computing the same in both modes, and a file can call nothing but listed operations."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from own_models import Swish
from torch import Tensor, nn

import ztw
from ztw.models.exported import ExportedPart
from ztw.models.exporting import export_part
from ztw.models.module_json import describe_part, part_from


def comes_back(part: nn.Module, state: Any) -> ExportedPart:
    """A part from JSON computes what the part does: values, gradients and statistics, also for other batch sizes."""
    exported = export_part(part, state)
    described = json.loads(json.dumps(describe_part(exported, state), allow_nan=False))
    again = part_from(described)
    again.load_state_dict(exported.state_dict())
    assert [type(value) for value in again.parameters()] == [type(value) for value in part.parameters()]
    batch = torch.cat([state, state[:2] + 1 if state.is_floating_point() else state[:2]])
    for training in (False, True):
        results = []
        for module in (again.train(training), part.train(training)):
            torch.manual_seed(1)
            given = batch.clone().requires_grad_() if batch.is_floating_point() else batch
            output = module(given)
            if output.requires_grad:
                output.sum().backward()
            grad = given.grad if given.grad is not None else torch.zeros(())
            buffers = [buffer.float() for buffer in module.buffers()] if module is again else []
            results.append((output, grad, buffers))
        torch.testing.assert_close(results[0][:2], results[1][:2])
        own = dict(part.named_buffers())
        for name, value in again.named_buffers():
            torch.testing.assert_close(value, own.get(name, value), msg=name)
    return again


class Each(nn.Module):
    """The outputs of several layers, side by side."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [layer(x.clone()) for layer in self.layers]
        return torch.cat([(out[0] if isinstance(out, tuple) else out).flatten(1) for out in outputs], 1)


MAPS = [
    nn.Conv2d(4, 6, 3, (2, 1), 1, groups=2, bias=False, padding_mode="reflect"),
    nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2),
    nn.ConvTranspose2d(4, 6, 3, 2, output_padding=1),
    nn.BatchNorm2d(4, eps=0.1, affine=False),
    nn.BatchNorm2d(4, track_running_stats=False),
    nn.GroupNorm(2, 4, eps=0.1),
    nn.LayerNorm((8, 8), elementwise_affine=False),
    nn.InstanceNorm2d(4, affine=True),
    nn.LocalResponseNorm(2),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d(3, count_include_pad=False, padding=1),
    nn.AdaptiveAvgPool2d((2, None)),
    nn.AdaptiveMaxPool2d(3),
    nn.LPPool2d(2, 3),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    nn.PixelShuffle(2),
    nn.ChannelShuffle(2),
    nn.ZeroPad2d((1, 2, 0, 1)),
    nn.Unfold(3),
    nn.Flatten(2),
    nn.Unflatten(1, (2, 2)),
    nn.PReLU(4),
    nn.Dropout2d(0.5),
    torchvision.ops.StochasticDepth(0.3, "row"),
    torchvision.ops.SqueezeExcitation(4, 2),
]
TOKENS = [
    nn.Linear(8, 3, bias=False),
    nn.LayerNorm(8, bias=False),
    nn.RMSNorm(8),
    nn.Dropout(0.3, inplace=True),
    nn.AlphaDropout(0.3),
    nn.LeakyReLU(0.3, inplace=True),
    nn.RReLU(),
    nn.ELU(0.5),
    nn.Hardtanh(-2, 3),
    nn.GELU("tanh"),
    nn.GLU(),
    nn.Softmax(1),
    nn.LogSoftmax(-1),
    nn.Hardswish(),
    nn.Mish(),
    nn.Softplus(2.0),
    nn.Identity(),
    nn.TransformerEncoderLayer(8, 2, 5, 0.3, F.gelu, 0.1, True, True, bias=False),
    nn.TransformerEncoderLayer(8, 4, 5, activation="relu"),
    torchvision.ops.Permute([0, 2, 1]),
]
SIGNALS = [
    nn.Conv1d(4, 5, 3, padding=1),
    nn.BatchNorm1d(4),
    nn.MaxPool1d(2),
    nn.AdaptiveAvgPool1d(3),
    nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True, dropout=0.5),
    nn.GRU(6, 5, batch_first=True),
    nn.RNN(6, 5, batch_first=True, nonlinearity="relu"),
]
GROUPS = {
    "maps": (MAPS, torch.randn(3, 4, 8, 8)),
    "tokens": (TOKENS, torch.randn(3, 4, 8)),
    "signals": (SIGNALS, torch.randn(3, 4, 6)),
    "ids": (
        [nn.Embedding(9, 4, padding_idx=0), nn.EmbeddingBag(9, 4, mode="max")],
        torch.arange(15).view(3, 5) % 9,
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_layers_come_back(name):
    layers, state = GROUPS[name]
    comes_back(Each(layers), state)


def test_a_part_that_only_infers_comes_back():
    layer, state = nn.BatchNorm2d(4, momentum=None), torch.randn(3, 4, 8, 8)
    described = json.loads(json.dumps(describe_part(layer, state)))
    assert described["in_training"] is None
    again = part_from(described)
    again.load_state_dict(export_part(layer, state).state_dict())
    torch.testing.assert_close(again.eval()(state), layer.eval()(state))
    with pytest.raises(ztw.ZtwError, match=r"the backbone cannot be trained: torch.export cannot follow"):
        again.train()(state)


class Functions(nn.Module):
    """Functions, methods, operators and arguments of every kind."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({"one": nn.LayerNorm(8), "t-w o": Swish()})
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3))
        self.register_buffer("shift", torch.randn(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.pad(F.conv2d(x, self.weight, stride=(1, 1)), (1, 1, 1, 1), value=0.5) - self.shift
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        a, b = torch.split(x, [8, 8], dim=-1)
        x = torch.cat([a, b[..., ::2, :].repeat(1, 1, 2, 1)], dim=2).clamp(min=-math.inf, max=3.0)
        x = x.view(n, -1, width * height // 8).mean((1,), keepdim=True, dtype=torch.float32)
        x = self.norms["t-w o"](self.norms["one"](x.to(torch.float64).float()))
        causal = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        x, _ = self.attention(x, x, x, need_weights=False, attn_mask=causal)
        x *= 2
        x = x.masked_fill(x > 100, math.inf).nan_to_num(posinf=1e3) * torch.tensor([0.5] * 8)
        ends = torch.ones(3, dtype=torch.int32)[:1] + torch.arange(n, device=x.device).unsqueeze(1)
        return torch.einsum("nij,nkj->ni", x, x.softmax(-1)) / x.size(-1) + ends


def test_functions_come_back():
    module, images = Functions(), torch.randn(3, 3, 8, 8)
    again = comes_back(module, images)
    described = describe_part(again, images)
    assert described["tensors"]["weight"] == {"kind": "parameter", "shape": [3, 3, 3, 3], "dtype": "float32"}
    text = json.dumps(described)
    for argument in (
        '{"float": "-inf"}',
        '{"memory_format": "channels_last"}',
        '{"dtype": "int32"}',
        '"op": "device"',
    ):
        assert argument in text
    assert again.to("meta")(images.to("meta")).is_meta


def test_a_state_of_several_values_comes_back():
    class Adds(nn.Module):
        def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"features": state["features"] + state["scale"], "scale": state["scale"] * 2}

    state = {"features": torch.randn(3, 4), "scale": torch.randn(3, 1)}
    again = part_from(json.loads(json.dumps(describe_part(Adds(), state))))
    torch.testing.assert_close(again(state), Adds()(state))
    torch.testing.assert_close(again(dict(reversed(state.items()))), Adds()(state))


def described(node: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """relu(x), with changes to its one node and to the part."""
    relu = {"name": "a", "op": "aten.relu.default", "args": [{"node": "x"}], **(node or {})}
    return {
        "takes": ["x"],
        "tensors": {"w": {"kind": "parameter", "shape": [2], "dtype": "float32"}},
        "in_eval": {"nodes": [relu], "output": {"node": "a"}},
        "in_training": None,
        "linear": None,
        **changes,
    }


OPERATIONS: list[Any] = [
    "torch.load",
    "os.system",
    "builtins.eval",
    "getattr",
    "operator.attrgetter",
    "call_method",
    "eval",
    "output",
    "placeholder",
    "aten.relu",
    "aten.relu.default.__class__",
    "aten.relu.default\n",
    " aten.relu.default",
    "aten.relu.default; import os",
    "aten.relu.__class__",
    "aten.relu.__call__",
    "aten.relu._op",
    "aten.relu.name",
    "aten.__class__.default",
    "aten.__getattr__.default",
    "aten.__dict__.copy",
    "aten._dir.append",
    "aten.nope.default",
    "torch.ops.aten.relu.default",
    "prims.add.default",
    "ztw.mark.default",
    "higher_order.cond",
    "aten.from_file.default",
    "aten.from_file.out",
    "aten.save.default",
    "aten.manual_seed.default",
    "aten.relu.out",
    "aten.resize_.default",
    "aten.set_.source_Tensor",
    "aten.set_data.default",
    "aten.as_strided_.default",
    "aten.record_stream.default",
    "aten._sparse_coo_tensor_unsafe.default",
    "aten._unsafe_index.Tensor",
    "aten._nested_view_from_buffer.default",
    "aten.rand.default",
    3,
    None,
    ["aten.relu.default"],
]


@pytest.mark.parametrize("op", OPERATIONS, ids=str)
def test_a_file_calls_no_other_operation(op):
    with pytest.raises(ztw.ZtwError, match="node 'a': a file may not call ") as caught:
        part_from(described({"op": op}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (described({"args": [{"eval": "1"}]}), "argument .*'eval'.*: must be a known node, a dict"),
        (described({"args": [{"node": "later"}]}), "argument .*'later'.*: must be a known node"),
        (described({"args": [{"node": "a"}]}), "argument .*'a'.*: must be a known node"),
        (described({"args": [{"dtype": "load"}]}), "dtype 'load': must be a dtype of torch"),
        (described({"args": [{"dtype": "nn.Module"}]}), "dtype 'nn.Module': must be a dtype"),
        (
            described({"args": [{"memory_format": "float32"}]}),
            "memory_format 'float32': must be a memory_format",
        ),
        (described({"args": [{"layout": 3}]}), "layout 3: must be a layout"),
        (described({"args": [{"float": "1e400"}]}), "argument .*1e400"),
        (described({"args": [{"device": "cpu"}]}), "argument .*cpu"),
        (described({"kwargs": {"inplace=__import__('os').mkdir('x'), a": 1}}), "must be identifiers"),
        (described({"op": "device", "of": {"node": "later"}}), "must be a known node"),
        (described({"op": "tensor", "of": "v"}), "tensor 'v': not in the file; known: w"),
        (described({"op": "tensor", "of": "w.__init__"}), "tensor 'w.__init__': not in the file"),
        (described(in_eval=None), "in_eval: missing"),
        (described(in_eval={"nodes": [], "output": {"node": "a"}}), "must be a known node"),
        (described(takes=["x..y"]), "'x..y': must be names, separated by dots"),
        (described(takes=[3]), "3: must be names"),
        (described(tensors={"": {"kind": "buffer", "shape": [2], "dtype": "float32"}}), "'': must be names"),
        (described(tensors={"w": {"kind": "buffer", "shape": [2], "dtype": "load"}}), "dtype 'load'"),
        (
            described(linear={"name": ".a", "in_features": 2, "out_features": 2, "bias": True}),
            "'.a': must be names",
        ),
    ],
)
def test_other_contents_are_refused(file, message):
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        part_from(file)
    assert "\n" not in str(caught.value)


def test_text_in_a_file_is_no_code(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "__import__('os').mkdir('made')"
    x = torch.tensor([-1.0, 2.0])
    assert part_from(described()).eval()(x).tolist() == [0, 2]
    name = f"x=({code})"
    node = {"name": f"a); {code}", "op": "aten.relu.default", "args": [{"node": name}]}
    output = {"dict": {f"'{code}": {"node": node["name"]}}}
    part = part_from(described(takes=[name], in_eval={"nodes": [node], "output": output})).eval()
    assert part({name: x})[f"'{code}"].tolist() == [0, 2]
    assert repr(part)
    assert part.in_eval.code
    with pytest.raises(RuntimeError):
        part_from(
            described({"op": "aten.gelu.default", "kwargs": {"approximate": f"none'), {code}, ('"}})
        ).eval()(x)
    tensors = {f"a-{code[:8]} \"')": {"kind": "buffer", "shape": [2], "dtype": "float32"}}
    part = part_from(described({"op": "tensor", "of": next(iter(tensors))}, tensors=tensors))
    assert part.eval()(x).tolist() == [0, 0]
    assert not list(tmp_path.iterdir())


@torch.library.custom_op("ztw_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


twice.register_fake(lambda x: x * 2)


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: twice(x), "the operation ztw_tests.twice.default cannot be saved"),
        (lambda x: (x * 2j).abs(), "complex '2j': the format cannot hold such an argument"),
        (lambda x: x * 2 if x.sum() > 0 else x, "it decides by the values of tensors"),
    ],
)
def test_what_cannot_be_described(function, message):
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        describe_part(Calls(function), torch.randn(3, 4))
    assert "\n" not in str(caught.value)
