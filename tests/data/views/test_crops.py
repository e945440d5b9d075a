"""A crop is part of a view: pure, aligned, and anywhere in the picture."""

import albumentations
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.data.views.augmentation import Augmentation
from kd.data.views.crops import Crop, cut

SIDES = st.tuples(st.integers(1, 80), st.integers(1, 80))
CROP = Crop((32, 32), seed=3, padding=255, labels=2)


def sample(size, seed=0):
    """A picture of which every pixel is another, and a mask that is a function of it."""
    pixels = np.random.default_rng(seed).permutation(size[0] * size[1]).reshape(size)
    image = np.stack([pixels // 256 % 256, pixels % 256, np.ones(size)], axis=2).astype(np.uint8)
    return image, (image[..., 1] % 2).astype(np.uint8)


@given(SIDES, st.integers(0, 5), st.integers(-5, 5))
def test_image_and_mask_stay_aligned_and_what_is_outside_is_padding(size, view, index):
    image, mask = CROP(*sample(size), view, index)
    assert image.shape == (32, 32, 3)
    assert mask.shape == (32, 32)
    shown = image[..., 2] == 1
    assert np.array_equal(shown, mask != 255)
    assert np.array_equal(mask[shown], image[..., 1][shown] % 2)
    assert shown.sum() == min(size[0], 32) * min(size[1], 32)
    assert not image[~shown].any()


def test_a_crop_is_a_function_of_seed_view_and_index_alone():
    picture = sample((70, 50))
    first = CROP(*picture, 4, 2)
    CROP(*sample((64, 64)), 0, 0)
    assert all(np.array_equal(one, other) for one, other in zip(first, CROP(*picture, 4, 2), strict=True))
    others = [CROP(*picture, 5, 2), CROP(*picture, 4, 3), Crop((32, 32), 4, 255, 2)(*picture, 4, 2)]
    assert all(not np.array_equal(first[0], other[0]) for other in others)


def test_every_place_is_equally_likely():
    image, mask = np.zeros((34, 33, 3), np.uint8), np.zeros((34, 33), np.uint8)
    image[..., 0], image[..., 1] = np.indices((34, 33))
    corners = [tuple(CROP(image, mask, view, 0)[0][0, 0, :2].tolist()) for view in range(1200)]
    assert {corner: round(corners.count(corner) / 200, 0) for corner in set(corners)} == {
        (row, column): 1 for row in range(3) for column in range(2)
    }


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_so_many_crops_show_foreground_and_each_class_is_drawn_alike(share):
    """A pixel of each of two classes far apart: a crop at random hardly ever shows one."""
    mask = np.zeros((400, 400), np.uint8)
    mask[5, 7] = 1
    mask[300:310, 200:300] = 2
    mask[350:, :] = 255  # void is no foreground
    crop = Crop((32, 32), 0, 254, 3, share)
    seen = [set(np.unique(crop(np.zeros((400, 400, 3), np.uint8), mask, view, 0)[1]).tolist()) for view in range(300)]
    for label in (1, 2):
        assert sum(label in labels for labels in seen) / 300 == pytest.approx(share / 2, abs=0.1)


def test_a_picture_without_foreground_is_cropped_at_random():
    image, mask = sample((50, 50))
    crop = Crop((32, 32), 0, 255, 2, 1.0)(image, np.zeros_like(mask), 0, 0)
    assert crop[1].shape == (32, 32)
    assert not crop[1].any()


def test_transforms_see_the_crop_and_what_they_fill_is_padding():
    turn = [albumentations.Affine(translate_percent=(0.5, 0.5), p=1)]
    image, mask = Augmentation(turn, 3, 255, CROP)(*sample((70, 50)), 1, 2)
    moved = CROP(*sample((70, 50)), 1, 2)[0]
    assert np.array_equal(image[16:, 16:], moved[:16, :16])
    assert (mask[:16] == 255).all()


@given(SIDES, st.tuples(st.integers(-90, 90), st.integers(-90, 90)))
def test_cutting_is_padding_and_slicing(size, corner):
    image, _ = sample(size)
    whole = np.zeros((400, 400, 3), np.uint8)
    whole[160 : 160 + size[0], 160 : 160 + size[1]] = image
    expected = whole[160 + corner[0] :, 160 + corner[1] :][:32, :32]
    assert np.array_equal(cut(image, corner, (32, 32), 0), expected)
