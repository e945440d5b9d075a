"""Laws of the order of samples: pure, complete without repeats, and within one of its expectation with them."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.data.batches.order import Order
from kd.data.random_streams import stream

repeats = st.lists(st.floats(1.0, 20.0), min_size=1, max_size=40).map(tuple)


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 50))
def test_without_repeats_every_sample_comes_once(seed, epoch, samples):
    order = Order(seed).epoch(epoch, samples)
    assert sorted(order) == list(range(samples))
    assert order == stream("order", seed, epoch).permutation(samples).tolist()  # as in earlier versions


@given(repeats, st.integers(0, 100), st.integers(0, 100))
def test_a_sample_comes_as_often_as_its_repeat_says_rounded_down_or_up(often, seed, epoch):
    order, samples = Order(seed, often).epoch(epoch, len(often)), len(often)
    found = Counter(order)
    assert len(order) == samples
    for index, repeat in enumerate(often):
        expected = samples * repeat / math.fsum(often)
        assert math.floor(expected - 1e-9) <= found[index] <= math.ceil(expected + 1e-9)


@given(repeats, st.integers(0, 100), st.integers(0, 100))
def test_an_epoch_is_a_pure_function_of_seed_and_epoch(often, seed, epoch):
    order = Order(seed, often)
    order.epoch(epoch + 1, len(often))
    assert order.epoch(epoch, len(often)) == Order(seed, often).epoch(epoch, len(often))


def test_over_many_epochs_the_average_is_the_expectation():
    often = (1.0, 1.0, 1.0, 2.5)
    found = Counter(index for epoch in range(4000) for index in Order(3, often).epoch(epoch, 4))
    assert found[3] / 4000 == pytest.approx(4 * 2.5 / 5.5, abs=0.03)
    assert found[0] / 4000 == pytest.approx(4 / 5.5, abs=0.03)


def test_equal_repeats_leave_nobody_out():
    assert sorted(Order(1, (7.0,) * 9).epoch(2, 9)) == list(range(9))


def test_epochs_and_seeds_differ():
    often = tuple(float(1 + index % 3) for index in range(30))
    orders = {tuple(Order(seed, often).epoch(epoch, 30)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
