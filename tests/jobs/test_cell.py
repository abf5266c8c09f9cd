"""Test how the jobs of a cell use their inputs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

import ztw
from ztw.device import ON_CPU, Compute
from ztw.exits.logits import read_predictions
from ztw.files import read_json, write_json
from ztw.jobs.cell import CellNetworks, compute_on, load_ensemble, share_backbone
from ztw.jobs.fit_ensembles import FitEnsemblesSettings, fit_ensembles
from ztw.jobs.job import Job
from ztw.jobs.predict import PredictSettings, predict
from ztw.jobs.training import recipe_of
from ztw.models.checkpoints import save_checkpoint
from ztw.progress import Note
from ztw.study.config import check_study
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.settings import DataSettings, EnsembleSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild, IcSet
from ztw.tensors import write_tensors


def test_an_ensemble_of_few_samples_sees_every_class(tmp_path):
    """Predictions of the validation split may be stored class by class."""
    labels = torch.arange(400) // 40
    logits = torch.randn(2, 400, 10, generator=torch.Generator().manual_seed(0))
    logits += 2 * torch.nn.functional.one_hot(labels, 10)
    layout, cell = Layout(tmp_path), Cell("digits", "resnet8", 0)
    write_tensors(layout.predictions(cell, "a", "validation"), {"logits": logits, "labels": labels})
    few = EnsembleSettings(kind="geometric", samples=100, fit_on="validation")
    fit_ensembles(Job(layout), cell, FitEnsemblesSettings({"a": {"few": few}}))
    file = layout.ensemble(cell, "a", "few")
    ensemble = load_ensemble(file, "a", "few")
    accuracy = (ensemble(logits).argmax(-1) == labels).float().mean(1)
    plain = (logits.argmax(-1) == labels).float().mean(1)
    assert (accuracy > plain - 0.05).all()
    assert read_json(metadata(file))["samples"] == 100
    with pytest.raises(ztw.ZtwError, match="ics is 'a', expected 'b'"):
        load_ensemble(file, "b", "few")


@pytest.fixture
def networks(tmp_path, digits) -> CellNetworks:
    """A cell of digits with the files of two untrained sets, one of which has its own backbone."""
    layout, cell = Layout(tmp_path), Cell("digits", "resnet8", 3)
    for split, record in digits.items():
        write_json(layout.record("digits", split), record)
    own: dict[str, Any] = {"connection": "independent", "epochs": 1.0, "placement": (0, 1)}
    sets = {"plain": IcSet(**own), "joint": IcSet(**own, training="joint")}
    networks = CellNetworks(layout, cell, sets=sets)
    save_checkpoint(layout.backbone(cell), networks.untrained_backbone(), networks.identity)
    for name in sets:
        write_ics(networks, name, networks.attach(networks.untrained_backbone(), name))
    return networks


def write_ics(networks: CellNetworks, name: str, network: ztw.EarlyExitNetwork) -> None:
    part = network if name == "joint" else network.heads
    metadata = {"ics": name, "connection": "independent", "placement": [0, 1]}
    save_checkpoint(networks.layout.ics(networks.cell, name), part, {**networks.identity, **metadata})


def test_a_set_on_the_frozen_backbone_has_the_cell_s_backbone(networks):
    frozen, joint = networks.network("plain"), networks.network("joint")
    weight = networks.backbone().state_dict()["stages.0.0.0.0.weight"]
    assert torch.equal(frozen.backbone.state_dict()["stages.0.0.0.0.weight"], weight)
    assert not torch.equal(joint.backbone.state_dict()["stages.0.0.0.0.weight"], weight)
    assert not frozen.training


def test_networks_of_another_cell_are_refused(networks):
    other = replace(networks, cell=Cell("digits", "resnet8", 4))
    shutil.copytree(networks.layout.cell(networks.cell), networks.layout.cell(other.cell))
    with pytest.raises(ztw.ZtwError, match="seed is 3, expected 4"):
        other.network("plain")


def predicted(networks: CellNetworks, weight: float | None = None, **hardware: Any) -> list[str]:
    """Run the job `predict` on test images; return the reported lines. weight: for the second head's last layer."""
    if weight is not None:
        network = networks.network("plain")
        torch.nn.init.constant_(network.heads[1].linear.weight, weight)  # type: ignore[union-attr, arg-type]
        write_ics(networks, "plain", network)
    said: list[str] = []
    settings = PredictSettings(
        images=DataSettings(),
        build=BackboneBuild(),
        sets={"plain": networks.sets["plain"]},
        batch_size=64,
        samples=None,
        splits=("test",),
        hardware=HardwareSettings(device="cpu", **hardware),
    )
    predict(Job(networks.layout, said.append), networks.cell, settings)
    return said


def test_predictions_that_are_not_finite_are_refused(networks):
    with pytest.raises(ztw.ZtwError, match=r"plain.safetensors: .*logits on test are not finite"):
        predicted(networks, torch.nan)
    assert not networks.layout.predictions(networks.cell, "plain", "test").exists()


def test_predictions_say_where_they_were_computed(networks):
    predicted(networks, precision="bf16")
    file = networks.layout.predictions(networks.cell, "plain", "test")
    assert read_predictions(file)[0].shape == (3, 359, 10)
    facts = read_json(metadata(file))
    assert facts.pop("versions")["torch"] == torch.__version__
    assert facts == {"ics": "plain", "split": "test", **Compute(torch.device("cpu"), "bf16").describe()}


def test_a_dead_head_is_reported(networks):
    (note,) = (line for line in predicted(networks, 0.0) if isinstance(line, Note))
    assert note.startswith("IC set plain: exit 2 ")


def test_networks_share_one_backbone(networks):
    both = share_backbone([networks.network("plain"), networks.network("plain")], torch.device("cpu"))
    assert both[0].backbone is both[1].backbone


def test_a_job_computes_on_its_own_gpu(monkeypatch):
    """The job sets the current device, because generator states and synchronize() use it."""
    current: list[torch.device] = []
    monkeypatch.setattr("ztw.jobs.cell.own_gpu", {"auto": "cuda:2", "cpu": "cpu"}.get)
    monkeypatch.setattr("ztw.jobs.cell.pick_device", torch.device)
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    compute = compute_on(HardwareSettings(device="auto", precision="fp32"))
    assert current == [compute.device] == [torch.device("cuda:2")]
    assert compute_on(HardwareSettings(device="cpu", precision="fp32")) == ON_CPU
    assert len(current) == 1


def test_a_recipe_has_the_study_s_settings():
    config = {
        "datasets": ["digits"],
        "archs": ["resnet8"],
        "seeds": [0],
        "backbone": {"epochs": 3, "milestones": [2], "gamma": 0.5},
        "ics": {"epochs": 1, "sets": {"a": {"connection": "cascade"}}},
        "methods": {"m": {"ics": "a", "rule": "entropy"}},
    }
    study = check_study(config)
    hardware = HardwareSettings(compile=False)
    recipe = recipe_of(study.backbone, hardware, ON_CPU)
    assert (recipe.epochs, recipe.milestones, recipe.gamma, recipe.optimizer) == (3, (2,), 0.5, "sgd")
    assert (recipe.compute, recipe.compile) == (ON_CPU, False)
    assert recipe_of(study.ics.sets["a"], hardware, ON_CPU).optimizer == "adam"
