"""Diagnostics of an evaluation for the report: calibration, scores per image, comparison with baseline and teacher.

They need no second pass over the data: `kd.training.evaluation.evaluate` adds each batch that it has predicted.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.system.world import SOLO, World
from kd.training.calibration import Calibration
from kd.training.counting import counted
from kd.training.metrics import Confusion

NOT_COUNTED = 255  # no network predicts this label: there are at most 255 of them


class Diagnostics:
    """Statistics of one network's predictions over one split.

    Args:
        labels: number of labels; 2 for binary data.
        baseline_HW: labels of a trivial baseline, to be evaluated on the same masks, at the size of each.
        reference: a teacher's labels over the same split, batch by batch, to be compared with.
    """

    def __init__(self, labels: int, ignore_index: int | None, device: torch.device | str = "cpu",
                 baseline_HW: Tensor | None = None, reference: Sequence[Tensor] | None = None) -> None:  # fmt: skip
        self.labels, self.ignore_index, self.device = labels, ignore_index, device
        self.calibration = Calibration(device)
        self.counts = torch.zeros(labels, labels, dtype=torch.int64, device=device)
        self.baseline_HW = None if baseline_HW is None else baseline_HW.to(device)
        self.baseline, self.reference = Confusion(labels, ignore_index, device), reference
        self.right = Confusion(2, NOT_COUNTED, device)  # teacher right, student right
        self.scores: list[Tensor] = []

    def calibrate(self, logits_BCHW: Tensor, predicted_BHW: Tensor, mask_BHW: Tensor) -> None:
        """Add the logits of a batch, or of a part of its rows."""
        self.calibration.add(logits_BCHW, predicted_BHW, mask_BHW, self.ignore_index)

    def add(self, index: int, predicted_BHW: Tensor, mask_BHW: Tensor) -> None:
        """Add the labels of the batch with number `index`."""
        counts_BLL = _counts_per_image(predicted_BHW, mask_BHW, self.labels, self.ignore_index)
        self.counts += counts_BLL.sum(dim=0)
        self.scores.append(_mean_iou(counts_BLL))
        if self.baseline_HW is not None:
            self.baseline.add(_at(self.baseline_HW, mask_BHW.shape[1:]).expand_as(mask_BHW), mask_BHW)
        if self.reference is not None:
            teacher_right = (self.reference[index].to(self.device) == mask_BHW).to(torch.uint8)
            if self.ignore_index is not None:
                teacher_right = teacher_right.masked_fill(mask_BHW == self.ignore_index, NOT_COUNTED)
            self.right.add((predicted_BHW == mask_BHW).to(torch.uint8), teacher_right)

    def gather(self, world: World = SOLO, batches: int = 0) -> None:
        """Sum over the processes that share the `batches` of a split. A collective."""
        for confusion in (self.baseline, self.right):
            confusion.counts = world.total(confusion.counts)
        self.counts = world.total(self.counts)
        self.calibration.counts, self.calibration.sums = map(
            world.total, (self.calibration.counts, self.calibration.sums)
        )
        self.scores = world.collect([scores.cpu() for scores in self.scores], batches)

    def tensors(self) -> dict[str, Tensor]:
        """The statistics by name, on the CPU.

        confusion: labels x labels counts of (true, predicted).
        calibration: bins x `kd.training.calibration.COLUMNS`.
        scores: N, each image's mean IoU over the labels in its truth or prediction; NaN if all its pixels are void.
        baseline: like confusion.
        jointly: 2 x 2 counts of (teacher right, student right).
        """
        found = {"confusion": self.counts, "calibration": self.calibration.table()}
        found |= {"scores": torch.cat(self.scores)} if self.scores else {}
        found |= {} if self.baseline_HW is None else {"baseline": self.baseline.counts}
        found |= {} if self.reference is None else {"jointly": self.right.counts}
        return {name: tensor.cpu() for name, tensor in found.items()}


def tensors(by_split: Mapping[str, Diagnostics], who: str = "") -> dict[str, Tensor]:
    """The tensors of several splits, named <who>/<split>/<name>."""
    prefix = f"{who}/" if who else ""
    return {f"{prefix}{split}/{name}": t for split, each in by_split.items() for name, t in each.tensors().items()}


def _at(labels_HW: Tensor, size: torch.Size) -> Tensor:
    """Labels at another size: each pixel takes the one at its centre."""
    if labels_HW.shape == size:
        return labels_HW
    return F.interpolate(labels_HW[None, None].float(), size=tuple(size), mode="nearest-exact")[0, 0].to(torch.uint8)


def _counts_per_image(predicted_BHW: Tensor, mask_BHW: Tensor, labels: int, ignore_index: int | None) -> Tensor:
    """The confusion matrix of each image, B x labels x labels."""
    images, cells = len(mask_BHW), labels * labels
    pairs = mask_BHW.long() * labels + predicted_BHW.long()
    pairs += torch.arange(images, device=pairs.device).view(-1, 1, 1) * cells
    if ignore_index is not None:
        pairs = pairs.masked_fill(mask_BHW == ignore_index, images * cells)
    found = counted(pairs, images * cells + 1)[: images * cells]
    return found.view(images, labels, labels)


def _mean_iou(counts_BLL: Tensor) -> Tensor:
    hit = counts_BLL.diagonal(dim1=1, dim2=2)
    union = counts_BLL.sum(1) + counts_BLL.sum(2) - hit
    iou = torch.where(union > 0, hit / union.clamp(min=1), 0)
    return (iou.sum(1) / (union > 0).sum(1)).float()
