"""Test published logits: read as written, but for rounding to half precision."""

from __future__ import annotations

import pytest
import torch

import ztw
from ztw.evaluation.published_logits import published
from ztw.tensors import write_tensors

COST = torch.tensor([1e3, 2.5e3], dtype=torch.float64)
NAME = "study/digits/resnet8/seed0/independent"


@pytest.fixture
def root(tmp_path):
    generator = torch.Generator().manual_seed(0)
    splits = {
        split: (
            torch.randn(2, size, 10, generator=generator),
            torch.randint(10, (size,), generator=generator),
        )
        for split, size in (("validation", 5), ("test", 9))
    }
    path = tmp_path / "study/digits/resnet8/seed0/predictions/independent.safetensors"
    ztw.write_predictions(path, splits["validation"], splits["test"], cost=COST, base_cost=2250.0, half=True)
    return tmp_path, splits


def test_they_are_read_as_written(root):
    folder, splits = root
    found = ztw.load_predictions(NAME, folder)
    for split, (logits, labels) in splits.items():
        again, same = getattr(found, split)
        assert (again.dtype, same.dtype) == (torch.float32, torch.int64)
        torch.testing.assert_close(again, logits, atol=0, rtol=2**-11)
        assert torch.equal(same, labels)
    assert torch.equal(found.cost, COST)
    assert found.base_cost == 2250
    curve = ztw.sweep(*found.test, found.cost, "max_softmax")
    assert curve.cost.max() <= 2500
    shown = "Predictions(2 exits, 10 classes, 5 validation and 9 test samples; exits cost 44% to 111% of the backbone)"
    assert str(found) == shown


@pytest.mark.parametrize("name", ["study", "study/digits/resnet8/seed0/other", "", "../study"])
def test_an_error_lists_the_known_names(root, name):
    with pytest.raises(ztw.ZtwError, match=f"predictions '{name}': not in .*; known: {NAME}"):
        ztw.load_predictions(name, root[0])


def test_an_error_says_that_there_are_none(tmp_path):
    assert published(tmp_path) == []
    with pytest.raises(ztw.ZtwError, match="known: none"):
        ztw.load_predictions(NAME, tmp_path)


def test_another_file_is_refused(root):
    path = root[0] / "study/digits/resnet8/seed0/predictions/independent.safetensors"
    write_tensors(path.with_name("other.safetensors"), {"weights": torch.zeros(2)})
    with pytest.raises(
        ztw.ZtwError, match=r"other.safetensors: has no validation_logits; is it a file of logits"
    ):
        ztw.load_predictions(NAME.replace("independent", "other"), root[0])
