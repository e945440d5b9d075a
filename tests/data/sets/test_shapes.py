"""The built-in shapes are pure functions of (seed, split, index)."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.data import Shapes
from kd.data.sets.shapes import KINDS

SPLITS = ("train", "val", "test")


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from(SPLITS), st.integers(0, 9), st.sampled_from((1, 2, 5, 12)))
def test_a_sample_is_a_pure_function_of_seed_split_and_index(seed, split, index, classes):
    def build():
        return Shapes(classes=classes, image_size=(32, 64), train=10, val=10, test=10, seed=seed)

    first, second = build(), build()
    second.read("val", 3)
    image, mask = first.read(split, index)
    assert same((image, mask), second.read(split, index))
    assert image.shape == (32, 64, 3)
    assert image.dtype == mask.dtype == np.uint8
    assert mask.shape == (32, 64)
    assert mask.max() < max(classes, 2)


def test_all_samples_differ():
    pictures = [
        Shapes(seed=seed).read(split, index)[0].tobytes() for seed in (0, 1) for split in SPLITS for index in range(5)
    ]
    assert len(set(pictures)) == len(pictures)


def test_a_shorter_split_is_a_prefix_of_a_longer_one():
    assert same(Shapes(train=3).read("train", 2), Shapes(train=300).read("train", 2))


@pytest.mark.parametrize("classes", [1, 4, 12])
def test_all_classes_appear_and_later_ones_are_rarer(classes):
    source = Shapes(classes=classes, train=60)
    pixels = sum(np.bincount(source.read("train", index)[1].ravel(), minlength=256) for index in range(60))
    values = max(classes, 2)
    assert (pixels[:values] > 0).all()
    assert pixels[values:].sum() == 0
    assert pixels[0] > pixels[1:].sum()
    assert values < 4 or pixels[1] > pixels[values - 1]


def test_no_colour_threshold_finds_the_foreground():
    pairs = [Shapes().read("val", index) for index in range(24)]
    images, truth = np.stack([p[0] for p in pairs]).astype(int), np.stack([p[1] for p in pairs]) == 1
    saturation = images.max(axis=-1) - images.min(axis=-1)
    best = 0.0
    for feature in (*np.moveaxis(images, -1, 0), *np.moveaxis(255 - images, -1, 0), saturation):
        for limit in range(5, 255, 10):
            found = feature > limit
            best = max(best, (found & truth).sum() / (found | truth).sum())
    assert best < 0.5


def test_an_ignore_index_outlines_the_foreground_and_changes_nothing_else():
    plain, outlined = Shapes().read("train", 0), Shapes(ignore_index=255).read("train", 0)
    ignored = outlined[1] == 255
    assert ignored.any()
    assert np.array_equal(plain[0], outlined[0])
    assert np.array_equal(plain[1][~ignored], outlined[1][~ignored])


def test_the_fingerprint_depends_on_everything_that_changes_a_sample():
    variants = [
        Shapes(),
        Shapes(classes=2),
        Shapes(image_size=(64, 96)),
        Shapes(ignore_index=9),
        Shapes(train=7),
        Shapes(seed=1),
        Shapes(noise=3),
    ]
    assert len({source.fingerprint() for source in variants}) == len(variants)
    assert Shapes().fingerprint() == Shapes().fingerprint()
    assert Shapes(classes=2).fingerprint() == Shapes(classes=2, class_names=("a", "b")).fingerprint()


def test_sizes_names_and_pickling():
    source = Shapes(train=5, val=4, test=3)
    assert [source.size(split) for split in SPLITS] == [5, 4, 3]
    assert source.name("val", 2) == "val_00002"
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert same(copy.read("test", 1), source.read("test", 1))
    with pytest.raises(IndexError, match=r"0\.\.4 for train, but got 5"):
        source.read("train", 5)
    with pytest.raises(ValueError, match="split must be one of train, val, test, but got 'dev'"):
        source.size("dev")


def test_class_names_have_defaults():
    assert Shapes().class_names == ("background", "foreground")
    assert Shapes(classes=3).class_names == ("background", *KINDS[:2])
    assert Shapes(classes=2, class_names=["sky", "ground"]).class_names == ("sky", "ground")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "classes must be a whole number, from 1 to 12, but got 0"),
        ({"classes": 13}, "classes must be a whole number, from 1 to 12, but got 13"),
        ({"classes": True}, "classes must be a whole number, from 1 to 12, but got True"),
        ({"train": 0}, "train must be a whole number, 1 or more, but got 0"),
        ({"seed": -1}, "seed must be a whole number, 0 or more, but got -1"),
        ({"noise": -1}, "noise must be in grey levels, from 0 to 255, but got -1"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**arguments)
