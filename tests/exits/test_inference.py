"""Test how `infer` handles a batch: its predictions equal those of `simulate_exits`."""

from __future__ import annotations

from itertools import product
from typing import cast

import pytest
import torch
from conftest import small_network
from torch import Tensor, nn

import ztw
from ztw.exits.inference import CPU_BATCHING, GPU_BATCHING, Batching, infer, microbatch_plan, pick
from ztw.exits.rules import ExitRule
from ztw.exits.sweep import simulate_exits


@pytest.mark.parametrize("shape", [(6, 3, 5, 4), (6, 7), (6, 2, 9)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pick_is_indexing_and_keeps_the_memory_format(shape, memory_format):
    x = torch.randn(shape)
    if len(shape) == 4:
        x = x.contiguous(memory_format=memory_format)
    rows = torch.tensor([4, 0, 5])
    out = pick(x, rows)
    assert torch.equal(out, x[rows])
    if len(shape) == 4:
        assert out.is_contiguous(memory_format=memory_format)


@torch.inference_mode()
def infer_as(
    batching: Batching, network: ztw.EarlyExitNetwork, images: Tensor, rule: ExitRule
) -> ztw.ExitResult:
    """Run `network.infer` with these settings of batches."""
    return infer(network.route(), images, rule, batching)


@pytest.mark.parametrize("rule", [ztw.MaxSoftmax(0.6), ztw.Patience(1), ztw.MaxSoftmaxOrBest(0.8)])
@pytest.mark.parametrize("kind", [None, "geometric"])
def test_settings_of_batches_change_no_prediction(rule, kind):
    """The settings: when samples that leave are removed from the batch, and how often the host reads a GPU's exits."""
    network = small_network("cascade_detached")
    images = torch.randn(40, 1, 10, 10, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits = network(images)
    if kind:
        network.ensemble = ztw.fit_ensemble(logits, logits.mean(0).argmax(-1), kind)
        logits = network.ensemble(logits)
    left, source = simulate_exits(logits, rule)
    assert len(set(left.tolist())) > 1
    expected = logits[source, torch.arange(40)]
    for copy_share, sync_every in product((0.0, 0.1, 0.4, 2.0), (1, 2, 3)):
        result = infer_as(Batching(2**24, copy_share, sync_every), network, images, rule)
        assert result.exit_index.tolist() == left.tolist(), (copy_share, sync_every)
        torch.testing.assert_close(result.logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def undecided_network(ics: str, images: Tensor) -> ztw.EarlyExitNetwork:
    """Return a ResNet-8 whose exits are confident on some of these images (N, 3, 32, 32) and not on others."""
    torch.manual_seed(0)
    backbone = ztw.build_backbone("resnet8")
    backbone(images)  # BatchNorm statistics
    network = ztw.build_network(backbone, ics).eval()
    for exit, head in enumerate(network.heads):
        linear = cast(nn.Linear, head.linear)
        linear.weight.mul_(2 / (network(images)[exit] - network(images)[exit].mean(0)).std())
        cast(Tensor, linear.bias).sub_(network(images)[exit].mean(0))
    return network


@pytest.mark.parametrize("ics", ["independent", "cascade_detached"])
@pytest.mark.parametrize("kind", [None, "geometric"])
def test_a_large_batch_goes_in_microbatches_that_join_where_blocks_are_small(ics, kind):
    images = torch.randn(23, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    network = undecided_network(ics, images)
    if kind:
        with torch.no_grad():
            logits = network(images)
        network.ensemble = ztw.fit_ensemble(logits, logits.mean(0).argmax(-1), kind)
    route, five = network.route(), 5 * 4 * 16 * 32 * 32  # bytes of five samples in the first block
    assert [exits for exits, _ in microbatch_plan(route, CPU_BATCHING.microbatch_bytes)] == [[0], [1], [2, 3]]
    assert microbatch_plan(route, five) == [([0], 5), ([1], 10), ([2, 3], 20)]
    for rule in (ztw.MaxSoftmax(0.5), ztw.Patience(1), ztw.MaxSoftmaxOrBest(0.6)):
        at_once = network.infer(images, rule)
        split = infer_as(Batching(five), network, images, rule)
        assert split.exit_index.tolist() == at_once.exit_index.tolist()
        assert len(split.exit_index.unique()) > 1
        torch.testing.assert_close(split.logits, at_once.logits, atol=1e-4, rtol=1e-4)


def test_without_a_limit_all_exits_are_one_run():
    (run,) = microbatch_plan(small_network().route(), None)
    assert run[0] == [0, 1, 2, 3]
    assert run[1] > 10**9


@pytest.mark.parametrize("rule", [ztw.Patience(2), ztw.Entropy(0.8)])
def test_a_batch_of_eight_is_eight_single_calls(rule):
    network = small_network("cascade_detached")
    images = torch.randn(8, 1, 10, 10, generator=torch.Generator().manual_seed(98))
    together = network.infer(images, rule)
    alone = [network.infer(image[None], rule) for image in images]
    assert together.exit_index.tolist() == [int(result.exit_index) for result in alone]
    expected = torch.cat([result.logits for result in alone])
    torch.testing.assert_close(together.logits, expected, atol=1e-4, rtol=1e-4)
    assert len(together.exit_index.unique()) > 1


@pytest.mark.parametrize("batching", [CPU_BATCHING, GPU_BATCHING, Batching(microbatch_bytes=None)])
@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.parametrize(("threshold", "computed"), [(0.0, 1), (1.0, 3)])
@torch.inference_mode()
def test_later_blocks_are_not_computed_after_all_samples_have_left(samples, threshold, computed, batching):
    network = small_network()
    called: list[int] = []
    for block, stage in enumerate(network.backbone.stages):
        stage.register_forward_hook(lambda module, inputs, output, block=block: called.append(block))
    result = infer(network.route(), torch.randn(samples, 1, 10, 10), ztw.MaxSoftmax(threshold), batching)
    assert called == [0, 1, 2][:computed]
    assert result.exit_index.tolist() == [0 if computed == 1 else 3] * samples


def test_no_image_gives_no_prediction():
    result = small_network().infer(torch.zeros(0, 1, 10, 10), ztw.MaxSoftmax(0.5))
    assert result.logits.shape == (0, 5)
    assert result.exit_index.shape == (0,)


@pytest.mark.parametrize("shape", [(2, 3, 10, 10), (1, 10, 10)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ztw.ZtwError, match=r"images: shape .*, must be \(N, 1, 10, 10\)"):
        small_network().infer(torch.zeros(shape), ztw.MaxSoftmax(0.5))


@pytest.mark.parametrize("connection", ztw.list_connections())
def test_a_network_without_ics_is_its_backbone(connection):
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    network = ztw.EarlyExitNetwork(backbone, [], (), connection).eval()
    images = torch.randn(3, 1, 10, 10)
    torch.testing.assert_close(network(images)[0], backbone(images))
    torch.testing.assert_close(network.infer(images, ztw.MaxSoftmax(0.5)).logits, backbone(images))


class HalfHead(nn.Module):
    """A user's head, which returns bfloat16."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.head(*inputs).bfloat16()


@pytest.mark.parametrize("connection", ztw.list_connections())
@pytest.mark.parametrize("samples", [1, 4])
def test_heads_may_return_another_precision(connection, samples):
    network = small_network(connection)
    network.heads = nn.ModuleList(map(HalfHead, network.heads))
    result = network.infer(torch.randn(samples, 1, 10, 10), ztw.MaxSoftmax(0.9))
    assert result.logits.dtype == torch.float32
