"""What the jobs of a cell do with their inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ztw
from ztw.device import computed_on
from ztw.files import read_json, write_json
from ztw.jobs.cell import CellFiles, CellNetworks, compute_on, load_ensemble, share_backbone
from ztw.jobs.fit_ensembles import fit_ensembles
from ztw.jobs.predict import predict
from ztw.jobs.training import Computing
from ztw.models.checkpoints import save_checkpoint
from ztw.progress import Note
from ztw.study.config import check_study
from ztw.study.layout import Cell
from ztw.study.settings import DataSettings, EnsembleSettings, HardwareSettings
from ztw.study.training_settings import IcSet
from ztw.tensors import write_tensors


def test_an_ensemble_of_few_samples_sees_every_class(tmp_path):
    """Predictions of the validation split may be stored class by class."""
    labels = torch.arange(400) // 40
    logits = torch.randn(2, 400, 10, generator=torch.Generator().manual_seed(0))
    logits += 2 * torch.nn.functional.one_hot(labels, 10)
    write_tensors(tmp_path / "v.safetensors", {"logits": logits, "labels": labels})
    few = EnsembleSettings(kind="geometric", samples=100, fit_on="validation")
    outputs = {("a", "few"): str(tmp_path / "few.safetensors")}
    predictions = {("a", "validation"): str(tmp_path / "v.safetensors")}
    fit_ensembles({"few": few}, predictions, outputs, lambda text: None)
    ensemble = load_ensemble(tmp_path / "few.safetensors", "a", "few")
    accuracy = (ensemble(logits).argmax(-1) == labels).float().mean(1)
    plain = (logits.argmax(-1) == labels).float().mean(1)
    assert (accuracy > plain - 0.05).all()
    assert read_json(tmp_path / "few.json")["samples"] == 100
    with pytest.raises(ztw.ZtwError, match="ics is 'a', expected 'b'"):
        load_ensemble(tmp_path / "few.safetensors", "b", "few")


@pytest.fixture
def networks(tmp_path) -> CellNetworks:
    """A cell whose two sets are written down untrained, one with a backbone of its own."""
    write_json(tmp_path / "d.json", {"num_classes": 5, "channels": 1, "size": 10})
    own: dict[str, Any] = {"connection": "independent", "epochs": 1.0, "placement": (0, 1)}
    sets = {"plain": IcSet(**own), "joint": IcSet(**own, training="joint")}
    ics = {name: str(tmp_path / f"{name}.safetensors") for name in sets}
    files = CellFiles(str(tmp_path / "d.json"), str(tmp_path / "b.safetensors"), ics)
    cell = CellNetworks(Cell("digits", "resnet8", 3), files, sets)
    save_checkpoint(tmp_path / "b.safetensors", cell.untrained_backbone(), cell.identity)
    for name, file in ics.items():
        network = cell.attach(cell.untrained_backbone(), name)
        part = network if name == "joint" else network.heads
        facts = {"ics": name, "connection": "independent", "placement": [0, 1]}
        save_checkpoint(file, part, {**cell.identity, **facts})
    return cell


def test_a_set_on_the_frozen_backbone_has_the_cell_s(networks):
    frozen, joint = networks.network("plain"), networks.network("joint")
    weight = networks.backbone().state_dict()["stages.0.0.0.0.weight"]
    assert torch.equal(frozen.backbone.state_dict()["stages.0.0.0.0.weight"], weight)
    assert not torch.equal(joint.backbone.state_dict()["stages.0.0.0.0.weight"], weight)
    assert not frozen.training


def test_networks_of_another_cell_are_refused(networks):
    other = CellNetworks(Cell("digits", "resnet8", 4), networks.files, networks.sets)
    with pytest.raises(ztw.ZtwError, match="seed is 3, expected 4"):
        other.network("plain")


def test_predictions_that_are_not_finite_are_refused(networks, tmp_path, monkeypatch):
    broken = [torch.full((3, 4, 5), torch.nan)], torch.zeros(4).long()
    monkeypatch.setattr("ztw.evaluation.predictions.predict_networks", lambda *_: broken)
    monkeypatch.setattr("ztw.jobs.predict.cell_splits", lambda *_: {"train": None, "test": torch.zeros(1)})
    outputs = {("plain", "test"): str(tmp_path / "p.safetensors")}
    alone = CellNetworks(networks.cell, networks.files, {"plain": networks.sets["plain"]})
    with pytest.raises(ztw.ZtwError, match=r"plain.safetensors: its logits on test are not finite"):
        predict(alone, DataSettings(), HardwareSettings(device="cpu"), (4, None), outputs, lambda text: None)
    assert not (tmp_path / "p.safetensors").exists()


def test_predictions_say_where_they_were_computed(networks, tmp_path, monkeypatch):
    found = [torch.zeros(3, 4, 5)], torch.zeros(4).long()
    monkeypatch.setattr("ztw.evaluation.predictions.predict_networks", lambda *_: found)
    monkeypatch.setattr("ztw.jobs.predict.cell_splits", lambda *_: {"train": None, "test": torch.zeros(1)})
    outputs = {("plain", "test"): str(tmp_path / "p.safetensors")}
    alone = CellNetworks(networks.cell, networks.files, {"plain": networks.sets["plain"]})
    hardware = HardwareSettings(device="cpu", precision="bf16")
    predict(alone, DataSettings(), hardware, (4, None), outputs, lambda text: None)
    facts = read_json(tmp_path / "p.json")
    assert facts.pop("versions")["torch"] == torch.__version__
    assert facts == {"ics": "plain", "split": "test", **computed_on(torch.device("cpu"), "bf16")}


def test_a_head_that_died_is_said(networks, tmp_path, monkeypatch):
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    logits[1] = 1.0
    monkeypatch.setattr(
        "ztw.evaluation.predictions.predict_networks", lambda *_: ([logits], torch.zeros(4).long())
    )
    monkeypatch.setattr("ztw.jobs.predict.cell_splits", lambda *_: {"train": None, "test": torch.zeros(1)})
    outputs = {("plain", "test"): str(tmp_path / "p.safetensors")}
    alone = CellNetworks(networks.cell, networks.files, {"plain": networks.sets["plain"]})
    said: list[str] = []
    predict(alone, DataSettings(), HardwareSettings(device="cpu"), (4, None), outputs, said.append)
    (note,) = said
    assert isinstance(note, Note), "it stays on the screen"
    assert note.startswith("IC set plain: to exit 2 all images are alike")


def test_networks_share_one_backbone(networks):
    both = share_backbone([networks.network("plain"), networks.network("plain")], torch.device("cpu"))
    assert both[0].backbone is both[1].backbone


def test_a_job_computes_on_the_gpu_that_is_its_own(monkeypatch):
    """Generator states and synchronize() mean the current device, which is the first unless it is set."""
    current: list[torch.device] = []
    monkeypatch.setattr("ztw.jobs.cell.own_gpu", {"auto": "cuda:2", "cpu": "cpu"}.get)
    monkeypatch.setattr("ztw.jobs.cell.pick_device", torch.device)
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    device, _ = compute_on(HardwareSettings(device="auto", precision="fp32"))
    assert current == [device] == [torch.device("cuda:2")]
    assert compute_on(HardwareSettings(device="cpu", precision="fp32"))[0] == torch.device("cpu")
    assert len(current) == 1


def test_a_recipe_is_the_study_s():
    config = {
        "datasets": ["digits"],
        "archs": ["resnet8"],
        "seeds": [0],
        "backbone": {"epochs": 3, "milestones": [2], "gamma": 0.5},
        "ics": {"epochs": 1, "sets": {"a": {"connection": "cascade"}}},
        "methods": {"m": {"ics": "a", "rule": "entropy"}},
    }
    study = check_study(config)
    computing = Computing.of(HardwareSettings(device="cpu", precision="fp32", compile=False))
    recipe = computing.recipe(study.backbone)
    assert (recipe.epochs, recipe.milestones, recipe.gamma, recipe.optimizer) == (3, (2,), 0.5, "sgd")
    assert (recipe.precision, recipe.compile) == ("fp32", False)
    assert computing.recipe(study.ics.sets["a"]).optimizer == "adam"
