"""A closer look at an evaluation, taken as it is made: what a report shows beside the figures of a run.

Nothing passes over the data again: a `CloseLook` is shown each batch that `kd.evaluation.evaluate` has predicted.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kd.system.world import SOLO, World
from kd.training.calibration import Calibration
from kd.training.metrics import Confusion

NOT_COUNTED = 255  # a label that no network predicts: there are at most 255 of them


class CloseLook:
    """What is kept of one network's predictions over one split.

    Args:
        labels: how many labels there are: 2 for binary data.
        baseline_HW: labels of the trivial baseline, if it is to be measured beside.
        reference: a teacher's labels over the same split, batch by batch, if they are to be set beside.
    """

    def __init__(self, labels: int, ignore_index: int | None, device: torch.device | str = "cpu",
                 baseline_HW: Tensor | None = None, reference: Sequence[Tensor] | None = None) -> None:  # fmt: skip
        self.labels, self.ignore_index, self.device = labels, ignore_index, device
        self.calibration = Calibration(device)
        self.counts = torch.zeros(labels, labels, dtype=torch.int64, device=device)
        self.baseline_HW = None if baseline_HW is None else baseline_HW.to(device)
        self.baseline, self.reference = Confusion(labels, ignore_index, device), reference
        self.jointly = Confusion(2, NOT_COUNTED, device)
        self.scores: list[Tensor] = []

    def add(self, index: int, logits_BCHW: Tensor, predicted_BHW: Tensor, mask_BHW: Tensor) -> None:
        """Look at the batch of a number."""
        each = _per_image(predicted_BHW, mask_BHW, self.labels, self.ignore_index)
        self.counts += each.sum(dim=0)
        self.scores.append(_mean_iou(each))
        self.calibration.add(logits_BCHW, predicted_BHW, mask_BHW, self.ignore_index)
        if self.baseline_HW is not None:
            self.baseline.add(self.baseline_HW.expand_as(mask_BHW), mask_BHW)
        if self.reference is not None:
            taught = (self.reference[index].to(self.device) == mask_BHW).to(torch.uint8)
            if self.ignore_index is not None:
                taught = taught.masked_fill(mask_BHW == self.ignore_index, NOT_COUNTED)
            self.jointly.add((predicted_BHW == mask_BHW).to(torch.uint8), taught)

    def gather(self, world: World = SOLO, batches: int = 0) -> None:
        """Add up what several processes have seen of so many batches. A collective."""
        for counted in (self.baseline, self.jointly):
            counted.counts = world.total(counted.counts)
        self.counts = world.total(self.counts)
        self.calibration.counts, self.calibration.sums = map(
            world.total, (self.calibration.counts, self.calibration.sums)
        )
        self.scores = world.collect([scores.cpu() for scores in self.scores], batches)

    def tensors(self) -> dict[str, Tensor]:
        """What was seen, on the CPU.

        confusion: labels x labels counts of (true, predicted); calibration: bins x `kd.calibration.COLUMNS`; scores: N,
        the mean IoU of each image over the labels that are in its truth or its prediction, NaN where all is void;
        baseline: like confusion; jointly: 2 x 2 counts of (teacher right, student right).
        """
        found = {"confusion": self.counts, "calibration": self.calibration.table()}
        found |= {"scores": torch.cat(self.scores)} if self.scores else {}
        found |= {} if self.baseline_HW is None else {"baseline": self.baseline.counts}
        found |= {} if self.reference is None else {"jointly": self.jointly.counts}
        return {name: tensor.cpu() for name, tensor in found.items()}


def tensors(looks: Mapping[str, CloseLook], who: str = "") -> dict[str, Tensor]:
    """The tensors of several splits, named <who>/<split>/<name>."""
    prefix = f"{who}/" if who else ""
    return {f"{prefix}{split}/{name}": t for split, look in looks.items() for name, t in look.tensors().items()}


def _per_image(predicted_BHW: Tensor, mask_BHW: Tensor, labels: int, ignore_index: int | None) -> Tensor:
    """The confusion matrix of each image, B x labels x labels."""
    images, cells = len(mask_BHW), labels * labels
    pairs = mask_BHW.long() * labels + predicted_BHW.long()
    pairs += torch.arange(images, device=pairs.device).view(-1, 1, 1) * cells
    if ignore_index is not None:
        pairs = pairs.masked_fill(mask_BHW == ignore_index, images * cells)
    counted = torch.bincount(pairs.flatten(), minlength=images * cells + 1)[: images * cells]
    return counted.view(images, labels, labels)


def _mean_iou(counts_BLL: Tensor) -> Tensor:
    hit = counts_BLL.diagonal(dim1=1, dim2=2)
    union = counts_BLL.sum(1) + counts_BLL.sum(2) - hit
    iou = torch.where(union > 0, hit / union.clamp(min=1), 0)
    return (iou.sum(1) / (union > 0).sum(1)).float()
