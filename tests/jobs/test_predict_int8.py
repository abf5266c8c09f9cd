"""Test the job that computes logits in int8, on a small cell of digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ztw
from ztw.data.splits import cell_splits
from ztw.device import ON_CPU
from ztw.exits.logits import read_predictions
from ztw.files import read_json, write_json
from ztw.jobs.cell import CellNetworks, StaticNetwork
from ztw.jobs.exports import calibration_images
from ztw.jobs.job import Job
from ztw.jobs.predict_int8 import PredictInt8Settings, predict_int8
from ztw.models.checkpoints import save_checkpoint
from ztw.study.layout import ALONE, Cell, Layout, metadata
from ztw.study.settings import DataSettings, MethodSettings
from ztw.study.training_settings import BackboneBuild, IcSet

IMAGES = DataSettings(validation_fraction=0.9)  # few images to calibrate with, few batches of test images
METHODS = {
    "float": MethodSettings(ics="plain"),
    "int8": MethodSettings(ics="plain", int8=True),
    "small": MethodSettings(static="resnet8", int8=True),
}


@pytest.fixture
def networks(tmp_path, digits) -> CellNetworks:
    """A cell of digits with an untrained IC set and an untrained backbone."""
    layout, cell = Layout(tmp_path), Cell("digits", "resnet8", 3)
    for split, record in digits.items():
        write_json(layout.record("digits", split), record)
    sets = {"plain": IcSet(connection="independent", epochs=1.0, placement=(0,), head="pool")}
    statics = {"small": StaticNetwork("resnet8", "resnet8", BackboneBuild())}
    networks = CellNetworks(layout, cell, sets=sets, methods=METHODS, statics=statics)
    torch.manual_seed(0)
    backbone = networks.untrained_backbone()
    save_checkpoint(layout.backbone(cell), backbone, networks.identity)
    trained_as: dict[str, Any] = {"ics": "plain", "connection": "independent", "placement": [0]}
    heads = networks.attach(backbone, "plain").heads
    save_checkpoint(layout.ics(cell, "plain"), heads, {**networks.identity, **trained_as})
    return networks


def computed(networks: CellNetworks, network: str, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the job; return the logits and labels that a method reads."""
    sets = {} if network == ALONE else dict(networks.sets)
    settings = PredictInt8Settings(IMAGES, BackboneBuild(), sets, "resnet8", ("test",))
    predict_int8(Job(networks.layout), networks.cell, network, settings)
    (file,) = networks.predictions_files(method, "test")
    assert file == networks.layout.int8_predictions(networks.cell, network, "test")
    facts = read_json(metadata(file))
    assert facts.pop("versions")["torch"] == torch.__version__
    assert facts == {"network": network, "split": "test", **ON_CPU.describe(), "precision": "int8"}
    return read_predictions(file)


def in_int8(networks: CellNetworks, network: Any, rule: str | None, tmp_path) -> torch.Tensor:
    """Return the logits of a file of `export_onnx` on the test images."""
    splits = cell_splits(networks.record, IMAGES, networks.cell.seed)
    given = calibration_images(splits["train"], networks.cell.seed)
    path = ztw.export_onnx(network, rule, tmp_path / "n.onnx", quantise=given)
    runner = ztw.OnnxRunner(path, cache=False)
    return torch.cat([runner.logits(images) for images, _ in splits["test"].batches(128)], dim=1)


def test_an_ic_set_has_the_logits_of_its_file(networks, tmp_path):
    logits, labels = computed(networks, "plain", "int8")
    network = networks.network("plain")
    torch.testing.assert_close(logits, in_int8(networks, network, "entropy 0.5", tmp_path))
    test = cell_splits(networks.record, IMAGES, 3)["test"]
    exact, expected = ztw.predict(network, test, progress=False)
    assert torch.equal(labels, expected)
    off = (logits - exact).abs().amax((1, 2))
    assert ((off > 0) & (off < 0.2 * exact.abs().amax((1, 2)))).all(), "close to float, but not equal"
    assert networks.predictions_files("float", "test") == [
        networks.layout.predictions(networks.cell, "plain", "test")
    ]


def test_a_static_network_has_the_logits_of_its_file(networks, tmp_path):
    logits, _ = computed(networks, ALONE, "small")
    assert logits.shape == (1, 359, 10)
    torch.testing.assert_close(logits, in_int8(networks, networks.backbone(), None, tmp_path))


def test_calibration_images_are_the_same_in_every_job(networks):
    train = cell_splits(networks.record, IMAGES, 3)["train"]
    first, again, other = (calibration_images(train, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (len(train), 1, 8, 8), "a small data set has fewer than 500"
