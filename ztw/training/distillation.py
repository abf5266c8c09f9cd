"""Learn from the predictions of another network or exit, the teacher (Hinton et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Distillation:
    """How to learn from a teacher.

    Args:
        weight: share of the loss that compares with the teacher, in (0, 1].
        temperature: both networks' logits are divided by it.
    """

    weight: float = 0.5
    temperature: float = 3.0


def distillation_loss(logits: Tensor, teacher: Tensor, labels: Tensor, how: Distillation) -> Tensor:
    """Compute (1 - w) CE(z, y) + w T^2 KL(softmax(t / T) || softmax(z / T)), w the weight, T the temperature.

    The factor T^2 keeps the size of the gradient (Hinton et al. 2015, section 2).

    Args:
        logits: z (N, C) of the student.
        teacher: t (N, C); no gradient reaches it.
        labels: y (N,).

    Returns:
        The mean over the samples, a scalar.
    """
    target = (teacher.detach().float() / how.temperature).log_softmax(-1)
    found = (logits.float() / how.temperature).log_softmax(-1)
    compared = F.kl_div(found, target, log_target=True, reduction="batchmean") * how.temperature**2
    return (1 - how.weight) * F.cross_entropy(logits, labels) + how.weight * compared
