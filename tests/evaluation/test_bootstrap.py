"""The paired bootstrap against a plain loop, known answers and its own promise of coverage."""

from __future__ import annotations

import math

import pytest
import torch

import ztw
from ztw.evaluation.bootstrap import all_pairs, difference_interval, pairs_at_budgets, within_noise


def answers(accuracy: float, seeds: int = 3, samples: int = 400, seed: int = 0) -> torch.Tensor:
    """bool (S, N), right with probability `accuracy`."""
    return torch.rand(seeds, samples, generator=torch.Generator().manual_seed(seed)) < accuracy


def test_identical_methods_do_not_differ():
    same = answers(0.7)
    assert difference_interval(same, same.clone()) == (0, 0, 0)
    assert within_noise(0, 0)


def test_a_difference_on_every_sample_has_no_noise():
    right = torch.ones(2, 50).bool()
    assert difference_interval(right, ~right) == (1, 1, 1)
    assert difference_interval(~right, right) == (-1, -1, -1)


def test_noise_that_both_methods_share_does_not_count():
    # one sample in four is hard for both, the others easy for both: what is drawn cannot tell them apart
    first = torch.arange(100).remainder(4).gt(0).expand(2, -1)
    assert difference_interval(first, first) == (0, 0, 0)
    # unpaired, the same accuracies would be apart by noise
    low, high = difference_interval(first, first.roll(1, dims=1))[1:]
    assert low < -0.05
    assert high > 0.05


def test_one_seed_better_and_one_worse_by_the_same_cancel():
    first = torch.stack([torch.ones(30), torch.zeros(30)]).bool()
    assert difference_interval(first, first.flip(0)) == (0, 0, 0)


def test_the_interval_is_the_binomial_one():
    # first always right, second on 300 of 400: the difference is 0.25, its standard error 0.02165
    second = (torch.arange(400) < 300)[None]
    difference, low, high = difference_interval(torch.ones_like(second), second, resamples=20_000)
    error = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert difference == 0.25
    assert low == pytest.approx(0.25 - error, abs=0.003)
    assert high == pytest.approx(0.25 + error, abs=0.003)


def test_all_is_the_plain_loop():
    methods = {
        name: answers(p, samples=60, seed=i) for i, (name, p) in enumerate({"a": 0.6, "b": 0.8}.items())
    }
    draws = torch.randint(60, (50, 60), generator=torch.Generator().manual_seed(7))
    gaps = []
    for draw in draws:  # resample by resample, image by image
        right = {name: sum(int(one[n]) for one in table for n in draw) for name, table in methods.items()}
        gaps.append((right["a"] - right["b"]) / (3 * 60))
    difference, low, high = difference_interval(methods["a"], methods["b"], resamples=50, level=0.9, seed=7)
    expected = torch.tensor(gaps, dtype=torch.float64).quantile(torch.tensor([0.05, 0.95]).double())
    assert difference == pytest.approx(float(methods["a"].double().mean() - methods["b"].double().mean()))
    assert [low, high] == pytest.approx(expected.tolist())


def test_every_pair_is_its_own_interval_again():
    methods = {name: answers(0.7, seed=i) for i, name in enumerate("abc")}
    rows = all_pairs(methods, resamples=100)
    assert [(row["first"], row["second"]) for row in rows] == [("a", "b"), ("a", "c"), ("b", "c")]
    for row in rows:
        alone = difference_interval(methods[row["first"]], methods[row["second"]], resamples=100)
        assert (row["difference"], row["low"], row["high"]) == alone
        assert row["within_noise"] == (row["low"] <= 0 <= row["high"])
        assert row["seeds"] == [0, 1, 2]


def test_small_chunks_draw_the_same(monkeypatch):
    first, second = answers(0.7), answers(0.8, seed=1)
    whole = difference_interval(first, second, resamples=99)
    monkeypatch.setattr("ztw.evaluation.bootstrap.CHUNK", 4000)
    assert difference_interval(first, second, resamples=99) == whole


def test_the_seed_decides():
    first, second = answers(0.7), answers(0.72, seed=1)
    assert difference_interval(first, second) == difference_interval(first.to(torch.uint8), second)
    assert difference_interval(first, second) != difference_interval(first, second, seed=1)


def test_a_wider_level_is_a_wider_interval():
    first, second = answers(0.7), answers(0.72, seed=1)
    _, low, high = difference_interval(first, second, level=0.5)
    _, lower, higher = difference_interval(first, second, level=0.99)
    assert lower < low < high < higher


def test_a_pair_is_compared_on_the_seeds_both_have():
    table = {name: dict(enumerate(answers(0.7, seed=i))) for i, name in enumerate("abc")}
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
    alone = difference_interval(first, second, resamples=100)
    assert (rows[0]["difference"], rows[0]["low"], rows[0]["high"]) == alone


def test_nothing_to_compare_is_no_row():
    assert all_pairs({}) == []
    assert all_pairs({"a": answers(0.7)}, resamples=10) == []
    assert pairs_at_budgets({0.25: {"a": {}, "b": {}}}) == []


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # the second method is right where the first is, but for 10 % lost and 6 % won: the truth is 0.04
    generator = torch.Generator().manual_seed(0)
    covered, repeats = 0, 400
    for repeat in range(repeats):
        kind = torch.rand(1, 300, generator=generator)
        first, second = kind < 0.7, (kind >= 0.1) & (kind < 0.76)
        _, low, high = difference_interval(first, second, resamples=400, seed=repeat)
        covered += low <= 0.04 <= high
    assert 0.92 <= covered / repeats <= 0.98


def test_malformed_input_is_refused():
    good = answers(0.7)
    cases = [
        ((good, good[:2]), {}, r"same seeds for all methods, got \{'first': 3, 'second': 2\}"),
        ((good, good[:, :9]), {}, r"same test samples, got \[9, 400\] samples"),
        ((good[0], good), {}, r"first: shape \(400,\), must be \(seeds, samples\)"),
        ((good, good * 2), {}, r"second, seed 0: must be right \(1\) or wrong \(0\), got \[0, 2\]"),
        ((good.float(), good * math.nan), {}, "must be right"),
        ((good[:, :0], good[:, :0]), {}, r"shape \(0,\)"),
        ((good[:0], good[:0]), {}, "first: no seed"),
        ((good, good), {"resamples": 0}, "resamples 0: must be at least 1"),
        ((good, good), {"level": 1.0}, "level 1.0: must lie between 0 and 1"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ztw.ZtwError, match=message):
            difference_interval(*arguments, **options)  # type: ignore[arg-type]
