"""The job that makes a backbone ready: weights from elsewhere are checked before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ztw
from ztw.data.prepare import prepare_dataset
from ztw.files import read_json, write_json
from ztw.jobs import train_backbone as job
from ztw.jobs.cell import CellFiles, CellNetworks
from ztw.jobs.train_backbone import train_backbone
from ztw.jobs.train_ics import train_ics
from ztw.jobs.train_network import train_network
from ztw.study.layout import Cell
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild, BackboneSettings, IcSet
from ztw.training.resume import Checkpoints


@pytest.fixture
def record(tmp_path) -> str:
    write_json(tmp_path / "d.json", prepare_dataset("digits", tmp_path / "root"))
    return str(tmp_path / "d.json")


def made_ready(
    record: str, settings: BackboneSettings, output: Path, data: DataSettings | None = None
) -> list[str]:
    """Run the job; what it reports."""
    lines: list[str] = []
    networks = CellNetworks(Cell("digits", "resnet8", 0), CellFiles(record), {}, settings)
    hardware = HardwareSettings(device="cpu", precision="fp32", compile=False)
    checkpoints = Checkpoints(output.parent / "checkpoints" / output.stem, {}, lines.append)
    train_backbone(networks, settings, data or DataSettings(), hardware, str(output), checkpoints)
    assert not (output.parent / "checkpoints").exists(), "what is done needs none"
    return lines


def test_every_network_is_written_with_the_names_of_its_classes(record, tmp_path):
    """Label 2 of a file says nothing where class "10" sorts before "2"."""
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("backbone", "separate", "joint")}
    made_ready(record, BackboneSettings(epochs=0.1, batch_size=64), Path(files["backbone"]))
    sets = {
        name: IcSet.model_validate(
            {
                "connection": "independent",
                "epochs": 0.1,
                "placement": (0,),
                "batch_size": 64,
                "training": name,
            }
        )
        for name in ("separate", "joint")
    }
    networks = CellNetworks(Cell("digits", "resnet8", 0), CellFiles(record, files["backbone"]), sets)
    hardware = HardwareSettings(device="cpu", precision="fp32", compile=False)
    kept = Checkpoints(Path(files["backbone"]).parent / "checkpoints/ics", {})
    train_ics(networks, DataSettings(), hardware, {"separate": files["separate"]}, kept)
    train_network(networks, "joint", DataSettings(), hardware, files["joint"], kept)
    for file in files.values():
        assert read_json(Path(file).with_suffix(".json"))["class_names"] == [
            str(digit) for digit in range(10)
        ]


@pytest.fixture
def foreign(record, tmp_path) -> tuple[BackboneSettings, float]:
    """A trained backbone under other names, and its accuracy on the test images."""
    own = BackboneSettings(epochs=1, batch_size=64, lr=0.05)
    made_ready(record, own, tmp_path / "own.safetensors")
    networks = CellNetworks(
        Cell("digits", "resnet8", 0), CellFiles(record, str(tmp_path / "own.safetensors")), {}
    )
    state = networks.backbone().state_dict()
    torch.save(
        {f"layer{i}.{name.split('.')[-1]}": value for i, (name, value) in enumerate(state.items())},
        tmp_path / "theirs.pth",
    )
    settings = BackboneSettings(source="file", path=str(tmp_path / "theirs.pth"))
    test = job.open_split(networks.record, DataSettings(), "test")
    accuracy = job._accuracy(networks.backbone().eval(), test, "fp32", 64)
    return settings, accuracy


def test_weights_with_the_expected_accuracy_are_taken(record, foreign, tmp_path):
    settings, accuracy = foreign
    expecting = settings.model_copy(update={"expected_accuracy": accuracy + 0.009})
    made_ready(record, expecting, tmp_path / "b.safetensors")
    assert read_json(tmp_path / "b.json")["origin"]["test_accuracy"] == pytest.approx(accuracy)
    # the whole test set is looked at, whatever part of it is held out
    halved = DataSettings(validation_from="test", validation_fraction=0.5)
    made_ready(record, expecting, tmp_path / "b.safetensors", halved)
    assert read_json(tmp_path / "b.json")["origin"]["test_accuracy"] == pytest.approx(accuracy)


def test_weights_with_another_accuracy_are_refused_before_anything_is_trained(
    record, foreign, tmp_path, monkeypatch
):
    settings, accuracy = foreign
    monkeypatch.setattr(job, "train", lambda *_: pytest.fail("trained"))
    wrong = settings.model_copy(update={"expected_accuracy": accuracy + 0.02, "epochs": 1.0})
    with pytest.raises(ztw.ZtwError) as caught:
        made_ready(record, wrong, tmp_path / "b.safetensors")
    message = str(caught.value)
    assert f"the weights have {accuracy:.4f} on the 359 test images" in message
    assert f"expected {accuracy + 0.02:g} within 0.01" in message
    assert "\n" not in message
    assert not (tmp_path / "b.safetensors").exists()


def test_where_only_order_and_shapes_agree_the_line_says_so(record, foreign, tmp_path):
    settings, _ = foreign
    (line,) = [line for line in made_ready(record, settings, tmp_path / "b.safetensors") if "matched" in line]
    assert (
        "matched in order: only order and shapes agree, which proves nothing about what is computed" in line
    )
    assert "backbone.expected_accuracy checks it" in line


@pytest.mark.parametrize(("pretrained", "name"), [("default", "DEFAULT"), ("v1", "IMAGENET1K_V1")])
def test_torchvisions_weights_are_the_ones_asked_for(record, tmp_path, monkeypatch, pretrained, name):
    asked = []

    def building(networks, weights):
        asked.append(weights)
        raise ztw.ZtwError("enough")

    monkeypatch.setattr(CellNetworks, "untrained_backbone", building)
    settings = BackboneSettings(source="torchvision", pretrained=pretrained, epochs=1.0)
    with pytest.raises(ztw.ZtwError, match="enough"):
        made_ready(record, settings, tmp_path / "b.safetensors")
    assert asked == [name]


def test_that_torchvisions_last_layer_is_replaced_is_said(record, tmp_path, monkeypatch):
    monkeypatch.setattr(
        CellNetworks, "untrained_backbone", lambda *_: ztw.build_backbone("resnet8", 10, 1, 8)
    )
    settings = BackboneSettings(source="torchvision", epochs=0.1, batch_size=64)
    lines = made_ready(record, settings, tmp_path / "b.safetensors")
    assert (
        "torchvision's weights: their last layer answers 1000 classes, not 10: replaced by a new one" in lines
    )


def test_a_network_cut_at_the_other_place_is_refused(record, tmp_path):
    """Its weights fit, and would answer something else."""
    settings = BackboneSettings(epochs=0.1, batch_size=64, ic_features="after_relu")
    made_ready(record, settings, tmp_path / "b.safetensors")
    assert read_json(tmp_path / "b.json")["ic_features"] == "after_relu"
    files = CellFiles(record, str(tmp_path / "b.safetensors"))
    CellNetworks(Cell("digits", "resnet8", 0), files, {}, settings).backbone()
    sets = {"a": IcSet(connection="independent", epochs=1.0)}
    other = CellNetworks(Cell("digits", "resnet8", 0), files, sets, BackboneBuild())
    with pytest.raises(ztw.ZtwError, match="ic_features is 'after_relu', expected 'before_relu'"):
        other.backbone()
