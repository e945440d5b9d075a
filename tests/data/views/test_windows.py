"""Windows show every pixel, overlap as much as asked, and end where the picture does."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kd.data.views.windows import Windows


@given(st.integers(1, 2000), st.sampled_from([32, 64, 256]), st.floats(0, 0.9))
def test_windows_show_everything_and_overlap(length, side, overlap):
    starts = Windows((side, 32), overlap, 4).starts(length, 0)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - side)
    for one, other in pairwise(starts):
        assert 0 < other - one <= max(1, round(side * (1 - overlap)))


@given(st.sampled_from([(32, 64), (96, 32)]))
def test_each_pixel_counts_most_in_the_middle_and_none_counts_nothing(size):
    weights = Windows(size, 0.25, 4).weights()
    assert weights.shape == size
    assert weights.min() > 0
    assert weights.max() == 1 == weights[size[0] // 2, size[1] // 2]
    assert (weights == weights[::-1, ::-1]).all()
