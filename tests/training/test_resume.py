"""Test that a training interrupted at any step, also several times, ends with the same weights."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import same, state_of, stripes
from torch import nn

import ztw
from ztw.errors import ZtwError
from ztw.training.joint import JointLoss, exit_weights, train_jointly
from ztw.training.layer_wise import train_layer_wise
from ztw.training.recipe import Recipe
from ztw.training.resume import Checkpoints
from ztw.training.separate import train_backbone, train_separately

SAMPLES = 150  # five batches of 32 per epoch, the last one smaller
RECIPES = {
    "one_cycle": Recipe(2.5, 32, 0.05, 1e-4, schedule="one_cycle"),
    "milestones": Recipe(3, 32, 0.01, 1e-4, milestones=(1, 2)),
    "adam": Recipe(2, 32, 0.01, 1e-4, optimizer="adam", schedule="one_cycle", frozen_dropout=True),
}


class KilledError(Exception):
    pass


def dropping() -> ztw.Backbone:
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    backbone.stages[1] = nn.Sequential(backbone.stages[1], nn.Dropout(0.2))
    return backbone


def data():
    return replace(stripes(SAMPLES), flip=True, crop_padding=2, colour_jitter=0.2, jitter_order="random")


def backbone(recipe: Recipe, report, checkpoints) -> tuple[nn.Module, list]:
    trained = dropping()
    return trained, train_backbone(trained, data(), recipe, 3, report, checkpoints)


def ics(recipe: Recipe, report, checkpoints) -> tuple[nn.Module, list]:
    shared = dropping()
    networks = [ztw.build_network(shared, connection) for connection in ("independent", "cascade_detached")]
    return nn.ModuleList(networks), train_separately(networks, data(), recipe, 3, report, checkpoints)


def joint(recipe: Recipe, report, checkpoints) -> tuple[nn.Module, list]:
    network = ztw.build_network(dropping(), "cascade")
    loss = JointLoss(network, exit_weights(network, "growing"))
    return network, train_jointly(loss, data(), recipe, 3, report, checkpoints)


def layer_wise(recipe: Recipe, report, checkpoints) -> tuple[nn.Module, list]:
    network = ztw.build_network(dropping(), "cascade")
    return network, train_layer_wise(network, data(), recipe, 3, report, checkpoints)


def ended_by(stop: Callable[[], None], steps: int) -> Callable[[str], None]:
    """Return a report function that calls `stop` after `steps` steps."""
    count = itertools.count(1)

    def report(line: str) -> None:
        if next(count) == steps:
            stop()

    return report


def without_times(history) -> list:
    rows = history if isinstance(history[0], list) else [history]
    return [
        [{k: v for k, v in row.items() if k not in ("seconds", "finished")} for row in one] for one in rows
    ]


def run_training(train, recipe, report=None, checkpoints=None):
    torch.manual_seed(7)
    return train(recipe, report, checkpoints)


@pytest.fixture
def every_step_is_reported(monkeypatch):
    monkeypatch.setattr("ztw.training.loop.Progress", EveryStep)


class EveryStep:
    """Progress that reports every step."""

    def __init__(self, total, report, done=0):
        self.report = report or (lambda line: None)

    def step(self, text):
        self.report(text())


@pytest.mark.parametrize("train", [backbone, ics, joint, layer_wise])
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_resumed_training_equals_an_uninterrupted_one(train, recipe, tmp_path, every_step_is_reported):
    expected, history = run_training(train, RECIPES[recipe])
    lines: list[str] = []
    kept = Checkpoints(tmp_path / "checkpoints", {"code": "1"}, lines.append)
    before = signal.getsignal(signal.SIGTERM)
    for steps in (2, 1, 5):  # in the middle of an epoch, one step later, at the end of an epoch or later
        stop = lambda: signal.raise_signal(signal.SIGTERM)  # noqa: E731
        with pytest.raises(ZtwError, match=r"stopped by SIGTERM at epoch .* the same command resumes"):
            run_training(train, RECIPES[recipe], ended_by(stop, steps), kept)
    trained, again = run_training(train, RECIPES[recipe], None, kept)
    assert same(state_of(trained), state_of(expected)), "bit for bit"
    assert without_times(again) == without_times(history)
    assert signal.getsignal(signal.SIGTERM) == before
    assert sum(line.startswith("resumed at epoch") for line in lines) >= 3


@pytest.mark.parametrize("train", [backbone, layer_wise])
def test_a_killed_training_loses_the_steps_after_its_checkpoint(train, tmp_path, every_step_is_reported):
    def killed() -> None:
        raise KilledError

    expected, _ = run_training(train, RECIPES["one_cycle"])
    kept = Checkpoints(tmp_path, {"code": "1"}, every=0)
    with pytest.raises(KilledError):
        run_training(train, RECIPES["one_cycle"], ended_by(killed, 4), kept)
    steps: list[str] = []
    trained, _ = run_training(train, RECIPES["one_cycle"], steps.append, kept)
    assert same(state_of(trained), state_of(expected))
    undisturbed: list[str] = []
    run_training(train, RECIPES["one_cycle"], undisturbed.append)
    assert len(steps) == len(undisturbed) - 3, "the fourth step is done again"


def test_progress_says_that_training_was_resumed(tmp_path, every_step_is_reported):
    kept = Checkpoints(tmp_path, {})
    stop = lambda: signal.raise_signal(signal.SIGINT)  # noqa: E731
    with pytest.raises(ZtwError, match=r"stopped by SIGINT at epoch 0.6 of 3"):
        run_training(backbone, RECIPES["milestones"], ended_by(stop, 3), kept)
    lines: list[str] = []
    run_training(backbone, RECIPES["milestones"], lines.append, kept)
    assert lines[0].startswith("epoch 1/3")
    assert lines[-1].endswith("(resumed at epoch 0.6 of 3)")
    assert kept.resumed[0]["at"] == "epoch 0.6 of 3"


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="a signal of POSIX")
def test_a_warning_signal_saves_a_checkpoint(tmp_path, every_step_is_reported):
    kept = Checkpoints(tmp_path, {})
    found: list[list[str]] = []

    def report(line: str) -> None:
        found.append(sorted(path.name for path in tmp_path.glob("*.safetensors")))
        if len(found) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    run_training(backbone, RECIPES["milestones"], report, kept)
    assert found[1] == []
    assert found[2] == ["step-0000000002.safetensors"]
    assert len(found) == 15


def interrupted(folder, of=None) -> Checkpoints:
    """Return the checkpoints of a training that was killed at its fifth step."""

    def killed() -> None:
        raise KilledError

    kept = Checkpoints(folder, of or {"code": "1", "settings": "a"}, every=0)
    with pytest.raises(KilledError):
        run_training(backbone, RECIPES["one_cycle"], ended_by(killed, 5), kept)
    return kept


def test_the_newest_two_are_kept(tmp_path, every_step_is_reported):
    interrupted(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".step-0000000003.safetensors.sha256",
        ".step-0000000004.safetensors.sha256",
        "step-0000000003.safetensors",
        "step-0000000004.safetensors",
    ]


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_skipped(how, tmp_path, every_step_is_reported):
    expected, _ = run_training(backbone, RECIPES["one_cycle"])
    interrupted(tmp_path)
    newest = tmp_path / "step-0000000004.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 8
    newest.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[how])
    lines: list[str] = []
    kept = Checkpoints(tmp_path, {"code": "1", "settings": "a"}, lines.append)
    trained, _ = run_training(backbone, RECIPES["one_cycle"], None, kept)
    assert "step-0000000004.safetensors: altered since it was written" in lines[0]
    assert lines[0].endswith("the previous checkpoint is used")
    assert lines[1] == "resumed at epoch 0.6 of 2.5"
    assert same(state_of(trained), state_of(expected))


@pytest.mark.parametrize(
    ("of", "what"),
    [
        ({"code": "2", "settings": "a"}, "code"),
        ({"code": "2", "settings": "b"}, "code and settings"),
        ({"code": "1"}, "settings"),
    ],
)
def test_a_checkpoint_of_another_training_is_not_used(of, what, tmp_path, every_step_is_reported):
    expected, _ = run_training(backbone, RECIPES["one_cycle"])
    interrupted(tmp_path)
    lines: list[str] = []
    trained, _ = run_training(backbone, RECIPES["one_cycle"], None, Checkpoints(tmp_path, of, lines.append))
    assert len(lines) == 1
    assert lines[0].endswith(
        f"step-0000000004.safetensors: not used, because {what} changed; training from the start"
    )
    assert same(state_of(trained), state_of(expected))


def test_checkpoints_are_removed_after_the_job(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints/backbone", {})
    other = tmp_path / "checkpoints/ics"
    other.mkdir(parents=True)
    run_training(backbone, RECIPES["one_cycle"], None, kept)
    assert kept.folder.exists(), "until the job has written what it is for"
    kept.clear()
    assert not kept.folder.exists()
    assert other.exists()
    other.rmdir()
    kept.clear()
    assert not other.parent.exists()
