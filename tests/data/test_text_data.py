"""Data of several tensors, by name or by position, in every form in which users have it."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ztw
from ztw.batch import Input, InputSpec, tensors_of
from ztw.data.user_data import as_data
from ztw.data.wanted import Wanted

CPU = torch.device("cpu")
IDS = torch.randint(1, 50, (11, 6), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(6) < torch.arange(11)[:, None] % 6 + 1).long()
LABELS = torch.arange(11) % 3
IDS_AND_MASK = (
    Input("input_ids", (None,), "int64", [[1, 2]]),
    Input("attention_mask", (None,), "int64", [[1, 1]]),
)
NAMED = Wanted(InputSpec(IDS_AND_MASK, "dict"), 3, CPU)
PLACED = Wanted(InputSpec(IDS_AND_MASK, "tuple"), 3, CPU)
SINGLE = Wanted(InputSpec(IDS_AND_MASK[:1]), 3, CPU)


class Samples(Dataset):
    """A Dataset that makes its samples with a function of the index."""

    def __init__(self, sample: Any, count: int = 11) -> None:
        self.sample, self.count = sample, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.sample(index)


class Table:
    """As Hugging Face's Dataset: none of torch's, with rows as dicts of Python lists."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index].tolist() for name, values in self.columns.items()}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


TEXTS = {"input_ids": IDS, "attention_mask": MASK}


def row(index: int) -> dict[str, Tensor]:
    return {name: values[index] for name, values in TEXTS.items()}


def text_loader(dataset: Any, **options: Any) -> DataLoader:
    return DataLoader(dataset, batch_size=4, **options)


BY_NAME = {
    "dict and labels": (TEXTS, LABELS),
    "one dict": {**TEXTS, "labels": LABELS},
    "a tokenizer's dict": UserDict({**TEXTS, "labels": LABELS}),
    "a tokenizer's dict and labels": (UserDict(TEXTS), LABELS),
    "arrays": ({name: values.numpy() for name, values in TEXTS.items()}, LABELS.numpy()),
    "lists": ({name: values.tolist() for name, values in TEXTS.items()}, LABELS.tolist()),
    "other integers": ({"attention_mask": MASK.bool(), "input_ids": IDS.int()}, LABELS.byte()),
    "dataset of pairs": Samples(lambda index: (row(index), LABELS[index])),
    "dataset of pairs, as lists": Samples(lambda index: [row(index), int(LABELS[index])]),
    "dataset of dicts": Samples(lambda index: {**row(index), "label": int(LABELS[index])}),
    "dataset of a tokenizer's dicts": Samples(
        lambda index: UserDict({**row(index), "labels": LABELS[index]})
    ),
    "dataset of arrays": Samples(
        lambda index: ({name: values[index].numpy() for name, values in TEXTS.items()}, LABELS[index].numpy())
    ),
    "Hugging Face's dataset": Table({**TEXTS, "label": LABELS}),
    "loader of pairs": text_loader(Samples(lambda index: (row(index), LABELS[index]))),
    "loader of dicts": text_loader(Samples(lambda index: {**row(index), "labels": LABELS[index]})),
    "loader of Hugging Face's dicts": text_loader(
        Samples(lambda index: {**row(index), "labels": LABELS[index]}),
        collate_fn=lambda rows: UserDict(torch.utils.data.default_collate(rows)),
    ),
}
BY_POSITION = {
    "pair": ((IDS, MASK), LABELS),
    "list": [[IDS, MASK], LABELS],
    "flat": (IDS, MASK, LABELS),
    "dataset": Samples(lambda index: ((IDS[index], MASK[index]), LABELS[index])),
    "dataset of lists": Samples(
        lambda index: ((IDS[index].tolist(), MASK[index].tolist()), int(LABELS[index]))
    ),
    "TensorDataset": TensorDataset(IDS, MASK, LABELS),
    "loader": text_loader(Samples(lambda index: ((IDS[index], MASK[index]), LABELS[index]))),
    "loader of a TensorDataset": text_loader(TensorDataset(IDS, MASK, LABELS)),
}
ALONE = {
    "pair": (IDS, LABELS),
    "dict": {"input_ids": IDS, "labels": LABELS},
    "other name": {"tokens": IDS, "labels": LABELS},
    "dataset of lists": Samples(lambda index: (IDS[index].tolist(), int(LABELS[index]))),
    "loader": text_loader(Samples(lambda index: {"tokens": IDS[index], "labels": LABELS[index]})),
}
EVERY = [
    pytest.param(given, wanted, id=f"{wanted.inputs.form}: {form}")
    for forms, wanted in ((BY_NAME, NAMED), (BY_POSITION, PLACED), (ALONE, SINGLE))
    for form, given in forms.items()
]


@pytest.mark.parametrize(("given", "wanted"), EVERY)
def test_all_samples_in_order(given, wanted):
    data = as_data(given, wanted)
    batches, labels = zip(*data.batches(4), strict=True)
    assert [len(part) for part in labels] == [4, 4, 3]
    assert torch.cat(labels).tolist() == LABELS.tolist()
    for number, expected in enumerate((IDS, MASK)[: len(wanted.inputs.inputs)]):
        found = torch.cat([tensors_of(batch)[number] for batch in batches])
        assert found.dtype == torch.int64
        assert torch.equal(found, expected)
    if wanted is NAMED:
        assert all(list(batch) == ["input_ids", "attention_mask"] for batch in batches)
    assert len(data) == 11


@pytest.mark.parametrize(("given", "wanted"), EVERY)
def test_an_epoch_can_be_resumed(given, wanted):
    data = as_data(given, wanted)
    whole, rest = (
        [tensors_of(batch) for batch, _ in data.batches(4, torch.Generator().manual_seed(5), True, skip)]
        for skip in (0, 1)
    )
    for one, two in zip(whole[1:], rest, strict=True):
        assert all(map(torch.equal, one, two))


def padded(rows: list[tuple[Tensor, int]]) -> dict[str, Any]:
    ids, labels = zip(*rows, strict=True)
    filled = pad_sequence(list(ids), batch_first=True)
    return {"input_ids": filled, "attention_mask": (filled > 0).long(), "labels": torch.tensor(labels)}


def test_batches_of_different_lengths():
    rows = [(IDS[index, : index % 6 + 1], index % 3) for index in range(11)]
    data = as_data(DataLoader(rows, 4, collate_fn=padded), NAMED)  # type: ignore[arg-type]
    found = [inputs["input_ids"].shape for inputs, _ in data.batches(4)]
    assert found == [(4, 4), (4, 6), (3, 5)]


def test_a_part_of_the_data():
    rows = torch.tensor([7, 2, 2])
    for given in (BY_NAME["dict and labels"], BY_NAME["Hugging Face's dataset"]):
        data = as_data(given, NAMED).take(rows)
        ((inputs, labels),) = data.batches(4)
        assert torch.equal(inputs["input_ids"], IDS[rows])
        assert torch.equal(labels, LABELS[rows])


def test_floats_become_float32_and_keep_their_shape():
    wanted = Wanted(InputSpec((Input("sound", (2, None)), Input("length", ()))), 3, CPU)
    wanted = Wanted(InputSpec(wanted.inputs.inputs, "tuple"), 3, CPU)
    sound, length = np.random.randn(11, 2, 30), np.arange(11.0)
    ((inputs, _),) = as_data(((sound, length), LABELS), wanted).batches(11)
    assert [tensor.dtype for tensor in inputs] == [torch.float32] * 2
    np.testing.assert_allclose(inputs[0], sound.astype(np.float32))


KINDS = torch.zeros_like(IDS)
NAN = torch.full((11, 4), torch.nan)
WRONG = [
    (
        ({**TEXTS, "token_type_ids": KINDS}, LABELS),
        NAMED,
        "inputs: token_type_ids: the network takes only input_ids, attention_mask; remove the others",
    ),
    (
        {**TEXTS, "token_type_ids": KINDS, "labels": LABELS},
        NAMED,
        "inputs: token_type_ids: the network takes only",
    ),
    ({**TEXTS, "labels": LABELS, "label": LABELS}, NAMED, "inputs: label: the network takes only"),
    (({"input_ids": IDS}, LABELS), NAMED, "inputs: attention_mask missing; the network takes input_ids, att"),
    (TEXTS, NAMED, r"is a dict of input_ids, attention_mask; it must have labels, too"),
    ((IDS, LABELS), NAMED, "inputs: Tensor, must be a dict of input_ids, attention_mask"),
    (((IDS, MASK), LABELS), NAMED, r"inputs: (tuple|list), must be a dict of input_ids"),
    (
        (TEXTS, LABELS),
        PLACED,
        "inputs: a dict of input_ids, attention_mask; the network takes a tuple of 2 tensors",
    ),
    ((IDS, LABELS), PLACED, "inputs: Tensor, must be a tuple of 2 tensors"),
    (((IDS,), LABELS), PLACED, "inputs: 1 items, must be a tuple of 2 tensors"),
    ((TEXTS, LABELS), SINGLE, "inputs: a dict of input_ids, attention_mask; the network takes one tensor"),
    ((TEXTS, LABELS[:3]), NAMED, r"labels: shape \(3,\), must be \(11,\), one class number per sample"),
    (({**TEXTS, "input_ids": IDS[:4]}, LABELS), NAMED, "inputs: input_ids 4, attention_mask 11 samples"),
    (({**TEXTS, "input_ids": IDS[:, 0]}, LABELS), NAMED, r"input_ids: shape \(11,\), must be \(N, any\)"),
    (({**TEXTS, "input_ids": NAN}, LABELS), NAMED, "input_ids: float32, must be int64"),
    (({**TEXTS, "input_ids": "a text"}, LABELS), NAMED, "input_ids: str, must be a tensor"),
    (
        ({**TEXTS, "input_ids": [[1, 2], [3]]}, LABELS),
        NAMED,
        "input_ids: lists of different lengths, must be of one",
    ),
    ((TEXTS, None), NAMED, "labels: NoneType, must be a tensor"),
    ((IDS[:0], LABELS[:0]), SINGLE, "input_ids: empty, must have at least one sample"),
]


@pytest.mark.parametrize(("given", "wanted", "message"), WRONG)
@pytest.mark.parametrize("form", ["tensors", "loader"])
def test_inputs_that_are_not_the_network_s(given, wanted, message, form):
    one_batch: DataLoader = DataLoader([given], batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        list(as_data(given if form == "tensors" else one_batch, wanted).batches(4))
    assert "\n" not in str(caught.value)


def test_lists_of_numbers_in_a_loader():
    """default_collate makes one tensor (N,) of each place in the lists: with N = T nothing else would show it."""
    rows = [{"tokens": [1, 2, 3], "label": 0}] * 3
    with pytest.raises(ztw.ZtwError, match="input_ids: a list of 3 tensors, must be one tensor; make each"):
        list(as_data(DataLoader(rows, 3), SINGLE).batches(3))  # type: ignore[arg-type]
    both = [{"input_ids": [1, 2], "attention_mask": [1, 1], "label": 0}] * 2
    with pytest.raises(ztw.ZtwError, match="input_ids: a list of 2 tensors, must be one tensor"):
        list(as_data(DataLoader(both, 2), NAMED).batches(2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            lambda index: (IDS[index, : index + 1], 0),
            "of one shape; for texts of different lengths, give a DataL",
        ),
        (
            lambda index: {"text": "a", "tokens": IDS[index], "label": 0},
            "inputs: a dict of text, tokens; the net",
        ),
        (lambda index: (IDS[index], 0, 1), "data: a sample is 3 items, must be .inputs, labels"),
        (lambda index: IDS[index], "data: a sample is a Tensor, must be"),
        (
            lambda index: {"tokens": IDS[index]},
            "data: a sample is a dict of tokens; it must have labels, too",
        ),
    ],
)
def test_samples_that_are_none(sample, message):
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        list(as_data(Samples(sample), SINGLE).batches(4))
    assert "\n" not in str(caught.value)


def test_a_dict_of_datasets():
    with pytest.raises(
        ztw.ZtwError, match="data: the data is a dict of train, test; it must have labels, too"
    ):
        as_data({"train": Table(TEXTS), "test": Table(TEXTS)}, NAMED)
