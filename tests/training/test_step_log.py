"""Nonfinite losses and gradients change no weight, and are always reported."""

import json
from dataclasses import replace

import pytest
import torch
from toy import CPU, EIGHT, HARD, TRAINING, hand_made, loader, moved, plan, state, train

from kd.data.batches.batch import Batch
from kd.errors import DivergedError
from kd.networks.precision import Precision
from kd.system.world import SOLO
from kd.training.loop import EpochResult
from kd.training.step_log import StepLog

SKIP = replace(TRAINING, skip_nonfinite=True)
HALF = Precision(torch.device("cpu"), "fp16", channels_last=False)


class Poisoned:
    """A loader whose batch at one step makes a network's output infinite, by way of a parameter's hook."""

    def __init__(self, network, at: tuple[int, int], gradient_only: bool = False) -> None:
        self.network, self.at, self.gradient_only, self.inner = network, at, gradient_only, loader(EIGHT)
        self.now: tuple[int, int] | None = None
        network.body.head.register_forward_hook(self._forward)

    def _forward(self, module, inputs, output):
        if self.now != self.at or not module.training:
            return output
        if self.gradient_only:
            output.register_hook(lambda gradient: gradient * float("inf"))
            return output
        return output * float("inf")

    world = SOLO

    def steps(self) -> int:
        return self.inner.steps()

    def epoch(self, epoch: int, start: int = 0):
        for step, batch in enumerate(self.inner.epoch(epoch, start), start):
            self.now = (epoch, step)
            yield batch
        self.now = None


def poisoned(at=(0, 2), gradient_only=False, **more):
    network = hand_made()
    batches = Poisoned(network, at, gradient_only)
    return network, train(network, plan(epochs=2), HARD, train=batches, who=None, **more), batches


@pytest.mark.parametrize("gradient_only", [False, True], ids=["loss", "gradient"])
def test_a_nonfinite_step_ends_the_training_and_is_named(gradient_only):
    _, items, batches = poisoned(gradient_only=gradient_only)
    with pytest.raises(DivergedError, match=r"in epoch 1, step 2; .*trainer.nonfinite=skip") as caught:
        list(items)
    expected = [("train", index) for index in list(batches.inner.epoch(0))[2].indices.tolist()]
    assert (caught.value.epoch, caught.value.step, list(caught.value.samples)) == (0, 2, expected)
    assert ("gradient" in str(caught.value)) == gradient_only


@pytest.mark.parametrize("gradient_only", [False, True], ids=["loss", "gradient"])
def test_a_nonfinite_step_changes_no_weight(gradient_only):
    network, items, _ = poisoned((0, 0), gradient_only)
    before = state(network)
    with pytest.raises(DivergedError):
        list(items)
    assert {name for name in moved(before, network) if "running" not in name and "num_batches" not in name} == set()


@pytest.mark.parametrize("gradient_only", [False, True], ids=["loss", "gradient"])
def test_nonfinite_steps_are_skipped_and_counted_if_asked_for(gradient_only):
    network, items, _ = poisoned(gradient_only=gradient_only, options=SKIP)
    results = list(items)
    assert [result.train["skipped_steps"] for result in results] == [1, 0]
    assert all(torch.isfinite(value).all() for value in state(network).values())
    assert all(value == value for result in results for value in result.train.values())


def test_a_skipped_step_changes_nothing():
    """Weights and batch-norm statistics stay, bit for bit: the hook's poison reaches neither."""
    network, items, batches = poisoned((0, 1), options=SKIP, pause=lambda: True)
    next(items)
    before = state(network)
    next(items)
    assert moved(before, network) == set()
    assert batches.now == (0, 1)


def test_means_are_over_the_steps_that_were_taken():
    _, items, _ = poisoned((0, 3), options=SKIP)
    _, others, _ = poisoned((9, 9), options=SKIP, pause=lambda: True)
    three = [item.snapshot() for item, _ in zip(others, range(3), strict=False)][-1].facts["sums"]
    assert next(items).train["loss"] == pytest.approx(sum(three["values"]["loss"]) / 3, rel=1e-12)


def test_an_epoch_without_a_step_ends_the_training():
    network = hand_made()
    with torch.no_grad():
        network.body.head.bias.fill_(float("nan"))
    with pytest.raises(DivergedError, match="no step of epoch 1 was taken"):
        next(train(network, options=SKIP))


def test_an_overflow_of_half_precision_is_counted_and_is_no_error():
    """Scaled by 65,536, the first gradients of a steep loss are beyond fp16; the scale falls with each."""
    network = hand_made()
    with torch.no_grad():
        network.body.head.weight *= 300
    results = [r for r in train(network, plan(epochs=2), who=None, weights={**HARD, "gamma": 3e3}, train=loader(EIGHT),
                                precision=HALF) if isinstance(r, EpochResult)]  # fmt: skip
    assert [result.train["overflows"] for result in results] == [4, 4]
    assert all(torch.isfinite(value).all() for value in state(network).values())


def test_a_scale_that_only_falls_ends_the_training():
    network = hand_made()
    with torch.no_grad():
        network.body.head.weight *= 300
    items = train(network, plan(epochs=20), {**HARD, "gamma": 3e20}, train=loader(EIGHT), who=None, precision=HALF)
    with pytest.raises(DivergedError, match="no step of epoch"):
        list(items)


def test_overflows_are_distinguished_from_nonfinite_losses():
    log = StepLog(0, HALF)
    batch = Batch(torch.empty(0), torch.empty(0), torch.tensor([0, 1]), 0)
    log.record(0, [batch], [{"loss": torch.tensor(1.0)}], torch.tensor(float("inf")))
    log.record(1, [batch], [{"loss": torch.tensor(3.0)}], torch.tensor(1.0))
    assert log.means() == {"loss": 2.0, "overflows": 1}
    with pytest.raises(DivergedError):
        log.record(2, [batch], [{"loss": torch.tensor(float("nan"))}], torch.tensor(1.0))


def test_a_picture_without_a_mask_is_named_as_one():
    batch = Batch(torch.empty(0), torch.empty(0), torch.tensor([4, 1]), 0)
    batch = replace(batch, unlabelled=replace(batch, indices=torch.tensor([3])))
    with pytest.raises(DivergedError) as caught:
        StepLog(0, CPU).record(0, [batch], [{"loss": torch.tensor(float("nan"))}], torch.tensor(1.0))
    assert caught.value.samples == (("train", 4), ("train", 1), ("unlabelled", 3))


def test_a_step_logs_state_survives_json_bit_for_bit():
    _, items, _ = poisoned((9, 9), pause=lambda: True)
    sums = [item.snapshot() for item, _ in zip(items, range(2), strict=False)][-1].facts["sums"]
    again = StepLog(0, CPU, state=json.loads(json.dumps(sums)))
    assert again.values == sums["values"]
    assert (again.sizes, again.images) == (sums["sizes"], sum(sums["sizes"]))


def test_time_before_an_interruption_counts(monkeypatch):
    monkeypatch.setattr("time.perf_counter", iter([50.0, 53.0]).__next__)
    log = StepLog(0, CPU, state={"values": {}, "sizes": [], "seconds": 100.0, "skipped": 0, "overflows": 0})
    assert log.seconds() == 103


def test_the_images_of_the_whole_batch_count_if_a_process_has_a_share_of_it():
    log = StepLog(0, CPU, batch_size=7)
    (part,) = loader(batch_size=6).epoch(0)
    log.record(0, [part], [{"loss": torch.tensor(1.0)}], torch.tensor(1.0))
    log.record(1, [part], [{"loss": torch.tensor(2.0)}], torch.tensor(1.0))
    assert log.images == 14
    assert log.means() == {"loss": 1.5}
