"""Test cascades of models: by hand, and against every function that takes a network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from onnx_networks import rule_through_the_middle
from torch import nn

import ztw
from ztw import testing
from ztw.batch import Input, InputSpec
from ztw.models.cascade import ModelCascade, common_inputs

FEATURES = 6
LABELS = torch.arange(48) % 3


class Echo(nn.Module):
    """A model whose logits are the inputs, and which counts the samples that it is given."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.layer = factor, nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.layer.weight)
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return self.layer(x) * self.factor


def small() -> nn.Module:
    model = nn.Linear(FEATURES, 3)
    with torch.no_grad():
        model.weight.mul_(4)
    return model


def large() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 3))


def cascade(kind: str | None = None) -> tuple[ztw.EarlyExitNetwork, torch.Tensor]:
    """Return a cascade of three models with an ensemble of a kind, and samples."""
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    network, samples = ztw.model_cascade([small(), large(), deep], (FEATURES,)), torch.randn(48, FEATURES)
    if kind is not None:
        with torch.no_grad():
            logits = network(samples)
            labels = torch.where(
                torch.arange(48) % 3 == 0, LABELS, logits.mean(0).argmax(-1)
            )  # all models are useful
            network.ensemble = ztw.fit_ensemble(logits, labels, kind)
    return network, samples


def test_logits_are_those_of_the_models():
    first, second, samples = small(), large(), torch.randn(5, FEATURES)
    network = ztw.model_cascade([first, second], (FEATURES,))
    with torch.no_grad():
        found = network(samples)
        torch.testing.assert_close(found[0], first(samples))
        torch.testing.assert_close(found[1], second(samples))
        torch.testing.assert_close(network.backbone(samples), second(samples))
        torch.testing.assert_close(network.logits_at(1, samples), second(samples))
    assert not network.training


def test_costs_by_hand():
    network = ztw.model_cascade([small(), large()], (FEATURES,))
    one, two = FEATURES * 3 + 3, FEATURES * 8 + 8 + 8 * 3 + 3
    assert ztw.macs(network).tolist() == [one, one + two]
    assert ztw.macs(network.backbone) == two  # the last model alone


def test_a_sample_that_leaves_is_not_given_to_the_next_model():
    inputs = (
        ztw.Backbone("a", [Echo()], nn.Identity(), (3,)),
        ztw.Backbone("b", [Echo(2.0)], nn.Identity(), (3,)),
    )
    network = ztw.model_cascade(inputs)
    first, second = (member.stages[0] for member in network.backbone.members)  # type: ignore[union-attr]
    sure, unsure = torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.1, 0.0, 0.0])
    first.seen.clear(), second.seen.clear()
    assert network.infer(sure[None], "max_softmax 0.9").exit_index.tolist() == [0]
    assert (first.seen, second.seen) == ([1], [])
    result = network.infer(torch.stack([sure, unsure, sure, unsure]), "max_softmax 0.9")
    assert result.exit_index.tolist() == [0, 1, 0, 1]
    torch.testing.assert_close(result.logits, torch.stack([sure, 2 * unsure, sure, 2 * unsure]))
    assert (first.seen, second.seen) == ([1, 4], [2])


@pytest.mark.parametrize("kind", [None, *ztw.list_ensembles()])
def test_infer_equals_sweep_sample_by_sample(kind):
    network, samples = cascade(kind)
    for rule in ("max_softmax", "patience", *(["fixed_exit"] if kind is None else [])):
        testing.check_agreement(network, samples, rule)


@pytest.mark.parametrize("kind", [None, "geometric"])
def test_saved_and_exported_cascades_predict_the_same(kind, tmp_path):
    network, samples = cascade(kind)
    rule = ztw.MaxSoftmax(0.8)
    ztw.save(network, tmp_path / "net", rule, progress=False)
    loaded, again = ztw.load(tmp_path / "net")
    assert again == rule
    assert isinstance(loaded.backbone, ModelCascade)
    torch.testing.assert_close(loaded(samples), network(samples))
    assert ztw.macs(loaded.backbone) == ztw.macs(network.backbone)
    runner = ztw.OnnxRunner(ztw.export_onnx(loaded, rule, tmp_path / "net.onnx"), cache=False)
    assert runner.backbone_cost == ztw.macs(network.backbone)
    assert runner.cost.tolist() == ztw.macs(network).tolist()
    for size in (0, 1, 48):
        expected, found = network.infer(samples[:size], rule), runner(samples[:size])
        assert torch.equal(found.exit_index, expected.exit_index)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert len(expected.exit_index.unique()) > 1
    assert ztw.compare_exported(network, runner, (samples, LABELS)).exits_changed == 0
    point = ztw.choose_threshold(runner, (samples, LABELS), budget=0.9)
    assert point.cost <= 0.9 * ztw.macs(network.backbone)


def test_int8_and_the_last_model_alone(tmp_path):
    network, samples = cascade()
    path = ztw.export_onnx(network, "max_softmax 0.8", tmp_path / "int8.onnx", quantise=samples)
    assert (
        ztw.compare_exported(network, ztw.OnnxRunner(path, cache=False), (samples, LABELS)).exits_changed
        < 0.2
    )
    runner = ztw.OnnxRunner(ztw.export_onnx(network.backbone, None, tmp_path / "last.onnx"), cache=False)
    assert runner.cost.tolist() == [runner.backbone_cost] == [ztw.macs(network.backbone)]
    torch.testing.assert_close(runner(samples).logits, network(samples)[-1].detach(), atol=1e-4, rtol=1e-4)


def test_models_in_int8_predict_as_alone(tmp_path):
    """The classifiers of all models stay in float32, as in a file of one model."""
    network, samples = cascade()
    path = ztw.export_onnx(network, "max_softmax 0.8", tmp_path / "all.onnx", quantise=samples)
    together = ztw.OnnxRunner(path, cache=False).logits(samples)
    assert isinstance(network.backbone, ModelCascade)
    for member, logits in zip(network.backbone.members, together, strict=True):
        path = ztw.export_onnx(member, None, tmp_path / "one.onnx", quantise=samples)
        alone = ztw.OnnxRunner(path, cache=False).logits(samples)[0]
        torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)


def test_backbones_are_saved_by_their_arguments_and_copied(tmp_path):
    members = [ztw.build_backbone("resnet8", 5, 1, 10), ztw.build_backbone("resnet14", 5, 1, 10)]
    network = ztw.model_cascade([members[0], ztw.EarlyExitNetwork(members[1], [], (), "independent")])
    assert members[0].training
    assert network.backbone.arch == "resnet8+resnet14"
    ztw.save(network, tmp_path / "net")
    text = (tmp_path / "net/network.json").read_text()
    assert text.count("build_backbone") == 2
    images = torch.randn(3, 1, 10, 10)
    torch.testing.assert_close(ztw.load(tmp_path / "net")[0](images), network(images))
    folded = ztw.fold_batch_norm(network)
    torch.testing.assert_close(folded(images), network(images), atol=1e-4, rtol=1e-4)
    rule = rule_through_the_middle(network, "max_softmax")
    testing.check_agreement(network, torch.randn(16, 1, 10, 10), "max_softmax")
    assert len(network.infer(torch.randn(64, 1, 10, 10), rule).exit_index.unique()) == 2


class Named(nn.Module):
    """A model of two named tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(20, width), nn.Linear(width, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        kept = attention_mask[..., None].float()
        return self.layer((self.table(input_ids) * kept).sum(1) / kept.sum(1).clamp(min=1))


def test_inputs_may_be_a_dict_with_a_mask(tmp_path):
    torch.manual_seed(0)
    example = {"input_ids": torch.randint(20, (4, 7)), "attention_mask": torch.ones(4, 7).long()}
    models = [Named(4), Named(8)]
    network = ztw.model_cascade(models, example=example)
    batch: dict[str, Any] = {
        "attention_mask": (torch.rand(12, 7) > 0.4).long(),
        "input_ids": torch.randint(20, (12, 7)),
    }
    with torch.no_grad():
        expected = torch.stack([model(**batch) for model in models])
        torch.testing.assert_close(network(batch), expected)
        rule = ztw.MaxSoftmax(float(expected[0].softmax(-1).amax(-1).sort().values[5:7].mean()))
    ztw.save(network, tmp_path / "net", rule, progress=False)
    loaded, _ = ztw.load(tmp_path / "net")
    path = ztw.export_onnx(loaded, rule, tmp_path / "net.onnx")
    found = [network.infer(batch, rule), loaded.infer(batch, rule), ztw.OnnxRunner(path, cache=False)(batch)]
    assert found[0].exit_index.sum() == 6
    for other in found[1:]:
        assert torch.equal(other.exit_index, found[0].exit_index)
        torch.testing.assert_close(other.logits, found[0].logits, atol=1e-4, rtol=1e-4)


class ByValue(nn.Module):
    """A model that torch.export cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > -1e9 else x[:, :3]


def test_a_model_that_cannot_be_exported_runs_but_is_saved_without_code(tmp_path):
    network, samples = ztw.model_cascade([ByValue(), large()], (FEATURES,)), torch.randn(4, FEATURES)
    told: list[str] = []
    ztw.save(network, tmp_path / "net", progress=told.append)
    assert "model=<a Backbone made as this one>" in told[0]
    again = ztw.model_cascade([ByValue(), large()], (FEATURES,)).backbone
    torch.testing.assert_close(ztw.load(tmp_path / "net", model=again)[0](samples), network(samples))


def test_microbatches_follow_the_largest_stage_of_each_model():
    network = ztw.model_cascade([ztw.build_backbone("resnet8"), ztw.build_backbone("resnet14")])
    assert network.route().largest == [16 * 32 * 32, 16 * 32 * 32]


def test_a_cascade_can_be_trained_jointly_only():
    network, samples = cascade()
    with pytest.raises(ztw.ZtwError, match="regime 'separate': the network's ICs have no weights to train"):
        ztw.train_exits(network, (samples, LABELS), epochs=1, progress=False)
    history = ztw.train_exits(network, (samples, LABELS), epochs=5, regime="joint", lr=0.01, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]


def test_mistakes_are_named():
    first, second = small(), large()
    shape = (FEATURES,)
    early = ztw.build_network(ztw.build_backbone("resnet8"), head="pool", progress=False)
    images = ztw.build_backbone("resnet8", 3)
    cases: list[tuple[Any, Any, str]] = [
        ([first], shape, "model_cascade: 1, must be a list of at least two models"),
        (first, shape, "model_cascade: Linear, must be a list of at least two models"),
        ([first, 3], shape, "model_cascade: model 2 is a int, must be a torch.nn.Module"),
        (
            [early, early],
            None,
            "model_cascade: model 1 has early exits; give its .backbone, or a static network",
        ),
        (
            [first, second],
            None,
            r"model_cascade: give input_shape=, e.g. \(3, 32, 32\), or example=, a batch",
        ),
        (
            [first, nn.Linear(FEATURES, 4)],
            shape,
            "model_cascade: models of 3, 4 classes, must be the same number",
        ),
        ([images, second], shape, r"all must take the same inputs"),
        (
            [images, ztw.build_backbone("resnet14", 3, size=48)],
            None,
            r"model_cascade: images of model 2 is float32",
        ),
        (
            [second, first],
            shape,
            "models cost 83, 21 MACs, must be in order from the cheapest to the most expensive",
        ),
    ]
    for models, given, message in cases:
        with pytest.raises(ztw.ZtwError, match=message):
            ztw.model_cascade(models, given)


def test_common_inputs():
    def texts(side: int | None, *limit: int) -> InputSpec:
        limits = ((limit[0], limit[1]),) if limit else ()
        return InputSpec((Input("input_ids", (side,), "int64", [[1, 2]], limits),), "dict")

    (found,) = common_inputs([texts(None, 2, 64), texts(None, 1, 32), texts(None)]).inputs
    assert (found.shape, found.limits) == ((None,), ((2, 32),))
    assert common_inputs([texts(None), texts(7)]).inputs[0].shape == (7,)
    with pytest.raises(
        ztw.ZtwError, match=r"input_ids of model 2 is int64 \(8\), of the models before it int64 \(7\)"
    ):
        common_inputs([texts(7), texts(8)])
    with pytest.raises(ztw.ZtwError, match=r"model 2 takes a tensor, model 1 takes a dict of input_ids"):
        common_inputs([texts(7), InputSpec.of_shape((7,))])
