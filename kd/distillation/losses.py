"""Distillation and task losses for segmentation, on raw logits.

    total = alpha T^2 KL(teacher || student at temperature T) + beta MSE(logits) + gamma CE + delta Dice

Every term is a mean over the valid pixels of the batch (a sum or a mean over classes), so none depends on the image
size or on the number of void pixels. Temperature affects the first term only. Logits are cast to float32 first, because
half precision cannot represent the small differences at a high temperature.

Edge cases. Without any valid pixel, every term is 0 with a gradient of 0, never NaN. A class without true pixels in the
batch adds 0 to the mean of Dice over all C classes, without a gradient; false foreground is left to cross-entropy.
Masks are assumed to hold only classes and `ignore_index`: checking would synchronise the device, and `Source.read`
already refuses any other value.

If several processes share a batch, each has some of its samples, and `total` (`kd.system.world.World.total`) sums over
processes, so that every process computes the terms of the whole batch. None means a single process.

Shapes: B batch, C classes, H and W pixels; C = 1 is binary, one foreground logit a pixel.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor

#: The weights of the four terms.
WEIGHTS = ("alpha", "beta", "gamma", "delta")

#: Sums a tensor over the processes that share a batch; differentiable.
Total = Callable[[Tensor], Tensor] | None


def _mean_over_valid(per_pixel: Tensor, valid: Tensor | None, total: Total = None) -> Tensor:
    """The mean of B x H x W values over pixels where `valid` is true; 0 if there are none. No device sync."""
    if valid is None and total is None:
        return per_pixel.mean()
    valid = torch.ones_like(per_pixel, dtype=torch.bool) if valid is None else valid
    # Not a product with 0 and 1, since an overflow in a void pixel would make it NaN.
    nats, pixels = torch.where(valid, per_pixel, 0).sum(), valid.sum()
    if total is not None:
        nats, pixels = total(torch.stack([nats, pixels.to(nats.dtype)]))
    return nats / pixels.clamp(min=1)


def binary_kl(
    student_B1HW: Tensor, teacher_B1HW: Tensor, temperature: float, valid_BHW: Tensor | None = None, total: Total = None
) -> Tensor:
    """T^2 KL(teacher || student) of the two classes with logits (0, z), in nats per pixel.

    With p = sigmoid(t / T) and q = sigmoid(s / T): p log(p / q) + (1 - p) log((1 - p) / (1 - q)). A softmax over one
    channel would be 1 everywhere, and its KL 0. As T grows it tends to (s - t)^2 / 8.

    Shape:
        student and teacher B x 1 x H x W raw logits, valid B x H x W booleans (None: all) -> a scalar.

    >>> binary_kl(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5), temperature=10.0)  # nearly 0.5^2 / 8
    tensor(0.0312)

    Reference: Hinton, Vinyals, Dean, arXiv 1503.02531, section 2 (and 2.1 for the limit).
    """
    s, t = student_B1HW.float() / temperature, teacher_B1HW.float() / temperature
    p = torch.sigmoid(t)
    kl = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * _mean_over_valid(kl.squeeze(1), valid_BHW, total)


def multiclass_kl(
    student_BCHW: Tensor, teacher_BCHW: Tensor, temperature: float, valid_BHW: Tensor | None = None, total: Total = None
) -> Tensor:
    """T^2 KL(teacher || student) of the softmax over C >= 2 classes, in nats per pixel.

    A sum over classes and a mean over valid pixels. As T grows it tends to half the mean square, over classes, of the
    difference between the two sets of logits, each centred on its own mean.

    Shape:
        student and teacher B x C x H x W raw logits, valid B x H x W booleans (None: all) -> a scalar.

    >>> logits = torch.randn(2, 3, 4, 4)
    >>> multiclass_kl(logits + 1, logits, temperature=4.0).abs() < 1e-6  # softmax ignores a common offset
    tensor(True)

    Reference: Hinton, Vinyals, Dean, arXiv 1503.02531, section 2 (and 2.1 for the limit).
    """
    log_q = F.log_softmax(student_BCHW.float() / temperature, dim=1)
    log_p = F.log_softmax(teacher_BCHW.float() / temperature, dim=1)
    return temperature**2 * _mean_over_valid((log_p.exp() * (log_p - log_q)).sum(dim=1), valid_BHW, total)


def logits_mse(
    student_BCHW: Tensor, teacher_BCHW: Tensor, valid_BHW: Tensor | None = None, total: Total = None
) -> Tensor:
    """Mean squared difference of raw logits (squared logits), over valid pixels and classes.

    Reference: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", arXiv 1312.6184, section 2.
    """
    return _mean_over_valid((student_BCHW.float() - teacher_BCHW.float()).square().mean(dim=1), valid_BHW, total)


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
    return _mean_over_valid(per_pixel, valid_BHW, total)


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


@dataclass(frozen=True)
class Terms:
    """The terms of one batch, unweighted scalars; None for terms of weight 0, which are not computed."""

    loss: Tensor
    kl: Tensor | None = None
    mse: Tensor | None = None
    ce: Tensor | None = None
    dice: Tensor | None = None

    def scalars(self) -> dict[str, Tensor]:
        """The computed terms by name, detached, on the device."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.detach() for name, value in named.items() if value is not None}


class DistillationLoss(torch.nn.Module):
    """The weighted sum of the four terms; a term of weight 0 is not computed.

    Args:
        weights: `alpha`, `beta`, `gamma`, `delta`, each at least 0; missing ones are 0.
        classes: 1 for binary, otherwise the number C of classes.
        ignore_index: the mask value of void pixels, which count in no term; None if there are none.
        total: sums over the processes that share the batch; None for a single process.

    Shape:
        student B x C x H x W, mask B x H x W, teacher B x C x H x W (or None if alpha = beta = 0), raw logits and
        labels -> `Terms` of scalars.

    Raises:
        ValueError: a weight is unknown or negative, or all are 0; in a call, shapes do not match.

    >>> loss = DistillationLoss({"alpha": 0.5, "gamma": 0.5}, classes=1)
    >>> student, teacher = torch.zeros(2, 1, 4, 4, requires_grad=True), torch.ones(2, 1, 4, 4)
    >>> terms = loss(student, mask_BHW=torch.ones(2, 4, 4), teacher_BCHW=teacher, temperature=4.0)
    >>> torch.allclose(terms.loss, 0.5 * terms.kl + 0.5 * terms.ce), terms.dice
    (True, None)
    >>> terms.loss.backward()
    """

    def __init__(
        self, weights: Mapping[str, float], classes: int, ignore_index: int | None = None, total: Total = None
    ) -> None:
        super().__init__()
        self.weights = {name: float(weights.get(name, 0.0)) for name in WEIGHTS}
        if not set(weights) <= set(WEIGHTS) or min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise ValueError(
                f"weights must be of {', '.join(WEIGHTS)}, none below 0 and not all 0, but got {dict(weights)}"
            )
        self.classes, self.ignore_index, self.total = classes, ignore_index, total
        self.kl = binary_kl if classes == 1 else multiclass_kl
        # smp pools Dice over the batch; a class without true pixels adds 0 to the mean over classes.
        self.soft_dice = DiceLoss("binary" if classes == 1 else "multiclass", ignore_index=ignore_index)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term uses the teacher."""
        return self.weights["alpha"] > 0 or self.weights["beta"] > 0

    def forward(self, student_BCHW: Tensor, mask_BHW: Tensor, teacher_BCHW: Tensor | None, temperature: float) -> Terms:
        _check_shapes(student_BCHW, mask_BHW, teacher_BCHW if self.needs_teacher else student_BCHW, self.classes)
        valid = None if self.ignore_index is None else mask_BHW != self.ignore_index
        weights, total, terms = self.weights, self.total, {}
        if weights["alpha"] and teacher_BCHW is not None:
            terms["kl"] = self.kl(student_BCHW, teacher_BCHW, temperature, valid, total)
        if weights["beta"] and teacher_BCHW is not None:
            terms["mse"] = logits_mse(student_BCHW, teacher_BCHW, valid, total)
        if weights["gamma"]:
            terms["ce"] = cross_entropy(student_BCHW, mask_BHW, valid, total)
        if weights["delta"]:
            terms["dice"] = (
                self.soft_dice(student_BCHW.float(), mask_BHW.long())
                if total is None
                else pooled_dice(student_BCHW, mask_BHW, valid, total)
            )
        names = {"kl": "alpha", "mse": "beta", "ce": "gamma", "dice": "delta"}
        return Terms(loss=reduce(add, (weights[names[name]] * term for name, term in terms.items())), **terms)


def _check_shapes(student_BCHW: Tensor, mask_BHW: Tensor, teacher_BCHW: Tensor | None, classes: int) -> None:
    """Refuse shapes that would broadcast to a different loss."""
    expected = (len(student_BCHW), classes, *student_BCHW.shape[2:])
    batch, _, height, width = expected if len(expected) == 4 else ("B", classes, "H", "W")
    for what, tensor, shape in (
        ("the student's logits", student_BCHW, (batch, classes, height, width)),
        ("the teacher's logits", teacher_BCHW, (batch, classes, height, width)),
        ("the mask", mask_BHW, (batch, height, width)),
    ):
        if tensor is None or tuple(tensor.shape) != shape:
            got = None if tensor is None else tuple(tensor.shape)
            raise ValueError(f"{what} must have the shape {shape}, but got {got}")
