"""Test splits: the validation part, a study's settings, and equal splits in every job."""

from __future__ import annotations

import pytest
import torch

import ztw
from ztw.data.decoded import ImageSet
from ztw.data.hold_out import drawn_images, held_out_counts, held_out_split
from ztw.data.prepare import prepare_dataset
from ztw.data.splits import cell_splits, load_split
from ztw.progress import Note
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


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ([200, 4, 4, 4, 4, 4], 0.1, [17, 1, 1, 1, 1, 1]),
        ([1000] + [4] * 50, 0.1, [70] + [1] * 50),
        ([1000] + [20] * 10 + [4] * 50, 0.1, [75] + [2] * 5 + [1] * 55),
        ([30, 1, 1, 5], 0.1, [3, 0, 0, 1]),
        ([5] * 20, 0.1, [1] * 10 + [0] * 10),
        ([3, 9, 9], 0.1, [0, 1, 1]),
        ([2, 2, 10], 0.5, [1, 1, 5]),
        ([2, 2, 10], 0.9, [1, 1, 9]),
        ([10, 7], 0.9, [9, 6]),
    ],
)
def test_each_class_has_a_held_out_image_if_possible(sizes, fraction, expected):
    """Every class has an image if possible, else the largest classes have one; the total is right."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    train, held_out = held_out_split(labels, fraction, seed=1)
    assert torch.bincount(labels[held_out], minlength=len(sizes)).tolist() == expected
    assert len(train) + len(held_out) == len(labels)
    most = sum(size - 1 for size in sizes)
    assert len(held_out) == min(round(fraction * sum(sizes)), most)


def test_totals_of_many_sizes():
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.randint(1, 4 + seed**2 // 10, (2 + seed % 30,), generator=generator)
        fraction = 0.05 + 0.4 * seed / 200
        counts = held_out_counts(sizes, fraction)
        assert 0 <= round(fraction * int(sizes.sum())) - int(counts.sum()) <= int((sizes == 1).sum())
        assert bool((counts < sizes).all())
        if int(counts.sum()) >= int((sizes > 1).sum()):
            assert bool((counts >= (sizes > 1).long()).all())


@pytest.mark.parametrize(("num_classes", "size", "fraction"), [(10, 100, 0.1), (7, 15, 0.1), (200, 50, 0.25)])
def test_classes_of_equal_size_are_split_as_in_published_studies(num_classes, size, fraction):
    """Published studies have these indices: a permutation of each class, and the class's rounded share."""
    labels = torch.arange(num_classes * size) % num_classes
    generator = torch.Generator().manual_seed(5)
    expected = torch.cat(
        [
            torch.arange(label, len(labels), num_classes)[torch.randperm(size, generator=generator)][
                : round(fraction * size)
            ]
            for label in range(num_classes)
        ]
    )
    assert held_out_split(labels, fraction, seed=5)[1].tolist() == expected.sort().values.tolist()


def test_classes_without_a_held_out_image_are_named():
    record = {"counts": {"train": 22}, "num_classes": 3, "class_names": ["cat", "dog", "owl"]}
    labels = torch.tensor([0] * 20 + [1] + [2])
    images = ImageSet(torch.zeros(22, 1, 8, 8).byte(), labels, 3, (0.0,), (1.0,))
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ztw.data.splits.open_split", lambda *_: images)
        splits = cell_splits(record, DataSettings(), 0, said.append)
        assert splits["validation"].labels.tolist() == [0, 0]
        cell_splits(record, DataSettings(validation_fraction=0), 0, said.append)
    (note,) = said
    assert isinstance(note, Note)
    assert note.startswith("validation: no image of 2 of 3 classes: dog, owl; thresholds are chosen without")


@pytest.mark.parametrize(("source", "other"), [("train", "test"), ("test", "train")])
def test_validation_images_come_from_the_split_in_the_study(tmp_path, source, other):
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


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([100, 100], 10, [5, 5]),
        ([90, 30], 40, [30, 10]),
        ([1000, 2, 2], 10, [8, 1, 1]),
        ([3, 4], 7, [3, 4]),
        ([3, 4], 2, [1, 1]),
    ],
)
def test_drawn_images_are_stratified_and_seeded(sizes, count, expected):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    drawn = drawn_images(labels, count, seed=3)
    assert torch.bincount(labels[drawn]).tolist() == expected
    assert drawn.tolist() == sorted(set(drawn.tolist())) == drawn_images(labels, count, seed=3).tolist()


def test_drawn_images_are_the_first_after_a_shuffle_of_each_class():
    labels = torch.arange(200) % 2
    small, large, other = (
        drawn_images(labels, 10, 3),
        drawn_images(labels, 60, 3),
        drawn_images(labels, 60, 4),
    )
    generator = torch.Generator().manual_seed(3)
    first = torch.randperm(100, generator=generator)[:5] * 2
    assert small[small % 2 == 0].tolist() == first.sort().values.tolist()
    assert set(small.tolist()) < set(large.tolist()) != set(other.tolist())


@pytest.mark.parametrize("count", [1, 21])
def test_a_number_of_training_images_that_cannot_be_drawn(count):
    message = f"data.training_images: {count}: must be 2 to 20, the numbers of classes and of training images"
    with pytest.raises(ztw.ZtwError, match=message):
        drawn_images(torch.arange(20) % 2, count, seed=0)


@pytest.mark.parametrize("source", ["train", "test"])
def test_the_validation_part_is_taken_from_the_drawn_images(tmp_path, source):
    record = prepare_dataset("digits", tmp_path)
    settings = DataSettings(training_images=200, validation_fraction=0.2, validation_from=source)
    splits = cell_splits(record, settings, seed=0)
    assert len(splits["train"]) == (160 if source == "train" else 200)
    everything = load_split(record, "train").labels
    drawn = everything[drawn_images(everything, 200, seed=0)]
    if source == "train":
        rest, held_out = held_out_split(drawn, 0.2, seed=0)
        assert torch.equal(splits["validation"].labels, drawn[held_out])
        drawn = drawn[rest]
    assert torch.equal(splits["train"].labels, drawn)
    test = len(splits["test"]) + (len(splits["validation"]) if source == "test" else 0)
    assert test == record["counts"]["test"], "of the test images all are used"


def test_without_a_validation_part_all_images_are_training_images(tmp_path):
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
