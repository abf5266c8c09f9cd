"""Tensors, a Dataset or a DataLoader as Data: the same samples, and one line for what is no data."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ztw
from ztw.batch import InputSpec
from ztw.data.user_data import as_data
from ztw.data.wanted import Wanted
from ztw.training.recipe import Recipe, steps_per_epoch

WANTED = Wanted(InputSpec.of_shape((1, 4, 4)), 3, torch.device("cpu"))
IMAGES = torch.randn(11, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(11) % 3
FORMS = {
    "tensors": (IMAGES, LABELS),
    "arrays": [IMAGES.numpy(), LABELS.numpy()],
    "dataset": TensorDataset(IMAGES.double(), LABELS.int()),
    "loader": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_images_in_order(form):
    data = as_data(FORMS[form], WANTED)
    images, labels = (torch.cat(parts) for parts in zip(*data.batches(4), strict=True))
    torch.testing.assert_close(images, IMAGES)
    assert labels.tolist() == LABELS.tolist()
    assert labels.dtype == torch.int64
    assert len(data) == 11
    assert as_data(data, WANTED).batches(4)


@pytest.mark.parametrize("form", [*FORMS, "shuffled"])
def test_an_epoch_can_be_resumed(form):
    shuffled = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, shuffle=True)
    data = as_data(shuffled if form == "shuffled" else FORMS[form], WANTED)

    def epoch(skip: int) -> list[torch.Tensor]:
        torch.randn(1)  # other code draws from the global generator, too
        return [images for images, _ in data.batches(4, torch.Generator().manual_seed(5), True, skip)]

    whole, rest = epoch(0), epoch(1)
    assert all(torch.equal(one, two) for one, two in zip(whole[1:], rest, strict=True))
    if form == "shuffled":
        other = [images for images, _ in data.batches(4, torch.Generator().manual_seed(6))]
        assert not torch.equal(whole[0], other[0])


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"batch_size": 4}, 3),
        ({"batch_size": 4, "drop_last": True}, 2),
        ({"batch_size": 5}, 2),  # the last batch, of one image, is dropped
        ({"batch_size": 1}, 11),
        ({"batch_sampler": [[0, 1], [2, 3, 4], [5]]}, 3),
    ],
)
def test_a_loader_s_steps(options, steps):
    data = as_data(DataLoader(TensorDataset(IMAGES, LABELS), **options), WANTED)
    assert steps_per_epoch(Recipe(1, data.batch_size, 0.1, 0.0), len(data)) == steps  # type: ignore[attr-defined]


class Endless(IterableDataset):
    def __iter__(self):
        yield IMAGES[0], 0


NAN = IMAGES.clone()
NAN[3] = torch.nan
WRONG = [
    ((IMAGES[:, 0], LABELS), r"images: shape \(11, 4, 4\), must be \(N, 1, 4, 4\)"),
    ((IMAGES.expand(-1, 3, -1, -1), LABELS), r"images: shape \(11, 3, 4, 4\), must be \(N, 1, 4, 4\)"),
    ((IMAGES.byte(), LABELS), "images: uint8, must be float32 .*normalised"),
    ((NAN, LABELS), "images: some values are NaN or infinite"),
    ((IMAGES, LABELS + 1), r"labels: must lie in 0..2, got 1..3"),
    ((IMAGES, LABELS.float()), "labels: torch.float32, must be integers"),
    ((IMAGES, LABELS[:3]), r"labels: shape \(3,\), must be \(11,\)"),
    ((IMAGES, torch.zeros(11, 3)), r"labels: shape \(11, 3\), must be \(11,\)"),
    ((IMAGES[:0], LABELS[:0]), "images: empty"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
@pytest.mark.parametrize("form", ["tensors", "loader"])
def test_images_and_labels_that_do_not_fit_the_network(given, message, form):
    one_batch: DataLoader = DataLoader([given], batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        list(as_data(given if form == "tensors" else one_batch, WANTED).batches(4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            IMAGES,
            r"data: Tensor, must be \(inputs, labels\), a dict with labels, a torch Dataset or a DataLoader",
        ),
        ("folder", "data: str, must be"),
        (None, "data: NoneType, must be"),
        ((IMAGES, "labels"), "labels: str, must be"),
        (Endless(), "data: Endless, must be"),
        (DataLoader(Endless()), "data: DataLoader .*has no len.*, must be"),
        (TensorDataset(IMAGES[:0], LABELS[:0]), "data: the Dataset is empty"),
        (DataLoader(TensorDataset(IMAGES[:3], LABELS[:3]), 4, drop_last=True), "DataLoader is empty"),
    ],
)
def test_wrong_data(given, message):
    with pytest.raises(ztw.ZtwError, match=message):
        as_data(given, WANTED)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (TensorDataset(IMAGES), "a batch is 1 items, must be"),
        ([(IMAGES[0], 0, "name")] * 4, "a batch is 3 items, must be"),
        (
            [{"image": IMAGES[0], "target": 0}] * 4,
            "a batch is a dict of image, target; it must have labels, too",
        ),
        (IMAGES, "a batch is a Tensor, must be"),
    ],
)
def test_loaders_without_labels(samples, message):
    with pytest.raises(ztw.ZtwError, match=message):
        list(as_data(DataLoader(samples, batch_size=4), WANTED).batches(4))


class Names(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return object(), index


def test_a_dataset_without_tensors():
    with pytest.raises(ztw.ZtwError, match=r"dataset: samples cannot be collated .*must be .inputs, label"):
        list(as_data(Names(), WANTED).batches(2))
