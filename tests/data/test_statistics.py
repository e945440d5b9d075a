"""Statistics over pictures of any sizes are those of all their pixels together, and what is printed can be stated."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.config.compose import compose
from kd.config.read import read
from kd.data.checks.check import check
from kd.data.measuring import statistics
from kd.data.statistics import Statistics, combined, moments
from kd.errors import DataError
from tests.data.files.test_pixels import folder


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    channels=st.integers(1, 5),
    offset=st.sampled_from([0.0, -3.0, 30000.0]),
    kind=st.sampled_from([np.uint16, np.float32]),
)
def test_moments_of_pictures_are_those_of_all_pixels(sizes, channels, offset, kind):
    random = np.random.default_rng(len(sizes))
    pictures = [(random.random((*size, channels)) * 100 + abs(offset)).astype(kind) for size in sizes]
    pixels = np.concatenate([picture.reshape(-1, channels) for picture in pictures]).astype(np.float64)
    found = combined(map(moments, pictures))
    assert found.mean == pytest.approx(pixels.mean(axis=0), rel=1e-5)
    assert found.std == pytest.approx(pixels.std(axis=0), rel=1e-5, abs=1e-6)


def test_there_are_none_of_nothing():
    assert combined([]) is None


def test_scaling_has_the_mean_at_a_half_and_is_undone():
    known = Statistics((1000.0, -2.0), (200.0, 0.5))
    image = np.float32([[[1000, -2], [1600, -3.5], [400, 0]]])
    assert np.allclose(known.scaled(image)[0, :2], [[0.5, 0.5], [1.0, 0.0]])
    assert np.allclose(known.unscaled(known.scaled(image)), image, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("depth", "kind"), [(16, "u2"), ("float", "f4")])
def test_what_kd_check_prints_can_be_stated_and_is_what_is_measured(tmp_path, depth, kind):
    source = folder(tmp_path, kind=kind, depth=depth)
    found = check(source, workers=1).statistics
    assert found == statistics(source)
    typed = re.findall(r"'(data\.[^']*)'", found.options)
    options = ["data=folder", f"data.root={tmp_path}", "data.channels=5", f"data.depth={depth}", *typed]
    assert statistics(read(compose(options), look_at_data=False).data) == found


def test_rgb_of_8_bits_has_none_unless_they_are_stated(tmp_path):
    assert statistics(folder(tmp_path, channels=3, kind="u1", depth=8)) is None
    stated = folder(tmp_path, channels=3, kind="u1", mean=[1, 2, 3], std=[4, 5, 6])
    assert statistics(stated) == Statistics((1, 2, 3), (4, 5, 6))


def test_a_channel_that_shows_nothing_is_named(tmp_path):
    source = folder(tmp_path, depth=16)
    for path in (tmp_path / "images" / "train").iterdir():
        array = np.load(path)
        array[..., 3] = 7
        np.save(path, array)
    with pytest.raises(DataError, match=r"channel 3 \(from 0\) is 7 in all of train"):
        statistics(source)
