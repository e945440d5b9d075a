"""What a prediction is written as: a mask, probabilities, or an overlay of the image and its labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from kd.deploy.provenance import save_array, save_picture

Kind = Literal["masks", "probabilities", "overlays"]


@dataclass(frozen=True)
class Style:
    """How predictions are written: masks have `values[i]` for label i, overlays `colours[i]`.

    `palette`, red, green and blue of each label, is that of masks in colour, which store the label as its index.
    """

    kind: Kind
    classes: int
    values: Sequence[int]
    colours: np.ndarray | None = None
    palette: bytes | None = None

    @property
    def suffix(self) -> str:
        if self.kind == "overlays":
            return ".jpg"
        return ".npy" if self.kind == "probabilities" and self.classes > 1 else ".png"


def labels_at(logits_CHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels at another size, H x W uint8; computed class by class, since all logits of a photo would fill memory."""
    if len(logits_CHW) == 1:
        return (_resized(logits_CHW[0], size) > 0).astype(np.uint8)
    best, labels = _resized(logits_CHW[0], size), np.zeros(size, np.uint8)
    for label in range(1, len(logits_CHW)):
        plane = _resized(logits_CHW[label], size)
        labels[plane > best] = label
        np.maximum(best, plane, out=best)
    return labels


def logits_at(logits_CHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Logits at another size, C x H x W, by bilinear interpolation."""
    return np.stack([_resized(plane, size) for plane in logits_CHW])


def probabilities_at(logits_CHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Probabilities at another size: H x W of the foreground, or C x H x W."""
    planes = logits_at(logits_CHW, size)
    if len(planes) == 1:
        return (np.tanh(planes[0] / 2) + 1) / 2
    planes -= planes.max(0)
    np.exp(planes, out=planes)
    return planes / planes.sum(0)


def _resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)


def result_at(style: Style, logits_CHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What is written of logits at a size: labels H x W uint8, or probabilities H x W uint16 or C x H x W float16."""
    if style.kind != "probabilities":
        return labels_at(logits_CHW, size)
    found = probabilities_at(logits_CHW, size)
    return np.round(found * 65535).astype(np.uint16) if style.classes == 1 else found.astype(np.float16)


def _write_mask(style: Style, labels: np.ndarray, _: Any, path: Path, mark: str) -> None:
    values = np.asarray(style.values, np.uint8 if max(style.values) < 256 else np.uint16)
    picture = Image.fromarray(values[labels])
    if style.palette is not None:
        picture.putpalette(style.palette)
    save_picture(picture, path, mark)


def _write_probabilities(style: Style, found: np.ndarray, _: Any, path: Path, mark: str) -> None:
    if style.classes == 1:
        save_picture(Image.fromarray(found), path, mark)
    else:
        save_array(found, path, mark)


def _write_overlay(style: Style, labels: np.ndarray, picture: np.ndarray, path: Path, mark: str) -> None:
    assert style.colours is not None
    mixed = (picture.astype(np.uint16) + style.colours[labels]) // 2
    if style.classes == 1:  # background pixels keep the image
        mixed = np.where(labels[..., None] == 0, picture, mixed)
    save_picture(Image.fromarray(mixed.astype(np.uint8)), path, mark, quality=92)


#: By kind; called with the style, what `result_at` returns, what writing needs of the image, the path and the mark.
WRITERS: Mapping[str, Callable[..., None]] = {
    "masks": _write_mask,
    "probabilities": _write_probabilities,
    "overlays": _write_overlay,
}
