"""Latency is taken in turns, and said in milliseconds."""

import numpy as np
import pytest

from kd.deploy.timing import WARM_UP, Contestant, Latency, measured, times_faster


def test_contestants_take_turns_in_every_round_and_see_every_batch():
    seen = []

    def contestant(name):
        return Contestant(name, lambda images: seen.append((name, images.shape, images.dtype)))

    seconds = measured([contestant("one"), contestant("other")], [1, 4], (32, 64), rounds=2)
    turn = [(name, (batch, 3, 32, 64), np.uint8) for batch in (1, 4) for name in ("one", "other")]
    assert seen == turn * (2 + WARM_UP)
    assert {key: len(each) for key, each in seconds.items()} == {
        (name, batch): 2 for name in ("one", "other") for batch in (1, 4)
    }


def test_percentiles_are_in_milliseconds():
    assert Latency.of([index / 1000 for index in range(101)]) == pytest.approx(Latency(50, 10, 90))


def test_a_ratio_is_taken_within_a_round():
    assert times_faster([4, 40, 6], [2, 20, 2]) == 2
