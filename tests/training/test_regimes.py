"""Test `train_exits`: three regimes, on tensors, datasets and DataLoaders."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import same, small_network, state_of, stripes
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SequentialSampler,
    TensorDataset,
)

import ztw
from ztw.data.user_data import as_data
from ztw.data.wanted import wanted_by
from ztw.progress import Note, Progress
from ztw.training.recipe import Recipe
from ztw.training.regimes import REGIMES
from ztw.training.resume import Checkpoints
from ztw.training.separate import train_separately

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
    history = ztw.train_exits(network, given[form], epochs, regime=regime, lr=0.003, batch_size=32)
    assert torch.equal(torch.get_rng_state(), rng)
    assert not network.training
    assert history[-1]["loss"] < history[0]["loss"] or regime == "layer_wise"
    assert same(backbone, state_of(network.backbone)) == (regime == "separate")
    assert "100 %  epoch" in capsys.readouterr().err


def test_it_is_the_pipeline_s_training():
    one, two = fresh(), fresh()
    ztw.train_exits(one, (IMAGES, LABELS), 2, batch_size=32, seed=4, progress=False)
    data = as_data((IMAGES, LABELS), wanted_by(two))
    train_separately([two], data, Recipe(2, 32, 1e-3, 5e-4, optimizer="adam"), seed=4)
    assert same(state_of(one), state_of(two))


def test_report_none_is_silent(capsys):
    ztw.train_exits(fresh(), (IMAGES, LABELS), 1, progress=False)
    assert capsys.readouterr() == ("", "")


def resumed(data: Callable[[], object], folder: Path, monkeypatch) -> tuple[bool, list[str]]:
    """Stop a training in the middle of its second epoch, and resume it.

    Returns:
        Whether the weights equal those of an uninterrupted training, and the reported lines.
    """
    whole = fresh()
    ztw.train_exits(whole, data(), 3, batch_size=32, progress=False)
    told: list[str] = []

    def stop(progress: Progress, text: Callable[[], str]) -> None:
        told.append(text())
        if len(told) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "step", stop)
    monkeypatch.setattr("ztw.training.regimes.Checkpoints", partial(Checkpoints, every=-1.0))
    with pytest.raises(KeyboardInterrupt):
        ztw.train_exits(fresh(), data(), 3, batch_size=32, checkpoints=folder, progress=False)
    monkeypatch.undo()
    again, lines = fresh(), list[str]()
    ztw.train_exits(again, data(), 3, batch_size=32, checkpoints=folder, progress=lines.append)
    return same(state_of(whole), state_of(again)), lines


@pytest.mark.parametrize("form", ["tensors", "dataset", "loader"])
def test_a_stopped_training_resumes(form, tmp_path, monkeypatch):
    """A training resumes in the middle of an epoch, and ends with the same weights."""

    def data() -> object:
        dataset = TensorDataset(IMAGES, LABELS)
        return {
            "tensors": (IMAGES, LABELS),
            "dataset": dataset,
            "loader": DataLoader(dataset, 32, shuffle=True),
        }[form]

    exactly, lines = resumed(data, tmp_path / "kept", monkeypatch)
    assert lines[0] == "resumed at epoch 1.3 of 3"
    assert exactly
    lines.clear()
    ztw.train_exits(
        fresh(), data(), 3, batch_size=32, seed=1, checkpoints=tmp_path / "kept", progress=lines.append
    )
    assert "not used, because settings changed; training from the start" in lines[0]


class Noisy(Dataset):
    """Images with noise from torch's, numpy's or Python's global generator."""

    def __init__(self, source: Callable[[], float]) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return IMAGES[index] + self.source(), int(LABELS[index])


class Stream(IterableDataset):
    """Images in an order from the data set's own generator, new in every epoch."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return len(LABELS)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        order = torch.randperm(len(LABELS), generator=self.generator).tolist()
        return ((IMAGES[index], int(LABELS[index])) for index in order)


class Drawing(Sampler[int]):
    """An order from the sampler's own generator."""

    def __init__(self) -> None:
        self.own = random.Random(0)

    def __len__(self) -> int:
        return len(LABELS)

    def __iter__(self) -> Iterator[int]:
        return iter(self.own.sample(range(len(LABELS)), len(LABELS)))


SOURCES = {"torch": lambda: float(torch.randn(())), "numpy": np.random.randn, "Python": random.random}


def seed_numpy(worker: int) -> None:
    np.random.seed(torch.initial_seed() % 2**32)


def noisy(source: str = "torch", **options: Any) -> DataLoader:
    return DataLoader(Noisy(SOURCES[source]), 32, shuffle=True, **options)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 2}, {"num_workers": 1, "worker_init_fn": seed_numpy}],
    ids=["alone", "two workers", "a worker that seeds"],
)
def test_a_loader_that_augments_resumes_bit_for_bit(source, options, tmp_path, monkeypatch):
    exactly, lines = resumed(lambda: noisy(source, **options), tmp_path, monkeypatch)
    assert exactly
    assert lines[0] == "resumed at epoch 1.3 of 3"


def test_a_loader_leaves_the_caller_s_generators_as_they_were():
    def states() -> list[str]:
        numpy_s = np.random.get_state(legacy=False)["state"]["key"].tolist()
        return [repr(state) for state in (torch.get_rng_state().tolist(), random.getstate(), numpy_s)]

    network, before = fresh(), states()
    for source in SOURCES:
        ztw.train_exits(network, noisy(source), 1, progress=False)
    assert states() == before


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (
            lambda: noisy(num_workers=1, persistent_workers=True),
            "persistent_workers=True: its workers keep their random state between epochs",
        ),
        (
            lambda: noisy(generator=torch.Generator().manual_seed(3)),
            "it has its own generator, which no checkpoint saves",
        ),
        (
            lambda: DataLoader(TensorDataset(IMAGES, LABELS), 32, sampler=Drawing()),
            "its sampler, Drawing, may have its own generator",
        ),
        (lambda: DataLoader(Stream(), 32), "its dataset, Stream, decides the order, which may be random"),
    ],
)
def test_a_loader_that_cannot_resume_bit_for_bit_is_named(loader, reason, tmp_path, monkeypatch):
    """There is a note before the training, and none without checkpoints."""
    exactly, lines = resumed(loader, tmp_path, monkeypatch)
    assert not exactly
    assert isinstance(lines[0], Note)
    assert lines[0].startswith(f"checkpoints: this DataLoader may not resume bit for bit: {reason}")
    silent: list[str] = []
    ztw.train_exits(fresh(), loader(), 1, progress=silent.append)
    assert not [line for line in silent if isinstance(line, Note)]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"regime": "both"}, "unknown regime 'both'; known: separate, joint, layer_wise"),
        ({"epochs": 0}, "epochs 0: must be a number above 0"),
        ({"lr": float("nan")}, "lr nan: must be a number above 0"),
        ({"batch_size": 1}, "batch_size 1: must be a whole number of at least 2"),
        ({"seed": 1.5}, "seed 1.5: must be a whole number"),
        ({"weight_decay": -1}, "weight_decay -1: must be a number of at least 0"),
        ({"milestones": 3}, "milestones 3: must be numbers of epochs"),
        ({"checkpoints": 5}, "checkpoints 5: must be the path of a folder"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; known: sgd, adam"),
        ({"precision": "fp16"}, "precision 'fp16': must be one of auto, bf16, fp32"),
        ({"progress": 3}, "progress 3: must be True, False or a function that takes a line"),
        ({"progress": None}, "progress None: must be True, False or a function"),
        ({"regime": "joint", "weights": "heavy"}, "unknown exit_weights 'heavy'"),
        ({"data": IMAGES}, "train_exits: Tensor, must be .inputs, labels"),
    ],
)
def test_wrong_arguments(how, message):
    with pytest.raises(ztw.ZtwError, match=message):
        ztw.train_exits(fresh(), **{"data": (IMAGES, LABELS), "progress": False, **how})


class Counted(IterableDataset):
    """`count` samples, but a length of `length`."""

    def __init__(self, count: int, length: int) -> None:
        self.count, self.length = count, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        return zip(IMAGES[: self.count], LABELS[: self.count].tolist(), strict=True)


def narrow() -> ztw.EarlyExitNetwork:
    """Return a network with BatchNorm on maps of one pixel: a batch of one image has one value per channel."""
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(inputs, 8, side, stride=side), nn.BatchNorm2d(8), nn.ReLU())
        for inputs, side in ((1, 10), (8, 1))
    ]
    backbone = ztw.Backbone("narrow", stages, nn.Sequential(nn.Flatten(), nn.Linear(8, 5)), (1, 10, 10))
    return ztw.build_network(backbone, head="pool")


def in_batches(count: int) -> BatchSampler:
    return BatchSampler(SequentialSampler(range(count)), 8, drop_last=False)


LOADERS: dict[str, Callable[[], DataLoader]] = {
    "batches of one": lambda: DataLoader(TensorDataset(IMAGES, LABELS), 1),
    "a batch sampler": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_sampler=in_batches(33)),
    "an iterable dataset with a length": lambda: DataLoader(Counted(33, 33), 8),
}


@pytest.mark.parametrize("regime", ["separate", "joint"])
@pytest.mark.parametrize("name", LOADERS)
def test_loaders_whose_batches_are_of_one_image(name, regime):
    """Training works if BatchNorm has more than one value per channel. Otherwise there is a one-line error."""
    loader = LOADERS[name]()
    network = fresh()
    assert len(ztw.train_exits(network, loader, 1, regime=regime, progress=False)) == 1
    images = 96 if name == "batches of one" else 33
    assert ztw.predict(network, LOADERS[name](), progress=False)[1].tolist() == LABELS[:images].tolist()
    if regime == "joint":
        message = r"^a batch of 1 samples is too small for a normalisation layer \(Expected more than 1 value"
        with pytest.raises(ztw.ZtwError, match=message) as caught:
            ztw.train_exits(narrow(), LOADERS[name](), 1, regime=regime, progress=False)
        assert "\n" not in str(caught.value)
        assert "drop_last=True" in str(caught.value)


def test_a_last_batch_of_one_image_is_dropped_if_the_number_of_samples_is_known():
    """For tensors, a dataset, and a loader whose dataset has a length."""
    given = (IMAGES[:33], LABELS[:33])
    loader = DataLoader(TensorDataset(*given), 8)
    for data in (given, TensorDataset(*given), loader):
        assert len(ztw.train_exits(narrow(), data, 1, regime="joint", batch_size=8, progress=False)) == 1


@pytest.mark.parametrize(("count", "batches"), [(0, 0), (33, 5)])
def test_a_loader_with_fewer_batches_than_it_says(count, batches):
    """Without the error, training would wait for the missing batches forever."""
    loader = DataLoader(Counted(count, 400), 8)
    with pytest.raises(ztw.ZtwError, match=f"the DataLoader has {batches} batches, but its length is 50"):
        ztw.train_exits(fresh(), loader, 1, progress=False)


def test_gradients_that_were_switched_off():
    network, expected = fresh(), fresh()
    ztw.train_exits(expected, (IMAGES, LABELS), 1, progress=False)
    with torch.no_grad():
        ztw.train_exits(network, (IMAGES, LABELS), 1, progress=False)
    assert same(state_of(network), state_of(expected))
    network = fresh()
    with torch.inference_mode():
        ztw.train_exits(network, (IMAGES, LABELS), 1, progress=False)
        with pytest.raises(ztw.ZtwError, match=r"made in torch.inference_mode\(\); make it outside"):
            ztw.train_exits(fresh(), (IMAGES, LABELS), 1, progress=False)
    assert same(state_of(network), state_of(expected))


def test_wrong_networks():
    with pytest.raises(ztw.ZtwError, match=r"regime 'separate': .*connection='boosted'"):
        ztw.train_exits(fresh("boosted"), (IMAGES, LABELS), 1)
    with pytest.raises(ztw.ZtwError, match="train_exits: Backbone, must be an EarlyExitNetwork"):
        ztw.train_exits(fresh().backbone, (IMAGES, LABELS), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("second", REGIMES)
@pytest.mark.parametrize("first", REGIMES)
def test_one_training_after_another(first, second):
    """A training freezes parts, which the next one trains."""
    network = fresh()
    ztw.train_exits(network, (IMAGES, LABELS), 1, regime=first, progress=False)
    backbone, heads = state_of(network.backbone), state_of(network.heads)
    ztw.train_exits(network, (IMAGES, LABELS), 1, regime=second, progress=False)
    assert same(backbone, state_of(network.backbone)) == (second == "separate")
    assert not same(heads, state_of(network.heads))
