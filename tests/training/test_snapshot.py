"""A training resumed from a snapshot equals one that was never interrupted, bit for bit, wherever it is cut."""

import json
from dataclasses import replace

import albumentations
import pytest
import torch
from toy import ALL_TERMS, EIGHT, TRAINING, hand_made, loader, plan, same, state, teacher, train

from kd.data import Shapes
from kd.data.batches.loading import TrainLoader
from kd.data.batches.order import Order
from kd.data.batches.unlabelled import BatchSize
from kd.data.views.augmentation import Augmentation
from kd.networks import build
from kd.networks.precision import Precision
from kd.run import checkpoint
from kd.settings import NetworkSettings
from kd.training.average import Averaging
from kd.training.loop import EpochResult, Pause
from kd.training.snapshot import Snapshot, restore, take
from kd.training.step import optimizer_for

#: Every point at which a training of three epochs of four batches can be cut: after a step, or between two epochs.
STEPS, EPOCHS = 4, 3
CUTS = [(epoch, step) for epoch in range(EPOCHS) for step in range(1, STEPS)] + [(1, 0), (2, 0), (3, 0)]
TIMES = ("seconds", "seconds_waiting", "images_per_second", "time")


def batches(workers: int = 0):
    return loader(EIGHT, transforms=[albumentations.HorizontalFlip(p=0.5)], workers=workers)


def lines(results: list[EpochResult]) -> list[dict]:
    return [{name: value for name, value in item.metrics().items() if name not in TIMES} for item in results]


def through(network, stop_at=None, **more):
    """Train up to the cut; returns the epochs' lines and the snapshot there."""
    results = []
    for item in train(network, plan(epochs=EPOCHS), pause=lambda: True, **{"train": batches(), **more}):
        if isinstance(item, EpochResult):
            results.append(item)
        found = item.snapshot()
        if (found.epoch, found.step) == stop_at:
            return lines(results), found
    return lines(results), None


@pytest.fixture(scope="module")
def straight():
    network = hand_made()
    return network, through(network)[0]


def to_disk_and_back(found: Snapshot, folder) -> Snapshot:
    checkpoint.save(folder, found)
    return checkpoint.load(folder)


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"epoch {cut[0]} step {cut[1]}")
def test_an_interrupted_training_ends_as_if_it_had_not_been(straight, cut, tmp_path):
    before, found = through(hand_made(), stop_at=cut)
    network = hand_made(seed=5)  # other weights, which the snapshot replaces
    after, _ = through(network, start=to_disk_and_back(found, tmp_path))
    assert same(network, straight[0])
    assert before + after == straight[1]


def test_a_training_can_resume_with_other_workers(straight):
    _, found = through(hand_made(), stop_at=(1, 2))
    network = hand_made(seed=5)
    through(network, start=found, train=batches(workers=2))
    assert same(network, straight[0])


@pytest.mark.parametrize(
    "options",
    [
        replace(TRAINING, accumulate=2),
        replace(TRAINING, clip_norm=1e-3),
        replace(TRAINING, algorithm="sgd"),
        replace(TRAINING, algorithm="sgd", nesterov=True, averaging=Averaging(0.9)),
    ],
    ids=["accumulating", "clipping", "sgd", "averaging"],
)
def test_every_recipe_can_be_resumed(options):
    whole, first, second = hand_made(), hand_made(), hand_made(seed=5)
    through(whole, options=options)
    _, found = through(first, stop_at=(1, 2), options=options)
    through(second, start=found, options=options)
    assert same(second, whole)


@pytest.mark.parametrize("cut", [(0, 1), (1, 0), (1, 2)], ids=str)
def test_an_average_is_resumed_bit_for_bit(cut, tmp_path):
    options = replace(TRAINING, averaging=Averaging(0.9), accumulate=2 if cut == (1, 2) else 1)

    def averages(network, **more):
        results, final = [], None
        for item in train(network, plan(epochs=EPOCHS), pause=lambda: True, train=batches(), options=options, **more):
            final = item.snapshot()
            if (final.epoch, final.step) == cut and "start" not in more:
                results.append(final)
        return results, {name: value for name, value in final.tensors.items() if name.startswith("average.")}

    (found,), whole = averages(hand_made())
    _, rest = averages(hand_made(seed=5), start=to_disk_and_back(found, tmp_path))
    assert whole.keys() == rest.keys()
    assert all(torch.equal(rest[name], whole[name]) for name in whole)
    assert any(not torch.equal(whole[name], found.tensors[name]) for name in whole)


def test_a_training_with_pictures_without_masks_can_be_resumed():
    """In the middle of an epoch and of a pass over the pictures, which are 3 steps of 2."""
    source, (whole, first, second) = replace(EIGHT, unlabelled=7), (hand_made(), hand_made(), hand_made(seed=5))

    def pictures():
        return loader(source, transforms=[albumentations.HorizontalFlip(p=0.5)], batch_size=BatchSize(2, 2))

    through(whole, train=pictures())
    _, found = through(first, stop_at=(1, 2), train=pictures())
    through(second, start=found, train=pictures())
    assert same(second, whole)
    alone = hand_made()
    through(alone)
    assert not same(alone, whole)


def test_a_training_with_terms_for_rare_classes_and_repeated_pictures_can_be_resumed():
    order = Order(0, (1.0, 4.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0))
    weights = {**ALL_TERMS, "focal": 1.0, "tversky": 1.0, "jaccard": 1.0, "lovasz": 1.0, "class_weights": (1.5, 20.0)}

    def often():
        return TrainLoader(EIGHT, Augmentation([albumentations.HorizontalFlip(p=0.5)], 0), 2, order)

    whole, first, second, alone = hand_made(), hand_made(), hand_made(seed=5), hand_made()
    through(whole, train=often(), weights=weights)
    _, found = through(first, stop_at=(1, 2), train=often(), weights=weights)
    through(second, start=found, train=often(), weights=weights)
    assert same(second, whole)
    through(alone, weights=weights)
    assert not same(alone, whole)


def test_the_projections_of_features_are_part_of_a_snapshot():
    weights = {**ALL_TERMS, "features": 1.0}
    more = {"weights": weights, "who": lambda: teacher(stages=(2,))}
    whole, first, second = hand_made(), hand_made(), hand_made(seed=5)
    through(whole, **more)
    _, found = through(first, stop_at=(1, 2), **more)
    assert "network.projections.0.weight" in found.tensors
    through(second, start=found, **more)
    assert same(second, whole)
    without = hand_made()
    through(without)
    assert not same(without, whole)


def test_the_loss_scale_of_half_precision_is_restored():
    half = Precision(torch.device("cpu"), "fp16", channels_last=False)
    _, found = through(hand_made(), stop_at=(1, 2), precision=half)
    whole, rest = hand_made(), hand_made(seed=5)
    through(whole, precision=half)
    through(rest, precision=half, start=found)
    assert found.facts["scaler"]["scale"] > 1
    assert same(rest, whole)


def test_a_real_network_in_channels_last_resumes_bit_for_bit():
    """Optimiser moments need the memory layout of their parameters."""
    source, cpu = Shapes(image_size=(32, 32), train=6, val=2, test=1), Precision(torch.device("cpu"))

    def built(seed):
        torch.manual_seed(seed)
        settings = NetworkSettings(arch="unet", encoder="tu-mobilenetv3_small_050")
        return cpu.place(build.build(settings, 1, source.class_names, "backbone.student"))

    def go(network, **more):
        timeline = plan(epochs=2, blocks=len(network.partition.blocks))
        return train(network, timeline, who=None, weights={"alpha": 0, "beta": 0, "gamma": 1, "delta": 1},
                     train=loader(source), precision=cpu, pause=lambda: True, **more)  # fmt: skip

    whole, first, second = built(0), built(0), built(1)
    for _ in go(whole):
        pass
    cut = [item.snapshot() for item, _ in zip(go(first), range(5), strict=False)][-1]
    for _ in go(second, start=cut):
        pass
    assert (cut.epoch, cut.step) == (1, 2)
    assert same(second, whole)


def test_a_snapshot_is_a_copy():
    network = hand_made()
    items = train(network, pause=lambda: True, train=batches())
    found = next(items).snapshot()
    before, facts = {name: value.clone() for name, value in found.tensors.items()}, json.dumps(found.facts)
    next(items)
    assert json.dumps(found.facts) == facts
    assert all(torch.equal(value, before[name]) for name, value in found.tensors.items())


def test_a_snapshots_facts_are_plain_json():
    found = next(iter(train(hand_made(), pause=lambda: True, train=batches()))).snapshot()
    assert json.loads(json.dumps(found.facts)) == found.facts


def test_a_pause_comes_only_on_request_and_never_at_an_epochs_end():
    assert not any(isinstance(item, Pause) for item in train(hand_made(), train=batches()))
    kinds = [type(item) for item in train(hand_made(), plan(epochs=1), train=batches(), pause=lambda: True)]
    assert kinds == [Pause] * (STEPS - 1) + [EpochResult]


def test_a_snapshot_of_another_network_is_refused_and_changes_nothing():
    network, small = hand_made(), torch.nn.Linear(2, 2)
    optimizer, scaler = optimizer_for(network, TRAINING), torch.amp.GradScaler(enabled=False)
    before = state(network)
    alien = take(small, torch.optim.AdamW(small.parameters()), scaler, {"epoch": 0, "step": 0, "sums": None})
    with pytest.raises(ValueError, match="belongs to another network"):
        restore(alien, network, optimizer, scaler)
    assert all(torch.equal(value, before[name]) for name, value in state(network).items())
