"""Test the rule of a fixed exit, and networks cut after one exit."""

from __future__ import annotations

import pytest
import torch
from conftest import pixel_network, small_network

import ztw
from ztw.models.costs import fixed_exit_macs
from ztw.models.operations import module_macs, stage_costs

IMAGES = torch.randn(16, 1, 10, 10, generator=torch.Generator().manual_seed(7))
LABELS = torch.arange(16) % 5
COST = torch.tensor([1.0, 3.0, 2.0])


def test_curve_by_hand():
    # exit 1 is right on one sample of two, exit 2 on none, exit 3 on both
    logits = torch.tensor([[[2.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    curve = ztw.sweep(logits, torch.tensor([0, 1]), COST, "fixed_exit")
    assert curve.parameter.tolist() == [1, 3, 2]  # from the cheapest to the most expensive
    assert curve.accuracy.tolist() == [0.5, 1.0, 0.0]
    assert curve.cost.tolist() == [1.0, 2.0, 3.0]
    assert curve.exit_fraction.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert ztw.parameter_at_budget(curve, [0.5, 1.0, "max"], base_cost=2.0).tolist() == [1, 3, 3]
    with pytest.raises(ztw.ZtwError, match="cost: must be positive and strictly increasing"):
        ztw.sweep(logits, torch.tensor([0, 1]), COST, "max_softmax")
    with pytest.raises(ztw.ZtwError, match="fixed_exit 4: the network has exits 1 to 3"):
        ztw.sweep(logits, torch.tensor([0, 1]), COST, "fixed_exit 4")


@pytest.mark.parametrize("wrong", [0, -1, 1.5, float("nan"), "two", [1, 2], True])
def test_the_exit_is_a_number_from_1(wrong):
    with pytest.raises(ztw.ZtwError, match=r"fixed_exit .*: must be the number of an exit, from 1"):
        ztw.FixedExit(wrong)


def test_only_this_exit_is_computed():
    network = small_network()
    calls: list[str] = []
    parts = {f"stage {k}": stage for k, stage in enumerate(network.backbone.stages, 1)}
    parts |= {f"head {k}": head for k, head in enumerate(network.heads, 1)}
    parts["classifier"] = network.backbone.classifier
    for name, part in parts.items():
        part.register_forward_hook(lambda module, given, output, name=name: calls.append(name))
    result = network.infer(IMAGES, "fixed_exit 2")
    assert calls == ["stage 1", "stage 2", "head 2"]
    assert result.exit_index.tolist() == [1] * 16
    calls.clear()
    network.infer(IMAGES[:1], ztw.FixedExit(4))
    assert calls == ["stage 1", "stage 2", "stage 3", "classifier"]


@pytest.mark.parametrize("connection", ztw.list_connections())
def test_costs_are_those_of_the_cut_networks(connection):
    network = small_network(connection)
    stages = stage_costs(network.backbone).cumsum(0)
    found, cumulative = fixed_exit_macs(network), ztw.macs(network)
    assert found[0] == cumulative[0]
    if connection == "independent":
        head = module_macs(network.heads[2], torch.randn(1, *network.backbone.feature_shapes[2]))
        assert found[2] == stages[2] + head
        assert found[3] < found[2]
    else:  # the heads before it are needed
        assert found[1:3].equal(cumulative[1:3])
    assert found[3] == (cumulative[3] if connection == "boosted" else ztw.macs(network.backbone))


@pytest.mark.parametrize("connection", ztw.list_connections())
def test_cut_networks(connection):
    network, costs = small_network(connection), fixed_exit_macs(small_network(connection))
    network.heads[0].train()  # modes are kept
    network.heads[0].eval()
    network.train()
    network.backbone.eval()
    modes = [module.training for module in network.modules()]
    for exit in range(1, network.exits + 1):
        if network.needs_previous(exit - 1):
            with pytest.raises(
                ztw.ZtwError, match=f"cut_after: exit {exit} needs the logits of exit {exit - 1}"
            ):
                network.cut_after(exit)
            continue
        cut = network.cut_after(exit)
        assert [module.training for module in network.modules()] == modes
        assert set(cut.parameters()) <= set(network.parameters())
        assert ztw.macs(cut).tolist() == [float(costs[exit - 1])] == [ztw.macs(cut.backbone)]
        with torch.no_grad():
            network.eval()
            torch.testing.assert_close(cut.eval()(IMAGES)[0], network(IMAGES)[exit - 1])
            network.train()
            network.backbone.eval()
    with pytest.raises(ztw.ZtwError, match="fixed_exit 5: the network has exits 1 to 4"):
        network.cut_after(5)


def test_a_network_of_states_can_be_cut(tmp_path):
    network = ztw.model_cascade(
        [ztw.build_backbone("resnet8", 5, 1, 10), ztw.build_backbone("resnet14", 5, 1, 10)]
    )
    cut = network.cut_after(1)
    torch.testing.assert_close(cut(IMAGES)[0], network(IMAGES)[0])
    ztw.save(cut, tmp_path / "cut", progress=False)
    torch.testing.assert_close(ztw.load(tmp_path / "cut")[0](IMAGES), cut(IMAGES))
    # each exit of a cascade is a model of its own
    assert fixed_exit_macs(network)[1] == ztw.macs(network.backbone) == ztw.macs(network.cut_after(2))[0]


@pytest.mark.parametrize(
    ("connection", "exit"), [("independent", 2), ("cascade_detached", 3), ("boosted", 4)]
)
def test_exported_and_saved(connection, exit, tmp_path):
    network, rule = small_network(connection), ztw.FixedExit(exit)
    ztw.save(network, tmp_path / "net", f"fixed_exit {exit}")
    loaded, again = ztw.load(tmp_path / "net")
    assert again == rule
    runner = ztw.OnnxRunner(ztw.export_onnx(network, rule, tmp_path / "net.onnx"), cache=False)
    assert (runner.exits, runner.rule, runner.cost.tolist()) == (
        1,
        rule,
        [float(fixed_exit_macs(network)[exit - 1])],
    )
    for size in (0, 1, 16):
        expected = network.infer(IMAGES[:size], rule)
        for found in (loaded.infer(IMAGES[:size], rule), runner(IMAGES[:size]), runner(IMAGES[:size], rule)):
            assert found.exit_index.tolist() == expected.exit_index.tolist() == [exit - 1] * size
            torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    agreement = ztw.compare_exported(network, runner, (IMAGES, LABELS))
    assert (agreement.exits_changed, len(agreement.accuracy)) == (0.0, 1)
    with pytest.raises(ztw.ZtwError, match=r"exported for FixedExit\(exit=\d\), not for FixedExit\(exit=1\)"):
        runner(IMAGES, "fixed_exit 1")
    with pytest.raises(ztw.ZtwError, match="exported for FixedExit, not for MaxSoftmax"):
        runner(IMAGES, "max_softmax 0.5")
    with pytest.raises(ztw.ZtwError, match="was not exported from this network"):
        ztw.compare_exported(network, runner, (IMAGES, LABELS), "fixed_exit 1")


def test_a_file_of_another_rule_refuses_a_fixed_exit(tmp_path):
    path = ztw.export_onnx(pixel_network("independent"), "max_softmax 0.5", tmp_path / "net.onnx")
    runner = ztw.OnnxRunner(path, cache=False)
    with pytest.raises(ztw.ZtwError, match="exported for MaxSoftmax, not for FixedExit"):
        runner(torch.randn(2, 1, 1, 4), "fixed_exit 1")
    held_out = (torch.randn(4, 1, 1, 4), torch.arange(4))
    with pytest.raises(
        ztw.ZtwError, match="rule fixed_exit: give the network, because an exported one cannot be cut"
    ):
        ztw.choose_threshold(runner, held_out, budget=0.5, rule="fixed_exit")


def test_the_exit_is_chosen_for_a_budget():
    network = small_network()
    costs, base = fixed_exit_macs(network), ztw.macs(network.backbone)
    point = ztw.choose_threshold(
        network, (IMAGES, LABELS), budget=float(costs[1]) / base + 0.01, rule="fixed_exit", progress=False
    )
    assert point.rule == ztw.FixedExit(2)
    assert point.cost == costs[1]
    assert point.exit_fraction == (0, 1, 0, 0)
    timed = ztw.choose_threshold(network, (IMAGES, LABELS), budget_ms=1e4, rule="fixed_exit", progress=False)
    assert timed.exit_ms is not None
    assert len(timed.exit_ms) == 4
    with pytest.raises(ztw.ZtwError, match="the rule fixed_exit has no threshold; use 'shared'"):
        ztw.choose_threshold(network, (IMAGES, LABELS), risk=(0.1, 0.1), rule=ztw.FixedExit)


def test_an_ensemble_is_refused(tmp_path):
    network = small_network()
    with torch.no_grad():
        network.ensemble = ztw.fit_ensemble(network(IMAGES), LABELS, "arithmetic")
    calls = (
        lambda: network.infer(IMAGES, "fixed_exit 2"),
        lambda: network.cut_after(2),
        lambda: fixed_exit_macs(network),
        lambda: ztw.save(network, tmp_path / "net", "fixed_exit 2"),
        lambda: ztw.export_onnx(network, "fixed_exit 2", tmp_path / "net.onnx"),
        lambda: ztw.choose_threshold(
            network, (IMAGES, LABELS), budget=0.9, rule="fixed_exit", progress=False
        ),
    )
    for call in calls:
        with pytest.raises(
            ztw.ZtwError, match="fixed_exit: the network has an ensemble, which combines exits"
        ):
            call()
