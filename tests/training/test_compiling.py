"""Test torch.compile in trainings: when it is used, and when it fails."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from conftest import same, small_network, state_of, stripes
from torch import nn

import ztw
from ztw.training import compiling
from ztw.training.compiling import WORTH_COMPILING, worth_compiling
from ztw.training.recipe import Recipe
from ztw.training.separate import train_backbone, train_separately


def test_what_is_worth_compiling():
    epochs = WORTH_COMPILING / 4
    assert worth_compiling(Recipe(epochs, 32, 0.1, 0.0), samples=128)
    assert not worth_compiling(Recipe(epochs - 0.25, 32, 0.1, 0.0), samples=128)


class Compiler:
    """A stub of torch.compile that counts the calls of the compiled function, which works or fails."""

    def __init__(self, works: bool) -> None:
        self.works, self.calls = works, 0

    def __call__(self, function):
        def fast(images):
            self.calls += 1
            if not self.works:
                raise torch._dynamo.exc.BackendCompilerFailed("inductor", OSError("no compiler"), None)
            return function(images)

        return fast


def trained_with(compile: bool | Literal["auto"], steps: int, lines: list[str] | None = None) -> nn.Module:
    """Return a backbone after four steps of 32 images and one of 5; steps: the value of WORTH_COMPILING."""
    torch.manual_seed(0)
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    report = None if lines is None else lines.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "WORTH_COMPILING", steps)
        train_backbone(backbone, stripes(133), Recipe(1, 32, 0.05, 0.0, compile=compile), 0, report)
    return backbone


@pytest.mark.parametrize(
    ("compile", "steps", "calls"), [(True, 99, 4), ("auto", 5, 4), ("auto", 6, 0), (False, 1, 0)]
)
def test_what_is_compiled(monkeypatch, compile, steps, calls):
    compiler = Compiler(works=True)
    monkeypatch.setattr(torch, "compile", compiler)
    trained_with(compile, steps)
    assert compiler.calls == calls, "full batches only"


@pytest.mark.parametrize(("compile", "calls"), [("auto", 0), (True, 4)])
def test_ics_are_compiled_on_request_only(monkeypatch, compile, calls):
    compiler = Compiler(works=True)
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(compiling, "WORTH_COMPILING", 1)
    train_separately([small_network()], stripes(), Recipe(1, 32, 0.05, 0.0, compile=compile), 0)
    assert compiler.calls == calls


def test_without_a_compiler_auto_continues(monkeypatch):
    plain = trained_with(False, 1)
    lines: list[str] = []
    compiler = Compiler(works=False)
    monkeypatch.setattr(torch, "compile", compiler)
    assert same(state_of(plain), state_of(trained_with("auto", 1, lines)))
    assert compiler.calls == 1, "it is not tried again"
    assert "training continues without" in lines[0]
    assert "C++ compiler" in lines[0]
    with pytest.raises(
        ztw.ZtwError, match=r"compile: failed \(.*\); .* C\+\+ compiler, or set compile to false"
    ):
        trained_with(True, 1)
