"""Test the gallery of images that leave first, in the middle and last."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

import ztw
from ztw.reporting.gallery import EXAMPLES, draw_gallery, make_gallery

NAMES = ["cat", "dog"]
ABOUT = {"dataset": "pets", "method": "ztw", "budget": "0.5"}


def sure(exits: list[int], right: list[bool], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of samples of class 0 that are sure from an exit on, and right or wrong there; and labels."""
    logits = torch.zeros(count, len(exits), 2)
    logits[:, :, 0] = 0.1
    for sample, (exit, is_right) in enumerate(zip(exits, right, strict=True)):
        logits[exit:, sample, int(not is_right)] = 9.0
    return logits, torch.zeros(len(exits), dtype=torch.int64)


def grey(samples: torch.Tensor) -> torch.Tensor:
    """Return images of one grey, the number of the sample."""
    return samples.byte()[:, None, None, None].expand(-1, 1, 8, 8)


def pixels(image: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))))


def test_samples_stand_in_the_group_of_their_exit():
    exits = [0] * 12 + [2] * 3 + [3] + [5] * 4
    right = [True] * 11 + [False] + [True] * 4 + [False] * 4
    gallery = make_gallery(*sure(exits, right, 6), ztw.MaxSoftmax(0.9), grey, NAMES, ABOUT)
    first, middle, last = gallery["groups"]
    assert first["title"] == "60 % leave at the first exit; 92 % of them are classified correctly"
    assert (
        middle["title"] == "20 % leave in the middle, at exits 3 to 4; 100 % of them are classified correctly"
    )
    assert last["title"] == "20 % leave last, at exit 6; 0 % of them are classified correctly"
    assert [len(group["samples"]) for group in (first, middle, last)] == [EXAMPLES, 4, 4]
    for group, own in ((first, range(12)), (middle, range(12, 16)), (last, range(16, 20))):
        shown = [int(pixels(sample["image"])[0, 0]) for sample in group["samples"]]
        assert set(shown) <= set(own)
        assert len(set(shown)) == len(shown)
        for number, sample in zip(shown, group["samples"], strict=True):
            assert sample["label"] == "cat"
            assert sample["predicted"] == ("cat" if right[number] else "dog")
    assert gallery["method"] == "ztw"


def test_an_empty_group_is_left_out_and_two_exits_have_no_middle():
    gallery = make_gallery(*sure([0] * 3, [True] * 3, 2), ztw.MaxSoftmax(0.9), grey, NAMES, ABOUT)
    (group,) = gallery["groups"]
    assert group["title"].startswith("100 % leave at the first exit")


@pytest.mark.parametrize(("size", "kind", "side"), [(32, "PNG", 32), (224, "JPEG", 96)])
def test_large_images_become_small_files(size, kind, side):
    def colours(samples: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (len(samples), 3, size, size), generator=generator).byte()

    gallery = make_gallery(*sure([0], [True], 2), ztw.MaxSoftmax(0.9), colours, NAMES, ABOUT)
    image = gallery["groups"][0]["samples"][0]["image"]
    found = Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2])))
    assert (found.format, found.size) == (kind, (side, side))


def test_the_figure_names_what_was_predicted():
    exits, right = [0] * 10 + [1], [True] * 10 + [False]
    figure = draw_gallery(make_gallery(*sure(exits, right, 2), ztw.MaxSoftmax(0.9), grey, NAMES, ABOUT))
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_xlabel() for axes in shown] == ["cat"] * 9 + ["dog,\nis cat"]
    assert figure.axes[0].get_title(loc="left").startswith("91 % leave at the first exit")
