"""Laws of the temperature schedules, with expectations from closed forms, the first design documents and torch."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.plan.schedules import Constant, Cosine, Exponential, Linear, Piecewise, progress

FROM_TO = [Linear, Cosine, Exponential]
temperatures = st.floats(0.01, 1000.0)
run_lengths = st.integers(2, 400)
#: Room for rounding in the last place; the ends themselves are compared exactly.
ULPS = 1e-12


def walk(schedule, epochs):
    """The temperature of every epoch of a run, by the definition of progress."""
    return [schedule(epoch / (epochs - 1)) for epoch in range(epochs)]


# progress


@given(run_lengths)
@settings(deadline=None, max_examples=50)
def test_progress_is_epoch_over_last_epoch(epochs):
    assert [progress(epoch, epochs) for epoch in range(epochs)] == [epoch / (epochs - 1) for epoch in range(epochs)]


@given(st.integers(2, 100_000))
@settings(deadline=None, max_examples=100)
def test_progress_is_exactly_zero_first_and_one_last(epochs):
    assert progress(0, epochs) == 0.0
    assert progress(epochs - 1, epochs) == 1.0


@pytest.mark.parametrize("schedule", [Constant(7.5), Linear(7.5, 2), Cosine(7.5, 2), Exponential(7.5, 2)])
def test_a_run_of_one_epoch_trains_at_initial(schedule):
    assert progress(0, 1) == 0.0
    assert schedule(progress(0, 1)) == 7.5


# exact ends


@pytest.mark.parametrize("schedule", FROM_TO)
@pytest.mark.parametrize(("initial", "final"), [(4.0, 1.0), (1.0, 4.0), (0.1, 0.3), (0.7, 0.1), (10, 1), (3.3, 3.3)])
@pytest.mark.parametrize("epochs", [2, 3, 7, 50, 100, 333])
def test_ends_are_exact(schedule, initial, final, epochs):
    run = [schedule(initial, final)(progress(epoch, epochs)) for epoch in range(epochs)]
    assert run[0] == initial
    assert run[-1] == final


@pytest.mark.parametrize("schedule", FROM_TO)
@given(initial=temperatures, final=temperatures, epochs=run_lengths)
@settings(deadline=None, max_examples=50)
def test_ends_are_exact_for_any_temperatures_and_length(schedule, initial, final, epochs):
    assert schedule(initial, final)(progress(0, epochs)) == initial
    assert schedule(initial, final)(progress(epochs - 1, epochs)) == final


@given(st.lists(temperatures, min_size=2, max_size=6), run_lengths)
@settings(deadline=None, max_examples=50)
def test_piecewise_ends_are_exact(points, epochs):
    schedule = Piecewise([index / (len(points) - 1) for index in range(len(points))], points)
    assert schedule(progress(0, epochs)) == points[0]
    assert schedule(progress(epochs - 1, epochs)) == points[-1]


# shape


@pytest.mark.parametrize("schedule", FROM_TO)
@given(initial=temperatures, final=temperatures, epochs=run_lengths)
@settings(deadline=None, max_examples=40)
def test_monotone_and_between_initial_and_final(schedule, initial, final, epochs):
    run = walk(schedule(initial, final), epochs)
    low, high = sorted((initial, final))
    assert all(low * (1 - ULPS) <= temperature <= high * (1 + ULPS) for temperature in run)
    rising = 1 if final >= initial else -1
    assert all(rising * (after - before) >= -ULPS * high for before, after in pairwise(run))


@pytest.mark.parametrize("schedule", FROM_TO)
@given(initial=temperatures, final=temperatures, at=st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_exchanging_the_ends_reverses_the_schedule(schedule, initial, final, at):
    assert schedule(initial, final)(at) == pytest.approx(schedule(final, initial)(1 - at), rel=1e-9)


@given(temperatures, temperatures)
@settings(deadline=None, max_examples=40)
def test_halfway_is_the_mean_or_the_geometric_mean(initial, final):
    assert Linear(initial, final)(0.5) == pytest.approx((initial + final) / 2, rel=1e-9)
    assert Cosine(initial, final)(0.5) == pytest.approx((initial + final) / 2, rel=1e-9)
    assert Exponential(initial, final)(0.5) == pytest.approx(math.sqrt(initial * final), rel=1e-9)


@given(temperatures, st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_constant_is_always_initial(initial, at):
    assert Constant(initial)(at) == initial


@given(temperatures, temperatures, run_lengths)
@settings(deadline=None, max_examples=40)
def test_linear_equals_closed_form(initial, final, epochs):
    expected = [initial + (final - initial) * epoch / (epochs - 1) for epoch in range(epochs)]
    assert walk(Linear(initial, final), epochs) == pytest.approx(expected, rel=1e-9)


@given(temperatures, temperatures, run_lengths)
@settings(deadline=None, max_examples=40)
def test_cosine_equals_closed_form(initial, final, epochs):
    # sin^2(x / 2) = (1 - cos x) / 2, another way to write SGDR's equation 5.
    weights = [math.sin(math.pi * epoch / (epochs - 1) / 2) ** 2 for epoch in range(epochs)]
    expected = [initial * (1 - weight) + final * weight for weight in weights]
    assert walk(Cosine(initial, final), epochs) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("initial", "final", "epochs"), [(4.0, 1.0, 50), (1.0, 6.0, 20), (10.0, 0.5, 7)])
def test_cosine_equals_torch_cosine_annealing(initial, final, epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=initial)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs - 1, eta_min=final)
    expected = []
    for _ in range(epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        annealing.step()
    assert walk(Cosine(initial, final), epochs) == pytest.approx(expected, rel=1e-9)


@given(temperatures, temperatures, st.integers(3, 200))
@settings(deadline=None, max_examples=40)
def test_exponential_changes_by_one_constant_factor(initial, final, epochs):
    run = walk(Exponential(initial, final), epochs)
    ratios = [after / before for before, after in pairwise(run)]
    assert ratios == pytest.approx([(final / initial) ** (1 / (epochs - 1))] * (epochs - 1), rel=1e-9)


# piecewise


def test_piecewise_follows_a_four_point_curriculum():
    # Seed 000: epochs 1-20 10 -> 8, 20-80 8 -> 3, 80-100 3 -> 1. The bends fall between two whole epochs, so that the
    # epoch nearest to each is at most one epoch's step (a tenth of a degree) away.
    run = walk(Piecewise([0, 0.2, 0.8, 1], [10, 8, 3, 1]), 100)
    assert (run[0], run[-1]) == (10, 1)
    assert run[20] == pytest.approx(8, abs=0.1)
    assert run[80] == pytest.approx(3, abs=0.1)
    assert all(8 <= temperature <= 10 for temperature in run[:20])
    assert all(3 <= temperature < 8 for temperature in run[20:80])
    assert all(1 <= temperature < 3 for temperature in run[80:])


def test_the_default_of_piecewise_is_that_curriculum():
    assert [Piecewise()(at) for at in (0, 0.1, 0.2, 0.5, 0.8, 0.9, 1)] == pytest.approx([10, 9, 8, 5.5, 3, 2, 1])


@given(st.lists(temperatures, min_size=2, max_size=5), st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_piecewise_interpolates_within_its_segment(points, at):
    segments = len(points) - 1
    schedule = Piecewise([index / segments for index in range(len(points))], points)
    segment = min(int(at * segments), segments - 1)
    share = at * segments - segment
    expected = points[segment] * (1 - share) + points[segment + 1] * share
    assert schedule(at) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(temperatures, temperatures, st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_piecewise_of_two_points_is_linear(initial, final, at):
    assert Piecewise([0, 1], [initial, final])(at) == pytest.approx(Linear(initial, final)(at), rel=1e-9)


@given(st.lists(temperatures, min_size=2, max_size=6), run_lengths)
@settings(deadline=None, max_examples=50)
def test_piecewise_is_bounded_by_its_points_and_monotone_if_they_are(points, epochs):
    at = [index / (len(points) - 1) for index in range(len(points))]
    run = walk(Piecewise(at, points), epochs)
    assert all(min(points) * (1 - ULPS) <= temperature <= max(points) * (1 + ULPS) for temperature in run)
    rising = walk(Piecewise(at, sorted(points)), epochs)
    assert all(after >= before - ULPS * max(points) for before, after in pairwise(rising))


def test_piecewise_passes_through_its_points():
    at, points = [0, 0.1, 0.35, 0.9, 1], [0.1, 5.3, 0.7, 9.9, 0.3]
    assert [Piecewise(at, points)(moment) for moment in at] == points


def test_a_schedule_copies_its_lists():
    points = [10.0, 1.0]
    schedule = Piecewise([0.0, 1.0], points)
    points[0] = 99.0
    assert schedule(0.0) == 10.0


# refusals

IMPOSSIBLE = [0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf, "4", "", True, False, None]


@pytest.mark.parametrize("value", IMPOSSIBLE, ids=repr)
@pytest.mark.parametrize("schedule", [Constant, *FROM_TO])
def test_an_impossible_initial_is_refused_by_name_and_value(schedule, value):
    with pytest.raises(ValueError, match="initial") as refusal:
        schedule(initial=value)
    assert repr(value) in str(refusal.value)


@pytest.mark.parametrize("value", IMPOSSIBLE, ids=repr)
@pytest.mark.parametrize("schedule", FROM_TO)
def test_an_impossible_final_is_refused_by_name_and_value(schedule, value):
    with pytest.raises(ValueError, match="final") as refusal:
        schedule(initial=4.0, final=value)
    assert repr(value) in str(refusal.value)


@pytest.mark.parametrize("value", IMPOSSIBLE, ids=repr)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_impossible_piecewise_temperature_is_refused_by_name_and_index(place, value):
    points = [10.0, 5.0, 1.0]
    points[place] = value
    with pytest.raises(ValueError, match=rf"temperatures\[{place}\]"):
        Piecewise([0, 0.5, 1], points)


@pytest.mark.parametrize(
    "at",
    [
        [0.1, 0.5, 1],
        [0, 0.5, 0.9],
        [0, 0, 1],
        [0, 1, 1],
        [0, 1.5, 1],
        [0, -0.5, 1],
        [1, 0.5, 0],
        [0, math.nan, 1],
        [0, math.inf, 1],
    ],
    ids=repr,
)
def test_piecewise_points_that_do_not_increase_from_zero_to_one_are_refused(at):
    with pytest.raises(ValueError, match=r"^at must increase"):
        Piecewise(at, [10, 5, 1])


@pytest.mark.parametrize(("at", "points"), [([0, 1], [4, 2, 1]), ([0, 0.5, 1], [4, 1]), ([0], [4]), ([], [])])
def test_piecewise_lists_of_unequal_or_no_length_are_refused(at, points):
    with pytest.raises(ValueError, match="at and temperatures"):
        Piecewise(at, points)
