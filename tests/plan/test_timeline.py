"""Laws of the plan: a pure function of settings and epoch, combining schedule, policy and torch's half cosine."""

import random
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.config.compose import PROJECT
from kd.plan.schedules import Cosine, Linear
from kd.plan.timeline import LearningRates, Timeline
from kd.plan.unfreeze import All, Frozen, Progressive

ROOT = PROJECT
SEED_002 = Timeline(Cosine(4.0, 1.0), Progressive(5, 3), LearningRates(1e-4, 1e-6, 0.3), epochs=50, blocks=7)


def torch_cosine(lr, min_lr, epochs):
    """The rates that torch's own scheduler sets in a run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=min_lr)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        annealing.step()
    return rates


# references


@pytest.mark.parametrize(("lr", "min_lr", "epochs"), [(1e-4, 1e-6, 50), (3e-3, 0.0, 7), (0.5, 0.5, 4), (1.0, 0.1, 1)])
def test_decoder_rate_equals_torch_cosine_annealing(lr, min_lr, epochs):
    plan = Timeline(Cosine(), All(), LearningRates(lr, min_lr, 0.3), epochs, blocks=3)
    assert [row.lr_decoder for row in plan] == pytest.approx(torch_cosine(lr, min_lr, epochs), rel=1e-9)


@pytest.mark.parametrize(("power", "warmup", "epochs"), [(0.9, 0, 50), (1.0, 3, 7), (2.0, 1, 4), (0.5, 9, 10)])
def test_polynomial_decay_and_warm_up_are_torchs(power, warmup, epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedulers = [torch.optim.lr_scheduler.PolynomialLR(optimizer, epochs, power)]
    if warmup:
        schedulers.append(torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup))
    together = torch.optim.lr_scheduler.ChainedScheduler(schedulers)
    expected = []
    for _ in range(epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        together.step()
    rates = LearningRates(0.3, 0.0, 0.5, decay="polynomial", power=power, warmup=warmup)
    assert [rates.decoder(epoch, epochs) for epoch in range(epochs)] == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 20), st.integers(1, 30), st.sampled_from(["cosine", "polynomial"]))
@settings(deadline=None, max_examples=40)
def test_a_warm_up_changes_no_epoch_after_it_and_none_exceeds_the_base_rate(warmup, more, decay):
    epochs = warmup + more
    with_it, without = (LearningRates(1.0, 0.01, 0.5, decay=decay, warmup=each) for each in (warmup, 0))
    rates = [[each.decoder(epoch, epochs) for epoch in range(epochs)] for each in (with_it, without)]
    assert rates[0][warmup:] == rates[1][warmup:]
    assert all(0 < low <= high <= 1 for low, high in zip(*rates, strict=True))
    assert rates[0][0] == pytest.approx(1 / (warmup + 1))


def test_the_end_of_the_warm_up_splits_a_phase():
    rates = LearningRates(1e-3, 0.0, 1.0, warmup=2)
    plan = Timeline(Cosine(), Progressive(4, 1), rates, epochs=6, blocks=3)
    assert [[row.epoch for row in phase] for phase in plan.phases()] == [[0, 1], [2, 3], [4], [5]]


@given(st.floats(1e-5, 1.0), st.floats(0.01, 2.0), st.floats(0.1, 1.0), st.integers(1, 30), st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_encoder_rate_is_scale_times_decoder_rate_and_decays_with_depth(lr, scale, decay, epochs, blocks):
    for row in Timeline(Cosine(), All(), LearningRates(lr, 0.0, scale, decay), epochs, blocks):
        assert row.lr_encoder == pytest.approx(row.lr_decoder * scale, rel=1e-12)
        assert len(row.lr_blocks) == blocks
        assert row.lr_blocks[0] == row.lr_encoder
        for deeper, shallower in pairwise(row.lr_blocks):
            assert shallower == pytest.approx(deeper * decay, rel=1e-9)


def test_without_depth_decay_every_block_has_the_encoder_rate():
    assert all(set(row.lr_blocks) == {row.lr_encoder} for row in SEED_002)


def test_the_first_epoch_has_the_configured_rates():
    assert SEED_002[0].lr_decoder == pytest.approx(1e-4)
    assert SEED_002[0].lr_encoder == pytest.approx(3e-5)


def test_temperature_is_the_schedule_at_epoch_over_last_epoch():
    schedule = Linear(4.0, 1.0)
    plan = Timeline(schedule, All(), LearningRates(1e-3, 0.0, 1.0), epochs=7, blocks=2)
    assert [row.temperature for row in plan] == [4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0]


def test_unfrozen_blocks_follow_the_policy():
    policy = Progressive(2, 4)
    plan = Timeline(Cosine(), policy, LearningRates(1e-3, 0.0, 1.0), epochs=20, blocks=4)
    assert [row.unfrozen_blocks for row in plan] == [policy(epoch, 4) for epoch in range(20)]


def test_a_run_of_one_epoch_has_a_plan():
    (only,) = Timeline(Cosine(4.0, 1.0), Frozen(), LearningRates(1e-3, 0.0, 0.5), epochs=1, blocks=2)
    assert (only.epoch, only.temperature, only.unfrozen_blocks) == (0, 4.0, 0)
    assert (only.lr_decoder, only.lr_blocks) == (1e-3, (5e-4, 5e-4))


# purity


def test_an_epoch_plan_does_not_depend_on_earlier_calls():
    in_order = list(SEED_002)
    order = random.Random(0).choices(range(50), k=120)
    assert [SEED_002[epoch] for epoch in order] == [in_order[epoch] for epoch in order]
    again = Timeline(Cosine(4.0, 1.0), Progressive(5, 3), LearningRates(1e-4, 1e-6, 0.3), epochs=50, blocks=7)
    assert again == SEED_002
    assert list(again) == in_order


def test_a_plan_can_be_iterated_repeatedly():
    assert len(SEED_002) == 50
    assert [row.epoch for row in SEED_002] == list(range(50))
    assert list(SEED_002) == list(SEED_002) == [SEED_002[epoch] for epoch in range(50)]


@pytest.mark.parametrize("epoch", [-1, 50, 51, 1000])
def test_an_epoch_outside_the_run_raises(epoch):
    with pytest.raises(IndexError, match=str(epoch)):
        SEED_002[epoch]


# phases


def test_phases_are_the_rows_of_the_table_for_start_5_rate_3():
    rows = [(phase[0].epoch + 1, phase[-1].epoch + 1, phase[0].unfrozen_blocks) for phase in SEED_002.phases()]
    assert rows == [
        (1, 5, 0), (6, 8, 1), (9, 11, 2), (12, 14, 3), (15, 17, 4), (18, 20, 5), (21, 23, 6), (24, 50, 7),
    ]  # fmt: skip


def test_phases_are_the_rows_of_the_table_for_start_10_rate_5():
    plan = Timeline(Cosine(4.0, 1.0), Progressive(10, 5), LearningRates(1e-4, 1e-6, 0.1), epochs=50, blocks=7)
    rows = [(phase[0].epoch, phase[-1].epoch, phase[0].unfrozen_blocks) for phase in plan.phases()]
    assert rows == [
        (0, 9, 0), (10, 14, 1), (15, 19, 2), (20, 24, 3), (25, 29, 4), (30, 34, 5), (35, 39, 6), (40, 49, 7),
    ]  # fmt: skip


@given(st.integers(0, 20), st.integers(1, 6), st.integers(1, 30), st.integers(1, 10))
@settings(deadline=None, max_examples=40)
def test_phases_split_the_plan_where_unfrozen_blocks_change(start, rate, epochs, blocks):
    plan = Timeline(Cosine(), Progressive(start, rate), LearningRates(1e-3, 0.0, 1.0), epochs, blocks)
    phases = plan.phases()
    assert [row for phase in phases for row in phase] == list(plan)
    assert all(len({row.unfrozen_blocks for row in phase}) == 1 for phase in phases)
    assert all(a[0].unfrozen_blocks != b[0].unfrozen_blocks for a, b in pairwise(phases))


# lightness


def test_the_plan_does_not_import_torch():
    code = "import sys, kd.plan.timeline; print('torch' in sys.modules, 'kd.plan.timeline' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "True"]
