"""What a student learns from the structure of a teacher's logits: where in a picture, and which relations.

Pixel by pixel, a KL asks for the teacher's probabilities. These terms ask for less: where each channel is strongest
(`channel_wise_kl`), and how probabilities vary together (`inter_class_relation`, `intra_class_relation`).

Shapes: B batch, C classes, H and W pixels, N = H W; C = 1 is binary, one foreground logit a pixel.
"""

import torch
from torch import Tensor

from kd.distillation.pixels import Total, mean_over_valid

LEAST_PRODUCT = 1e-16  # of two sums of squares: the square of the 1e-8 that DIST's authors add to the product of norms


def channel_wise_kl(
    student_BCHW: Tensor, teacher_BCHW: Tensor, temperature: float, valid_BHW: Tensor | None = None, total: Total = None
) -> Tensor:
    """CWD: T^2 KL(teacher || student) of each channel's softmax over the valid pixels of a picture, in nats.

    A sum over pixels, which share one probability of 1, so it does not depend on the image size; a mean over channels,
    and over the pictures that have a valid pixel. A constant added to a channel changes nothing. One channel is enough.

    Shape:
        student and teacher B x C x H x W raw logits, valid B x H x W booleans (None: all) -> a scalar.

    Reference: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", arXiv 2011.13256,
    section 3.2, equations 2 to 4.
    """
    valid_B1N = None if valid_BHW is None else valid_BHW.flatten(1)[:, None]
    log_q, log_p = (
        _over_space(logits.float().flatten(2) / temperature, valid_B1N) for logits in (student_BCHW, teacher_BCHW)
    )
    kl_BCN = log_p.exp() * (log_p - log_q)
    if valid_B1N is None:
        return temperature**2 * mean_over_valid(kl_BCN.sum(2).mean(1), None, total)
    kl_B = torch.where(valid_B1N, kl_BCN, 0).sum(2).mean(1)
    return temperature**2 * mean_over_valid(kl_B, valid_B1N.any(2).squeeze(1), total)


def _over_space(logits_BCN: Tensor, valid_B1N: Tensor | None) -> Tensor:
    """The log-softmax of each channel over valid pixels, or over all pixels of a picture that has no valid one."""
    if valid_B1N is not None:
        used = valid_B1N | ~valid_B1N.any(2, keepdim=True)
        logits_BCN = torch.where(used, logits_BCN, -torch.inf)
    return logits_BCN.log_softmax(dim=2)


def inter_class_relation(
    student_BCHW: Tensor, teacher_BCHW: Tensor, temperature: float, valid_BHW: Tensor | None = None, total: Total = None
) -> Tensor:
    """1 - Pearson's correlation of student's and teacher's probabilities over C >= 3 classes, a mean over valid pixels.

    Without a factor T^2: a correlation does not depend on scale, so its gradient does not shrink as T grows.

    Shape:
        student and teacher B x C x H x W raw logits, valid B x H x W booleans (None: all) -> a scalar.

    Reference: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536,
    section 3.2, equation 7; pixels in the place of samples, as in the authors' code for segmentation.
    """
    s, t = (_probabilities(logits, temperature) for logits in (student_BCHW, teacher_BCHW))
    s, t = s - s.mean(dim=1, keepdim=True), t - t.mean(dim=1, keepdim=True)
    return mean_over_valid(1 - _correlation(*((one * other).sum(1) for one, other in _pairs(s, t))), valid_BHW, total)


def intra_class_relation(
    student_BCHW: Tensor, teacher_BCHW: Tensor, temperature: float, valid_BHW: Tensor | None = None, total: Total = None
) -> Tensor:
    """1 - Pearson's correlation of student's and teacher's probabilities over all valid pixels, a mean over classes.

    Over the pixels of the batch together, not picture by picture. Without a factor T^2, as `inter_class_relation`.

    Shape:
        student and teacher B x C x H x W raw logits, valid B x H x W booleans (None: all) -> a scalar.

    Reference: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536,
    section 3.3, equation 8; pixels in the place of samples, as in the authors' code for segmentation.
    """
    total = total or (lambda sums: sums)
    s, t = (_probabilities(logits, temperature) for logits in (student_BCHW, teacher_BCHW))
    valid = torch.ones_like(s[:, :1], dtype=torch.bool) if valid_BHW is None else valid_BHW[:, None]
    sums = [torch.where(valid, p, 0).sum((0, 2, 3)) for p in (s, t)]
    *sums, count = total(torch.stack([*sums, valid.sum().to(s.dtype).expand_as(sums[0])]))
    s, t = (
        torch.where(valid, p - (each / count.clamp(min=1))[:, None, None], 0)
        for p, each in zip((s, t), sums, strict=True)
    )
    moments = total(torch.stack([(one * other).sum((0, 2, 3)) for one, other in _pairs(s, t)]))
    return torch.where(count > 0, 1 - _correlation(*moments), 0).mean()


def _probabilities(logits_BCHW: Tensor, temperature: float) -> Tensor:
    scaled = logits_BCHW.float() / temperature
    return scaled.sigmoid() if scaled.shape[1] == 1 else scaled.softmax(dim=1)


def _pairs(s: Tensor, t: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """The factors of a covariance and of both variances."""
    return (s, t), (s, s), (t, t)


def _correlation(products: Tensor, student_squares: Tensor, teacher_squares: Tensor) -> Tensor:
    """Pearson's correlation from sums over centred values; nearly 0 where student or teacher hardly varies."""
    return products / (student_squares * teacher_squares).clamp(min=LEAST_PRODUCT).sqrt()
