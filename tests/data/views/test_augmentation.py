"""Augmentation is a pure function of (seed, view, index), and masks follow geometry."""

import copy
import importlib
import pickle
import random
import subprocess
import sys
import warnings

import albumentations
import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.config.compose import PROJECT
from kd.data import Shapes
from kd.data.views.augmentation import Augmentation
from kd.errors import ConfigError

CONF = PROJECT / "conf" / "augment"
SOURCE = Shapes(classes=4, image_size=(64, 96))
NUMBERS = st.integers(0, 2**31 - 1)


def build(node):
    module, name = node["_target_"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**{k: v for k, v in node.items() if k != "_target_"})


def recipe(name):
    return [build(node) for node in yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))["transforms"]]


def single(transform, p=1.0):
    """A copy with probability 1."""
    transform = copy.deepcopy(transform)
    transform.p = p
    return transform


EACH = [
    pytest.param(single(transform), id=f"{name}-{position}-{type(transform).__name__}")
    for name in ("light", "heavy")
    for position, transform in enumerate(recipe(name))
]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@settings(max_examples=25, deadline=None)
@given(seed=NUMBERS, view=NUMBERS, index=NUMBERS, name=st.sampled_from(("none", "light", "heavy")), other=NUMBERS)
def test_a_view_is_a_pure_function_of_seed_view_and_index(seed, view, index, name, other):
    sample = SOURCE.read("train", 0)
    first, second = Augmentation(recipe(name), seed, 255), Augmentation(recipe(name), seed, 255)
    once = first(*sample, view, index)
    second(*sample, other, index)
    random.seed(other)
    np.random.seed(other)
    cv2.setRNGSeed(other)
    assert same(once, second(*sample, view, index))
    assert same(once, first(*sample, view, index))


@pytest.mark.parametrize("transform", EACH)
def test_every_configured_transform_is_pure_and_keeps_size_and_type(transform):
    image, mask = SOURCE.read("train", 1)
    before = image.copy(), mask.copy()
    first = Augmentation([transform], 3)
    second = pickle.loads(pickle.dumps(first))
    forward = [first(image, mask, 0, index) for index in range(4)]
    backward = [second(image, mask, 0, index) for index in reversed(range(4))][::-1]
    assert all(map(same, forward, backward))
    assert same(before, (image, mask))
    for augmented, labels in forward:
        assert augmented.shape == image.shape
        assert labels.shape == mask.shape
        assert augmented.dtype == labels.dtype == np.uint8


@pytest.mark.parametrize("transform", EACH)
@pytest.mark.parametrize("ignore_index", [None, 200])
def test_a_mask_follows_geometry_and_nothing_else(transform, ignore_index):
    image, mask = SOURCE.read("train", 2)
    if not isinstance(transform, albumentations.DualTransform):
        assert np.array_equal(Augmentation([transform], 0, ignore_index)(image, mask, 0, 0)[1], mask)
        return
    transform = copy.deepcopy(transform)
    transform.interpolation = cv2.INTER_NEAREST  # so that a picture of the mask stays one
    pictured = np.repeat(mask[..., None] + 1, 3, axis=2)
    outside = 0 if ignore_index is None else ignore_index
    for index in range(6):
        moved, labels = Augmentation([transform], 0, ignore_index)(pictured, mask, 0, index)
        expected = np.where(moved[..., 0] == 0, outside, moved[..., 0] - 1)
        assert np.array_equal(labels, expected)


GEOMETRY = [
    single(transform, transform.p)
    for name in ("light", "heavy")
    for transform in recipe(name)
    if isinstance(transform, albumentations.DualTransform)
]
for each in GEOMETRY:
    each.interpolation = cv2.INTER_NEAREST  # so that a picture of the mask stays one


@settings(max_examples=40, deadline=None)
@given(
    seed=NUMBERS, view=NUMBERS, index=NUMBERS, ignore_index=st.sampled_from([None, 200]),
    chosen=st.lists(st.sampled_from(range(len(GEOMETRY))), max_size=4),
)  # fmt: skip
def test_image_and_mask_stay_aligned_through_geometric_transforms(seed, view, index, ignore_index, chosen):
    _, mask = SOURCE.read("train", index % SOURCE.size("train"))
    outside = 0 if ignore_index is None else ignore_index
    pictured = np.repeat(mask[..., None] + 1, 3, axis=2)
    augmentation = Augmentation([GEOMETRY[which] for which in chosen], seed, ignore_index)
    moved, labels = augmentation(pictured, mask, view, index)
    assert np.array_equal(labels, np.where(moved[..., 0] == 0, outside, moved[..., 0] - 1))


def test_seed_view_and_index_each_change_the_view():
    sample = SOURCE.read("train", 0)
    numbers = [(seed, view, index) for seed in (0, 1) for view in (0, 1) for index in (0, 1)]
    turn = albumentations.Affine(rotate=(-90, 90), p=1)
    views = {Augmentation([turn], seed)(*sample, view, index)[0].tobytes() for seed, view, index in numbers}
    assert len(views) == len(numbers)


def test_flips_occur_with_their_probability():
    augmentation = Augmentation([albumentations.HorizontalFlip(p=0.5)], 0)
    image, mask = SOURCE.read("train", 0)
    flipped = sum(not np.array_equal(augmentation(image, mask, view, 0)[0], image) for view in range(400))
    assert 160 < flipped < 240


def test_neighbouring_samples_are_independent():
    """Sample i in view v differs from sample i+1 in view v-1, and no epoch repeats another."""
    augmentation = Augmentation([albumentations.GaussNoise(p=1)], 0)
    image, mask = SOURCE.read("train", 0)
    views = {augmentation(image, mask, view, index)[0].tobytes() for view in range(6) for index in range(6)}
    assert len(views) == 36


def test_another_process_gets_the_same_view():
    program = (
        "import albumentations, hashlib; from kd.data import Shapes; "
        "from kd.data.views.augmentation import Augmentation; "
        "a = Augmentation([albumentations.Affine(rotate=(-40, 40), p=1), albumentations.GaussNoise(p=1)], 5, 255); "
        "view = a(*Shapes().read('train', 0), 7, 9); "
        "digest = hashlib.sha256(view[0].tobytes() + view[1].tobytes()).hexdigest()"
    )
    here: dict[str, str] = {}
    exec(program, here)
    there = subprocess.run(
        [sys.executable, "-c", program + "; print(digest)"], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here["digest"]


def test_transforms_inside_a_choice_also_fill_masks():
    choice = albumentations.OneOf(
        [albumentations.Affine(rotate=45, p=1), albumentations.SafeRotate((45, 45), p=1)], p=1
    )
    image, mask = SOURCE.read("train", 0)
    for view in range(6):
        assert 255 in Augmentation([choice], 0, 255)(image, mask, view, 0)[1]
    assert choice.transforms[0].fill_mask == 0


def test_dropout_keeps_its_own_mask_fill():
    image, mask = SOURCE.read("train", 0)
    kept = Augmentation([albumentations.CoarseDropout(p=1)], 0, 255)(image, mask, 0, 0)
    filled = Augmentation([albumentations.CoarseDropout(fill_mask=9, p=1)], 0, 255)(image, mask, 0, 0)
    assert np.array_equal(kept[1], mask)
    assert 9 in filled[1]
    assert 255 not in filled[1]


def test_building_the_configured_transforms_raises_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("none", "light", "heavy"):
            Augmentation(recipe(name), 0, 255)(*SOURCE.read("train", 0), 0, 0)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_conf_augment_is_a_list_of_transforms(path):
    text = path.read_text(encoding="utf-8")
    assert list(yaml.safe_load(text)) == ["transforms", "views"]
    assert text.startswith("# ")
    assert len(text.splitlines()) <= 25


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (albumentations.Normalize(p=1), "Normalize"),
        (albumentations.RandomCrop(32, 32, p=1), "RandomCrop"),
        (albumentations.ToTensorV2(p=1), "ToTensorV2"),
    ],
)
def test_a_transform_that_changes_size_or_type_is_named(transform, name):
    augmentation = Augmentation([albumentations.HorizontalFlip(p=1), transform], 0)
    with pytest.raises(
        ConfigError, match=rf"augment\.transforms change 64x96x3 uint8 to .* by {name}: an augmentation"
    ):
        augmentation(*SOURCE.read("train", 0), 0, 0)


def test_a_transform_that_cannot_be_applied_is_reported_in_one_line():
    augmentation = Augmentation([albumentations.RandomCrop(512, 512, p=1)], 0)
    with pytest.raises(ConfigError, match=r"augment\.transforms cannot be applied to 64x96x3 uint8: .*") as caught:
        augmentation(*SOURCE.read("train", 0), 0, 0)
    assert "\n" not in str(caught.value)


def test_a_value_that_is_not_a_transform_is_refused():
    with pytest.raises(ConfigError, match=r"augment\.transforms\[1\] must be an albumentations transform, but is"):
        Augmentation([albumentations.HorizontalFlip(), {"p": 0.5}], 0)


# masks move exactly as pictures

RESIZERS = [
    albumentations.CropAndPad(percent=-0.2, p=1),
    albumentations.RandomResizedCrop(size=(128, 128), scale=(0.3, 0.3), ratio=(1, 1), p=1),
    albumentations.RandomSizedCrop(min_max_height=(70, 70), size=(128, 128), p=1),
    albumentations.Affine(scale=1.3, p=1),
    albumentations.Rotate(limit=(17, 17), p=1),
    albumentations.ShiftScaleRotate(shift_limit=0.1, scale_limit=(0.3, 0.3), rotate_limit=(17, 17), p=1),
    albumentations.Perspective(scale=(0.1, 0.1), p=1),
    albumentations.ElasticTransform(p=1),
]


@pytest.mark.parametrize("transform", RESIZERS, ids=lambda transform: type(transform).__name__)
def test_a_transformed_mask_is_not_shifted_against_its_picture(transform):
    augmentation, shifts = Augmentation([transform], seed=0), []
    for index in range(24):
        y, x = np.mgrid[:128, :128]
        mask = ((y - 58 - index % 5) ** 2 + (x - 60 - index % 7) ** 2 < 18**2).astype(np.uint8)
        picture, labels = augmentation(np.repeat(mask[..., None] * 255, 3, axis=2), mask, 0, index)
        if labels.any():
            weights = picture[..., 0].astype(np.float64)
            shifts.append([(g * labels).sum() / labels.sum() - (g * weights).sum() / weights.sum() for g in (y, x)])
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.1  # pixels; INTER_NEAREST shifts by up to 0.5
