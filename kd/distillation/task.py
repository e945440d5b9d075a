"""What a student learns from the labels: cross-entropy and Dice.

Shapes: B batch, C classes, H and W pixels; C = 1 is binary, one foreground logit a pixel.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.distillation.pixels import Total, mean_over_valid


def cross_entropy(
    logits_BCHW: Tensor, mask_BHW: Tensor, valid_BHW: Tensor | None = None, total: Total = None
) -> Tensor:
    """Cross-entropy with the ground truth, in nats per pixel; the binary form if C = 1 (masks hold 0 and 1).

    Invalid pixels may hold any value.
    """
    logits_BCHW = logits_BCHW.float()
    if logits_BCHW.shape[1] == 1:
        per_pixel = F.binary_cross_entropy_with_logits(
            logits_BCHW.squeeze(1), (mask_BHW == 1).to(logits_BCHW.dtype), reduction="none"
        )
    else:
        target = mask_BHW.long() if valid_BHW is None else mask_BHW.long().masked_fill(~valid_BHW, 0)
        per_pixel = F.cross_entropy(logits_BCHW, target, reduction="none")
    return mean_over_valid(per_pixel, valid_BHW, total)


def pooled_dice(
    logits_BCHW: Tensor, mask_BHW: Tensor, valid_BHW: Tensor | None, total: Callable[[Tensor], Tensor]
) -> Tensor:
    """1 - Dice from sums over the batch of all processes, a mean over the C classes, in [0, 1].

    Equals smp's DiceLoss for a single process: a class without true pixels in the whole batch adds 0.

    Reference: Milletari, Navab, Ahmadi, "V-Net", arXiv 1606.04797, section 3, without the squares in the denominator.
    """
    logits_BCHW = logits_BCHW.float()
    classes = logits_BCHW.shape[1]
    if classes == 1:
        p, truth = logits_BCHW.sigmoid(), (mask_BHW == 1)[:, None]
    else:
        p, truth = logits_BCHW.softmax(dim=1), torch.stack([mask_BHW == label for label in range(classes)], dim=1)
    if valid_BHW is not None:
        p, truth = torch.where(valid_BHW[:, None], p, 0), truth & valid_BHW[:, None]
    sums = [torch.where(truth, p, 0).sum((0, 2, 3)), p.sum((0, 2, 3)), truth.sum((0, 2, 3), dtype=p.dtype)]
    overlap, predicted, true = total(torch.stack(sums))
    return torch.where(true > 0, 1 - 2 * overlap / (predicted + true).clamp(min=1e-7), 0).mean()
