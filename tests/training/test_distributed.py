"""Several processes give the weights, metrics and decisions of one.

In double precision, where rounding has no room to hide a mistake: what is left in single precision is rounding that a
random network's batch norms and Adam's division blow up.
"""

from dataclasses import replace

import pytest
import together
import torch
from toy import ALL_TERMS, CPU, TRAINING, hand_made, learner_of, plan, state, teacher

from kd.data import Shapes
from kd.data.batches.loading import EvalLoader, Loading, TrainLoader
from kd.data.batches.order import Order
from kd.data.batches.unlabelled import BatchSize
from kd.data.views.augmentation import Augmentation
from kd.distillation.losses import DistillationLoss
from kd.errors import DataError, DivergedError, RunError
from kd.networks import build
from kd.plan.schedules import Linear
from kd.plan.timeline import LearningRates, Timeline
from kd.plan.unfreeze import Progressive
from kd.settings import NetworkSettings
from kd.system.world import SOLO
from kd.training.batch_norm import measure_batch_norm
from kd.training.evaluation import evaluate
from kd.training.loop import Pause, fit
from kd.training.step import Distillation

SOURCE = Shapes(image_size=(32, 32), train=10, val=7, test=1, unlabelled=5)
single = torch.Tensor.float


def exactly() -> None:
    """Compute losses in double precision, for the rest of this process."""
    torch.Tensor.float = lambda self: self.double() if self.is_floating_point() else single(self)


def efficientnet():
    """Random weights, with stochastic depth, squeeze and excitation, and layers that the encoder never runs."""
    torch.manual_seed(3)
    return build.build(NetworkSettings(arch="unet", encoder="efficientnet-b0"), 1, SOURCE.class_names, "student")


def trained(world, network=efficientnet, batch_size=5, accumulate=1, clip_norm=0.5, epochs=2, start=None, stop=None,
            unlabelled=0, features=False, weights=ALL_TERMS, order=0, algorithm="adamw"):  # fmt: skip
    """Weights, records, and the snapshot of the pause or epoch at which it stopped."""
    exactly()
    student = network().double()
    size = BatchSize(batch_size, unlabelled)
    loader = TrainLoader(SOURCE, Augmentation((), 0), size, order, Loading(world=world))
    if start is None:
        measure_batch_norm(student, loader, CPU, 0, batches=1)
    weights, stages = ({**ALL_TERMS, "features": 1.0}, (2,)) if features else (weights, ())
    shared = () if world.size == 1 else (world.total, world.whole)
    loss = DistillationLoss(weights, 1, None, *shared)
    blocks, asked = len(student.partition.blocks), iter(range(100))
    timeline = Timeline(Linear(4, 1), Progressive(1, 3), LearningRates(1e-3, 1e-5, 0.3, 1.0), epochs, blocks)
    options = replace(TRAINING, accumulate=accumulate, clip_norm=clip_norm, algorithm=algorithm)
    learner = learner_of(student) if features else None
    distillation = Distillation(student, loss, timeline, teacher(stages), learner)
    results = fit(distillation, loader, dict, options, CPU, start, pause=lambda: next(asked) == stop)
    records = []
    for result in results:
        if isinstance(result, Pause):
            return state(student), records, result.snapshot()
        records.append((result.train, result.images_per_second * result.seconds))
    return state(student), records, result.snapshot()


def assert_same(found, expected, tolerance=1e-8):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)


def diverging(world):
    """A training whose logits are NaN in process 0 only, from its second epoch on."""
    student, epochs = hand_made(), []
    student.body.register_forward_hook(lambda _, args, out: out * float("nan") if epochs and world.is_main else out)
    loader = TrainLoader(SOURCE, Augmentation((), 0), 5, 0, Loading(world=world))
    try:
        for item in fit(Distillation(student, hard(world), plan(epochs=3)), loader, dict, TRAINING, CPU):
            epochs.append(item)
    except DivergedError as error:
        return error.epoch, error.step, str(error)
    return None


def hard(world):
    return DistillationLoss({**ALL_TERMS, "alpha": 0, "beta": 0}, 1, None, world.total)


class Unreadable(Shapes):
    """One image of each split cannot be read, by whichever process it falls to."""

    def read(self, split, index):
        if index == 6:
            raise DataError(f"{split}/6.png cannot be read")
        return super().read(split, index)


def reading(world, split):
    source = Unreadable(image_size=(32, 32), train=10, val=7, test=1)
    try:
        if split == "val":
            evaluate(hand_made(), EvalLoader(source, "val", 2, Loading(world=world)), CPU, None)
        else:
            loader = TrainLoader(source, Augmentation((), 0), 5, 0, Loading(world=world))
            list(fit(Distillation(hand_made(), hard(world), plan()), loader, dict, TRAINING, CPU))
    except (DataError, RunError) as error:
        return error
    return None


def evaluated(world, size):
    loader = EvalLoader(SOURCE, "val", size, Loading(world=world))
    reference = evaluate(hand_made(seed=9), loader, CPU, None, keep_labels=True).labels
    found = evaluate(hand_made(), loader, CPU, None, reference, keep_labels=True)
    return found.metrics(SOURCE.class_names), found.labels


#: Without Lovasz, which smp does not compute in double precision; `test_losses.py` has it in several processes.
RARE = {
    **ALL_TERMS, "focal": 1.0, "tversky": 1.0, "tversky_beta": 0.8, "tversky_gamma": 0.75, "jaccard": 1.0,
    "class_weights": (1.5, 20.0),
}  # fmt: skip
OFTEN = Order(0, (1.0, 3.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0))
TOY = {"network": hand_made, "epochs": 3}
OPTIONS = [
    {**TOY, "accumulate": 2},
    {**TOY, "batch_size": 10},
    {**TOY, "algorithm": "sgd"},
    {**TOY, "batch_size": 3, "clip_norm": None},  # with three processes each has a single image
    {**TOY, "weights": RARE, "order": OFTEN},
    {**TOY, "unlabelled": 4},
    {**TOY, "unlabelled": 4, "features": True},
    {**TOY, "unlabelled": 2, "accumulate": 2},  # one of three processes has no picture without a mask
]


def by_two(world):
    """The results of two processes and, in the first one, of a single process."""
    found = {"evaluated": {size: evaluated(world, size) for size in (1, 2, 7)}}
    found["diverging"] = diverging(world)
    found["reading"] = {split: reading(world, split) for split in ("train", "val")}
    found["b0"] = trained(world)
    paused = trained(world, **TOY, stop=1)[2]
    half = trained(SOLO, **TOY, stop=1)[2] if world.is_main else None
    found["from one"] = trained(world, **TOY, start=world.broadcast(half))
    if world.is_main:
        found["b0 alone"], found["alone"] = trained(SOLO), trained(SOLO, **TOY)
        found["from two"] = trained(SOLO, **TOY, start=paused)
    return found


def by_three(world):
    found = {"evaluated": {size: evaluated(world, size) for size in (1, 3)}}
    found["trained"] = [trained(world, **options) for options in OPTIONS]
    if world.is_main:
        found["alone"] = [trained(SOLO, **options) for options in OPTIONS]
    return found


@pytest.fixture(scope="module")
def two():
    return together.run(by_two)


@pytest.fixture(scope="module")
def three():
    return together.run(by_three, size=3)


# training


def test_two_processes_end_with_the_weights_of_one_through_an_unfreezing(two):
    """5 samples a batch: one process has 2 of them, the other 3."""
    one, before = two[0]["b0 alone"][0], state(efficientnet())
    closed = {name for name, value in one.items() if torch.equal(value, before[name].to(value.dtype))}
    assert any("_blocks.15." in name for name in one.keys() - closed)
    assert any(name.startswith("body.encoder._conv_head") for name in closed)
    for found in two:
        assert_same(found["b0"][0], one)


def test_processes_end_with_the_same_weights_bit_for_bit(two):
    here, there = (found["b0"][0] for found in two)
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_every_process_knows_the_losses_of_the_whole_batch(two):
    for found in two:
        for (losses, images), (expected, whole) in zip(found["b0"][1], two[0]["b0 alone"][1], strict=True):
            assert losses == pytest.approx(expected, rel=1e-8)
            assert images == pytest.approx(whole) == pytest.approx(10)


@pytest.mark.parametrize("case", range(len(OPTIONS)))
def test_three_processes_end_with_the_weights_of_one(three, case):
    """Also with gradients accumulated over several batches."""
    for found in three:
        assert_same(found["trained"][case][0], three[0]["alone"][case][0])


def test_any_number_of_processes_resumes_from_a_pause_of_any_other(two):
    expected = two[0]["alone"][0]
    assert_same(two[0]["from two"][0], expected)
    for found in two:
        assert_same(found["from one"][0], expected)


def test_a_nonfinite_loss_in_one_process_ends_all_with_the_same_message(two):
    first, second = (found["diverging"] for found in two)
    assert first == second
    assert first[:2] == (1, 0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_file_that_one_process_cannot_read_ends_all_and_is_named_by_all(two, split):
    errors = [found["reading"][split] for found in two]
    assert {type(error) for error in errors} == {DataError, RunError}
    assert all(f"{split}/6.png cannot be read" in str(error) for error in errors)


# evaluation


@pytest.mark.parametrize(("processes", "size"), [("two", 1), ("two", 2), ("two", 7), ("three", 1), ("three", 3)])
def test_metrics_and_labels_are_bit_for_bit_those_of_one_process(processes, size, request):
    """Also where there are fewer batches than processes."""
    figures, labels = evaluated(SOLO, size)
    for each in request.getfixturevalue(processes):
        found, kept = each["evaluated"][size]
        assert found == figures
        assert len(kept) == len(labels)
        assert all(torch.equal(one, other) for one, other in zip(kept, labels, strict=True))
