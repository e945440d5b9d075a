"""Pictures of any pixels are shown as RGB of 8 bits, and RGB of 8 bits is shown as it is."""

import numpy as np
import pytest

from kd.data.files.pixels import Pixels
from kd.data.files.stretch import as_rgb


def test_rgb_is_shown_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    assert as_rgb(image, Pixels()) is image


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("depth", [8, 16, "float"])
def test_other_pixels_are_stretched_from_black_to_white(channels, depth):
    pixels = Pixels(channels, depth)
    if pixels.usual:
        return
    image = np.tile(np.linspace(3, 90, 100)[:, None, None], (1, 4, channels)).astype(pixels.dtype)
    shown = as_rgb(image, pixels)
    assert (shown.shape, shown.dtype) == ((100, 4, 3), np.uint8)
    assert (shown.min(), shown.max()) == (0, 255)
    assert (np.diff(shown[:, 0, 0].astype(int)) >= 0).all()
    assert channels >= 3 or (shown == shown[..., :1]).all()  # grey


def test_a_picture_of_one_value_is_black():
    assert not as_rgb(np.full((4, 4, 1), 700, np.uint16), Pixels(1, 16)).any()
