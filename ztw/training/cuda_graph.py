"""A training step's losses and gradients in one launch: Python starts a GPU's kernels slower than they run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from ztw.progress import Note, Report

# images (N, C, H, W), labels (N,), weights of the losses (W,) -> losses (M,), right answers (M,); the gradients of
# all that is trained are then in `.grad`
Gradients = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

WARM_UP = 3  # steps before the capture: what libraries do at their first calls must not be captured


class CapturedGradients:
    """A `Gradients` that is captured as a CUDA graph after some steps, and replayed from then on.

    Computes what it is made of, kernel by kernel, in the same order. For full batches on a GPU: others go the usual
    way. What it is made of must do the same for every batch: what Python decides or draws anew is captured once.
    Where it cannot be captured, because it waits for the GPU say, `report` gets one line and all goes the usual way.
    """

    def __init__(
        self, compute: Gradients, parameters: Sequence[nn.Parameter], batch_size: int, report: Report | None
    ) -> None:
        self.compute, self.parameters, self.batch_size = compute, parameters, batch_size
        self.report = report or (lambda line: None)
        self.steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failed = False

    def __call__(self, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """See `Gradients`."""
        if self.failed or images.device.type != "cuda" or len(images) != self.batch_size:
            return self.compute(images, labels, weights)
        self.steps += 1
        if self.steps <= WARM_UP:
            return self._beside(images, labels, weights)
        if self.graph is None:
            self._capture(images, labels, weights)
        if self.graph is None:
            return self.compute(images, labels, weights)
        for kept, given in zip(self.inputs, (images, labels, weights), strict=True):
            kept.copy_(given, non_blocking=True)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient  # a smaller batch has put its own there
        losses, right = self.outputs
        return losses, right

    def _beside(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """On the stream of the capture: autograd remembers streams, and each keeps memory of its own."""
        stream = _side_stream(batch[0].device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = self.compute(*batch)
        torch.cuda.current_stream().wait_stream(stream)
        return found

    def _capture(self, *batch: Tensor) -> None:
        self.inputs = [given.clone() for given in batch]  # keeps channels_last
        for parameter in self.parameters:
            parameter.grad = None  # what a replay writes is then the gradient, not added to the one before
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        gc.collect()
        collects = gc.isenabled()
        gc.disable()  # an older graph, freed meanwhile, would end the capture
        try:
            # threads that pin the next batches' memory meanwhile may do so
            with torch.cuda.graph(
                graph, stream=_side_stream(batch[0].device), capture_error_mode="thread_local"
            ):
                self.outputs = self.compute(*self.inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # a failed capture may not have left its own
            self.failed = True
            # the end of a broken capture fails, too, and says nothing of what broke it
            reason = " ".join(str(error.__context__ or error).split())[:160]
            self.report(Note(f"the training step cannot be captured ({reason}); training goes on without"))
            return
        finally:
            if collects:
                gc.enable()
        self.gradients = [parameter.grad for parameter in self.parameters]
        self.graph = graph


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a process on which steps are warmed up and captured."""
    return torch.cuda.Stream(device)
