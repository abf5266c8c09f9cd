"""Test the timing of calls, with a clock that only the calls advance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from ztw.data.decoded import ImageSet
from ztw.evaluation.timing import Timing, share_that_differs, take_batches, time_in_turn, turns_of
from ztw.exits.inference import ExitResult

CPU = torch.device("cpu")


class Clock:
    """A clock that advances only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_every_batch_is_timed_in_turn_after_a_warm_up():
    called: list[str] = []
    clock, steps = Clock(), list[int]()

    def slow(batch: torch.Tensor) -> float:
        called.append(f"slow {int(batch.max())}")
        hiccup = len(called) == 5  # once, so that another turn of the batch is faster
        clock.now += 5 if hiccup else 2 if batch.max() == 5 else 0.25
        return float(batch.max())

    def fast(batch: torch.Tensor) -> None:
        called.append(f"fast {int(batch.max())}")
        clock.now += 0.125

    batches = [torch.full((4, 1), number) for number in range(6)]
    found, other = time_in_turn([Timing(slow), Timing(fast)], batches, 2, CPU, lambda: steps.append(1), clock)
    first, second = [0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]
    expected = [f"{name} {place}" for turn in (first, second) for name in ("slow", "fast") for place in turn]
    assert called == ["slow 0", "fast 0", *expected], "one warm-up, then each turn starts with another batch"
    # a batch that is slow in every turn counts; a single slow time does not
    assert found.predictions == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert found.times == {"median_ms": 250, "p95_ms": 2000, "images_per_s": 24 / 3.25}
    assert other.times == {"median_ms": 125, "p95_ms": 125, "images_per_s": 48 / 1.5}
    assert len(steps) == 2 * 2


def test_single_images_and_lone_methods_are_timed_more_often():
    """A few methods take only seconds, which may all be in a slow phase of the machine."""
    assert turns_of(1, 5) > turns_of(2, 5)
    assert turns_of(64, 1) == turns_of(64, 2) == 2 * turns_of(64, 5)


def test_the_same_work_at_two_budgets_has_the_same_times():
    """The same work: one network, the same exits. Another network or another exit is other work."""
    called: Counter[str] = Counter()
    clock = Clock()

    def leaves(name: str, exit: int, *seconds: float) -> Callable[[torch.Tensor], ExitResult]:
        def run(batch: torch.Tensor) -> ExitResult:
            called[name] += 1
            clock.now += seconds[min(called[name], len(seconds)) - 1]
            return ExitResult(torch.zeros(1, 2), torch.tensor([exit]))

        return run

    calls = [
        Timing(leaves("low", 0, 1.0, 1.0, 0.5), "a"),
        Timing(leaves("high", 0, 1.0, 0.25), "a"),
        Timing(leaves("last", 2, 4.0), "a"),
        Timing(leaves("other", 0, 8.0), "b"),
    ]
    times = [
        found.times["median_ms"] for found in time_in_turn(calls, [torch.zeros(1, 1)], 3, CPU, clock=clock)
    ]
    assert times == [500, 500, 4000, 8000]
    assert called["low"] == 1 + 3
    assert called["high"] == 1 + 1, "once to know where it leaves, which counts no more than other work"
    assert called["last"] == called["other"] == 1 + 3


def test_different_predictions_are_counted():
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
