"""Which pictures without masks join which batch."""

from collections import Counter

import albumentations
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd.data import Shapes
from kd.data.batches.loading import Loading, TrainLoader
from kd.data.batches.unlabelled import BatchSize, Passes
from kd.data.views.augmentation import Augmentation
from kd.system.world import SOLO, World

SOURCE = Shapes(image_size=(32, 32), train=23, val=3, test=2, unlabelled=10)


def loader(size, source=SOURCE, workers=0, world=SOLO, **options):
    flips = Augmentation([albumentations.HorizontalFlip(p=0.5), albumentations.GaussNoise(p=1)], 0)
    return TrainLoader(source, flips, size, 0, Loading(workers, world=world), **options)


def same(one, other):
    return one.view == other.view and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "masks", "indices")
    )


@given(st.integers(1, 40), st.data())
def test_a_pass_shows_each_picture_at_most_once_and_drops_fewer_than_a_batch(pictures, data):
    size = data.draw(st.integers(1, pictures))
    passes = Passes(pictures, size, seed=3, views=None)
    for number in range(3):
        parts = [passes.part(number * passes.steps() + step) for step in range(passes.steps())]
        shown = Counter(index for part in parts for index in part.indices)
        assert {part.view for part in parts} == {number}
        assert {len(part.indices) for part in parts} == {size}
        assert max(shown.values()) == 1
        assert pictures - len(shown) < size


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_the_pictures_of_a_step_depend_on_seed_and_step_alone(steps):
    used = Passes(10, 3, seed=0, views=4)
    for step in steps:
        assert used.part(step) == Passes(10, 3, seed=0, views=4).part(step)
    assert any(Passes(10, 3, 0, None).part(s).indices != Passes(10, 3, 1, None).part(s).indices for s in range(3))


def test_the_labelled_samples_of_every_batch_are_those_of_a_run_without_pictures():
    one, other = loader(4), loader(BatchSize(4, 3))
    assert (one.steps(), one.batch_size()) == (other.steps(), BatchSize(4)) == (5, BatchSize(4))
    assert other.batch_size() == BatchSize(4, 3)
    for epoch in (0, 3):
        for alone, beside in zip(one.epoch(epoch), other.epoch(epoch), strict=True):
            assert same(alone, beside)
            assert alone.unlabelled is None
            assert beside.unlabelled.images.shape == (3, 3, 32, 32)
            assert len(beside.unlabelled.masks) == 0
            assert torch.equal(beside.all_images(), torch.cat([beside.images, beside.unlabelled.images]))


def test_the_view_of_a_picture_is_a_function_of_seed_view_and_index():
    """No picture has the random draws of the labelled sample of its number."""
    augmentation = Augmentation([albumentations.HorizontalFlip(p=0.5), albumentations.GaussNoise(p=1)], 0)
    for batch in loader(BatchSize(4, 4), views=2).epoch(1):
        part = batch.unlabelled
        for position, index in enumerate(part.indices.tolist()):
            expected, _ = augmentation(*SOURCE.read("unlabelled", index), part.view, -1 - index)
            assert np.array_equal(part.images[position].permute(1, 2, 0).numpy(), expected)


def test_starting_late_or_with_workers_gives_the_same_pictures():
    whole = [batch.unlabelled for batch in loader(BatchSize(4, 3)).epoch(2)]
    late = [batch.unlabelled for batch in loader(BatchSize(4, 3)).epoch(2, 3)]
    parallel = [batch.unlabelled for batch in loader(BatchSize(4, 3), workers=1).epoch(2)]
    for expected, found in ((whole[3:], late), (whole, parallel)):
        assert all(same(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("size", [2, 3])
def test_every_process_has_its_share_of_labelled_samples_and_of_pictures(size):
    """Of two pictures, the first of three processes has none."""
    parts = [list(loader(BatchSize(4, 2), world=World(rank, size)).epoch(1)) for rank in range(size)]
    for whole, *shares in zip(loader(BatchSize(4, 2)).epoch(1), *parts, strict=True):
        assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
        pictures = [share.unlabelled.images for share in shares if share.unlabelled is not None]
        assert len(pictures) == 2
        assert torch.equal(torch.cat(pictures), whole.unlabelled.images)


def test_there_are_never_more_pictures_in_a_batch_than_there_are():
    assert loader(BatchSize(4, 99)).batch_size() == BatchSize(4, 10)
    few = Shapes(train=4, unlabelled=3)
    assert [few.unlabelled_per_batch(size) for size in (2, 8)] == [2, 3]
    assert Shapes(train=4, unlabelled=99).unlabelled_per_batch(8) == 4
    assert Shapes(train=4).unlabelled_per_batch(8) == 0
