"""Laws of the unfreezing policies, with literal tables from the first design documents."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.plan.unfreeze import All, AtEpoch, Frozen, Progressive

EPOCHS = 50
starts, rates, totals = st.integers(0, 30), st.integers(1, 12), st.integers(1, 20)
limits = st.none() | st.integers(1, 20)
policies = st.one_of(
    st.builds(Progressive, starts, rates, limits), st.builds(AtEpoch, starts), st.just(All()), st.just(Frozen())
)


def slow_progressive(start, rate, total, epochs):
    """Unfrozen blocks of every epoch by simulation: blocks are unfrozen one at a time, `rate` epochs apart."""
    frozen, unfrozen, clock, counts = list(range(total)), [], 0, []
    for epoch in range(epochs):
        if epoch >= start:
            if clock == 0 and frozen:
                unfrozen.append(frozen.pop())  # the deepest frozen block
            clock = (clock + 1) % rate
        counts.append(len(unfrozen))
    return counts


# tables


@pytest.mark.parametrize(
    ("first", "last", "blocks"),
    [(0, 9, 0), (10, 14, 1), (15, 19, 2), (20, 24, 3), (25, 29, 4), (30, 34, 5), (35, 39, 6), (40, 49, 7)],
)
def test_table_for_start_10_rate_5(first, last, blocks):
    policy = Progressive(start_epoch=10, rate=5)
    assert {policy(epoch, 7) for epoch in range(first, last + 1)} == {blocks}


@pytest.mark.parametrize(
    ("first", "last", "blocks"),
    [(1, 5, 0), (6, 8, 1), (9, 11, 2), (12, 14, 3), (15, 17, 4), (18, 20, 5), (21, 23, 6), (24, 50, 7)],
)
def test_table_for_start_5_rate_3_counted_from_one(first, last, blocks):
    policy = Progressive(start_epoch=5, rate=3)
    assert {policy(number - 1, 7) for number in range(first, last + 1)} == {blocks}


# laws


@given(starts, rates, totals)
@settings(deadline=None, max_examples=100)
def test_progressive_equals_unfreezing_one_by_one(start, rate, total):
    counts = [Progressive(start, rate)(epoch, total) for epoch in range(EPOCHS)]
    assert counts == slow_progressive(start, rate, total, EPOCHS)


@given(policies, totals)
@settings(deadline=None, max_examples=100)
def test_unfrozen_blocks_never_decrease_or_exceed_the_total(policy, total):
    counts = [policy(epoch, total) for epoch in range(EPOCHS)]
    assert counts == sorted(counts)
    assert all(0 <= count <= total for count in counts)


@given(policies, totals, st.integers(0, 10**9), st.integers(0, 10**9))
@settings(deadline=None, max_examples=100)
def test_a_later_epoch_never_freezes_a_block(policy, total, one, other):
    before, after = policy(min(one, other), total), policy(max(one, other), total)
    assert 0 <= before <= after <= total


@given(policies, totals, st.integers(0, EPOCHS))
@settings(deadline=None, max_examples=100)
def test_a_larger_encoder_never_has_fewer_unfrozen_blocks(policy, total, epoch):
    assert policy(epoch, total) <= policy(epoch, total + 1)


@given(starts, rates, totals)
@settings(deadline=None, max_examples=50)
def test_progressive_eventually_unfreezes_all_blocks(start, rate, total):
    last_opening = start + rate * (total - 1)
    assert Progressive(start, rate)(last_opening, total) == total
    assert last_opening == start or Progressive(start, rate)(last_opening - 1, total) == total - 1


@given(starts, rates, st.integers(1, 20), totals)
@settings(deadline=None, max_examples=50)
def test_max_blocks_caps_the_same_plan(start, rate, limit, total):
    whole, limited = Progressive(start, rate), Progressive(start, rate, max_blocks=limit)
    assert all(limited(epoch, total) == min(limit, whole(epoch, total)) for epoch in range(EPOCHS))


@given(starts, totals)
@settings(deadline=None, max_examples=50)
def test_at_epoch_unfreezes_all_blocks_at_once(start, total):
    counts = [AtEpoch(start)(epoch, total) for epoch in range(EPOCHS)]
    assert counts == [0] * start + [total] * (EPOCHS - start)


@given(st.integers(0, 10_000), totals)
@settings(deadline=None, max_examples=50)
def test_all_unfreezes_everything_and_frozen_nothing(epoch, total):
    assert All()(epoch, total) == total
    assert Frozen()(epoch, total) == 0


@given(policies, totals)
@settings(deadline=None, max_examples=100)
def test_first_epoch_is_the_first_with_an_unfrozen_block(policy, total):
    with_open_blocks = (epoch for epoch in range(EPOCHS) if policy(epoch, total) > 0)
    assert policy.first_epoch == next(with_open_blocks, None)


# refusals


@pytest.mark.parametrize("value", [-1, 2.5, 5.0, math.nan, math.inf, "5", True, None], ids=repr)
@pytest.mark.parametrize("policy", [Progressive, AtEpoch])
def test_an_impossible_start_epoch_is_refused_by_name_and_value(policy, value):
    with pytest.raises(ValueError, match="start_epoch") as refusal:
        policy(start_epoch=value)
    assert repr(value) in str(refusal.value)


@pytest.mark.parametrize("value", [0, -3, 1.5, 3.0, math.nan, "3", True, None], ids=repr)
def test_an_impossible_rate_is_refused_by_name_and_value(value):
    with pytest.raises(ValueError, match="rate") as refusal:
        Progressive(start_epoch=5, rate=value)
    assert repr(value) in str(refusal.value)


@pytest.mark.parametrize("value", [0, -1, 2.0, math.nan, "3", True], ids=repr)
def test_an_impossible_max_blocks_is_refused_by_name_and_value(value):
    with pytest.raises(ValueError, match="max_blocks") as refusal:
        Progressive(start_epoch=5, rate=3, max_blocks=value)
    assert repr(value) in str(refusal.value)
