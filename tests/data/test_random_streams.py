"""A stream depends on its name only, and different names give independent streams."""

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kd.data.random_streams import key, stream

names = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=8)), min_size=1, max_size=4)


@given(names, names)
def test_streams_are_equal_exactly_if_their_names_are(one, other):
    assert (key(*one) == key(*other)) == (one == other)
    assert stream(*one).integers(2**62) == stream(*one).integers(2**62)


def test_a_key_has_at_most_128_bits():
    keys = [key("view", 0, view, index) for view in range(20) for index in range(20)]
    assert len(set(keys)) == len(keys)
    assert 0 <= min(keys) < max(keys) < 2**128


def test_numpy_integers_name_the_same_stream():
    assert key("order", np.int64(3)) == key("order", 3)


def test_another_process_draws_the_same():
    code = "from kd.data.random_streams import stream; print(stream('order', 5, 7).integers(2**62))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == stream("order", 5, 7).integers(2**62)


def test_neighbouring_streams_are_uncorrelated():
    draws = np.stack([stream("view", 0, 0, index).standard_normal(2000) for index in range(20)])
    correlations = np.corrcoef(draws) - np.eye(20)
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)
