"""Test the advice: the decision on hand-made numbers, cross-fitting, times, and one run of all on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ztw
from ztw.evaluation.advice import Advice
from ztw.evaluation.advice_option import Option, measured
from ztw.evaluation.cross_fit import HeldOut, better, cross_fit
from ztw.evaluation.turn_times import batches_within, round_times, weights_of

BASE = torch.arange(1000) < 900  # the model is right for 90.0 %
STEADY = [1.0, 1.02, 0.98, 1.01, 0.99]


def option(name: str, kind: str, lost: int, ms: float, int8: bool = False, **rest: object) -> Option:
    """Return an option that is wrong for `lost` samples more than the model, and takes `ms` times as long."""
    times = [ms * one for one in STEADY]
    return measured(name, kind, torch.arange(1000) < 900 - lost, BASE, 1e6, times, STEADY, int8=int8, **rest)


def advice(*others: Option, allowed_loss: float = 0.01) -> Advice:
    return Advice.of([option("model", "model", 0, 1), *others], 1000, allowed_loss, "batch 1, 1 thread")


def test_leave_it_as_it_is():
    found = advice(
        option("model, int8", "model", 30, 0.4, int8=True),  # loses too much
        option("Small", "smaller network", 11, 0.2),  # loses too much
        option("exits", "exits", 5, 1.1),  # slower
    )
    assert found.best.name == "model"
    assert found.sentence.startswith("Leave it as it is: no option is faster, by 5 % and in every round, and")
    assert "Exits do not pay: 'exits', 0.91 times as fast, loses 0.5 points." in found.sentence


def test_quantise_no_exits():
    found = advice(
        option("model, int8", "model", 4, 0.5, int8=True),
        option("exits", "exits", 5, 0.8),
        option("exits, int8", "exits", 30, 0.3, int8=True),
    )
    assert found.best.name == "model, int8"
    assert found.sentence.startswith(
        "Quantise, no exits: 'model, int8' is 2.00 times as fast as the model (2.00 to 2.00) and loses 0.4 points"
        " (95 %: 0.1 to 0.8)."
    )
    assert "Exits gain nothing over that: 'exits', 1.25 times as fast" in found.sentence


def test_use_the_smaller_network():
    found = advice(
        option("model, int8", "model", 4, 0.5, int8=True),
        option("Small", "smaller network", 8, 0.2),
        option("exits", "exits", 5, 0.8),
    )
    assert found.best.name == "Small"
    assert found.sentence.startswith("Use the smaller network: 'Small' is 5.00 times as fast as the model")


def test_exits_pay():
    found = advice(
        option("model, int8", "model", 4, 0.5, int8=True),
        option("Small", "smaller network", 50, 0.1),
        option("exits, int8", "exits", 5, 0.3, int8=True),
    )
    assert found.best.name == "exits, int8"
    assert found.sentence.startswith("Exits pay, in int8: 'exits, int8' is 3.33 times as fast as the model")
    assert "Without exits, the fastest within the allowed loss is 'model, int8', 2.00 times" in found.sentence


def test_a_simpler_option_wins_within_the_spread():
    """The exits are faster than int8 in four of five rounds only."""
    exits = measured("exits", "exits", BASE, BASE, 1e6, [0.45, 0.45, 0.45, 0.45, 0.6], STEADY)
    found = advice(option("model, int8", "model", 0, 0.5, int8=True), exits)
    assert exits.ms < 0.5
    assert found.best.name == "model, int8"


def test_faster_in_some_rounds_only_is_not_faster():
    noisy = measured("exits", "exits", BASE, BASE, 1e6, [0.7, 0.7, 0.7, 0.7, 1.0], STEADY)
    assert noisy.speed_up > 1.3
    assert noisy.speed_range[0] < 1
    assert advice(noisy).best.name == "model"


def test_a_few_per_cent_are_not_worth_a_change():
    assert advice(option("model, int8", "model", 0, 0.96, int8=True)).best.name == "model"


def test_the_model_in_its_faster_runtime_is_the_base():
    slow = option("model", "model", 0, 3, runtime="PyTorch")
    found = Advice.of([slow, option("model", "model", 0, 1)], 1000, 0.01, "")
    assert found.best.runtime == "ONNX"
    assert "The model itself is 3.00 times as fast in ONNX Runtime as in PyTorch." in found.sentence
    assert "Exits were not measured." in found.sentence
    # 1.96 sqrt(0.9 * 0.1 / 1000), because no other option was compared
    assert found.noise == pytest.approx(0.0186, abs=1e-4)


def test_noise():
    """10 of 1000 samples differ, all in one direction: the interval is about 1.0 +- 1.96 sqrt(0.01 * 0.99 / 1000)."""
    one = option("exits", "exits", 10, 0.5)
    assert one.loss is not None
    assert one.loss.difference == pytest.approx(0.01)
    assert one.loss.high == pytest.approx(0.0165, abs=1e-3)
    found = advice(one)
    assert found.best is one
    assert f"differences below {100 * found.noise:.1f} points are noise" in found.sentence
    assert found.sentence.endswith(
        "They cannot exclude that 'exits' loses more than 1.0 point: more samples would tell."
        " No faster option excludes it."
    )
    safe = advice(one, option("model, int8", "model", 2, 0.8, int8=True))
    assert safe.best.name == "exits"
    assert safe.sentence.endswith(
        "The fastest one that excludes it is 'model, int8', 1.25 times as fast, loses 0.2 points."
    )


def test_a_gain_has_the_interval_of_a_gain():
    better = measured("exits", "exits", torch.arange(1000) < 910, BASE, 1e6, [0.5] * 5, STEADY)
    assert better.loss is not None
    assert (
        "'exits' is more accurate than the whole model: check that the model is trained"
        in advice(better).sentence
    )
    assert better.loss.low == pytest.approx(-0.0165, abs=1e-3)
    assert (
        f"gains 1.0 point (95 %: {-100 * better.loss.high:.1f} to {-100 * better.loss.low:.1f})"
        in advice(better).sentence
    )


def test_no_difference_is_not_certainty():
    """The rule of three: 3 / N."""
    one = option("model, int8", "model", 0, 0.5, int8=True)
    assert one.loss == (0.0, -0.003, 0.003)
    assert "cannot exclude" not in advice(one).sentence


def test_table():
    failed = Option("exits, int8", "exits", True, reason="int8 has no place here")
    found = advice(option("exits", "exits", 5, 0.5, runtime="PyTorch"), failed)
    lines = str(found).splitlines()
    assert lines[0] == "1000 held-out samples, batch 1, 1 thread; * = recommended"
    assert lines[3].split() == ["model", "90.0", "%", "1", "M", "1", "1.00", "ONNX"]
    assert lines[4].startswith("* exits")
    assert lines[4].split()[2:5] == ["89.5", "%", "0.5"]
    assert "exits, int8: not measured: int8 has no place here" in lines
    assert max(map(len, lines)) <= 100
    name = "cascade of a model with a long name + model"
    long = str(advice(option(name, "cascade", 5, 0.5), option(f"{name}, int8", "cascade", 5, 0.3, int8=True)))
    assert "  cascade of a model with ...  " in long
    assert "* cascade of a model ..., int8  " in long
    assert list(found.to_frame()["reason"]) == ["", "", "int8 has no place here"]
    with pytest.raises(ztw.ZtwError, match="exits, int8: was not measured"):
        failed.save("nowhere")


def test_cross_fit_uses_the_other_half():
    """Exit 1 is right on the first half only, by its scores: thresholds of one half are judged by the other."""
    labels = torch.zeros(40, dtype=torch.int64)
    held_out = HeldOut(labels, torch.ones(40, dtype=torch.bool), aim=0.0)
    (first, second), again = held_out.halves()
    assert torch.equal(first, again[1])
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(40))
    logits = torch.zeros(2, 40, 2)
    logits[1, :, 0] = 5  # the last exit is always right
    logits[0, first, 0] = 3
    logits[0, second, 1] = 3  # equally confident, and wrong
    found = cross_fit(logits, torch.tensor([1.0, 2.0]), held_out)
    # fitted on `first`, all samples of `second` leave at exit 1; fitted on `second`, none of `first` does
    assert found.correct[first].all()
    assert not found.correct[second].any()
    assert found.macs == 1.5
    assert found.fraction.tolist() == [0.5, 0.5]
    # all samples together: nobody leaves at exit 1
    assert ztw.simulate_exits(logits, found.rule)[0].eq(1).all()


def test_cross_fit_of_a_fixed_exit():
    labels = torch.arange(40) % 2
    held_out = HeldOut(labels, torch.ones(40, dtype=torch.bool), aim=0.1)
    right = nn.functional.one_hot(labels, 2).float()
    logits = torch.stack([1 - right, right, right])
    found = cross_fit(logits, torch.tensor([1.0, 2.0, 3.0]), held_out, "fixed_exit")
    assert found.rule == ztw.FixedExit(2)
    assert found.macs == 2
    assert found.correct.all()
    in_int8 = cross_fit(1 - logits, torch.tensor([1.0, 2.0, 3.0]), held_out, "fixed_exit", chosen_on=logits)
    assert not in_int8.correct.any()


def test_an_ensemble_is_used_if_it_is_cheaper():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 3
    logits = torch.randn(3, 400, 3, generator=generator) + 1.5 * nn.functional.one_hot(labels, 3)
    held_out = HeldOut(labels, logits[-1].argmax(-1) == labels, aim=0.0)
    cost = torch.tensor([1.0, 2.0, 3.0])
    plain, ensembled = cross_fit(logits, cost, held_out), cross_fit(logits, cost, held_out, ensembled=True)
    assert plain.ensemble is None
    assert ensembled.ensemble is not None
    chosen = better(plain, ensembled, held_out, 0.0)
    other = plain if chosen is ensembled else ensembled
    base = float(held_out.base.double().mean())
    within = [float(one.correct.double().mean()) >= base for one in (chosen, other)]
    assert within[0] or not within[1]


def test_round_times():
    """A fake clock: each call takes as many seconds as its number, and another process slows the first turn."""
    ticks, turn = [0.0], count()

    def call(seconds: float) -> Callable[[Tensor], None]:
        def run(batch: Tensor) -> None:
            ticks[0] += seconds * float(batch) + (5 if next(turn) < 8 else 0)

        return run

    batches = [torch.tensor(1.0), torch.tensor(3.0)]
    found = round_times([call(1), call(2)], batches, rounds=2, turns=2, clock=lambda: ticks[0])
    assert found.tolist() == [[2000.0, 2000.0], [4000.0, 4000.0]]
    weights = torch.tensor([[3.0, 1.0], [0.0, 1.0]])
    found = round_times([call(1), call(2)], batches, 1, 1, lambda: ticks[0], weights)
    assert found.tolist() == [[1500.0], [6000.0]]


def test_few_samples_stand_for_all():
    """Of all samples, 80 % leave at exit 1; of the four timed ones, one does."""
    weights = weights_of(torch.tensor([0, 1, 1, 1]), torch.tensor([0.8, 0.2, 0.0], dtype=torch.float64))
    assert weights.tolist() == pytest.approx([0.8, 0.2 / 3, 0.2 / 3, 0.2 / 3])
    assert weights_of(torch.tensor([2, 2]), torch.tensor([0.8, 0.2, 0.0], dtype=torch.float64)).tolist() == [
        1.0,
        1.0,
    ]


def test_number_of_batches():
    assert batches_within(1e-6) == 200
    assert batches_within(10.0) == 20
    assert batches_within(0.01, seconds=16.0) == 106  # 16 / (15 * 0.01)


def blobs(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (samples,), generator=generator)
    features = torch.randn(samples, 8, generator=generator)
    features[torch.arange(samples), labels] += 3
    return features, labels


def mlp(layers: int, width: int = 16) -> nn.Sequential:
    parts: list[nn.Module] = []
    for number in range(layers):
        parts += [nn.Linear(width if number else 8, width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 3))


def trained(model: nn.Module, data: tuple[Tensor, Tensor]) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    return model


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztw.evaluation.turn_times.SECONDS", 0.1)
    monkeypatch.setattr("ztw.evaluation.advise_inputs.MOST", 20)


def test_everything(tmp_path, quick):
    torch.manual_seed(0)
    train, held_out = blobs(300, 0), blobs(200, 1)
    model, small = trained(mlp(3), train), trained(mlp(1, 8), train)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lines: list[str] = []
    random = torch.get_rng_state()
    found = ztw.advise(model, train, held_out, alternatives={"small": small}, epochs=2, progress=lines.append)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    names = {one.name for one in found.options if not one.reason}
    assert {"model", "small", "exits", "exits, int8", "cascade small + model"} <= names
    assert [one.name for one in found.options if one.reason] in ([], ["fixed exit"])
    model_accuracy = float((model.eval()(held_out[0]).argmax(-1) == held_out[1]).double().mean())
    for one in (one for one in found.options if not one.reason):
        assert one.loss is not None
        assert one.loss.difference == pytest.approx(model_accuracy - one.accuracy)
        assert len(one.round_ms) == 5
        assert one.macs > 0
    exits = next(one for one in found.options if one.name == "exits")
    exits.save(tmp_path / "exits")
    network, rule = ztw.load(tmp_path / "exits")
    assert rule == exits.rule
    assert rule is not None
    runner = ztw.OnnxRunner(tmp_path / "exits" / "model.onnx", cache=False)
    expected = network.infer(held_out[0], rule)
    assert (runner(held_out[0]).exit_index == expected.exit_index).double().mean() > 0.99
    in_int8 = next(one for one in found.options if one.name == "exits, int8")
    in_int8.save(tmp_path / "int8")
    assert [path.name for path in (tmp_path / "int8").iterdir()] == ["model.onnx"]
    assert ztw.OnnxRunner(tmp_path / "int8" / "model.onnx", cache=False).rule == in_int8.rule
    assert "advise: times" in lines
    assert lines[-1] == "100 %  advise: done"
    folder = exits.file
    assert folder is not None
    assert folder.exists()


class Decides(nn.Module):
    """A forward that torch.export cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 8) -> (N, 3)."""
        if float(x.sum()) > 0:
            return self.two(self.one(x))
        return self.two(x)


def test_what_fails_is_a_row(quick):
    """Neither cut nor exported: the model runs in PyTorch, and everything else has a reason."""
    train, held_out = blobs(60, 0), blobs(40, 1)
    found = ztw.advise(Decides(), train, DataLoader(TensorDataset(*held_out), 16), progress=False)
    assert found.best.name == "model"
    assert found.best.runtime == "PyTorch"
    reasons = {one.name: one.reason for one in found.options if one.reason}
    assert "torch.export cannot follow" in reasons["exits"]
    assert "ONNX cannot hold it" in reasons["model, int8"]
    assert found.sentence.startswith("Leave it as it is")


GOOD = blobs(40, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allowed_loss": 1}, r"allowed_loss 1: must be a share of the samples in \[0, 1\)"),
        ({"batch_size": 0}, "batch_size 0: must be a whole number of at least 1"),
        ({"threads": 1.5}, "threads 1.5: must be a whole number of at least 1"),
        ({"epochs": 0}, "epochs 0: must be a number above 0, or None"),
        ({"seed": -1}, "seed -1: must be a whole number of at least 0"),
        ({"progress": 3}, "progress 3: must be True, False or a function"),
        ({"alternatives": mlp(1)}, "alternatives: Sequential, must be a list of models, or a dict"),
        ({"alternatives": ["small"]}, "advise: str is a str, must be a torch.nn.Module"),
        (
            {"alternatives": [nn.Linear(8, 5)]},
            "advise: Linear has 5 classes, the model has 3; must be the same",
        ),
        ({"model": "resnet"}, "advise: model is a str, must be a torch.nn.Module"),
        ({"train": 5}, r"train: int, must be \(inputs, labels\), a dict with labels, a torch Dataset"),
        ({"held_out": (GOOD[0][:, :4], GOOD[1])}, r"inputs: shape \(40, 4\), must be \(N, 8\)"),
        ({"held_out": (GOOD[0][:10], GOOD[1][:10])}, "held_out: 10 samples, must be at least 20"),
        (
            {"held_out": DataLoader(TensorDataset(*GOOD), 8, shuffle=True)},
            "held_out: a DataLoader that shuffles, must keep its order",
        ),
        ({"input_shape": (8,), "example": GOOD[0]}, "give either input_shape= or example=, not both"),
    ],
)
def test_wrong_arguments(changes, message):
    given = {"model": mlp(2), "train": GOOD, "held_out": GOOD, "progress": False, **changes}
    with pytest.raises(ztw.ZtwError, match=message) as raised:
        ztw.advise(**given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["tuple", "dict", "dataset", "loader"])
def test_the_example_is_from_the_training_data(form):
    from ztw.evaluation.advise_inputs import example_of

    features, labels = GOOD
    data = {
        "tuple": (features, labels),
        "dict": {"x": features, "labels": labels},
        "dataset": TensorDataset(features, labels),
        "loader": DataLoader(TensorDataset(features, labels), 16),
    }[form]
    found = example_of(data, None, None)
    if form == "dict":
        found = found["x"]
    assert torch.equal(found, features[:4])
