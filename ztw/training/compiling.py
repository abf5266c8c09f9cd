"""Training steps made faster by torch.compile, where that pays and works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.progress import Note, Report
from ztw.training.recipe import Recipe, total_steps

# Steps from which torch.compile earns back the minute it takes: measured on two CPU cores without AMX, where
# it takes 5 to 11 % off a backbone's step (`make bench`). Counted, not timed: the same study compiles the
# same trainings.
WORTH_COMPILING = 4000


def worth_compiling(recipe: Recipe, samples: int) -> bool:
    """Whether a backbone's training on so many samples is long enough."""
    return total_steps(recipe, samples) >= WORTH_COMPILING


def compiled(
    function: Callable[[Tensor], Any], recipe: Recipe, pays: bool = False, report: Report | None = None
) -> Callable[[Tensor], Any]:
    """A function of a batch of images, compiled where the recipe says so; pays: what its "auto" means here.

    Only for full batches: the last, smaller one would have it compiled again for any size, and slower.
    Where compiling fails "auto" goes on without, after a line to `report`; otherwise ZtwError at the first
    call.
    """
    auto = recipe.compile == "auto"
    if recipe.cuda_graph or not (pays if auto else recipe.compile):
        return function
    fast = torch.compile(function)

    def call(images: Tensor) -> Any:
        nonlocal fast
        if len(images) != recipe.batch_size:
            return function(images)
        try:
            return fast(images)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = f"compile: failed ({' '.join(str(error).split())[:160]}); it needs a C++ compiler"
            if not auto:
                raise ZtwError(f"{reason}, or set it to false") from error
            if report is not None:
                report(Note(f"{reason}; training goes on without"))
            fast = function
            return function(images)

    return call
