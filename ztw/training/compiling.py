"""Compile training steps with torch.compile where it saves time and works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ztw.batch import Batch, size_of
from ztw.errors import ZtwError
from ztw.progress import Note, Report
from ztw.training.recipe import Recipe, total_steps

# Steps after which compiling, about a minute, has saved time: a backbone's step gets 5 to 11 % shorter on two CPU cores
# without AMX (`make bench`). Steps, not time, so that a study compiles the same trainings on every machine.
WORTH_COMPILING = 4000


def worth_compiling(recipe: Recipe, samples: int) -> bool:
    """Return whether a training of a backbone has enough steps to compile them."""
    return total_steps(recipe, samples) >= WORTH_COMPILING


def compiled(
    function: Callable[[Any], Any], recipe: Recipe, pays: bool = False, report: Report | None = None
) -> Callable[[Any], Any]:
    """Compile a function of a batch of inputs if the recipe says so.

    Smaller batches run uncompiled: torch would compile again for them, to slower code.

    Args:
        recipe: its `compile` is True, False or "auto".
        pays: whether "auto" compiles.
        report: called if compiling fails with "auto"; training then continues without compiling.

    Raises:
        ZtwError: at the first call, if compiling fails with True.
    """
    auto = recipe.compile == "auto"
    if recipe.cuda_graph or not (pays if auto else recipe.compile):
        return function
    fast = torch.compile(function)

    def call(inputs: Batch) -> Any:
        nonlocal fast
        if size_of(inputs) != recipe.batch_size:
            return function(inputs)
        try:
            return fast(inputs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = f"compile: failed ({' '.join(str(error).split())[:160]})"
            if not auto:
                raise ZtwError(f"{reason}; install a C++ compiler, or set compile to false") from error
            if report is not None:
                report(Note(f"{reason}; training continues without it. Install a C++ compiler to use it"))
            fast = function
            return function(inputs)

    return call
