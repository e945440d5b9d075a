"""Polygons and run lengths are the pixels that an obvious, slow version says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.data.sets.regions import decoded, polygon, region, run_lengths


def slow_polygon(points, size):
    """Each pixel's centre by itself: how often a ray to the left crosses an edge."""
    corners = list(zip(points[::2], points[1::2], strict=True))
    found = np.zeros(size, bool)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y = column + 0.5, row + 0.5
            for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
                if (y1 <= y < y2) or (y2 <= y < y1):
                    low, high = ((x1, y1), (x2, y2)) if y1 < y2 else ((x2, y2), (x1, y1))
                    crossing = low[0] + (y - low[1]) * ((high[0] - low[0]) / (high[1] - low[1]))
                    found[row, column] ^= crossing <= x
    return found


def encoded(runs):
    """COCO's text of run lengths, as cocoapi's rleToString writes it."""
    text = ""
    for index, run in enumerate(runs):
        value, more = run - (runs[index - 2] if index > 2 else 0), True
        while more:
            code = value & 31
            value >>= 5
            more = value != -1 if code & 16 else value != 0
            text += chr((code | (32 if more else 0)) + 48)
    return text


def runs_of(mask):
    """The run lengths of a mask, column by column, counted one pixel at a time."""
    runs, last = [0], False
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != last:
            runs.append(0)
            last = pixel
        runs[-1] += 1
    return runs


COORDINATES = st.one_of(st.integers(-5, 20), st.floats(-5, 20, width=32))


@given(points=st.lists(st.tuples(COORDINATES, COORDINATES), min_size=3, max_size=9))
def test_a_polygon_is_the_pixels_whose_centres_lie_in_it(points):
    flat = [value for point in points for value in point]
    assert np.array_equal(polygon(flat, (13, 15)), slow_polygon(flat, (13, 15)))


def test_a_rectangle_has_its_own_area_and_two_that_share_an_edge_share_no_pixel():
    left, right = ([x, 2, x + 4, 2, x + 4, 9, x, 9] for x in (3, 7))
    one, other = (polygon(points, (12, 14)) for points in (left, right))
    assert one.sum() == other.sum() == 28
    assert not (one & other).any()
    assert np.array_equal(region([left, right], (12, 14)), one | other)


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.05, 0.5]),
)
def test_run_lengths_come_back_as_a_list_and_as_a_text(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    runs = runs_of(mask)
    assert decoded(encoded(runs)) == runs
    for counts in (runs, encoded(runs)):
        assert np.array_equal(run_lengths({"size": [height, width], "counts": counts}, mask.shape), mask)


def test_long_runs_come_back():
    runs = [0, 1, 10**6, 3, 70, 10**6 + 5]
    assert decoded(encoded(runs)) == runs


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "neither polygons nor run lengths"),
        ("x", "neither polygons nor run lengths"),
        ([[1, 2, 3, 4]], "three points or more"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three points or more"),
        ([{}], "three points or more"),
        ([[1, 2, 3, 4, 5, "6"]], "not a number"),
        ([[1, 2, 3, 4, 5, float("inf")]], "not a number"),
        ([[1, 2, 3, 4, 5, 10**400]], "not a number|too large"),
        ({"size": [3, 4], "counts": [12]}, "the picture is"),
        ({"size": [4, 3]}, "no numbers of pixels"),
        ({"size": [4, 3], "counts": [11]}, "are 11 pixels, and the picture has 12"),
        ({"size": [4, 3], "counts": [-1, 13]}, "no numbers of pixels"),
        ({"size": [4, 3], "counts": [True, 11]}, "no numbers of pixels"),
        ({"size": [4, 3], "counts": "ü"}, "no text of COCO"),
        ({"size": [4, 3], "counts": "o" * 99}, "no text of COCO"),
        ({"size": [4, 3], "counts": "o"}, "end in the middle"),
    ],
)
def test_what_is_no_region_is_refused(segmentation, message):
    with pytest.raises((ValueError, OverflowError), match=message):
        region(segmentation, (4, 3))
