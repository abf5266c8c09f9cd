"""Test normalisation and augmentation of batches: flips, crops, colour jitter."""

from __future__ import annotations

import torch
from prepared import grey

from ztw.data.augmentation import adjust_colours, augment, jitter_colours, jitter_factors, normalise


def test_normalise_by_hand():
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)  # (1, 2, 1, 2)
    out = normalise(images, mean=(0.5, 0.2), std=(0.25, 0.1))
    expected = torch.tensor([[[[-2.0, 2.0]], [[0.0, 2.0]]]])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_flip_mirrors_about_half_of_the_images():
    images = torch.randint(255, (400, 1, 3, 3), dtype=torch.uint8)
    out = augment(images, True, 0, torch.Generator().manual_seed(0))
    same = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 150 < int(same.sum()) < 250


def test_crop_shifts_by_at_most_the_padding():
    images = torch.zeros(300, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 1
    out = augment(images, False, 2, torch.Generator().manual_seed(0))
    assert out.shape == images.shape
    places = out.nonzero()[:, 2:]
    assert len(places) == 300, "the centre never leaves a crop of padding 2"
    assert places.unique(dim=0).shape[0] == 25


def test_augmentation_is_seeded():
    images = torch.randint(255, (20, 3, 8, 8), dtype=torch.uint8)
    first, second = (augment(images, True, 2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


def test_colours_are_adjusted_by_torchvisions_formulas():
    from torchvision.transforms import functional as reference

    images = torch.randint(256, (4, 3, 6, 5), dtype=torch.uint8)
    factors = torch.tensor([[0.8, 1.2, 1.0, 0.9], [1.2, 0.8, 1.1, 1.0], [0.8, 1.2, 0.5, 1.5]])
    for image, (brightness, contrast, saturation), out in zip(
        images, factors.T.tolist(), adjust_colours(images, factors), strict=True
    ):
        expected = reference.adjust_brightness(image / 255, brightness)
        expected = reference.adjust_contrast(expected, contrast)
        expected = reference.adjust_saturation(expected, saturation)
        torch.testing.assert_close(out, 255 * expected, atol=1e-3, rtol=0)


def test_colour_jitter_comes_last_and_is_drawn_only_when_asked_for():
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    plain, jittered = (torch.Generator().manual_seed(5) for _ in range(2))
    expected = augment(images, True, 2, plain)
    out = augment(images, True, 2, jittered, 0.2)
    factors = jitter_factors(20, 0.2, plain)
    assert 0.8 <= factors.min() < 0.85 < 1.15 < factors.max() <= 1.2
    assert torch.equal(out, adjust_colours(expected, factors))
    assert torch.equal(plain.get_state(), jittered.get_state())


def test_colours_can_be_jittered_in_another_order_for_every_image():
    """Each image equals torchvision's adjustments in one of the six orders, and all orders occur."""
    from itertools import permutations

    from torchvision.transforms import functional as reference

    steps = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation)
    images = torch.randint(256, (60, 3, 6, 5), dtype=torch.uint8)
    out = jitter_colours(images, 0.9, "random", torch.Generator().manual_seed(1))
    factors = jitter_factors(60, 0.9, torch.Generator().manual_seed(1))
    found = []
    for image, mine, own in zip(images, out, factors.T.tolist(), strict=True):
        matching = []
        for order in permutations(range(3)):
            expected = image / 255
            for step in order:
                expected = steps[step](expected, own[step])
            if torch.allclose(mine, 255 * expected, atol=1e-2):
                matching.append(order)
        assert matching
        found += matching[:1]
    assert len(set(found)) == 6
    assert max(found.count(order) for order in set(found)) < 25, "none is preferred"


def test_the_order_of_the_jitter_is_seeded_and_asked_for():
    images = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)

    def drawn(*jitter) -> torch.Tensor:
        return augment(images, True, 1, torch.Generator().manual_seed(2), *jitter)

    assert torch.equal(drawn(0.5), drawn(0.5, "fixed"))
    assert torch.equal(drawn(0.5, "random"), drawn(0.5, "random"))
    assert not torch.equal(drawn(0.5, "random"), drawn(0.5, "fixed"))
    assert torch.equal(drawn(0.0, "random"), drawn(0.0)), "without jitter there is no order to draw"


def test_grey_images_have_no_saturation_to_jitter():
    out = adjust_colours(grey(), torch.tensor([1.0, 1.0, 0.5])[:, None].expand(3, 6))
    torch.testing.assert_close(out, grey().float())
