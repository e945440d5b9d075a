"""Logits of whole pictures, of any size, from a network that sees one window at a time.

Every pixel's logits are the mean over the windows that show it, each weighted by `Windows.weights`. They come in bands
from top to bottom, as soon as no further window shows a row: memory is that of a window's height of logits, whatever
the height of the picture. A picture is computed in one place and in one order, so its logits are the same bit for bit
wherever that is; those of a picture of exactly the window's size are the network's own.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.views.windows import Windows

#: Rows top to bottom - 1 of a picture, as the network takes them: 1 x channels x rows x W, on its device.
Rows = Callable[[int, int], Tensor]


def bands(
    predict: Callable[[Tensor], Tensor], rows: Rows, size: tuple[int, int], windows: Windows
) -> Iterator[tuple[int, Tensor]]:
    """The logits of a picture of `size`, (height, width), in bands.

    Args:
        predict: images N x channels x h x w of the windows' size -> logits N x C x h x w.
        rows: reads rows of the picture.

    Yields the first row of each band, and its logits 1 x C x rows x W float32.
    """
    (height, width), (tall, wide) = size, windows.size
    tops, lefts = windows.starts(height, 0), windows.starts(width, 1)
    if len(tops) == len(lefts) == 1:
        yield 0, _whole(predict, rows(0, height), windows.size)
        return
    weight = torch.from_numpy(windows.weights())
    sums = counts = None
    for top, following in pairwise([*tops, height]):
        part = _padded(rows(top, min(height, top + tall)), (tall, max(width, wide)))
        weight = weight.to(part.device)
        for first in range(0, len(lefts), windows.batch):
            chosen = lefts[first : first + windows.batch]
            logits = predict(torch.cat([part[..., left : left + wide] for left in chosen])).float()
            if sums is None or counts is None:
                sums = logits.new_zeros(1, logits.shape[1], tall, max(width, wide))
                counts = logits.new_zeros(tall, max(width, wide))
            for left, each in zip(chosen, logits, strict=True):
                sums[0, ..., left : left + wide] += each * weight
                counts[:, left : left + wide] += weight
        assert sums is not None
        assert counts is not None
        done = following - top
        yield top, (sums[..., :done, :width] / counts[:done, :width])
        sums, counts = _moved_up(sums, done), _moved_up(counts, done)


def _whole(predict: Callable[[Tensor], Tensor], image: Tensor, size: tuple[int, int]) -> Tensor:
    """The logits of a picture that fits into one window."""
    return predict(_padded(image, size)).float()[..., : image.shape[-2], : image.shape[-1]]


def _padded(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image with black below and to the right of it, to `size`."""
    below, right = size[0] - image.shape[-2], size[1] - image.shape[-1]
    return F.pad(image, (0, right, 0, below)) if below or right else image


def _moved_up(values: Tensor, by: int) -> Tensor:
    """Values ... x rows x columns without the first `by` rows, and as many rows of 0 at the end."""
    return F.pad(values[..., by:, :], (0, 0, 0, by))
