"""One call for the three regimes, on whatever images a caller has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import same, small_network, state_of, stripes
from torch.utils.data import DataLoader, TensorDataset

import ztw
from ztw.data.given import as_data, wanted_by
from ztw.progress import Progress
from ztw.training.checkpoints import Checkpoints
from ztw.training.recipe import Recipe
from ztw.training.regimes import REGIMES
from ztw.training.separate import train_ics

IMAGES, LABELS = next(stripes(96).batches(96))


def fresh(ics: str = "cascade_detached") -> ztw.EarlyExitNetwork:
    return small_network(ics)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("form", ["tensors", "dataset", "loader"])
def test_every_regime_learns(regime, form, capsys):
    network, dataset = fresh(), TensorDataset(IMAGES, LABELS)
    given = {"tensors": (IMAGES, LABELS), "dataset": dataset, "loader": DataLoader(dataset, 32, shuffle=True)}
    backbone, rng = state_of(network.backbone), torch.get_rng_state()
    epochs = 4 if regime == "separate" else 6
    history = ztw.train_ics(network, given[form], epochs, regime=regime, lr=0.003, batch_size=32)
    assert torch.equal(torch.get_rng_state(), rng)
    assert not network.training
    assert history[-1]["loss"] < history[0]["loss"] or regime == "layer_wise"
    assert same(backbone, state_of(network.backbone)) == (regime == "separate")
    assert "100 %  epoch" in capsys.readouterr().err


def test_it_is_the_pipeline_s_training():
    one, two = fresh(), fresh()
    ztw.train_ics(one, (IMAGES, LABELS), 2, batch_size=32, seed=4, report=None)
    data = as_data((IMAGES, LABELS), wanted_by(two))
    train_ics([two], data, Recipe(2, 32, 1e-3, 5e-4, optimizer="adam"), seed=4)
    assert same(state_of(one), state_of(two))


def test_report_none_is_silent(capsys):
    ztw.train_ics(fresh(), (IMAGES, LABELS), 1, report=None)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("form", ["tensors", "dataset", "loader"])
def test_it_goes_on_where_it_was_stopped(form, tmp_path, monkeypatch):
    """In the middle of an epoch, to the same weights."""

    def data() -> object:
        dataset = TensorDataset(IMAGES, LABELS)
        return {
            "tensors": (IMAGES, LABELS),
            "dataset": dataset,
            "loader": DataLoader(dataset, 32, shuffle=True),
        }[form]

    whole = fresh()
    ztw.train_ics(whole, data(), 3, batch_size=32, report=None)
    told: list[str] = []

    def stop(progress: Progress, text: Callable[[], str]) -> None:
        told.append(text())
        if len(told) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "step", stop)
    monkeypatch.setattr("ztw.training.regimes.Checkpoints", partial(Checkpoints, every=-1.0))
    with pytest.raises(KeyboardInterrupt):
        ztw.train_ics(fresh(), data(), 3, batch_size=32, checkpoints=tmp_path / "kept", report=None)
    monkeypatch.undo()
    resumed, lines = fresh(), list[str]()
    ztw.train_ics(resumed, data(), 3, batch_size=32, checkpoints=tmp_path / "kept", report=lines.append)
    assert lines[0] == "resumed at epoch 1.3 of 3"
    assert same(state_of(whole), state_of(resumed))
    lines.clear()
    ztw.train_ics(
        fresh(), data(), 3, batch_size=32, seed=1, checkpoints=tmp_path / "kept", report=lines.append
    )
    assert "of other settings, so not used; training from the start" in lines[0]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"regime": "both"}, "unknown regime 'both'; known: separate, joint, layer_wise"),
        ({"epochs": 0}, "epochs 0: must be a number above 0"),
        ({"lr": float("nan")}, "lr nan: must be a number above 0"),
        ({"batch_size": 1}, "batch_size 1: must be a whole number of at least 2"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; known: sgd, adam"),
        ({"precision": "fp16"}, "precision 'fp16': must be one of auto, bf16, fp32"),
        ({"regime": "joint", "weights": "heavy"}, "unknown exit_weights 'heavy'"),
        ({"data": IMAGES}, "train_ics: Tensor, must be tensors"),
    ],
)
def test_wrong_arguments(how, message):
    with pytest.raises(ztw.ZtwError, match=message):
        ztw.train_ics(fresh(), **{"data": (IMAGES, LABELS), "report": None, **how})


def test_networks_that_cannot_be_trained_so():
    with pytest.raises(ztw.ZtwError, match="regime 'separate': not with ics='boosted'"):
        ztw.train_ics(fresh("boosted"), (IMAGES, LABELS), 1)
    with pytest.raises(ztw.ZtwError, match="train_ics: Backbone, must be an EarlyExitNetwork"):
        ztw.train_ics(fresh().backbone, (IMAGES, LABELS), 1)  # type: ignore[arg-type]
