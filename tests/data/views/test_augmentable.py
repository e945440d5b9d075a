"""The table of transforms says what albumentations itself does with other channels, and with deep values."""

import functools
import inspect

import albumentations
import numpy as np
import pytest

from kd.data.files.pixels import Pixels
from kd.data.views.augmentable import NEED_RGB, NEED_RGB_OR_GREY, NEED_SEVERAL, SQUEEZE, refusal

KNOWN = {name: kind for name, kind in vars(albumentations).items() if isinstance(kind, type)}
TABLE = sorted(NEED_RGB | NEED_RGB_OR_GREY | NEED_SEVERAL | SQUEEZE)
#: Need arguments, or other inputs than an image.
UNASKED = {"TextImage", "HistogramMatching", "FromFloat", "ToRGB"}
GRADED = np.linspace(0.2, 0.8, 48 * 48 * 5, dtype=np.float32).reshape(48, 48, 5)


def target(name):
    return {"_target_": f"albumentations.{name}"}


@functools.cache
def works(name, channels, deep=False):
    """Whether a transform takes such an image in five views, and keeps its shape."""
    image = GRADED[..., :channels] if deep else (GRADED[..., :channels] * 255).astype(np.uint8)
    try:
        for seed in range(5):
            built = albumentations.Compose([KNOWN[name](p=1)], seed=seed)
            assert built(image=np.ascontiguousarray(image))["image"].shape == image.shape
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", TABLE)
def test_every_name_in_the_table_is_a_transform(name):
    assert issubclass(KNOWN[name], albumentations.BasicTransform)


@pytest.mark.parametrize("name", [name for name in TABLE if name not in UNASKED])
def test_every_name_in_the_table_takes_rgb(name):
    assert works(name, 3)
    assert refusal([target(name)], Pixels()) is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_what_albumentations_refuses_is_refused_before(channels):
    asked = [
        name
        for name, kind in KNOWN.items()
        if issubclass(kind, albumentations.BasicTransform) and not inspect.isabstract(kind) and works(name, 3)
    ]
    assert len(asked) > 60
    failing = {name for name in asked if not works(name, channels)}
    assert failing <= {name for name in asked if refusal([target(name)], Pixels(channels))}


@pytest.mark.parametrize("pixels", [Pixels(3, 16), Pixels(5, "float")])
def test_squeezing_transforms_are_refused_for_deep_pictures_by_name(pixels):
    for name in SQUEEZE:
        nested = [{"_target_": "albumentations.OneOf", "transforms": [target("HorizontalFlip"), target(name)]}]
        assert f"has {name}, which " in refusal(nested, pixels)
    kept = ["HorizontalFlip", "Affine", "RandomBrightnessContrast", "GaussianBlur", "GaussNoise", "D4", "CoarseDropout"]
    assert refusal(list(map(target, kept)), pixels) is None
