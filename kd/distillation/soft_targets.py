"""What a student learns from the teacher's logits, pixel by pixel: soft targets, whole or decoupled, and raw logits.

Shapes: B batch, C classes, H and W pixels; C = 1 is binary, one foreground logit a pixel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.distillation.pixels import Total, mean_over_valid

LEAST_VARIANCE = 1e-6  # of standardised logits: equal ones would divide by 0


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
    return temperature**2 * mean_over_valid(_kl_of_two(s, t).squeeze(1), valid_BHW, total)


def _kl_of_two(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of two classes with the log odds `student` and `teacher`, element by element."""
    p = torch.sigmoid(teacher)
    first = p * (F.logsigmoid(teacher) - F.logsigmoid(student))
    return first + (1 - p) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))


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
    return temperature**2 * mean_over_valid((log_p.exp() * (log_p - log_q)).sum(dim=1), valid_BHW, total)


def standardised(logits_BCHW: Tensor) -> Tensor:
    """Each pixel's logits with mean 0 and standard deviation 1 over its C >= 3 classes.

    A KL of standardised logits asks the student for the teacher's ranking and proportions, not for the size of its
    logits. Of two logits only the order would remain.

    Reference: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", arXiv 2403.01427, section 4.
    """
    centred = logits_BCHW.float() - logits_BCHW.float().mean(dim=1, keepdim=True)
    return centred / centred.square().mean(dim=1, keepdim=True).clamp(min=LEAST_VARIANCE).sqrt()


def target_kl(student_BCHW: Tensor, teacher_BCHW: Tensor, mask_BHW: Tensor, temperature: float,
              valid_BHW: Tensor | None = None, total: Total = None) -> Tensor:  # fmt: skip
    """TCKD: T^2 KL(teacher || student) of the label's class against all others together, in nats per pixel.

    Shape:
        student and teacher B x C x H x W raw logits, mask B x H x W labels, valid B x H x W booleans -> a scalar.

    Reference: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", arXiv 2203.08679, section 3.1.
    """
    is_label = _is_label(mask_BHW, student_BCHW.shape[1])
    odds = [_odds(logits.float() / temperature, is_label) for logits in (student_BCHW, teacher_BCHW)]
    return temperature**2 * mean_over_valid(_kl_of_two(*odds), valid_BHW, total)


def other_classes_kl(student_BCHW: Tensor, teacher_BCHW: Tensor, mask_BHW: Tensor, temperature: float,
                     valid_BHW: Tensor | None = None, total: Total = None) -> Tensor:  # fmt: skip
    """NCKD: T^2 KL(teacher || student) of the softmax over the classes that are not the label's, in nats per pixel.

    multiclass_kl is TCKD + (1 - p) NCKD pixel by pixel, p the teacher's probability of the label's class: decoupled,
    what a teacher knows of the other classes counts even where it is certain. 0 for two classes.

    Shape:
        student and teacher B x C x H x W raw logits, mask B x H x W labels, valid B x H x W booleans -> a scalar.

    Reference: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", arXiv 2203.08679, sections 3.1, 3.2.
    """
    is_label = _is_label(mask_BHW, student_BCHW.shape[1])
    log_q, log_p = (
        torch.where(is_label, -torch.inf, logits.float() / temperature).log_softmax(dim=1)
        for logits in (student_BCHW, teacher_BCHW)
    )
    kl = torch.where(is_label, 0, log_p.exp() * (log_p - log_q)).sum(dim=1)
    return temperature**2 * mean_over_valid(kl, valid_BHW, total)


def _is_label(mask_BHW: Tensor, classes: int) -> Tensor:
    """B x C x H x W booleans: whether a class is the label's. None is, where a mask holds no class."""
    return mask_BHW[:, None] == torch.arange(classes, device=mask_BHW.device)[:, None, None]


def _odds(logits_BCHW: Tensor, is_label: Tensor) -> Tensor:
    """B x H x W log odds of the label's class against all others together."""
    others = torch.where(is_label, -torch.inf, logits_BCHW).logsumexp(dim=1)
    return torch.where(is_label, logits_BCHW, 0).sum(dim=1) - others


def logits_mse(
    student_BCHW: Tensor, teacher_BCHW: Tensor, valid_BHW: Tensor | None = None, total: Total = None
) -> Tensor:
    """Mean squared difference of raw logits (squared logits), over valid pixels and classes.

    Reference: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", arXiv 1312.6184, section 2.
    """
    return mean_over_valid((student_BCHW.float() - teacher_BCHW.float()).square().mean(dim=1), valid_BHW, total)
