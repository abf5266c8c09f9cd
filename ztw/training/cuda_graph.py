"""Run the losses and gradients of a training step as one CUDA graph, because Python launches kernels slowly."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from ztw.progress import Note, Report

# (images (N, C, H, W), labels (N,), weights (W,) of the losses) -> (losses (M,), correct predictions (M,)). Writes the
# gradients of all trained parameters to `.grad`.
Gradients = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

WARM_UP = 3  # steps before the capture, in which libraries initialise themselves


class CapturedGradients:
    """Run a `Gradients` function normally for WARM_UP steps, then capture it as a CUDA graph and replay the graph.

    The graph runs the same kernels in the same order. Only full batches on a GPU are captured. The function must do the
    same for every batch, because the graph repeats the decisions and random draws that Python made in the capture. If
    the capture fails, for example because the function waits for the GPU, training continues without a graph.

    Args:
        batch_size: images of a full batch.
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

    def __call__(self, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """See `Gradients`."""
        if self.failed or images.device.type != "cuda" or len(images) != self.batch_size:
            return self.compute(images, labels, weights)
        self.steps += 1
        if self.steps <= WARM_UP:
            return self._on_side_stream(images, labels, weights)
        if self.graph is None:
            self._capture(images, labels, weights)
        if self.graph is None:
            return self.compute(images, labels, weights)
        for kept, given in zip(self.inputs, (images, labels, weights), strict=True):
            kept.copy_(given, non_blocking=True)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient  # a smaller batch may have replaced it
        losses, right = self.outputs
        return losses, right

    def _on_side_stream(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Compute on the stream of the capture: autograd remembers streams, and every stream has its own memory."""
        stream = _side_stream(batch[0].device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = self.compute(*batch)
        torch.cuda.current_stream().wait_stream(stream)
        return found

    def _capture(self, *batch: Tensor) -> None:
        self.inputs = [given.clone() for given in batch]  # keeps channels_last
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
                self.outputs = self.compute(*self.inputs)
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
