"""Run the losses and gradients of a training step as one CUDA graph, because Python launches kernels slowly."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ztw.batch import Batch
from ztw.progress import Note, Report

# inputs of N samples, labels (N,), weights of the losses (W,) -> losses (M,), correct predictions (M,). Writes the
# gradients of all trained parameters to `.grad`.
Gradients = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]

WARM_UP = 3  # steps before the capture, in which libraries initialise themselves


class CapturedGradients:
    """Run a `Gradients` function normally for WARM_UP steps, then capture it as a CUDA graph and replay the graph.

    Runs the same kernels in the same order. Captures full batches of one tensor on a GPU, all of one shape; other
    batches run normally. The function must do the same for every batch, because decisions and random draws in Python
    are captured once. If the capture fails, for example because the function waits for the GPU, training continues
    without it.

    Args:
        parameters: the trained parameters.
        batch_size: samples of a full batch.
        report: called if the capture fails.
    """

    def __init__(
        self, compute: Gradients, parameters: Sequence[nn.Parameter], batch_size: int, report: Report | None
    ) -> None:
        self.compute, self.parameters, self.batch_size = compute, parameters, batch_size
        self.report = report or (lambda line: None)
        self.steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failed = False

    def __call__(self, inputs: Batch, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """See `Gradients`."""
        if not isinstance(inputs, Tensor) or not self._is_captured(inputs):
            return self.compute(inputs, labels, weights)
        self.steps += 1
        if self.steps <= WARM_UP:
            return self._on_side_stream(inputs, labels, weights)
        if self.graph is None:
            self._capture(inputs, labels, weights)
        if self.graph is None:
            return self.compute(inputs, labels, weights)
        for kept, given in zip(self.given, (inputs, labels, weights), strict=True):
            kept.copy_(given, non_blocking=True)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient  # a smaller batch may have replaced it
        losses, right = self.outputs
        return losses, right

    def _is_captured(self, inputs: Tensor) -> bool:
        """Return whether the step of a batch is captured, or will be after the warm-up."""
        if self.failed or inputs.device.type != "cuda" or len(inputs) != self.batch_size:
            return False
        return self.graph is None or inputs.shape == self.given[0].shape

    def _on_side_stream(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Compute on the stream of the capture: autograd remembers streams, and every stream has its own memory."""
        stream = _side_stream(batch[0].device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = self.compute(*batch)
        torch.cuda.current_stream().wait_stream(stream)
        return found

    def _capture(self, *batch: Tensor) -> None:
        self.given = [given.clone() for given in batch]  # keeps channels_last
        for parameter in self.parameters:
            parameter.grad = None  # makes a replay write the gradient instead of adding to the previous one
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        gc.collect()
        collects = gc.isenabled()
        gc.disable()  # freeing an older graph would end the capture
        try:
            # "thread_local" lets other threads pin memory for the next batches
            with torch.cuda.graph(
                graph, stream=_side_stream(batch[0].device), capture_error_mode="thread_local"
            ):
                self.outputs = self.compute(*self.given)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # a failed capture may leave its own stream set
            self.failed = True
            # Ending a failed capture raises, too; the context holds the cause
            reason = " ".join(str(error.__context__ or error).split())[:160]
            self.report(
                Note(
                    f"the training step cannot be captured as a CUDA graph ({reason}); training continues without it"
                )
            )
            return
        finally:
            if collects:
                gc.enable()
        self.gradients = [parameter.grad for parameter in self.parameters]
        self.graph = graph


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of this process for warm-up and capture."""
    return torch.cuda.Stream(device)
