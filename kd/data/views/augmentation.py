"""Augmentation as a pure function: the view of a sample depends on (seed, view, index) and on nothing else.

albumentations keeps random state inside its transforms. Here that state is replaced before every sample by generators
keyed with a hash of (seed, view, index), so the view is the same in any order, in any worker, before and after a
resume, and in every trial of a study. The 95 transforms of albumentations 2.0.8 that need only an image and a mask were
verified to be pure this way, with OpenCV 5.0.

Geometric transforms move masks by nearest neighbour. Outside the image the mask is filled with `ignore_index`, or with
background if that is None; transforms that reflect or wrap fill it with classes instead. Exception: GridElasticDeform
always fills its mask with 0.
"""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it checks for updates online when imported

import copy
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import albumentations
import cv2
import numpy as np

from kd.data.random_streams import key
from kd.data.statistics import Statistics
from kd.data.views.crops import Crop
from kd.errors import ConfigError

#: Transforms that bring a mask to another size by cv2.resize.
_RESIZERS = (
    albumentations.CropAndPad, albumentations.LongestMaxSize, albumentations.RandomResizedCrop,
    albumentations.RandomScale, albumentations.RandomSizedBBoxSafeCrop, albumentations.RandomSizedCrop,
    albumentations.Resize, albumentations.SmallestMaxSize,
)  # fmt: skip
_TRANSFORM = (albumentations.BasicTransform, albumentations.BaseCompose)


@dataclass(frozen=True)
class Augmentation:
    """`transforms` in order, each with its own probability. They are copied; none may change size or type.

    `crop` comes before them: they see what is trained on. `statistics` are of pictures that are no 8 bits deep:
    transforms, which know values from 0 to 1, see them scaled by these, and so does what they fill gaps with.
    """

    transforms: Sequence[Any]  # albumentations has no types
    seed: int
    ignore_index: int | None = None
    crop: Crop | None = None
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        for position, transform in enumerate(self.transforms):
            if not isinstance(transform, _TRANSFORM):
                raise ConfigError(
                    f"augment.transforms[{position}] must be an albumentations transform, but is {transform!r}: give "
                    "it a _target_ such as albumentations.HorizontalFlip"
                )

    def __call__(self, image: np.ndarray, mask: np.ndarray, view: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """View `view` of sample `index`: image H x W x channels, mask H x W uint8."""
        if self.crop is not None:
            image, mask = self.crop(image, mask, view, index)
        if self.statistics is None or not self.transforms:
            return self._transformed(image, mask, view, index)
        image, mask = self._transformed(self.statistics.scaled(image), mask, view, index)
        return self.statistics.unscaled(image), mask

    def _transformed(self, image: np.ndarray, mask: np.ndarray, view: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        number = key("view", self.seed, view, index)
        self._compose.set_random_state(np.random.Generator(np.random.Philox(key=number)), random.Random(number))
        try:
            result = self._compose(image=image, mask=mask)
        except Exception as error:  # the inputs are valid, so it is the transforms: a crop larger than the image, ...
            raise ConfigError(f"augment.transforms cannot be applied to {_kind(image)}: {error}") from error
        if _kind(result["image"]) != _kind(image) or _kind(result["mask"]) != _kind(mask):
            raise ConfigError(
                f"augment.transforms change {_kind(image)} to {_kind(result['image'])}{self._offender(image, mask)}: "
                "an augmentation keeps size and type; data.image_size resizes, and each model normalises its own input"
            )
        return result["image"], result["mask"]

    @cached_property
    def _compose(self) -> albumentations.Compose:
        transforms = copy.deepcopy(list(self.transforms))
        _prepare_masks(transforms, 0 if self.ignore_index is None else self.ignore_index)
        return albumentations.Compose(transforms)

    def _offender(self, image: np.ndarray, mask: np.ndarray) -> str:
        """The transform that changes the size or type, found by trying each one alone."""
        for transform in copy.deepcopy(list(self.transforms)):
            result = transform(image=image, mask=mask, force_apply=True)
            if _kind(result["image"]) != _kind(image) or _kind(result["mask"]) != _kind(mask):
                return f" by {type(transform).__name__}"
        return ""


def _prepare_masks(transforms: Iterable[Any], value: int) -> None:
    """Let geometry fill masks with `value` and move them exactly as the picture; dropout's masks are left as set.

    Resizing takes the pixel at each cell's centre (INTER_NEAREST would take its corner, up to half a pixel away);
    warps, whose maps are between centres already, know INTER_NEAREST alone.
    """
    for transform in transforms:
        if isinstance(transform, albumentations.BaseCompose):
            _prepare_masks(transform.transforms, value)
            continue
        if hasattr(transform, "mask_interpolation"):
            transform.mask_interpolation = (
                cv2.INTER_NEAREST_EXACT if isinstance(transform, _RESIZERS) else cv2.INTER_NEAREST
            )
        if hasattr(transform, "border_mode") and hasattr(transform, "fill_mask"):
            transform.fill_mask = value


def _kind(array: object) -> str:
    return f"{'x'.join(map(str, getattr(array, 'shape', ())))} {getattr(array, 'dtype', type(array).__name__)}"
