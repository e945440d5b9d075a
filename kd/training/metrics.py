"""IoU and Dice from counts over a whole split, never from means of batches.

The counts are a confusion matrix; every metric is a function of it. A class that is absent from both truth and
prediction of the split has no IoU (None) and is left out of means; if no class has one, the mean is None too. A class
that is predicted but never true scores 0. A mask without foreground counts like any other; an all-void mask adds
nothing. A true label beyond the classes, which `Source.read` refuses, would not be counted.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kd.training.counting import counted


def predict_labels(logits_BCHW: Tensor) -> Tensor:
    """The most probable label of each pixel, B x H x W uint8; for C = 1, foreground where the logit is above 0.

    >>> predict_labels(torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2))
    tensor([[[0, 1]]], dtype=torch.uint8)
    """
    if logits_BCHW.shape[1] == 1:
        return (logits_BCHW.squeeze(1) > 0).to(torch.uint8)
    return logits_BCHW.argmax(dim=1).to(torch.uint8)


class Confusion:
    """Counts of (true label, predicted label) pairs of pixels; labels in [0, n).

    Args:
        labels: number of labels; 2 for binary data.
        ignore_index: mask value of void pixels, which are not counted.
        device: device of the predictions.

    >>> confusion = Confusion(labels=2, ignore_index=255)
    >>> confusion.add(torch.tensor([[[0, 1, 1, 1]]]), mask_BHW=torch.tensor([[[0, 0, 1, 255]]]))
    >>> confusion.iou(), confusion.summary(["background", "foreground"])["miou"]
    ([0.5, 0.5], 0.5)
    """

    def __init__(self, labels: int, ignore_index: int | None = None, device: torch.device | str = "cpu") -> None:
        self.ignore_index = ignore_index
        self.counts = torch.zeros(labels, labels, dtype=torch.int64, device=device)

    def add(self, predicted_BHW: Tensor, mask_BHW: Tensor) -> None:
        """Count a batch. Void pixels are counted in an extra bin, which needs no device synchronisation."""
        labels = self.counts.shape[0]
        pairs = mask_BHW.long() * labels + predicted_BHW.long()
        if self.ignore_index is not None:
            pairs = pairs.masked_fill(mask_BHW == self.ignore_index, labels * labels)
        found = counted(pairs, labels * labels + 1)[: labels * labels]
        self.counts += found.view(labels, labels)

    def _ratios(self, numerator: Tensor, denominator: Tensor) -> list[float | None]:
        pairs = zip(numerator.tolist(), denominator.tolist(), strict=True)
        return [n / d if d else None for n, d in pairs]

    def iou(self) -> list[float | None]:
        """Intersection over union of each label, in [0, 1]."""
        hit, true, predicted = self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)
        return self._ratios(hit, true + predicted - hit)

    def dice(self) -> list[float | None]:
        """Dice coefficient (F1) of each label, in [0, 1]."""
        hit, true, predicted = self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)
        return self._ratios(2 * hit, true + predicted)

    def accuracy(self) -> float | None:
        """Fraction of counted pixels whose label is right; None if no pixel was counted."""
        return self._ratios(self.counts.trace()[None], self.counts.sum()[None])[0]

    def summary(self, names: Sequence[str]) -> dict[str, float | None]:
        """`miou`, `dice` (means over labels), `iou/<name>` for each label and, for binary data, `dice/<foreground>`."""
        iou, dice = self.iou(), self.dice()
        return {
            "miou": mean(iou),
            "dice": mean(dice),
            **{f"iou/{name}": value for name, value in zip(names, iou, strict=True)},
            **({f"dice/{names[1]}": dice[1]} if len(names) == 2 else {}),
        }


def reference_summary(prediction: Confusion, names: Sequence[str]) -> dict[str, float | None]:
    """The summary of a prediction that looks at no image, as a reference for networks.

    For binary data, where it may predict no foreground at all, the foreground's IoU and Dice are at least those of
    foreground everywhere: a network at chance beats 0, too.

    >>> background = Confusion(labels=2)
    >>> background.add(torch.tensor([[[0, 0, 0, 0]]]), mask_BHW=torch.tensor([[[0, 0, 0, 1]]]))
    >>> reference_summary(background, ["background", "cell"])
    {'miou': 0.375, 'dice': 0.42857142857142855, 'iou/background': 0.75, 'iou/cell': 0.25, 'dice/cell': 0.4}
    """
    found = prediction.summary(names)
    if len(names) == 2:
        foreground = Confusion(2)
        foreground.counts[:, 1] = prediction.counts.sum(1)
        other = foreground.summary(names)
        for name in (f"iou/{names[1]}", f"dice/{names[1]}"):
            own, least = found[name], other[name]
            found[name] = own if own is None or least is None else max(own, least)
    return found


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if all are."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None
