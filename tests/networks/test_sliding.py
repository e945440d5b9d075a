"""Sliding windows: a blend of the network's own logits, the same whatever the batches and bands."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.data.views.windows import Windows
from kd.networks.sliding import bands

SIDES = st.tuples(st.integers(1, 150), st.integers(1, 150))


def picture(size, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 3, *size), np.uint8))


def pixelwise(images):
    """Logits of two classes that depend on the pixel alone."""
    values = images.float() / 255
    return torch.stack([values[:, 0] - values[:, 1], values[:, 2]], dim=1)


def seeing(images):
    """Logits that depend on all of the window."""
    values = images.float() / 255
    return F.avg_pool2d(values[:, :2], 5, 1, 2) + values.mean((2, 3), keepdim=True)[:, :2]


def whole(predict, image, windows):
    rows = [0]

    def read(top, bottom):
        rows.append(top)
        return image[:, :, top:bottom]

    found = list(bands(predict, read, image.shape[2:], windows))
    assert [top for top, _ in found] == np.cumsum([0, *(band.shape[2] for _, band in found)]).tolist()[:-1]
    return torch.cat([band for _, band in found], dim=2)


@settings(deadline=None, max_examples=30)
@given(SIDES, st.sampled_from([(32, 32), (64, 32)]), st.floats(0, 0.9), st.integers(1, 5))
def test_windows_are_invisible_to_a_network_that_sees_pixels(size, window, overlap, batch):
    image = picture(size)
    found = whole(pixelwise, image, Windows(window, overlap, batch))
    assert torch.allclose(found, pixelwise(image), atol=1e-5)


@pytest.mark.parametrize("size", [(70, 100), (32, 100), (20, 45), (100, 20), (33, 33)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_logits_are_the_weighted_mean_over_the_windows_that_show_a_pixel(size, overlap):
    """Against sums over whole windows on a padded picture."""
    image, windows = picture(size), Windows((32, 32), overlap, 3)
    padded = F.pad(image, (0, max(0, 32 - size[1]), 0, max(0, 32 - size[0])))
    total, weights = torch.zeros(1, 2, *padded.shape[2:], dtype=torch.float64), torch.zeros(padded.shape[2:])
    for top in windows.starts(size[0], 0):
        for left in windows.starts(size[1], 1):
            part = padded[..., top : top + 32, left : left + 32]
            total[..., top : top + 32, left : left + 32] += seeing(part) * torch.from_numpy(windows.weights())
            weights[top : top + 32, left : left + 32] += torch.from_numpy(windows.weights())
    expected = (total / weights)[..., : size[0], : size[1]]
    assert torch.allclose(whole(seeing, image, windows).double(), expected, atol=1e-5)


def test_a_picture_of_the_windows_size_gets_the_networks_own_logits():
    image = picture((32, 64))
    assert torch.equal(whole(seeing, image, Windows((32, 64), 0.25, 2)), seeing(image))


def test_memory_is_that_of_a_window_s_height():
    tallest = max(band.shape[2] for _, band in bands(pixelwise, lambda top, bottom: picture((bottom - top, 40)),
                                                     (1000, 40), Windows((32, 32), 0.25, 2)))  # fmt: skip
    assert tallest <= 32
