"""Our fog is albumentations' fog, bit for bit."""

import random

import albumentations
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.data.views.fog import RandomFog


def foggy(kind, image, seed, **options):
    transform = albumentations.Compose([kind(p=1, **options)])
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transform(image=image)["image"]


@settings(max_examples=25)
@given(st.integers(8, 90), st.integers(8, 90), st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_the_fog_is_albumentations_fog(height, width, seed, alpha, most):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    options = {"alpha_coef": alpha, "fog_coef_range": (most / 2, most)}
    assert np.array_equal(
        foggy(RandomFog, image, seed, **options), foggy(albumentations.RandomFog, image, seed, **options)
    )


@pytest.mark.parametrize("side", [96, 200])
def test_the_fog_of_the_defaults_is_albumentations_fog(side):
    image = np.random.default_rng(side).integers(0, 256, (side, side + 30, 3), dtype=np.uint8)
    assert np.array_equal(foggy(RandomFog, image, 1), foggy(albumentations.RandomFog, image, 1))


def test_pictures_of_floats_are_left_to_albumentations():
    image = np.random.default_rng(0).random((40, 40, 3), dtype=np.float32)
    assert np.array_equal(foggy(RandomFog, image, 1), foggy(albumentations.RandomFog, image, 1))
