"""Instantiating transforms: albumentations' classes with their arguments, and nothing else."""

import albumentations
import pytest

from kd.config.transforms import TRANSFORMS, build_transforms
from kd.data.views.fog import RandomFog
from kd.errors import ConfigError


def test_transforms_are_built_in_order_with_their_arguments():
    flip, crop = build_transforms([
        {"_target_": "albumentations.HorizontalFlip", "p": 0.25},
        {"_target_": "albumentations.RandomCrop", "height": 8, "width": 4},
    ])  # fmt: skip
    assert isinstance(flip, albumentations.HorizontalFlip)
    assert flip.p == 0.25
    assert isinstance(crop, albumentations.RandomCrop)
    assert (crop.height, crop.width) == (8, 4)


def test_a_composition_builds_the_transforms_in_it():
    flip = {"_target_": "albumentations.HorizontalFlip", "p": 1.0}
    (one_of,) = build_transforms([{"_target_": "albumentations.OneOf", "transforms": [flip]}])
    assert [type(each) for each in one_of.transforms] == [albumentations.HorizontalFlip]


def test_fog_is_the_fast_one_under_both_names():
    for name in ("albumentations.RandomFog", "albumentations.augmentations.pixel.transforms.RandomFog"):
        (fog,) = build_transforms([{"_target_": name}])
        assert type(fog) is RandomFog


def test_no_transforms_are_an_empty_list():
    assert build_transforms([]) == []


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"_target_": "albumentations.NoSuchThing"}, "NoSuchThing"),
        ({"_target_": "albumentations.HorizontalFlip", "p": 7}, "p=7: "),
        ({"_target_": "os.getcwd"}, "os.getcwd"),
        ({"_target_": "albumentations.load"}, "albumentations.load"),
    ],
)
def test_anything_else_is_refused_in_one_line(node, says):
    with pytest.raises(ConfigError, match=r"^augment\.transforms: ") as caught:
        build_transforms([node])
    assert says in str(caught.value)

    assert "\n" not in str(caught.value)


def test_no_interpolation_is_resolved(monkeypatch):
    """A configuration may be another person's, and the environment holds secrets."""
    monkeypatch.setenv("SECRET", "0.5")
    with pytest.raises(ConfigError, match=r"p='\$\{oc\.env:SECRET\}': "):
        build_transforms([{"_target_": "albumentations.HorizontalFlip", "p": "${oc.env:SECRET}"}])


def test_only_transforms_and_compositions_are_allowed():
    assert {"albumentations.HorizontalFlip", "albumentations.Compose"} <= set(TRANSFORMS)
    assert all(name.startswith("albumentations.") for name in TRANSFORMS)
    assert not any(name.rpartition(".")[2].islower() for name in TRANSFORMS)
