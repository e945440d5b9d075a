"""Laws of averaged weights: the closed form, nothing for frozen blocks, and raw weights that never notice."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import TRAINING, hand_made, moved, plan, same, state, train

from kd.plan.unfreeze import Frozen
from kd.training.average import Average, Averaging


def test_an_average_is_the_weighted_sum_of_all_weights_so_far():
    layer, averaging = torch.nn.Linear(3, 2).double(), Averaging(0.7)
    average, expected = Average(layer, averaging), layer.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            layer.weight.normal_()
        average.update(step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
        torch.testing.assert_close(average.tensors["weight"], expected)


@given(st.floats(0, 0.9999), st.integers(0, 10**6))
def test_the_decay_rises_to_the_one_asked_for(decay, step):
    averaging = Averaging(decay)
    assert averaging.of_step(step) <= averaging.of_step(step + 1) <= decay
    assert averaging.of_step(10**9) == pytest.approx(decay)


def test_the_average_of_a_frozen_block_is_the_block_bit_for_bit():
    network, before = hand_made(), state(hand_made())
    options = replace(TRAINING, averaging=Averaging(0.9))
    *_, last = train(network, plan(Frozen()), options=options)
    average = last.snapshot().tensors
    encoder = [name for name in before if name.startswith("body.encoder.") and before[name].is_floating_point()]
    assert all(torch.equal(average[f"average.{name}"], before[name]) for name in encoder)
    assert not torch.equal(average["average.body.head.weight"], before["body.head.weight"])


def test_averaging_changes_no_raw_weight():
    with_it, without = hand_made(), hand_made()
    list(train(with_it, options=replace(TRAINING, averaging=Averaging(0.9)), validate=lambda: {"miou": 0.5}))
    list(train(without))
    assert same(with_it, without)


def test_statistics_are_averaged_and_counters_are_not():
    average = Average(hand_made(), Averaging(0.9))
    assert "body.encoder.stem.norm.running_mean" in average.tensors
    assert not any(name.endswith("num_batches_tracked") for name in average.tensors)


def test_in_place_the_network_is_its_average_and_itself_again_after_an_error():
    network = hand_made()
    average, raw = Average(network, Averaging(0.9)), state(network)
    average.tensors["body.head.weight"] += 1
    seen = []

    def fail() -> None:
        with average.in_place():
            seen.append(moved(raw, network))
            raise RuntimeError("here")

    with pytest.raises(RuntimeError, match="here"):
        fail()
    assert seen == [{"body.head.weight"}]
    assert moved(raw, network) == set()


@pytest.mark.parametrize(
    ("saves", "raw", "average", "takes"),
    [
        ("better", 0.5, 0.6, True), ("better", 0.6, 0.5, False), ("better", 0.5, 0.5, False),
        ("better", None, 0.1, True), ("better", 0.1, None, False), ("average", 0.9, 0.1, True),
        ("raw", 0.1, 0.9, False),
    ],
)  # fmt: skip
def test_the_better_or_the_asked_weights_are_measured_and_handed_out(saves, raw, average, takes):
    """The record has both, and `measured` puts the ones that count into the student."""
    network, found = hand_made(), iter([raw, average])
    options = replace(TRAINING, averaging=Averaging(0.9, saves))
    result = next(train(network, options=options, validate=lambda: {"miou": next(found), "iou/a": 1.0}))
    record, own = result.metrics(), state(network)
    assert record["val/averaged"] == int(takes)
    assert record["val/miou"] == (average if takes else raw)
    assert (record["val/raw/miou"], record["val/average/miou"]) == (raw, average)
    assert "val/raw/iou/a" not in record
    with result.measured():
        assert bool(moved(own, network)) == takes
    assert moved(own, network) == set()


def test_a_loss_is_better_when_lower():
    assert Averaging(0.9, objective="val/loss").takes_average({"loss": 0.5}, {"loss": 0.4})
