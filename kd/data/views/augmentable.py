"""Which of albumentations' transforms can be applied to which pixels: a table, so that a mistake costs no import.

`tests/data/views/test_augmentable.py` asks albumentations itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kd.data.files.pixels import Pixels

#: Need RGB: they know colours, or draw something that has one.
NEED_RGB = frozenset({
    "ChromaticAberration", "HEStain", "HueSaturationValue", "ISONoise", "PlanckianJitter", "RandomFog", "RandomGravel",
    "RandomRain", "RandomSnow", "RandomSunFlare", "RGBShift", "Spatter", "TextImage", "ToGray", "ToRGB", "ToSepia",
})  # fmt: skip
#: Need RGB or grey.
NEED_RGB_OR_GREY = frozenset({"CLAHE", "ColorJitter", "Equalize"})
NEED_SEVERAL = frozenset({"ChannelDropout"})
#: Compute with 8 bits, whatever they are given.
SQUEEZE = frozenset({
    "AutoContrast", "CLAHE", "ChromaticAberration", "Downscale", "Equalize", "FromFloat", "HistogramMatching",
    "HueSaturationValue", "ImageCompression", "MedianBlur", "Posterize", "RandomFog", "RandomGravel", "RandomRain",
    "RandomShadow", "RandomSnow", "RandomSunFlare", "RandomToneCurve", "ShotNoise", "Superpixels", "TextImage",
})  # fmt: skip


def refusal(transforms: Iterable[Mapping[str, Any]], pixels: Pixels) -> str | None:
    """Why one of the `_target_` mappings, at any depth, cannot be applied to such pixels; None if all can be."""
    for name in _names(list(transforms)):
        if reason := _reason(name, pixels):
            return (
                f"augment.transforms has {name}, which {reason}, but pictures have {pixels.in_words}: leave it out, or "
                "choose augment=light, augment=aerial or augment=none"
            )
    return None


def _reason(name: str, pixels: Pixels) -> str | None:
    if pixels.channels != 3 and name in NEED_RGB:
        return "needs RGB"
    if pixels.channels not in (1, 3) and name in NEED_RGB_OR_GREY:
        return "needs RGB or grey"
    if pixels.channels == 2 and name == "MedianBlur":
        return "needs other than two channels"
    if pixels.channels == 1 and name in NEED_SEVERAL:
        return "needs several channels"
    return "computes with 8 bits" if pixels.deep and name in SQUEEZE else None


def _names(node: Any) -> Iterator[str]:
    """The class names in nested mappings and lists."""
    if isinstance(node, list | tuple):
        for item in node:
            yield from _names(item)
    elif isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"]).rpartition(".")[2]
        yield from _names([value for value in node.values() if isinstance(value, list | tuple | Mapping)])
