"""Measured time: what is timed, by a clock that only the calls themselves move."""

from __future__ import annotations

import pytest
import torch

from ztw.data.decoded import ImageSet
from ztw.evaluation.timing import REPEATS, share_that_differs, take_batches, time_in_turn
from ztw.exits.inference import ExitResult

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_every_batch_is_timed_in_turn_after_a_warm_up():
    called, clock = [], Clock()

    def slow(batch: torch.Tensor) -> float:
        called.append("slow")
        hiccup = len(called) == 4  # only once, so that it does not count
        clock.now += 5 if hiccup else 2 if batch.max() else 0.25
        return float(batch.max())

    def fast(batch: torch.Tensor) -> None:
        called.append("fast")
        clock.now += 0.125

    batches = [torch.zeros(4, 1)] * 5 + [torch.ones(4, 1)]
    found, other = time_in_turn([slow, fast], batches, CPU, clock)
    assert called == (["slow"] * (2 + 6) + ["fast"] * (2 + 6)) * REPEATS, "two to warm up, six timed"
    # a batch that is slow each time counts, a hiccup does not
    assert found.answers == [0.0] * 5 + [1.0]
    assert found.times == {"median_ms": 250, "p95_ms": 2000, "images_per_s": 24 / 3.25}
    assert other.times == {"median_ms": 125, "p95_ms": 125, "images_per_s": 32}


def test_what_is_answered_otherwise_is_counted():
    first, second = torch.tensor([[9.0, 1.0]]), torch.tensor([[1.0, 9.0]])
    logits = torch.cat([first, second, first])
    reference = [ExitResult(logits, torch.tensor([0, 1, 2])), ExitResult(first, torch.tensor([1]))]
    assert share_that_differs(reference, reference) == 0
    elsewhere = [ExitResult(logits, torch.tensor([0, 1, 1])), reference[1]]
    assert share_that_differs(elsewhere, reference) == 0.25
    otherwise = [ExitResult(logits.flip(1), torch.tensor([1, 1, 2])), reference[1]]
    assert share_that_differs(otherwise, reference) == 0.75
    assert share_that_differs([ExitResult(second, torch.tensor([0]))], [second]) == 0, (
        "a network without exits"
    )
    assert share_that_differs([second], [first]) == 1


@pytest.mark.parametrize(("size", "images", "count"), [(1, 7, 7), (4, 8, 5), (4, 30, 7), (16, 8, 5)])
def test_batches_to_time_are_full_and_at_least_five(size, images, count):
    data = ImageSet(torch.zeros(20, 1, 2, 2, dtype=torch.uint8), torch.zeros(20).long(), 2, (0.0,), (1.0,))
    batches = take_batches(data, size, images, CPU)
    assert len(batches) == count
    assert all(batch.shape == (size, 1, 2, 2) for batch in batches)


def test_a_batch_larger_than_the_data_holds_all_of_it():
    data = ImageSet(torch.zeros(20, 1, 2, 2, dtype=torch.uint8), torch.zeros(20).long(), 2, (0.0,), (1.0,))
    assert [len(batch) for batch in take_batches(data, 64, 64, CPU)] == [20] * 5
