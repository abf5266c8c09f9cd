"""What the jobs of a cell do with their inputs."""

from __future__ import annotations

import torch

from ztw.data import prepare
from ztw.data.decoded import ImageSet
from ztw.data.splits import data_parts
from ztw.files import read_json
from ztw.jobs.cell import load_ensemble
from ztw.jobs.fit_ensembles import run_fit_ensembles
from ztw.tensors import write_tensors

SETTINGS = {
    "data": {"validation_fraction": 0.2, "validation_from": "train", "flip": None, "crop_padding": None}
}
SETTINGS["data"] |= {"colour_jitter": None, "mean": None, "std": None}
CELL = {"dataset": "digits", "arch": "resnet8", "seed": 0}


def test_an_ensemble_of_few_samples_sees_every_class(tmp_path):
    """Predictions of the validation split may be stored class by class."""
    labels = torch.arange(400) // 40
    logits = torch.randn(2, 400, 10, generator=torch.Generator().manual_seed(0))
    logits += 2 * torch.nn.functional.one_hot(labels, 10)
    write_tensors(tmp_path / "v.safetensors", {"logits": logits, "labels": labels})
    own = {"kind": "geometric", "samples": 100, "include_final": True, "fit_on": "validation"}
    outputs = {("a", "few"): str(tmp_path / "few.safetensors")}
    predictions = {("a", "validation"): str(tmp_path / "v.safetensors")}
    run_fit_ensembles({"ensembles": {"sets": {"few": own}}}, predictions, outputs, lambda text: None)
    ensemble = load_ensemble(tmp_path / "few.safetensors", "a", "few")
    accuracy = (ensemble(logits).argmax(-1) == labels).float().mean(1)
    plain = (logits.argmax(-1) == labels).float().mean(1)
    assert (accuracy > plain - 0.05).all()
    assert read_json(tmp_path / "few.json")["samples"] == 100


def test_validation_images_come_from_where_the_study_says(tmp_path):
    prepared = prepare.prepare_dataset("digits", tmp_path)
    counts = prepared["counts"]
    for source, other in (("train", "test"), ("test", "train")):
        settings = {"data": {**SETTINGS["data"], "validation_from": source}}
        parts = data_parts(prepared, CELL, settings)
        assert len(parts[source]) + len(parts["validation"]) == counts[source]
        assert len(parts[other]) == counts[other]
        assert abs(len(parts["validation"]) - 0.2 * counts[source]) < 10
        again = data_parts(prepared, CELL, settings)
        assert parts["validation"].labels.tolist() == again["validation"].labels.tolist()


def test_a_study_changes_normalisation_and_augmentation(tmp_path):
    prepared = prepare.prepare_dataset("digits", tmp_path)
    settings = {"data": {**SETTINGS["data"], "mean": [0.5], "std": [0.25], "crop_padding": 1}}
    for part in data_parts(prepared, CELL, settings).values():
        assert isinstance(part, ImageSet)
        assert (part.mean, part.std, part.crop_padding) == ((0.5,), (0.25,), 1)
