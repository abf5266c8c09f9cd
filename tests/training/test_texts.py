"""Training and predictions of a network that takes several tensors, whose stages return dicts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from conftest import same, state_of
from text_networks import CLASSES, shortened, text_network, texts
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ztw
from ztw.batch import mapped
from ztw.data.user_data import as_data
from ztw.data.wanted import wanted_by
from ztw.evaluation.predictions import predict_networks
from ztw.progress import Progress
from ztw.training.joint import equal_shares, shared_logits
from ztw.training.recipe import Recipe
from ztw.training.regimes import REGIMES
from ztw.training.resume import Checkpoints
from ztw.training.separate import train_backbone, train_separately

TEXTS, LABELS = texts()


class Texts(Dataset):
    """Samples ({...}, label), or dicts with a label."""

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> Any:
        inputs, label = {name: values[index] for name, values in TEXTS.items()}, int(LABELS[index])
        return {**inputs, "label": label} if self.whole else (inputs, label)


FORMS: dict[str, Any] = {
    "dict and labels": (TEXTS, LABELS),
    "one dict": {**TEXTS, "labels": LABELS},
    "dataset": Texts(),
    "dataset of dicts": Texts(whole=True),
    "loader": DataLoader(Texts(), 32, shuffle=True),
    "loader of different lengths": DataLoader(Texts(), 32, shuffle=True, collate_fn=shortened),
}
train = partial(ztw.train_exits, lr=0.05, batch_size=32, progress=False)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("form", FORMS)
def test_every_regime_learns_from_every_form(regime, form):
    network = text_network()
    before = state_of(network.backbone)
    history = train(network, FORMS[form], 9, regime=regime)
    assert same(before, state_of(network.backbone)) == (regime == "separate")
    assert history[-1]["accuracy"] > 1 / CLASSES + 0.2
    logits, labels = ztw.predict(network, FORMS[form], progress=False)
    assert logits.shape == (3, 96, CLASSES)
    assert sorted(labels.tolist()) == sorted(LABELS.tolist())


def test_forms_train_the_same():
    networks = {
        form: text_network() for form in ("dict and labels", "one dict", "dataset", "dataset of dicts")
    }
    for form, network in networks.items():
        train(network, FORMS[form], 2, regime="joint")
    first, *others = map(state_of, networks.values())
    assert all(same(first, other) for other in others)


def test_tensors_by_position_train_the_same():
    named, placed = text_network(), text_network(form="tuple")
    train(named, (TEXTS, LABELS), 2, regime="joint")
    train(placed, (*TEXTS.values(), LABELS), 2, regime="joint")
    assert same(state_of(named), state_of(placed))
    train(placed, TensorDataset(*TEXTS.values(), LABELS), 1)


def test_padding_changes_no_prediction():
    network = text_network()
    expected, labels = ztw.predict(network, (TEXTS, LABELS), progress=False)
    short = DataLoader(Texts(), 5, collate_fn=shortened)
    assert len({batch["input_ids"].shape[1] for batch in short}) > 1
    found, found_labels = ztw.predict(network, short, progress=False)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found_labels, labels)


@pytest.mark.parametrize("form", ["dict and labels", "dataset of dicts", "loader of different lengths"])
@pytest.mark.parametrize("regime", ["separate", "joint"])
def test_a_stopped_training_resumes_bit_for_bit(form, regime, tmp_path, monkeypatch):
    whole, again = text_network(), text_network()
    train(whole, FORMS[form], 3, regime=regime)
    steps = iter(range(5))

    def stop(progress: Progress, text: Any) -> None:
        if next(steps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "step", stop)
    monkeypatch.setattr("ztw.training.regimes.Checkpoints", partial(Checkpoints, every=-1.0))
    with pytest.raises(KeyboardInterrupt):
        train(text_network(), FORMS[form], 3, regime=regime, checkpoints=tmp_path)
    monkeypatch.undo()
    lines: list[str] = []
    train(again, FORMS[form], 3, regime=regime, checkpoints=tmp_path, progress=lines.append)
    assert lines[0] == "resumed at epoch 1.3 of 3"
    assert same(state_of(whole), state_of(again))


def test_checkpoints_of_other_labels_are_not_used(tmp_path):
    train(text_network(), (TEXTS, LABELS), 1, checkpoints=tmp_path)
    lines: list[str] = []
    train(text_network(), (TEXTS, LABELS.flip(0)), 1, checkpoints=tmp_path, progress=lines.append)
    assert "not used, because data changed" in lines[0]


@pytest.mark.parametrize("connection", ztw.list_connections())
def test_rescaling_changes_no_logits(connection):
    network = text_network(connection)
    torch.testing.assert_close(torch.stack(shared_logits(network, TEXTS, equal_shares)), network(TEXTS))


def test_every_exit_sends_an_equal_share_of_the_gradient():
    """Of K exits a Kth, also through a value of the first stage that the later ones read."""
    network = text_network("independent")
    words = network.backbone.stages[0].words.weight  # type: ignore[union-attr]
    plain, rescaled = network(TEXTS), shared_logits(network, TEXTS, equal_shares)
    for one, other in zip(plain, rescaled, strict=True):
        (expected,) = torch.autograd.grad(one.sum(), words, retain_graph=True)  # type: ignore[arg-type]
        (found,) = torch.autograd.grad(other.sum(), words, retain_graph=True)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected / 3)


def test_networks_on_one_backbone_are_predicted_and_trained_together():
    first = text_network("independent")
    second = ztw.EarlyExitNetwork(
        first.backbone, list(text_network("boosted").heads), (0, 1), "boosted"
    ).eval()
    data = as_data((TEXTS, LABELS), wanted_by(first))
    (one, two), labels = predict_networks([first, second], data, batch_size=40)
    with torch.no_grad():
        torch.testing.assert_close(one, first(TEXTS))
        torch.testing.assert_close(two, second(TEXTS))
    assert torch.equal(labels, LABELS)
    train_separately([first, second], data, Recipe(1, 32, 0.01, 0.0), seed=0)


@pytest.mark.parametrize("options", [{"compile": True}, {"cuda_graph": True}])
def test_options_of_a_study(options, monkeypatch):
    """A compiler is asked for full batches; nothing of several tensors is captured."""
    calls: list[int] = []

    def fast(function: Any) -> Any:
        def call(batch: Any) -> Any:
            calls.append(len(batch["input_ids"]))
            return function(batch)

        return call

    monkeypatch.setattr(torch, "compile", fast)
    plain, optioned = text_network(), text_network()
    for network, more in ((plain, {}), (optioned, options)):
        data = as_data((mapped(TEXTS, lambda x: x[:70]), LABELS[:70]), wanted_by(network))
        train_backbone(network.backbone, data, Recipe(2, 32, 0.1, 0.0, **more), seed=0)
    assert same(state_of(plain), state_of(optioned))
    assert calls == ([32] * 4 if "compile" in options else [])


def test_thresholds_on_held_out_texts():
    network = text_network()
    train(network, (TEXTS, LABELS), 6, regime="joint")
    loader = DataLoader(Texts(), 32, collate_fn=shortened)
    predicted = ztw.predict(network, loader, progress=False)
    network.ensemble = ztw.fit_ensemble(*predicted)
    points = [
        ztw.choose_threshold(network, given, budget="max", progress=False)
        for given in (predicted, loader, (TEXTS, LABELS), {**TEXTS, "labels": LABELS})
    ]
    assert len({point.accuracy for point in points}) == 1
    result = network.infer(TEXTS, points[0].rule)
    assert float((result.logits.argmax(-1) == LABELS).double().mean()) == pytest.approx(points[0].accuracy)


def sound_network() -> ztw.EarlyExitNetwork:
    """A network of sequences (N, 5, 4) of floats, as many as logits have axes."""
    stages = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4)]
    backbone = ztw.Backbone("sound", stages, nn.Sequential(nn.Flatten(), nn.Linear(20, CLASSES)), (5, 4))
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(20, CLASSES))]
    return ztw.EarlyExitNetwork(backbone, heads, (0,), "independent").eval()


def test_sequences_are_not_taken_for_logits():
    network, sounds = sound_network(), torch.randn(96, 5, 4)
    train(network, (sounds, LABELS), 1)
    predicted = ztw.predict(network, (sounds, LABELS), progress=False)
    points = [
        ztw.choose_threshold(network, given, budget="max", progress=False)
        for given in ((sounds, LABELS), (sounds.numpy(), LABELS.numpy()), predicted)
    ]
    assert len({point.cost for point in points}) == 1
    with pytest.raises(ztw.ZtwError, match=r"inputs: shape \(96, 5, 3\), must be \(N, 5, 4\)"):
        ztw.choose_threshold(network, (sounds[..., :3], LABELS), budget="max")


def test_a_tokenizer_s_third_tensor():
    more = {**TEXTS, "token_type_ids": torch.zeros_like(LABELS)}
    calls = (train, ztw.predict, partial(ztw.choose_threshold, budget=1.0))
    for call in calls:
        for given in ((more, LABELS), {**more, "labels": LABELS}):
            with pytest.raises(
                ztw.ZtwError, match="inputs: token_type_ids: the network takes only input_ids, att"
            ):
                call(text_network(), given, progress=False)
