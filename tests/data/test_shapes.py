"""The built-in shapes, the settings that all data sets share, and how light kd.data is to import."""

import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.config.compose import PROJECT
from kd.data import Shapes
from kd.data.shapes import KINDS

SPLITS = ("train", "val", "test")
CONF = PROJECT / "conf" / "data"


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_importing_and_checking_is_light():
    program = (
        "import sys, kd.data; kd.data.Shapes().check(); kd.data.Folder('x'); kd.data.OxfordPet('x'); "
        "print([m for m in ('torch', 'torchvision', 'albumentations', 'cv2', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


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


def test_no_two_samples_are_alike():
    pictures = [
        Shapes(seed=seed).read(split, index)[0].tobytes() for seed in (0, 1) for split in SPLITS for index in range(5)
    ]
    assert len(set(pictures)) == len(pictures)


def test_a_shorter_split_is_the_beginning_of_a_longer_one():
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


def test_no_threshold_on_colour_finds_the_foreground():
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


def test_the_fingerprint_follows_everything_that_changes_a_sample():
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
        ({"image_size": [180, 240]}, r"image_size must be multiples of 32, but got \[180,240\]: use \[160,224\] or"),
        ({"image_size": [10, 20]}, r"but got \[10,20\]: use \[32,32\]$"),
        ({"image_size": 96}, r"image_size must be \[height,width\] in pixels, but got 96"),
        ({"image_size": "96"}, r"image_size must be \[height,width\] in pixels, but got '96'"),
        ({"image_size": [96.0, 96]}, r"image_size must be \[height,width\] in pixels"),
        ({"ignore_index": 1}, "ignore_index must be a whole number, from 2 to 255, but got 1"),
        ({"ignore_index": 256}, "ignore_index must be a whole number, from 2 to 255, but got 256"),
        ({"classes": 4, "ignore_index": 3}, "ignore_index must be a whole number, from 4 to 255, but got 3"),
        ({"class_names": ["a", "b"]}, "class_names must be left empty where classes is 1"),
        ({"classes": 3, "class_names": ["a", "b"]}, "class_names must be 3 different names"),
        ({"classes": 2, "class_names": ["a", "a"]}, "class_names must be 2 different names"),
        ({"train": 0}, "train must be a whole number, 1 or more, but got 0"),
        ({"seed": -1}, "seed must be a whole number, 0 or more, but got -1"),
        ({"noise": -1}, "noise must be in grey levels, from 0 to 255, but got -1"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**arguments)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_option_of_conf_data_can_be_built(path):
    text = path.read_text(encoding="utf-8")
    options = yaml.safe_load(text)
    module, name = options.pop("_target_").rsplit(".", 1)
    if options.get("root") == "???":
        options["root"] = "somewhere"
    source = getattr(importlib.import_module(module), name)(**options)
    assert len(source.class_names) == max(source.classes, 2)
    assert {"classes", "image_size", "ignore_index", "class_names"} <= options.keys()
    assert text.startswith("# ")
    assert len(text.splitlines()) <= 25
