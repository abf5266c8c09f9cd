"""Make networks and logits for the benchmarks, whose samples leave at every exit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

import ztw
from ztw.data.decoded import ImageSet
from ztw.device import pick_device
from ztw.models.placement import Placement


class OneByOne(Dataset):
    """Images for the plain loops: read one at a time, through PIL and torchvision's transforms."""

    def __init__(self, data: ImageSet) -> None:
        self.pixels, self.labels = data.images, data.labels
        crop = [transforms.RandomCrop(data.images.shape[-1], data.crop_padding)] if data.crop_padding else []
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                *crop,
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), int(self.labels[index])


def random_logits(exits: int, samples: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Make logits float32 (K, N, C) that are more accurate at every later exit, and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (samples,), generator=generator)
    known = torch.nn.functional.one_hot(labels, num_classes).float()
    depth = torch.linspace(1, 4, exits)
    logits = torch.empty(exits, samples, num_classes)
    shared = torch.randn(samples, num_classes, generator=generator)
    for exit in range(exits):
        own = torch.randn(samples, num_classes, generator=generator)
        logits[exit] = 1.2 * shared + 0.8 * own + depth[exit] * known
    return logits, labels


@torch.no_grad()
def busy_network(
    backbone: ztw.Backbone,
    connection: str = "independent",
    placement: Placement = "all",
    head: str = "conv",
    width: float = 1.0,
) -> ztw.EarlyExitNetwork:
    """Add exits to a backbone, with weights such that samples leave at every exit; return it in eval mode."""
    torch.manual_seed(0)
    network = ztw.build_network(backbone, connection, head, placement=placement, width=width)
    images = torch.randn(64, *backbone.input_shape)
    backbone.train()
    backbone(images)  # updates the BatchNorm statistics
    network.eval()
    for head in network.heads:
        head.linear.weight.mul_(20)
    for linear in [head.linear for head in network.heads]:
        linear.bias.zero_()
    logits = network(images)
    for exit, head in enumerate(network.heads):
        spread = (logits[exit] - logits[exit].mean(0)).std().clamp(min=1e-6)
        head.linear.weight.mul_(1.5 / spread)
    for exit, mean in enumerate(network(images).mean(1)[:-1]):
        network.heads[exit].linear.bias.sub_(mean)
    return network


def waited(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that calls `call` and waits for the GPU, if there is one."""
    if pick_device().type == "cpu":
        return call

    def both() -> Any:
        result = call()
        torch.cuda.synchronize()
        return result

    return both


@torch.inference_mode()
def side_by_side(run: Callable, reference: Callable, rounds: int = 9) -> float:
    """Return the median ratio of two times, measured in turn because the machine's speed drifts.

    Each function runs once before it is timed, because the other one has filled the caches.
    """
    ratios = []
    for _ in range(rounds):
        times = []
        for call in (run, reference):
            call()
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)
