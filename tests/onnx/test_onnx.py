"""Test that samples leave an exported network at the same exits, with the same predictions, as in `infer`."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx_networks import (
    BATCHES,
    CLASSES,
    assert_as_infer,
    images_for,
    network_of,
    rule_through_the_middle,
)
from torch import nn

import ztw
from ztw.exits.rules import exit_scores
from ztw.exits.sweep import simulate_exits
from ztw.onnx import nesting
from ztw.onnx.graphs import inner_graphs
from ztw.onnx.nesting import flatten, nest
from ztw.onnx.write import float32_below

RULES, CONNECTED, KINDS = ztw.list_rules(), ztw.list_connections(), [None, *ztw.list_ensembles()]
# Every rule, connection and ensemble once; tests/slow/test_exports.py has all combinations
# A fixed exit has no ensemble
CASES = [
    (rule, CONNECTED[i % 4], None if rule == "fixed_exit" else KINDS[(i + 1) % 4])
    for i, rule in enumerate(RULES)
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network, its rule and its file, for tests that need only one."""
    network = network_of("cascade_detached", "geometric")
    rule = rule_through_the_middle(network, "max_softmax")
    path = ztw.export_onnx(network, rule, tmp_path_factory.mktemp("onnx") / "network.onnx")
    return network, rule, path


@pytest.mark.parametrize(("rule", "connection", "kind"), CASES)
def test_it_predicts_like_infer(tmp_path, rule, connection, kind):
    network = network_of(connection, kind)
    chosen = rule_through_the_middle(network, rule, per_exit=True)
    path = ztw.export_onnx(network, chosen, tmp_path / "network.onnx")
    assert_as_infer(network, chosen, ztw.OnnxRunner(path, threads=1, cache=False))


def test_threads_keep_the_order_of_samples(exported):
    network, rule, path = exported
    runner = ztw.OnnxRunner(path, threads=3, cache=False)
    assert_as_infer(network, rule, runner)
    images = images_for(network, 64)
    expected = network.infer(images, rule).exit_index
    for chunk in (5, 1):
        runner = ztw.OnnxRunner(path, threads=3, chunk=chunk, cache=False)
        assert torch.equal(runner(images).exit_index, expected)


def test_images_of_a_large_backbone_go_one_by_one(exported, monkeypatch):
    network, rule, path = exported
    assert ztw.OnnxRunner(path, cache=False).chunk == 32
    monkeypatch.setattr("ztw.onnx.runner.LARGE", 1.0)
    runner = ztw.OnnxRunner(path, threads=1, cache=False)
    assert runner.chunk == 1
    assert_as_infer(network, rule, runner)


class Middle(ztw.Ensemble):
    """The mean of the largest and the smallest log-probability of each class, which is not linear in the members."""

    def combine(self, log_probs: torch.Tensor) -> torch.Tensor:
        return (log_probs.amax(0) + log_probs.amin(0)) / 2


def test_an_ensemble_that_is_not_linear(tmp_path):
    network = network_of("independent", None)
    network.ensemble = Middle(network.exits, network.backbone.num_classes)
    rule = rule_through_the_middle(network, "max_softmax", per_exit=True)
    assert_as_infer(
        network, rule, ztw.OnnxRunner(ztw.export_onnx(network, rule, tmp_path / "n.onnx"), cache=False)
    )


class Numbers(nn.Module):
    """Return small integers of an image as logits, for which every runtime computes the same scores."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, self.rows]


def test_a_sample_with_a_score_equal_to_the_threshold_stays(tmp_path):
    """The confidence of logits (0, 0, 0, 0) is exactly 1/4, of (100, 0, 0, 0) exactly 1."""
    backbone = ztw.Backbone("numbers", [nn.Identity(), nn.Identity()], Numbers(1), (1, 2, 4))
    network = ztw.EarlyExitNetwork(backbone, [Numbers(0)], (0,), "independent").eval()
    images = torch.zeros(3, 1, 2, 4)
    images[1, 0, 0, 2], images[2, 0, 0, 1] = 200.0, 1.0
    path = ztw.export_onnx(network, ztw.MaxSoftmax(0.5), tmp_path / "n.onnx")
    runner = ztw.OnnxRunner(path, cache=False)
    for threshold, exits in (
        (0.25, [1, 0, 0]),
        (1.0, [1, 1, 1]),
        (np.nextafter(1.0, 0), [1, 0, 1]),
        (0.2, [0, 0, 0]),
    ):
        rule = ztw.MaxSoftmax(threshold)
        found, expected = runner(images, rule), network.infer(images, rule)
        assert found.exit_index.tolist() == expected.exit_index.tolist() == exits
        assert [runner(image[None], rule).exit_index.item() for image in images] == exits


def test_float32_bounds_separate_scores_as_exact_bounds_do(exported):
    """At, just below and just above every score of ONNX Runtime itself."""
    network, _, path = exported
    runner, images = ztw.OnnxRunner(path, threads=1, cache=False), images_for(network, 32)
    scores = runner.logits(images).softmax(-1).amax(-1)
    for value in scores[0, :8].tolist():
        for bound in (value, np.nextafter(value, 0), np.nextafter(value, 1)):
            rule = ztw.MaxSoftmax(bound)
            assert (
                (scores > torch.from_numpy(float32_below(rule.bounds(4)))[0]) == (scores.double() > bound)
            ).all()


def test_flattening_undoes_nesting(exported):
    _, _, path = exported
    runner, nested = ztw.OnnxRunner(path, cache=False), onnx.load(path)
    flat = flatten(nested, runner.form)
    again = nest(flat, runner.form)
    assert flatten(again, runner.form).SerializeToString() == flat.SerializeToString()
    onnx.checker.check_model(again, full_check=True)
    onnx.shape_inference.infer_shapes(again, strict_mode=True)


def test_the_fast_form_has_its_weights_outermost(exported, tmp_path):
    """ONNX Runtime copies the weights of a nested graph once per level."""
    network, rule, path = exported
    runner, images = ztw.OnnxRunner(path, threads=1, cache=tmp_path), images_for(network, 9)
    for some, form in ((images, "batched"), (images[:1], "single")):
        found, expected = runner(some), network.infer(some, rule)
        assert torch.equal(found.exit_index, expected.exit_index)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
        graph = onnx.load(next(tmp_path.rglob(f"{form}.onnx"))).graph
        assert len(graph.initializer) > 20
        assert all(name.startswith("ztw:") for name in _weights_inside(graph))  # added by ztw.onnx.nesting


@pytest.fixture(scope="module")
def in_int8(exported, tmp_path_factory):
    """The file of the network of `exported` in int8."""
    network, rule, _ = exported
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    return ztw.export_onnx(network, rule, path, quantise=images_for(network, 300)[:100])


def test_weights_of_int8_convolutions_are_in_the_same_graph(exported, in_int8, tmp_path):
    """ONNX Runtime does not pack weights in an outer graph, and then takes 1.5 times as long."""
    images = images_for(exported[0], 64)
    runner = ztw.OnnxRunner(in_int8, threads=1, cache=tmp_path)
    for count, form in ((9, "batched"), (1, "single")):
        runner(images[:count])
        found = list(_weights_beside(onnx.load(next(tmp_path.rglob(f"{form}.onnx"))).graph))
        assert len(found) > 3
        assert all(found)


def test_an_activation_function_in_int8_wastes_no_range(tmp_path):
    """One channel has a wide range, which ReLU6 cuts off. A scale for it would be too coarse for other channels."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3)
    first.weight.data[0].mul_(1000)
    stage = nn.Sequential(first, nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.ReLU())
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    backbone = ztw.Backbone("wide", [stage], classifier, (3, 16, 16)).eval()
    images = torch.randn(64, 3, 16, 16)
    path = ztw.export_onnx(backbone, None, tmp_path / "int8.onnx", quantise=images)
    found = ztw.OnnxRunner(path, threads=1, cache=False).logits(images)[0]
    expected = backbone(images).detach()
    assert (found - expected).std() < 0.3 * expected.std(0).mean()


def _weights_beside(graph):
    """Yield for every convolution in int8 whether its weights are in the same graph."""
    own = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "QLinearConv":
            yield node.input[3] in own
        for inner in inner_graphs(node):
            yield from _weights_beside(inner)


def _weights_inside(graph):
    for inner in (inner for node in graph.node for inner in inner_graphs(node)):
        yield from (tensor.name for tensor in inner.initializer)
        yield from _weights_inside(inner)


def test_any_runtime_can_use_the_file_as_it_is(exported):
    network, rule, path = exported
    images = images_for(network, 9)
    session = onnxruntime.InferenceSession(path)
    logits, exits = session.run(None, {"images": images.numpy()})
    expected = network.infer(images, rule)
    assert exits.tolist() == expected.exit_index.tolist()
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4, rtol=1e-4)
    _, exits = session.run(None, {"images": images.numpy(), "bounds": np.full(3, 2, np.float32)})
    assert set(exits.tolist()) == {3}


def test_it_really_stops(exported):
    """For a sample that leaves at the first exit, no later block is computed: they are inside an `If`."""
    content = onnx.load(exported[2])
    assert [node.op_type for node in content.graph.node].count("If") == 1
    convolutions = [node for node in content.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 2  # of the first block and of its head


def test_a_backbone_alone(exported, tmp_path):
    network = exported[0]
    images = images_for(network, 70)
    runner = ztw.OnnxRunner(ztw.export_onnx(network.backbone, None, tmp_path / "b.onnx"), cache=False)
    for count in (0, 1, 70):
        result = runner(images[:count])
        torch.testing.assert_close(result.logits, network.backbone(images[:count]), atol=1e-4, rtol=1e-4)
        assert result.exit_index.tolist() == [0] * count


def test_the_file_says_what_it_is(exported):
    network, rule, path = exported
    facts = json.loads({item.key: item.value for item in onnx.load(path).metadata_props}["ztw"])
    assert facts["bounds"] == [rule.threshold] * 3
    assert facts["rule"] == {"rule": "max_softmax", "threshold": rule.threshold}
    assert facts["macs"] == ztw.macs(network).tolist()
    images = {"name": "images", "shape": [3, 10, 10], "dtype": "float32"}
    assert facts["inputs"] == {"form": "tensor", "inputs": [images]}
    runner = ztw.OnnxRunner(path, cache=False)
    torch.testing.assert_close(runner.cost, ztw.macs(network))


def test_all_exits_to_choose_thresholds_on(exported):
    network, _, path = exported
    images = images_for(network, 70)
    with torch.no_grad():
        expected = network.ensemble(network(images))
    torch.testing.assert_close(
        ztw.OnnxRunner(path, cache=False).logits(images), expected, atol=1e-4, rtol=1e-4
    )


def test_another_threshold_than_the_files(exported):
    network, _, path = exported
    images = images_for(network, 64)
    runner = ztw.OnnxRunner(path, cache=False)
    rule = rule_through_the_middle(network, "max_softmax", per_exit=True)
    assert torch.equal(runner(images, rule).exit_index, network.infer(images, rule).exit_index)
    with pytest.raises(ztw.ZtwError, match="exported for MaxSoftmax, not for Entropy"):
        runner(images, ztw.Entropy(0.5))


def test_a_file_keeps_the_parameters_of_a_fitted_rule(tmp_path):
    network = network_of("independent", None)
    rule: Any = rule_through_the_middle(network, "pcee")
    runner = ztw.OnnxRunner(ztw.export_onnx(network, rule, tmp_path / "n.onnx"), cache=False)
    assert runner.rule == rule
    images = images_for(network, 64)
    labels = torch.arange(64) % CLASSES
    point = ztw.choose_threshold(runner, (images, labels), budget="max", rule="pcee", progress=False)
    assert type(point.rule) is type(rule)
    logits = network(images).detach()
    # the threshold stands on the score of one sample, which rounding can lift above it
    away = exit_scores(logits, type(rule))[:-1] - point.rule.bounds(network.exits)[:, None]
    clear = (away.abs() > 1e-5).all(0)
    assert clear.sum() >= 63
    found, expected = runner(images, point.rule), network.infer(images, point.rule)
    assert torch.equal(found.exit_index[clear], expected.exit_index[clear])
    other: Any = ztw.fit_rule(logits, labels, "pcee")
    with pytest.raises(ztw.ZtwError, match="for Pcee, not for Pcee with other fitted parameters"):
        runner(images, other(0.5))


def test_images_as_numpy_and_in_another_memory_format(exported):
    network, rule, path = exported
    images = images_for(network, 5)
    runner = ztw.OnnxRunner(path, cache=False)
    expected = network.infer(images, rule)
    for given in (images.numpy(), images.to(memory_format=torch.channels_last), images.double()):
        torch.testing.assert_close(runner(given).logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_the_fast_form_is_kept_and_used(exported, tmp_path, monkeypatch):
    network, _, path = exported
    images = images_for(network, 2)
    first = ztw.OnnxRunner(path, cache=tmp_path)(images)
    ztw.OnnxRunner(path, cache=tmp_path)(images[:1])
    assert sorted(file.name for file in tmp_path.rglob("*.onnx")) == ["batched.onnx", "single.onnx"]
    monkeypatch.setattr("ztw.onnx.runner.OnnxRunner._fast", lambda *_: pytest.fail("made again"))
    again = ztw.OnnxRunner(path, cache=tmp_path)(images)
    assert torch.equal(first.logits, again.logits)
    # another version of ONNX Runtime makes another fast form
    path.with_name("other.onnx").write_bytes(path.read_bytes() + b"")
    monkeypatch.setattr("onnxruntime.__version__", "0")
    with pytest.raises(pytest.fail.Exception, match="made again"):
        ztw.OnnxRunner(path, cache=tmp_path)(images)


def test_a_damaged_fast_form_is_made_again(exported, tmp_path):
    network, _, path = exported
    images = images_for(network, 2)
    expected = ztw.OnnxRunner(path, cache=tmp_path)(images)
    for kept in tmp_path.rglob("*.onnx"):
        kept.write_bytes(kept.read_bytes()[:-100])
    assert torch.equal(ztw.OnnxRunner(path, cache=tmp_path)(images).logits, expected.logits)


class ByTheBatch(nn.Module):
    """A classifier that reads the size of the batch, as `view` does in users' models."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * 6 * 6, CLASSES := 3)
        self.num_classes = CLASSES

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.contiguous().view(x.shape[0], -1))


class Tokens(nn.Module):
    """Put a class token in front, as in a vision transformer. It is expanded to the batch and used at every exit."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)


def test_more_exits_than_protobuf_allows_levels(tmp_path):
    """Without functions, a nested graph can have at most 33 exits."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Flatten(), nn.Linear(12, 6)), *(nn.Linear(6, 6) for _ in range(33))]
    backbone = ztw.Backbone("deep", stages, nn.Linear(6, CLASSES), (3, 2, 2))
    heads = [nn.Linear(6, CLASSES) for _ in stages]
    network = ztw.EarlyExitNetwork(backbone, heads, tuple(range(34)), "boosted").eval()
    with torch.no_grad():
        confidences = network(images_for(network, 64)).softmax(-1).amax(-1)
    rule = ztw.MaxSoftmax(float(confidences.max(0).values.median()) - 1e-6)
    runner = ztw.OnnxRunner(ztw.export_onnx(network, rule, tmp_path / "network.onnx"), cache=False)
    assert_as_infer(network, rule, runner)
    assert runner(images_for(network, 64)).exit_index.max() == 34


@pytest.mark.parametrize("levels", [1, 2])
def test_levels_may_be_functions(exported, monkeypatch, tmp_path, levels):
    network, rule, path = exported
    nested, form = onnx.load(path), ztw.OnnxRunner(path, cache=False).form
    monkeypatch.setattr(nesting, "LEVELS", levels)
    again = nest(flatten(nested, form), form)
    assert len(again.functions) == 3 // levels
    assert flatten(again, form).SerializeToString() == flatten(nested, form).SerializeToString()
    again.metadata_props.extend(nested.metadata_props)
    again.graph.initializer.extend(part for part in nested.graph.initializer if part.name == "bounds")
    onnx.checker.check_model(again, full_check=True)
    onnx.save(again, tmp_path / "again.onnx")
    assert_as_infer(network, rule, ztw.OnnxRunner(tmp_path / "again.onnx", cache=False))


def test_parts_that_read_the_batch_s_size(tmp_path):
    torch.manual_seed(0)
    backbone = ztw.Backbone(
        "views", [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)], ByTheBatch(), (3, 8, 8)
    )
    network = ztw.EarlyExitNetwork(backbone, [ByTheBatch(), ByTheBatch()], (0, 1), "independent").eval()
    rule = rule_through_the_middle(network, "max_softmax", per_exit=True)
    runner = ztw.OnnxRunner(ztw.export_onnx(network, rule, tmp_path / "n.onnx"), cache=False)
    assert_as_infer(network, rule, runner, BATCHES[1:])  # `view` itself fails with no images


def test_attention_at_every_exit(tmp_path):
    torch.manual_seed(0)
    blocks = [nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True) for _ in range(2)]

    class First(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens[:, 0]

    classifier = nn.Sequential(First(), nn.Linear(4, 3))
    backbone = ztw.Backbone("attention", [Tokens(), *blocks], classifier, (4, 3, 3))
    network = ztw.build_network(backbone, placement=(0, 1)).eval()
    rule = rule_through_the_middle(network, "max_softmax", per_exit=True)
    runner = ztw.OnnxRunner(ztw.export_onnx(network, rule, tmp_path / "n.onnx"), cache=False)
    assert_as_infer(network, rule, runner, BATCHES[1:])  # `view` itself fails with no images


def test_wrong_requests_give_one_line_errors(exported, tmp_path):
    network, rule, path = exported
    with pytest.raises(ztw.ZtwError, match="needs a rule"):
        ztw.export_onnx(network, None, tmp_path / "n.onnx")
    with pytest.raises(ztw.ZtwError, match="MaxSoftmax for a Backbone, which has no exits"):
        ztw.export_onnx(network.backbone, rule, tmp_path / "n.onnx")
    alone = ztw.EarlyExitNetwork(network.backbone, [], (), "independent")
    with pytest.raises(ztw.ZtwError, match="no exits but its last one; export its backbone"):
        ztw.export_onnx(alone, rule, tmp_path / "n.onnx")
    with pytest.raises(ztw.ZtwError, match=r"Linear, must be an EarlyExitNetwork or a Backbone"):
        ztw.export_onnx(nn.Linear(1, 1), rule, tmp_path / "n.onnx")  # type: ignore[arg-type]
    with pytest.raises(ztw.ZtwError, match="MaxSoftmax: 2 thresholds, must be one or 3"):
        ztw.export_onnx(network, ztw.MaxSoftmax((0.5, 0.5)), tmp_path / "n.onnx")
    runner = ztw.OnnxRunner(path, cache=False)
    with pytest.raises(ztw.ZtwError, match=r"images: shape \(3, 10, 10\), must be \(N, 3, 10, 10\)"):
        runner(torch.zeros(3, 10, 10))
    with pytest.raises(ztw.ZtwError, match=r"images: shape \(1, 3, 9, 10\)"):
        runner(np.zeros((1, 3, 9, 10)))
    with pytest.raises(ztw.ZtwError, match="provider 'Toaster': this ONNX Runtime has"):
        ztw.OnnxRunner(path, providers=["Toaster"])
    with pytest.raises(ztw.ZtwError, match="provider 'CUDA': this ONNX Runtime has"):
        ztw.OnnxRunner(path, providers="CUDA")
    with pytest.raises(ztw.ZtwError, match="threads 0: must be a whole number of at least 1, or None"):
        ztw.OnnxRunner(path, threads=0)
    with pytest.raises(ztw.ZtwError, match=r"is a folder, must be .*file"):
        ztw.export_onnx(network, rule, tmp_path)
    with pytest.raises(
        ztw.ZtwError, match=r"quantise: images: shape \(1, 3, 9, 10\), must be \(N, 3, 10, 10\)"
    ):
        ztw.export_onnx(network, rule, tmp_path / "n.onnx", quantise=torch.zeros(1, 3, 9, 10))
    for chunk in (0, 2.5, "32"):
        with pytest.raises(
            ztw.ZtwError, match=f"chunk {chunk!r}: must be a whole number of at least 1, or None"
        ):
            ztw.OnnxRunner(path, chunk=chunk)  # type: ignore[arg-type]
    with pytest.raises(ztw.ZtwError, match=r"missing.onnx: cannot be read \(No such file"):
        ztw.OnnxRunner(tmp_path / "missing.onnx")
    older = onnx.load(path)
    facts = json.loads(older.metadata_props[0].value)
    older.metadata_props[0].value = json.dumps({**facts, "schema": 2, "ztw": "0.9"})
    onnx.save(older, tmp_path / "older.onnx")
    with pytest.raises(ztw.ZtwError, match=r"schema 2, written by ztw 0.9; this one reads schema 3: export"):
        ztw.OnnxRunner(tmp_path / "older.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ztw.ZtwError, match=r"broken.onnx: damaged"):
        ztw.OnnxRunner(broken)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, broken)
    with pytest.raises(ztw.ZtwError, match=r"not written by ztw\.export_onnx"):
        ztw.OnnxRunner(broken)


def test_a_missing_package_is_named(exported, tmp_path, monkeypatch):
    network, rule, path = exported
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ztw.ZtwError, match=r"the package onnxruntime is not installed; pip install 'ztw\[onnx\]'"
    ):
        ztw.export_onnx(network, rule, tmp_path / "n.onnx")
    with pytest.raises(ztw.ZtwError, match="onnxruntime is not installed"):
        ztw.OnnxRunner(path)


def test_int8_is_compared_with_the_original_and_gets_new_thresholds(exported, in_int8, tmp_path):
    network, rule, _ = exported
    images = images_for(network, 300)
    labels = network(images).sum(0).argmax(-1)
    held_out = images, labels
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(in_int8).graph.node}
    runner = ztw.OnnxRunner(in_int8, threads=1, cache=False)
    found = ztw.compare_exported(network, runner, held_out)
    assert found.accuracy == tuple(ztw.exit_accuracy(network.ensemble(network(images)), labels).tolist())
    assert found.exported_accuracy != found.accuracy
    torch.testing.assert_close(
        torch.tensor(found.exported_accuracy), torch.tensor(found.accuracy), atol=0.1, rtol=0
    )
    assert 0 < found.exits_changed < 0.2
    point = ztw.choose_threshold(runner, held_out, budget=1.2, progress=False)
    exits, _ = simulate_exits(runner.logits(images), point.rule)
    assert torch.equal(runner(images, point.rule).exit_index, exits)
    assert point.accuracy == float((runner(images, point.rule).logits.argmax(-1) == labels).double().mean())
    assert point.relative_cost <= 1.2
    with pytest.raises(ztw.ZtwError, match="quantise: no samples, must be at least one"):
        ztw.export_onnx(network, rule, tmp_path / "n.onnx", quantise=images[:0])
