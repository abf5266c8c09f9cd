"""The job that makes a backbone ready: weights from elsewhere are checked before anything is trained."""

from __future__ import annotations

import pytest
import torch

import ztw
from ztw.data.prepare import prepare_dataset
from ztw.data.record import of_split
from ztw.device import ON_CPU
from ztw.files import read_json, write_json
from ztw.jobs import train_backbone as job
from ztw.jobs.cell import CellNetworks
from ztw.jobs.job import Job
from ztw.jobs.train_backbone import TrainBackboneSettings, train_backbone
from ztw.jobs.train_ics import TrainIcsSettings, train_ics
from ztw.jobs.train_network import TrainNetworkSettings, train_network
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild, BackboneSettings, IcSet

CELL = Cell("digits", "resnet8", 0)
CPU = HardwareSettings(device="cpu", precision="fp32", compile=False)


@pytest.fixture
def layout(tmp_path) -> Layout:
    """A study whose data set is ready."""
    found = Layout(tmp_path / "study")
    record = prepare_dataset("digits", tmp_path / "root")
    for split in ("train", "test"):
        write_json(found.record("digits", split), of_split(record, split))
    return found


def made_ready(layout: Layout, settings: BackboneSettings, data: DataSettings | None = None) -> list[str]:
    """Run the job; what it reports."""
    lines: list[str] = []
    given = TrainBackboneSettings(data or DataSettings(), None, settings, CPU)
    train_backbone(Job(layout, lines.append), CELL, given)
    assert not layout.checkpoints(CELL, "backbone").exists(), "what is done needs none"
    return lines


def test_every_network_is_written_with_the_names_of_its_classes(layout):
    """Label 2 of a file says nothing where class "10" sorts before "2"."""
    made_ready(layout, BackboneSettings(epochs=0.1, batch_size=64))
    separate, joint = (
        IcSet.model_validate(
            {
                "connection": "independent",
                "epochs": 0.1,
                "placement": (0,),
                "batch_size": 64,
                "training": name,
            }
        )
        for name in ("separate", "joint")
    )
    build, job = BackboneBuild(), Job(layout)
    train_ics(job, CELL, TrainIcsSettings(DataSettings(), build, {"separate": separate}, CPU))
    train_network(job, CELL, "joint", TrainNetworkSettings(DataSettings(), build, joint, CPU))
    for file in (layout.backbone(CELL), layout.ics(CELL, "separate"), layout.ics(CELL, "joint")):
        assert read_json(metadata(file))["class_names"] == [str(digit) for digit in range(10)]


@pytest.fixture
def foreign(layout, tmp_path) -> tuple[BackboneSettings, float]:
    """A trained backbone under other names, and its accuracy on the test images."""
    own = BackboneSettings(epochs=1, batch_size=64, lr=0.05)
    made_ready(layout, own)
    networks = CellNetworks(layout, CELL)
    state = networks.backbone().state_dict()
    torch.save(
        {f"layer{i}.{name.split('.')[-1]}": value for i, (name, value) in enumerate(state.items())},
        tmp_path / "theirs.pth",
    )
    settings = BackboneSettings(source="file", path=str(tmp_path / "theirs.pth"))
    test = job.open_split(networks.record, DataSettings(), "test")
    accuracy = job._accuracy(networks.backbone().eval(), test, ON_CPU, 64)
    return settings, accuracy


def test_weights_with_the_expected_accuracy_are_taken(layout, foreign):
    settings, accuracy = foreign
    expecting = settings.model_copy(update={"expected_accuracy": accuracy + 0.009})
    made_ready(layout, expecting)
    assert read_json(metadata(layout.backbone(CELL)))["origin"]["test_accuracy"] == pytest.approx(accuracy)
    # the whole test set is looked at, whatever part of it is held out
    halved = DataSettings(validation_from="test", validation_fraction=0.5)
    made_ready(layout, expecting, halved)
    assert read_json(metadata(layout.backbone(CELL)))["origin"]["test_accuracy"] == pytest.approx(accuracy)


def test_weights_with_another_accuracy_are_refused_before_anything_is_trained(layout, foreign, monkeypatch):
    settings, accuracy = foreign
    layout.backbone(CELL).unlink()
    monkeypatch.setattr(job, "train", lambda *_: pytest.fail("trained"))
    wrong = settings.model_copy(update={"expected_accuracy": accuracy + 0.02, "epochs": 1.0})
    with pytest.raises(ztw.ZtwError) as caught:
        made_ready(layout, wrong)
    message = str(caught.value)
    assert f"the weights have {accuracy:.4f} on the 359 test images" in message
    assert f"expected {accuracy + 0.02:g} within 0.01" in message
    assert "\n" not in message
    assert not layout.backbone(CELL).exists()


def test_where_only_order_and_shapes_agree_the_line_says_so(layout, foreign):
    settings, _ = foreign
    (line,) = [line for line in made_ready(layout, settings) if "matched" in line]
    assert "matched in order: the names differ" in line
    assert "backbone.expected_accuracy" in line


@pytest.mark.parametrize(("pretrained", "name"), [("default", "DEFAULT"), ("v1", "IMAGENET1K_V1")])
def test_torchvisions_weights_are_the_ones_asked_for(layout, monkeypatch, pretrained, name):
    asked = []

    def building(networks, weights):
        asked.append(weights)
        raise ztw.ZtwError("enough")

    monkeypatch.setattr(CellNetworks, "untrained_backbone", building)
    settings = BackboneSettings(source="torchvision", pretrained=pretrained, epochs=1.0)
    with pytest.raises(ztw.ZtwError, match="enough"):
        made_ready(layout, settings)
    assert asked == [name]


def test_that_torchvisions_last_layer_is_replaced_is_said(layout, monkeypatch):
    monkeypatch.setattr(
        CellNetworks, "untrained_backbone", lambda *_: ztw.build_backbone("resnet8", 10, 1, 8)
    )
    settings = BackboneSettings(source="torchvision", epochs=0.1, batch_size=64)
    lines = made_ready(layout, settings)
    assert (
        "torchvision's weights: the last layer predicts 1000 classes, not 10; a new layer replaces it"
        in lines
    )


def test_a_network_cut_at_the_other_place_is_refused(layout):
    """Its weights fit, and would answer something else."""
    settings = BackboneSettings(epochs=0.1, batch_size=64, ic_features="after_relu")
    made_ready(layout, settings)
    assert read_json(metadata(layout.backbone(CELL)))["ic_features"] == "after_relu"
    CellNetworks(layout, CELL, settings).backbone()
    with pytest.raises(ztw.ZtwError, match="ic_features is 'after_relu', expected 'before_relu'"):
        CellNetworks(layout, CELL).backbone()
