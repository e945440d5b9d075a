"""Views of pictures deeper than 8 bits: float32 of stored values, changed as strongly as a photo's would be."""

import albumentations as A
import numpy as np
import pytest
import torch

from kd.data.batches.loading import EvalLoader, Loading, TrainLoader
from kd.data.measuring import statistics
from kd.data.statistics import Statistics
from kd.data.views.augmentation import Augmentation
from tests.data.files.test_pixels import folder

#: A thermal camera: values around 30000 that differ by little; and a channel of elevations below the sea.
THERMAL = Statistics((30000.0, -40.0), (50.0, 2.0))
GROUND = np.random.default_rng(0).standard_normal((32, 32, 2)).astype(np.float32)
IMAGE = GROUND * np.float32(THERMAL.std) + np.float32(THERMAL.mean)
MASK = np.zeros((32, 32), np.uint8)


def view(*transforms, image=IMAGE):
    return Augmentation(transforms, 0, statistics=THERMAL)(image, MASK, 0, 0)[0]


def test_geometry_keeps_values():
    assert np.allclose(view(A.HorizontalFlip(p=1)), IMAGE[:, ::-1], rtol=1e-6, atol=1e-4)


def test_brightness_is_relative_to_deviations_and_clips_far_from_the_mean():
    brighter = view(A.RandomBrightnessContrast((0.1, 0.1), (0, 0), p=1))
    inside = np.abs(GROUND) < 2
    shift = ((brighter - IMAGE) / np.float32(THERMAL.std))[inside]
    assert np.allclose(shift, 0.6, atol=0.01)  # a tenth of six deviations
    spread = (brighter - np.float32(THERMAL.mean)) / np.float32(THERMAL.std)
    assert np.abs(spread).max() <= 3.001


def test_without_transforms_values_are_exactly_those_stored():
    stored = np.random.default_rng(0).integers(0, 65536, (32, 32, 2), np.uint16)
    assert np.array_equal(view(image=stored), stored)


@pytest.mark.parametrize(("depth", "kind"), [(8, "u1"), (16, "u2"), ("float", "f4")])
def test_batches_are_stored_values_in_the_type_of_networks(tmp_path, depth, kind):
    source = folder(tmp_path, kind=kind, depth=depth)
    (batch,) = EvalLoader(source, "val", 3)
    expected = np.stack([source.read("val", index)[0] for index in range(3)]).astype(np.float32)
    assert batch.images.dtype == (torch.uint8 if depth == 8 else torch.float32)
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy().astype(np.float32), expected)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_views_are_the_same_for_any_number_of_workers(tmp_path, fit):
    source = folder(tmp_path, kind="u2", depth=16, fit=fit)
    augmentation = Augmentation([A.D4(p=1), A.GaussNoise(p=1)], 0, statistics=statistics(source))
    if fit == "crop":
        from kd.data.views.crops import Crop

        augmentation = Augmentation(augmentation.transforms, 0, 255, Crop((32, 32), 0, 255, 2), statistics(source))
    found = [
        torch.cat([batch.images for batch in TrainLoader(source, augmentation, 2, 0, Loading(workers)).epoch(1)])
        for workers in (0, 1)
    ]
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)
