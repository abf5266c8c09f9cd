"""Test the measured time of each exit, with a clock that only the network moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import pixel_network

import ztw
from ztw.evaluation.exit_times import exit_times, leaving_at

RULES = [ztw.MaxSoftmax, ztw.Entropy, ztw.Patience, ztw.MaxSoftmaxOrBest]


class Clock:
    """Seconds that pass in the stages of a network: one number per call of a stage."""

    def __init__(self, network: ztw.EarlyExitNetwork, seconds: dict[int, list[float]]) -> None:
        self.now, self.network, self.seconds = 0.0, network, seconds
        for number, stage in enumerate(network.backbone.stages):
            stage.register_forward_hook(lambda *given, number=number: self.pass_in(number))

    def pass_in(self, stage: int) -> None:
        times = self.seconds[stage]
        self.now += times.pop(0) if len(times) > 1 else times[0]

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("rule", RULES)
def test_every_sample_leaves_at_the_wanted_exit(rule):
    network = pixel_network("independent").eval()
    images = torch.randn(5, 1, 1, 4)
    for exit in range(4):
        assert network.infer(images, leaving_at(exit, 4, rule)).exit_index.tolist() == [exit] * 5


def test_an_exit_costs_all_stages_before_it():
    network = pixel_network("independent").eval()
    clock = Clock(network, {0: [1.0], 1: [0.5], 2: [0.25]})
    times = exit_times(network, ztw.MaxSoftmax, torch.randn(3, 1, 1, 4), clock=clock)
    assert times.tolist() == pytest.approx([1000, 1500, 1750, 1750], abs=1e-5)
    assert (times.diff() > 0).all(), "the last exit has no stage of its own here, but costs must increase"


def test_the_median_of_the_repetitions_counts_and_the_warm_up_does_not():
    network = pixel_network("independent").eval()
    # one sample, 4 exits: four calls of the first stage in each round; the first round is the warm-up
    clock = Clock(network, {0: [99.0] * 4 + [1.0] * 4 + [50.0] * 4 + [2.0], 1: [0.0], 2: [0.0]})
    times = exit_times(network, ztw.MaxSoftmax, torch.randn(1, 1, 1, 4), 3, clock)
    assert times.tolist() == pytest.approx([2000] * 4, abs=1e-4)


def test_a_later_exit_that_was_faster_costs_as_much_as_the_earlier_one():
    network = pixel_network("independent").eval()
    slow_at_first: dict[int, list[float]] = {0: [9.0, 1.0, 1.0, 1.0] * 2, 1: [0.0], 2: [0.0]}
    times = exit_times(network, ztw.MaxSoftmax, torch.randn(1, 1, 1, 4), 1, Clock(network, slow_at_first))
    assert times.tolist() == pytest.approx([9000] * 4, abs=1e-4)
    assert (times.diff() > 0).all()


def test_the_mean_of_the_samples_counts():
    network = pixel_network("independent").eval()
    by_sample: Any = {0: [0.0] * 8 + [1.0] * 4 + [3.0], 1: [0.0], 2: [0.0]}
    times = exit_times(network, ztw.MaxSoftmax, torch.randn(2, 1, 1, 4), 1, Clock(network, by_sample))
    assert times.tolist() == pytest.approx([2000] * 4, abs=1e-4)


def test_an_exported_network(tmp_path):
    network = ztw.build_network(ztw.build_backbone("resnet8"), head="pool", progress=False).eval()
    runner = ztw.OnnxRunner(
        ztw.export_onnx(network, "entropy 0.5", tmp_path / "network.onnx"), threads=1, cache=False
    )
    images = torch.randn(1, 3, 32, 32)
    for exit in range(4):
        assert runner(images, leaving_at(exit, 4, ztw.Entropy)).exit_index.tolist() == [exit]
    times = exit_times(runner, ztw.Entropy, images, repeats=3)
    assert times.shape == (4,)
    assert times.dtype == torch.float64
    assert (times.diff() > 0).all()
