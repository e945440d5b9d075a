"""Regions of COCO annotations as masks: polygons, and run lengths as lists or as COCO's text.

A pixel belongs to a polygon if its centre does, by the even-odd rule: edges are not drawn, so that objects are not half
a pixel too large. pycocotools, which traces edges at five times the resolution, may differ from this at edges.
Reference for run lengths: cocoapi, common/maskApi.c, rleFrString and rleDecode.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_POINTS = 10**6  # of a polygon


def region(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """The mask, H x W bool, of an annotation's `segmentation` in a picture of `size`, (height, width).

    Raises:
        ValueError: it is not a segmentation of that size; one line says why.
    """
    if isinstance(segmentation, dict):
        return run_lengths(segmentation, size)
    if not isinstance(segmentation, list):
        raise ValueError("its segmentation is neither polygons nor run lengths")
    found = np.zeros(size, bool)
    for points in segmentation:
        found |= polygon(points, size)
    return found


def is_box_alone(said: dict[str, Any]) -> bool:
    """Whether an annotation has a box and an empty outline, as annotation tools write objects of detection."""
    box = said.get("bbox")
    return said.get("segmentation") == [] and isinstance(box, list) and len(box) == 4 and all(box[2:])


def polygon(points: Any, size: tuple[int, int]) -> np.ndarray:
    """The pixels, H x W bool, whose centres lie in a polygon [x1, y1, x2, y2, ...]; raises ValueError."""
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2 or len(points) > 2 * MOST_POINTS:
        raise ValueError("a polygon should be [x1,y1,x2,y2,...] of three points or more")
    if not all(isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**31 for value in points):
        raise ValueError("a polygon has a coordinate that is not a number")
    height, width = size
    corners = np.array(points, np.float64).reshape(-1, 2)
    toggles = np.zeros((height, width + 1), bool)  # where a row goes into the polygon, or out of it
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 > y2:
            x1, y1, x2, y2 = x2, y2, x1, y1
        first, end = (min(max(math.ceil(y - 0.5), 0), height) for y in (y1, y2))  # rows with y1 <= centre < y2
        if first >= end:
            continue
        rows = np.arange(first, end)
        crossings = x1 + (rows + 0.5 - y1) * ((x2 - x1) / (y2 - y1))
        toggles[rows, np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)] ^= True
    return np.logical_xor.accumulate(toggles, axis=1)[:, :width]


def run_lengths(segmentation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The mask, H x W bool, of {size: [H, W], counts}: runs of 0 and 1 in turn, column by column; raises ValueError."""
    if segmentation.get("size") != [*size]:
        said = str(segmentation.get("size"))[:40]
        raise ValueError(f"its run lengths are of size {said}, and the picture is {list(size)} (height, width)")
    counts = segmentation.get("counts")
    runs = decoded(counts) if isinstance(counts, str) else counts
    pixels = size[0] * size[1]
    if not isinstance(runs, list) or not all(type(run) is int and 0 <= run <= pixels for run in runs):
        raise ValueError("its run lengths are no numbers of pixels")
    if sum(runs) != pixels:
        raise ValueError(f"its run lengths are {sum(runs)} pixels, and the picture has {pixels}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[::-1]).T


def decoded(text: str) -> Sequence[int]:
    """The run lengths in COCO's text: 5 bits a character, and from the third on differences from the one before last.

    Raises:
        ValueError: it is not such a text.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError("its run lengths are no text of COCO")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("its run lengths end in the middle of a number")
    return runs
