"""Test captured steps without a GPU; tests/test_gpu.py has the tests that need one."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from conftest import stripes

import ztw
from ztw.catalogue.parts import PARTS, Part
from ztw.device import ON_CPU, Compute
from ztw.jobs.training import recipe_of
from ztw.study.settings import HardwareSettings
from ztw.study.training_settings import BackboneSettings
from ztw.training import compiling
from ztw.training.loop import Task, Training, cross_entropy_step
from ztw.training.recipe import Recipe
from ztw.training.separate import train_backbone


@pytest.mark.parametrize(
    ("device", "compile", "expected"),
    [("cuda", "auto", True), ("cuda:1", "auto", True), ("cuda", True, False), ("cpu", "auto", False)],
)
def test_gpus_get_captured_steps_unless_the_study_says_otherwise(device, compile, expected):
    hardware = HardwareSettings(compile=compile)
    recipe = recipe_of(BackboneSettings(), hardware, Compute(torch.device(device), "bf16"))
    assert recipe.cuda_graph is expected


@pytest.mark.parametrize(("kind", "captured"), [("backbone", False), ("head", False), ("rule", True)])
def test_networks_of_plugins_are_not_captured(kind, captured, monkeypatch):
    monkeypatch.setitem(PARTS, (kind, "mine"), Part(object, {}, lambda: None))
    recipe = recipe_of(BackboneSettings(), HardwareSettings(), Compute(torch.device("cuda"), "bf16"))
    assert recipe.cuda_graph is captured


def test_nothing_is_compiled_beside_a_captured_step(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: pytest.fail("compiled"))
    monkeypatch.setattr(compiling, "WORTH_COMPILING", 1)
    torch.manual_seed(0)
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    train_backbone(backbone, stripes(), Recipe(1, 32, 0.1, 0.0, compile="auto", cuda_graph=True), seed=0)


def test_a_training_s_memory_is_freed_when_it_is_over():
    """If a captured graph had to wait for garbage collection, it would keep a step's activations in memory."""
    network = torch.nn.Linear(3, 2)
    task = Task(
        ["a"], cross_entropy_step(network, ON_CPU), network, torch.optim.SGD(network.parameters(), 0.1)
    )
    training = Training(task, Recipe(1, 4, 0.1, 0.0, cuda_graph=True), 8, seed=0)
    training.train_on(torch.randn(4, 3), torch.zeros(4).long())
    found = weakref.ref(training)
    gc.disable()
    try:
        del training
        assert found() is None
    finally:
        gc.enable()


def test_nothing_holds_gradients_when_a_training_is_over():
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    train_backbone(backbone, stripes(), Recipe(1, 32, 0.1, 0.0), seed=0)
    assert all(weight.grad is None for weight in backbone.parameters())
