"""Test the paired bootstrap: against a plain loop, known values, and the coverage of its interval."""

from __future__ import annotations

import math

import pytest
import torch

import ztw
from ztw.evaluation.bootstrap import pairs_at_budgets


def random_flags(accuracy: float, seeds: int = 3, samples: int = 400, seed: int = 0) -> torch.Tensor:
    """Return random flags, bool (S, N), each True with probability `accuracy`."""
    return torch.rand(seeds, samples, generator=torch.Generator().manual_seed(seed)) < accuracy


def pairs(methods: dict[str, torch.Tensor], **options) -> list[dict]:
    """Return the rows of one budget; methods: method -> flags of all seeds, (S, N)."""
    table = {name: dict(enumerate(right)) for name, right in methods.items()}
    return pairs_at_budgets({0.5: table}, **options)


def compare(first: torch.Tensor, second: torch.Tensor, **options) -> tuple[float, float, float]:
    """Return (difference, low, high) of two methods at one budget."""
    (row,) = pairs({"first": first, "second": second}, **options)
    return row["difference"], row["low"], row["high"]


def test_identical_methods_do_not_differ():
    same = random_flags(0.7)
    (row,) = pairs({"a": same, "b": same.clone()})
    assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)
    assert row["within_noise"] is True


def test_a_difference_on_every_sample_has_no_noise():
    right = torch.ones(2, 50).bool()
    (row,) = pairs({"a": right, "b": ~right})
    assert (row["difference"], row["low"], row["high"]) == (1, 1, 1)
    assert row["within_noise"] is False
    assert compare(~right, right) == (-1, -1, -1)


def test_noise_that_both_methods_share_does_not_count():
    # one sample in four is wrong for both methods, the others are right for both: no draw makes a difference
    first = torch.arange(100).remainder(4).gt(0).expand(2, -1)
    assert compare(first, first) == (0, 0, 0)
    # an unpaired bootstrap would find noise between these accuracies
    low, high = compare(first, first.roll(1, dims=1))[1:]
    assert low < -0.05
    assert high > 0.05


def test_equal_gain_and_loss_of_two_seeds_cancel():
    first = torch.stack([torch.ones(30), torch.zeros(30)]).bool()
    assert compare(first, first.flip(0)) == (0, 0, 0)


def test_the_interval_is_the_binomial_one():
    # the first method is always right, the second on 300 of 400 samples: difference 0.25, standard error 0.02165
    second = (torch.arange(400) < 300)[None]
    difference, low, high = compare(torch.ones_like(second), second, resamples=20_000)
    error = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert difference == 0.25
    assert low == pytest.approx(0.25 - error, abs=0.003)
    assert high == pytest.approx(0.25 + error, abs=0.003)


def test_all_numbers_equal_the_plain_loop():
    methods = {
        name: random_flags(p, samples=60, seed=i) for i, (name, p) in enumerate({"a": 0.6, "b": 0.8}.items())
    }
    draws = torch.randint(60, (50, 60), generator=torch.Generator().manual_seed(7))
    gaps = []
    for draw in draws:  # one resample after the other, one image after the other
        right = {name: sum(int(one[n]) for one in table for n in draw) for name, table in methods.items()}
        gaps.append((right["a"] - right["b"]) / (3 * 60))
    difference, low, high = compare(methods["a"], methods["b"], resamples=50, level=0.9, seed=7)
    expected = torch.tensor(gaps, dtype=torch.float64).quantile(torch.tensor([0.05, 0.95]).double())
    assert difference == pytest.approx(float(methods["a"].double().mean() - methods["b"].double().mean()))
    assert [low, high] == pytest.approx(expected.tolist())


def test_every_pair_alone_has_the_same_interval():
    methods = {name: random_flags(0.7, seed=i) for i, name in enumerate("abc")}
    rows = pairs(methods, resamples=100)
    assert [(row["first"], row["second"]) for row in rows] == [("a", "b"), ("a", "c"), ("b", "c")]
    for row in rows:
        alone = compare(methods[row["first"]], methods[row["second"]], resamples=100)
        assert (row["difference"], row["low"], row["high"]) == alone
        assert row["within_noise"] == (row["low"] <= 0 <= row["high"])
        assert row["seeds"] == [0, 1, 2]


def test_many_samples_are_drawn_in_chunks_as_if_at_once():
    samples, resamples = 20_000, 250  # 5 million counts
    first, second = random_flags(0.7, 1, samples), random_flags(0.71, 1, samples, seed=1)
    draws = torch.randint(samples, (resamples, samples), generator=torch.Generator().manual_seed(0))
    gaps = (first[0].double() - second[0].double())[draws].mean(1)
    expected = gaps.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert compare(first, second, resamples=resamples)[1:] == pytest.approx(expected.tolist())


def test_the_seed_decides():
    first, second = random_flags(0.7), random_flags(0.72, seed=1)
    assert compare(first, second) == compare(first.to(torch.uint8), second)
    assert compare(first, second) != compare(first, second, seed=1)


def test_a_higher_level_gives_a_wider_interval():
    first, second = random_flags(0.7), random_flags(0.72, seed=1)
    _, low, high = compare(first, second, level=0.5)
    _, lower, higher = compare(first, second, level=0.99)
    assert lower < low < high < higher


def test_a_pair_is_compared_on_the_seeds_of_both():
    table = {name: dict(enumerate(random_flags(0.7, seed=i))) for i, name in enumerate("abc")}
    half = {"a": table["a"], "b": {2: table["b"][2], 0: table["b"][0]}, "c": {1: table["c"][1]}}
    rows = pairs_at_budgets({0.25: half, 0.5: table, "max": {"a": table["a"]}}, resamples=100)
    named = [(row["budget"], row["first"], row["second"], row["seeds"]) for row in rows]
    every = [0, 1, 2]
    assert named == [
        (0.25, "a", "b", [0, 2]),
        (0.25, "a", "c", [1]),  # "b" and "c" have no seed in common
        (0.5, "a", "b", every),
        (0.5, "a", "c", every),
        (0.5, "b", "c", every),
    ]
    first, second = (torch.stack([table[name][0], table[name][2]]) for name in "ab")
    alone = compare(first, second, resamples=100)
    assert (rows[0]["difference"], rows[0]["low"], rows[0]["high"]) == alone


def test_nothing_to_compare_gives_no_row():
    assert pairs({}) == []
    assert pairs({"a": random_flags(0.7)}, resamples=10) == []
    assert pairs_at_budgets({0.25: {"a": {}, "b": {}}}) == []


def test_the_interval_covers_the_truth_as_often_as_its_level():
    # the second method loses 10 % of the samples and wins 6 %: the true difference is 0.04
    generator = torch.Generator().manual_seed(0)
    covered, repeats = 0, 400
    for repeat in range(repeats):
        kind = torch.rand(1, 300, generator=generator)
        first, second = kind < 0.7, (kind >= 0.1) & (kind < 0.76)
        _, low, high = compare(first, second, resamples=400, seed=repeat)
        covered += low <= 0.04 <= high
    assert 0.92 <= covered / repeats <= 0.98


def test_malformed_input_is_refused():
    good = random_flags(0.7)
    cases = [
        ((good, good[:, :9]), {}, r"same test samples, got \[9, 400\] samples"),
        ((good[None], good[None]), {}, r"first, seed 0: shape \(3, 400\), must be \(samples,\)"),
        ((good, good * 2), {}, r"second, seed 0: must be right \(1\) or wrong \(0\), got \[0, 2\]"),
        ((good.float(), good * math.nan), {}, "must be right"),
        ((good[:, :0], good[:, :0]), {}, r"shape \(0,\)"),
        ((good, good), {"resamples": 0}, "resamples 0: must be at least 1"),
        ((good, good), {"level": 1.0}, "level 1.0: must lie between 0 and 1"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ztw.ZtwError, match=message):
            compare(*arguments, **options)  # type: ignore[arg-type]


def test_the_difference_of_two_methods_alone():
    first = torch.tensor([1, 1, 1, 0, 1, 0, 1, 1] * 50, dtype=torch.bool)
    second = torch.tensor([1, 0, 1, 0, 1, 1, 1, 0] * 50, dtype=torch.bool)
    found = ztw.paired_difference(first, second, seed=3)
    (row,) = pairs_at_budgets({1.0: {"a": {0: first}, "b": {0: second}}}, seed=3)
    assert found == (0.125, row["low"], row["high"])
    with pytest.raises(ztw.ZtwError, match="same test samples"):
        ztw.paired_difference(first, second[1:])
