"""Splits: held out, opened with a study's choices, the same in every job."""

from __future__ import annotations

import pytest
import torch

import ztw
from ztw.data.decoded import ImageSet
from ztw.data.prepare import prepare_dataset
from ztw.data.splits import cell_splits, held_out_split, load_split
from ztw.study.settings import DataSettings


def test_split_is_stratified_seeded_and_complete():
    labels = torch.arange(1000) % 10
    train, held_out = held_out_split(labels, 0.1, seed=3)
    assert torch.bincount(labels[held_out]).tolist() == [10] * 10
    assert torch.cat([train, held_out]).sort().values.tolist() == list(range(1000))
    assert held_out.tolist() == held_out_split(labels, 0.1, seed=3)[1].tolist()
    assert held_out.tolist() != held_out_split(labels, 0.1, seed=4)[1].tolist()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1e-6])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(ztw.ZtwError, match="validation fraction"):
        held_out_split(torch.arange(100) % 2, fraction, seed=0)


@pytest.mark.parametrize(("source", "other"), [("train", "test"), ("test", "train")])
def test_validation_images_come_from_where_the_study_says(tmp_path, source, other):
    record = prepare_dataset("digits", tmp_path)
    settings = DataSettings(validation_fraction=0.2, validation_from=source)
    splits = cell_splits(record, settings, seed=0)
    rest, held_out = held_out_split(load_split(record, source).labels, 0.2, seed=0)
    expected = {source: rest, "validation": held_out}
    for name, indices in expected.items():
        assert torch.equal(splits[name].labels, load_split(record, source).labels[indices])
    assert len(splits[other]) == record["counts"][other]
    again, elsewhere = (cell_splits(record, settings, seed)["validation"].labels for seed in (0, 1))
    assert torch.equal(splits["validation"].labels, again)
    assert not torch.equal(again, elsewhere)


def test_all_images_are_trained_on_where_nothing_is_held_out(tmp_path):
    record = prepare_dataset("digits", tmp_path)
    splits = cell_splits(record, DataSettings(validation_fraction=0), seed=0)
    assert {name: len(part) for name, part in splits.items()} == record["counts"]


def test_a_study_changes_normalisation_and_augmentation(tmp_path):
    record = prepare_dataset("digits", tmp_path)
    settings = DataSettings(mean=(0.5,), std=(0.25,), crop_padding=1, flip=True)
    for part in cell_splits(record, settings, seed=0).values():
        assert isinstance(part, ImageSet)
        assert (part.mean, part.std, part.crop_padding, part.flip) == ((0.5,), (0.25,), 1, True)
    for part in cell_splits(record, DataSettings(), seed=0).values():
        assert isinstance(part, ImageSet)
        assert (part.mean, part.std, part.crop_padding, part.flip) == ((0.306,), (0.3763,), 0, False)
