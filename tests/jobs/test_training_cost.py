"""Test what the training of a method cost, against numbers by hand."""

from __future__ import annotations

import pytest

import ztw
from ztw.files import write_json
from ztw.jobs.cell import CellNetworks, StaticNetwork
from ztw.jobs.training_cost import training_cost, unequal
from ztw.models.network import static_network
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.settings import DataSettings, MethodSettings
from ztw.study.training_settings import BackboneBuild, IcSet

CELL = Cell("d", "resnet8", 0)
IMAGES = DataSettings(validation_fraction=0.1)
METHODS = {
    "sdn": MethodSettings(ics="frozen"),
    "joint": MethodSettings(ics="joint"),
    "mixed": MethodSettings(ics="mixed"),
    "small": MethodSettings(static="resnet8", epochs=3),
    "large": MethodSettings(static="resnet14", epochs=5),
    "both": MethodSettings(cascade_of=("small", "large")),
}
SETS = {
    "frozen": IcSet(connection="independent", epochs=2),
    "joint": IcSet(connection="independent", epochs=4, training="joint", start="scratch"),
    "mixed": IcSet(connection="independent", epochs=4, training="joint"),
}


class Networks(CellNetworks):
    """A cell of a data set of 100 training images."""

    record = {"counts": {"train": 100}}  # noqa: RUF012


@pytest.fixture
def networks(tmp_path) -> Networks:
    layout = Layout(tmp_path)
    statics = {
        name: StaticNetwork(name, str(METHODS[name].static), BackboneBuild()) for name in ("small", "large")
    }
    write_json(metadata(layout.backbone(CELL)), {"settings": {"epochs": 1}})
    for name, ics in SETS.items():
        write_json(metadata(layout.ics(CELL, name)), {"settings": ics.model_dump()})
    for name in statics:
        home = layout.backbone(CELL.with_arch(name))
        write_json(metadata(home), {"settings": {"epochs": METHODS[name].epochs}})
    return Networks(layout, CELL, sets=SETS, methods=METHODS, statics=statics)


def test_the_cost_of_training_by_hand(networks):
    small, large = (ztw.build_backbone(arch) for arch in ("resnet8", "resnet14"))
    network = ztw.build_network(small, head="pool", placement=[0], progress=False)
    base, other = ztw.macs(small), ztw.macs(large)
    heads = float(ztw.macs(network)[-1]) - base
    expected = {
        "sdn": (3, 3 * base + 2 * (base + 3 * heads)),
        "joint": (4, 4 * 3 * (base + heads)),
        "mixed": (5, 3 * base + 4 * 3 * (base + heads)),
        "small": (3, 3 * 3 * base),
        "large": (5, 3 * 5 * other),
        "both": (5, 3 * 3 * base + 3 * 5 * other),
    }
    built = {"small": static_network(small), "large": static_network(large)}
    built["both"] = ztw.model_cascade([small, large])
    for name, (passes, spent) in expected.items():
        found = training_cost(networks, name, built.get(name, network), IMAGES)
        assert [metric.value for metric in found] == [passes, pytest.approx(90 * spent)], name


def test_unequal_passes_are_told():
    assert unequal({"a": 20, "b": 21}) is None
    assert unequal({"a": 20, "b": 30}) == (
        "training is unequal: b has 30 passes over the training images, a has 20; see tables/training.csv"
    )
