"""Calibration: pixels binned by confidence, and the gap between confidence and accuracy.

A pixel's confidence is the probability of its predicted label at temperature 1; for C = 1 the larger of p and 1 - p,
hence at least 1/2. Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", arXiv
1706.04599, section 2: 15 bins of equal width, ((m - 1) / 15, m / 15]; every valid pixel is one sample.
"""

import torch
from torch import Tensor

from kd.training.counting import counted

BINS = 15
COLUMNS = ("pixels", "right", "confidence")  # of a bin: two counts and a sum


def confidence(logits_BCHW: Tensor) -> Tensor:
    """The probability of the most probable label of each pixel, B x H x W, in [1 / C, 1] (C = 2 where binary)."""
    logits_BCHW = logits_BCHW.float()
    if logits_BCHW.shape[1] == 1:
        return torch.sigmoid(logits_BCHW.squeeze(1).abs())
    return logits_BCHW.softmax(dim=1).amax(dim=1)


class Calibration:
    """Counts and sums over the pixels in each bin of confidence; additive over batches."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        exact = torch.float32 if torch.device(device).type == "mps" else torch.float64  # MPS has no float64
        self.counts = torch.zeros(BINS + 1, 2, dtype=torch.int64, device=device)  # last row: void pixels
        self.sums = torch.zeros(BINS + 1, dtype=exact, device=device)
        self._edges = torch.arange(1, BINS, device=device) / BINS

    def add(self, logits_BCHW: Tensor, predicted_BHW: Tensor, mask_BHW: Tensor, ignore_index: int | None) -> None:
        """Count a batch. Void pixels are counted in an extra bin, which needs no device synchronisation."""
        sure = confidence(logits_BCHW).flatten()
        bins = torch.bucketize(sure, self._edges)
        if ignore_index is not None:
            bins = bins.masked_fill((mask_BHW == ignore_index).flatten(), BINS)
        right = (predicted_BHW == mask_BHW).flatten()
        found = counted(2 * bins + right, 2 * (BINS + 1)).view(BINS + 1, 2)
        self.counts += torch.stack([found.sum(1), found[:, 1]], dim=1)
        self.sums.index_add_(0, bins, sure.to(self.sums.dtype))

    def table(self) -> Tensor:
        """Bins x COLUMNS, float64, on the CPU."""
        return torch.cat([self.counts.double().cpu(), self.sums.double().cpu()[:, None]], dim=1)[:BINS]


def expected_error(table: Tensor) -> float | None:
    """Expected calibration error in [0, 1]: the mean gap between accuracy and confidence, weighted by pixels.

    None if no pixel was counted. Reference: Guo et al., equation 3.
    """
    pixels, right, sums = table.unbind(dim=1)
    total = float(pixels.sum())
    return float((right - sums).abs().sum()) / total if total else None


def overconfidence(table: Tensor) -> float | None:
    """Mean confidence minus accuracy, in [-1, 1]; positive if the network is overconfident."""
    pixels, right, sums = table.unbind(dim=1)
    total = float(pixels.sum())
    return float((sums - right).sum()) / total if total else None
