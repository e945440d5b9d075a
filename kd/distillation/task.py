"""What a student learns from the labels: cross-entropy and focal loss, Dice, Tversky and Jaccard, Lovasz.

The region terms (Dice, Tversky, Jaccard) pool a batch: they are ratios of sums over it, which several processes add up.
Lovasz sorts the pixels of a batch by their errors, so several processes gather them first. `weights` are one per label.

Shapes: B batch, C classes, H and W pixels; C = 1 is binary, one foreground logit a pixel, and two labels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import LovaszLoss
from torch import Tensor

from kd.distillation.pixels import Total, mean_over_valid

SMALLEST = 1e-7  # of a denominator, as in smp


def cross_entropy(
    logits_BCHW: Tensor,
    mask_BHW: Tensor,
    valid_BHW: Tensor | None = None,
    total: Total = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with the ground truth, in nats per pixel; the binary form if C = 1 (masks hold 0 and 1).

    With `weights` each pixel counts as much as its label's weight, as in `torch.nn.CrossEntropyLoss(weight=...)`: the
    sum is divided by that of the pixels' weights. Invalid pixels may hold any value.
    """
    logits_BCHW = logits_BCHW.float()
    if logits_BCHW.shape[1] == 1:
        per_pixel = F.binary_cross_entropy_with_logits(
            logits_BCHW.squeeze(1), (mask_BHW == 1).to(logits_BCHW.dtype), reduction="none"
        )
    else:
        target = mask_BHW.long() if valid_BHW is None else mask_BHW.long().masked_fill(~valid_BHW, 0)
        per_pixel = F.cross_entropy(logits_BCHW, target, reduction="none")
    return mean_over_valid(per_pixel, valid_BHW, total, _of_labels(weights, mask_BHW, valid_BHW))


def focal(
    logits_BCHW: Tensor,
    mask_BHW: Tensor,
    valid_BHW: Tensor | None = None,
    total: Total = None,
    weights: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> Tensor:
    """(1 - p)^gamma x binary cross-entropy of each class against the others, a mean over classes and valid pixels.

    p is the probability of the truth. Equals smp's FocalLoss, with `weights` as its class_weights: the mean over the
    classes is weighted. If C = 1, which smp refuses, each pixel counts as much as its label's weight. `alpha` is the
    share of positive pixels, 1 - alpha that of negative ones; None: both count as they are.

    Reference: Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, section 3, equations 4 and 5.
    """
    logits_BCHW = logits_BCHW.float()
    truth = _one_hot(mask_BHW, logits_BCHW.shape[1]).to(logits_BCHW.dtype)
    ce = F.binary_cross_entropy_with_logits(logits_BCHW, truth, reduction="none")
    # The probability of the other answer; at exactly 0 a power below 1 would have an infinite slope.
    doubt = (-torch.expm1(-ce)).clamp(min=torch.finfo(ce.dtype).tiny)
    loss = doubt**gamma * ce
    if alpha is not None:
        loss = loss * (alpha * truth + (1 - alpha) * (1 - truth))
    if loss.shape[1] == 1:
        return mean_over_valid(loss.squeeze(1), valid_BHW, total, _of_labels(weights, mask_BHW, valid_BHW))
    shares = 1 / loss.shape[1] if weights is None else (weights / weights.sum()).view(1, -1, 1, 1)
    return mean_over_valid((loss * shares).sum(1), valid_BHW, total)


def _of_labels(weights: Tensor | None, mask_BHW: Tensor, valid_BHW: Tensor | None) -> Tensor | None:
    """The weight of each pixel's label, B x H x W; any value for invalid pixels."""
    if weights is None:
        return None
    labels = mask_BHW.long()
    return weights[labels if valid_BHW is None else labels.masked_fill(~valid_BHW, 0)]


def _one_hot(mask_BHW: Tensor, classes: int) -> Tensor:
    """Whether a pixel has a label, B x C x H x W bool; of the foreground alone if C = 1."""
    return torch.stack([mask_BHW == label for label in ([1] if classes == 1 else range(classes))], dim=1)


def pooled_dice(
    logits_BCHW: Tensor, mask_BHW: Tensor, valid_BHW: Tensor | None, total: Callable[[Tensor], Tensor]
) -> Tensor:
    """1 - Dice from sums over the batch of all processes, a mean over the C classes, in [0, 1].

    Equals smp's DiceLoss for a single process: a class without true pixels in the whole batch adds 0.

    Reference: Milletari, Navab, Ahmadi, "V-Net", arXiv 1606.04797, section 3, without the squares in the denominator.
    """
    overlap, predicted, true = _pooled_sums(logits_BCHW, mask_BHW, valid_BHW, total)
    return torch.where(true > 0, 1 - 2 * overlap / (predicted + true).clamp(min=SMALLEST), 0).mean()


def pooled_tversky(
    logits_BCHW: Tensor, mask_BHW: Tensor, valid_BHW: Tensor | None, total: Callable[[Tensor], Tensor],
    alpha: float, beta: float,
) -> Tensor:  # fmt: skip
    """1 - TP / (TP + alpha FP + beta FN) from sums over the batch of all processes, a mean over the C classes.

    Equals smp's TverskyLoss for a single process, and its JaccardLoss if alpha = beta = 1: a class without true pixels
    in the whole batch adds 0.

    Reference: Salehi, Erdogmus, Gholipour, "Tversky loss function", arXiv 1706.05721, section 2.
    """
    overlap, predicted, true = _pooled_sums(logits_BCHW, mask_BHW, valid_BHW, total)
    all_of_it = overlap + alpha * (predicted - overlap) + beta * (true - overlap)
    return torch.where(true > 0, 1 - overlap / all_of_it.clamp(min=SMALLEST), 0).mean()


def to_the_power(loss: Tensor, gamma: float) -> Tensor:
    """loss^gamma, as in focal Tversky; 0 with a gradient of 0 where the loss is 0, also if gamma is below 1.

    Reference: Abraham and Khan, "A Novel Focal Tversky loss function", arXiv 1810.07842, section 3.1.
    """
    return loss if gamma == 1 else torch.where(loss > 0, loss.clamp(min=SMALLEST) ** gamma, 0)


def lovasz(logits_BCHW: Tensor, mask_BHW: Tensor, ignore_index: int | None) -> Tensor:
    """smp's LovaszLoss over all pixels of a batch; 0 with a gradient of 0 without any valid pixel.

    For several processes, all of them pass the whole batch. Waits for the device, since it sorts the valid pixels only.

    Reference: Berman, Triki, Blaschko, "The Lovasz-Softmax loss", arXiv 1705.08790, section 3.
    """
    if ignore_index is not None and not (mask_BHW != ignore_index).any():
        return torch.where(torch.zeros_like(logits_BCHW, dtype=torch.bool), logits_BCHW.float(), 0).sum()
    mode = "binary" if logits_BCHW.shape[1] == 1 else "multiclass"
    return LovaszLoss(mode, ignore_index=ignore_index)(logits_BCHW.float(), mask_BHW.long())


def _pooled_sums(
    logits_BCHW: Tensor, mask_BHW: Tensor, valid_BHW: Tensor | None, total: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sums over the batch of all processes of each class: true positives, predicted, true; 3 x C."""
    logits_BCHW = logits_BCHW.float()
    classes = logits_BCHW.shape[1]
    p = logits_BCHW.sigmoid() if classes == 1 else logits_BCHW.softmax(dim=1)
    truth = _one_hot(mask_BHW, classes)
    if valid_BHW is not None:
        p, truth = torch.where(valid_BHW[:, None], p, 0), truth & valid_BHW[:, None]
    sums = [torch.where(truth, p, 0).sum((0, 2, 3)), p.sum((0, 2, 3)), truth.sum((0, 2, 3), dtype=p.dtype)]
    return total(torch.stack(sums))
