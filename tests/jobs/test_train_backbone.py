"""Test the job that loads and trains a backbone: foreign weights are checked before any training."""

from __future__ import annotations

import urllib.error

import pytest
import timm
import torch
import torchvision

import ztw
from ztw.data.prepare import prepare_dataset
from ztw.data.record import of_split
from ztw.data.splits import open_split
from ztw.files import read_json, write_json
from ztw.jobs.cell import CellNetworks, StaticNetwork
from ztw.jobs.job import Job
from ztw.jobs.train_backbone import Taught, TrainBackboneSettings, train_backbone
from ztw.jobs.train_ics import TrainIcsSettings, train_ics
from ztw.jobs.train_network import TrainNetworkSettings, train_network
from ztw.progress import Note
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild, BackboneSettings, IcSet
from ztw.tensors import read_tensors

CELL = Cell("digits", "resnet8", 0)
CPU = HardwareSettings(device="cpu", precision="fp32", compile=False)


@pytest.fixture
def layout(tmp_path, digits) -> Layout:
    """A study whose data set is prepared."""
    found = Layout(tmp_path / "study")
    for split, record in digits.items():
        write_json(found.record("digits", split), record)
    return found


def run_job(
    layout: Layout, settings: BackboneSettings, data: DataSettings | None = None, cell: Cell = CELL
) -> list[str]:
    """Run the job; return the reported lines."""
    lines: list[str] = []
    given = TrainBackboneSettings(data or DataSettings(), None, settings, CPU)
    train_backbone(Job(layout, lines.append), cell, given)
    assert not layout.checkpoints(cell, "backbone").exists(), "what is done needs none"
    return lines


def test_every_network_is_written_with_the_names_of_its_classes(layout):
    """Labels alone are ambiguous: class "10" may sort before "2"."""
    run_job(layout, BackboneSettings(epochs=0.1, batch_size=64))
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


def test_a_network_learns_from_its_teacher(layout):
    """With weight 1 the labels do not matter: a student of a network that knows them comes close to it."""
    own = BackboneSettings(epochs=2, batch_size=64, lr=0.05)
    run_job(layout, own)
    student = Cell("digits", "student", 0)
    teacher = StaticNetwork("resnet8", "resnet8", BackboneBuild())
    for weight in (1e-9, 1.0):
        taught = Taught(teacher, weight, 2.0)
        given = TrainBackboneSettings(DataSettings(), None, own, CPU, arch="resnet8", distillation=taught)
        train_backbone(Job(layout), student, given)
        found = read_json(metadata(layout.backbone(student)))
        assert (found["arch"], found["teacher"]) == ("resnet8", "resnet8")
        plain = read_json(metadata(layout.backbone(CELL)))["history"]
        same = [row["loss"] for row in found["history"]] == pytest.approx(
            [row["loss"] for row in plain], rel=1e-4
        )
        assert same == (weight < 1), "without a teacher's share the training is the usual one"
        assert found["accuracy"]["validation"] > 0.5


@pytest.fixture
def foreign(layout, tmp_path) -> tuple[BackboneSettings, float]:
    """A file with a trained backbone's weights under other names, and the backbone's test accuracy."""
    own = BackboneSettings(epochs=1, batch_size=64, lr=0.05)
    run_job(layout, own)
    networks = CellNetworks(layout, CELL)
    state = networks.backbone().state_dict()
    torch.save(
        {f"layer{i}.{name.split('.')[-1]}": value for i, (name, value) in enumerate(state.items())},
        tmp_path / "theirs.pth",
    )
    settings = BackboneSettings(source="file", path=str(tmp_path / "theirs.pth"))
    images, labels = next(open_split(networks.record, DataSettings(), "test").batches(1000))
    with torch.no_grad():
        right = networks.backbone().eval()(images).argmax(-1) == labels
    return settings, right.double().mean().item()


def test_weights_with_the_expected_accuracy_are_taken(layout, foreign):
    settings, accuracy = foreign
    expecting = settings.model_copy(update={"expected_accuracy": accuracy + 0.009})
    run_job(layout, expecting)
    assert read_json(metadata(layout.backbone(CELL)))["origin"]["test_accuracy"] == pytest.approx(accuracy)
    # accuracy is measured on all test images, also if a part of them is held out
    halved = DataSettings(validation_from="test", validation_fraction=0.5)
    run_job(layout, expecting, halved)
    assert read_json(metadata(layout.backbone(CELL)))["origin"]["test_accuracy"] == pytest.approx(accuracy)


def test_weights_with_another_accuracy_are_refused_before_anything_is_trained(layout, foreign):
    settings, accuracy = foreign
    layout.backbone(CELL).unlink()
    wrong = settings.model_copy(update={"expected_accuracy": accuracy + 0.02, "epochs": 1.0})
    with pytest.raises(ztw.ZtwError) as caught:
        run_job(layout, wrong)
    message = str(caught.value)
    assert f"the accuracy on 359 test images is {accuracy:.4f}" in message
    assert f"expected {accuracy + 0.02:g} within 0.01" in message
    assert "\n" not in message
    assert not layout.backbone(CELL).exists()


def test_a_match_by_order_and_shapes_is_reported(layout, foreign):
    settings, _ = foreign
    (line,) = [line for line in run_job(layout, settings) if "matched" in line]
    assert "matched in order: the names differ" in line
    assert "backbone.expected_accuracy" in line


@pytest.fixture
def coloured(layout, tmp_path, monkeypatch) -> Layout:
    """A study of 40 colour images, a folder for torchvision's weights, and no internet."""

    @ztw.register("dataset", "mine", num_classes=10, size=32, channels=3)
    def mine():
        images = torch.randint(255, (40, 3, 32, 32), dtype=torch.uint8)
        return {split: (images, torch.arange(40) % 10) for split in ("train", "test")}

    record = prepare_dataset("mine", tmp_path / "root")
    for split in ("train", "test"):
        write_json(layout.record("mine", split), of_split(record, split))

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    return layout


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize(
    ("pretrained", "file"), [("default", "resnet50-11ad3fa6.pth"), ("v1", "resnet50-0676ba61.pth")]
)
def test_torchvisions_weights_are_the_ones_asked_for(coloured, pretrained, file):
    settings = BackboneSettings(source="torchvision", pretrained=pretrained, epochs=1.0)
    with pytest.raises(ztw.ZtwError, match=file):
        run_job(coloured, settings, cell=Cell("mine", "torchvision/resnet50", 0))


def test_a_replaced_last_layer_is_reported(coloured, tmp_path):
    model = torchvision.models.mobilenet_v3_small()
    torch.save(model.state_dict(), tmp_path / "torch/hub/checkpoints/mobilenet_v3_small-047dcff4.pth")
    cell = Cell("mine", "torchvision/mobilenet_v3_small", 0)
    lines = run_job(coloured, BackboneSettings(source="torchvision", epochs=0.1, lr=1e-9), cell=cell)
    (note,) = (line for line in lines if "1000 classes" in line)
    assert isinstance(note, Note), "it stays on the screen"
    trained = read_tensors(coloured.backbone(cell))
    torch.testing.assert_close(
        trained["stages.0.features.0.0.weight"], model.state_dict()["features.0.0.weight"]
    )


def test_a_network_cut_at_the_other_place_is_refused(layout):
    """Its weights fit, but the network would predict something else."""
    settings = BackboneSettings(epochs=0.1, batch_size=64, ic_features="after_relu")
    run_job(layout, settings)
    assert read_json(metadata(layout.backbone(CELL)))["ic_features"] == "after_relu"
    CellNetworks(layout, CELL, settings).backbone()
    with pytest.raises(ztw.ZtwError, match="ic_features is 'after_relu', expected 'before_relu'"):
        CellNetworks(layout, CELL).backbone()


def test_weights_of_a_file_with_a_new_last_layer(coloured, tmp_path):
    model = timm.create_model("test_efficientnet")
    torch.save(model.state_dict(), tmp_path / "imagenet.pth")
    cell = Cell("mine", "timm/test_efficientnet", 0)
    untrained = BackboneSettings(source="file", path=str(tmp_path / "imagenet.pth"), batch_size=8)
    with pytest.raises(ztw.ZtwError, match=r"has 1000 classes, not 10; set .* above 0 to train"):
        run_job(coloured, untrained, cell=cell)
    data = DataSettings(training_images=20, validation_fraction=0.5)
    lines = run_job(coloured, untrained.model_copy(update={"epochs": 1.0, "lr": 1e-9}), data, cell)
    assert any("replaced by a new last layer" in line for line in lines)
    trained = read_tensors(coloured.backbone(cell))
    torch.testing.assert_close(trained["stages.0.conv_stem.weight"], model.state_dict()["conv_stem.weight"])
    assert trained["classifier.classifier.weight"].shape[0] == 10
    assert read_json(metadata(coloured.backbone(cell)))["origin"]["matched"] == "by name"
