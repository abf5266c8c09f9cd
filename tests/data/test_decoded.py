"""Test subsets and batches of decoded images."""

from __future__ import annotations

import dataclasses

import torch
from prepared import grey

from ztw.data.decoded import ImageSet


def test_a_subset_shares_the_stored_images():
    whole = ImageSet(grey(10), torch.arange(10), 10, (0.5,), (0.2,), True, 1)
    part = whole.take(torch.tensor([7, 2, 9, 4])).take(torch.tensor([2, 0, 1]))
    assert part.stored is whole.stored
    assert part.to(torch.device("cpu")) is part
    assert part.labels.tolist() == [9, 7, 2]
    assert torch.equal(part.images, whole.images[[9, 7, 2]])
    copied = dataclasses.replace(part, stored=part.images, index=None)
    for lazy, eager in zip(
        *(images.batches(2, torch.Generator().manual_seed(1), True) for images in (part, copied)),
        strict=True,
    ):
        assert torch.equal(lazy[0], eager[0])
        assert torch.equal(lazy[1], eager[1])


def test_batches_see_every_image_once():
    images = ImageSet(grey(10), torch.arange(10), 10, (0.0,), (1.0,))
    for generator in (None, torch.Generator().manual_seed(0)):
        labels = torch.cat([labels for _, labels in images.batches(4, generator)])
        assert sorted(labels.tolist()) == list(range(10))


def test_a_training_batch_of_one_is_dropped():
    images = ImageSet(grey(9), torch.arange(9), 9, (0.0,), (1.0,))
    sizes = [len(labels) for _, labels in images.batches(4, torch.Generator().manual_seed(0))]
    assert sizes == [4, 4]
    assert [len(labels) for _, labels in images.batches(4)] == [4, 4, 1]
