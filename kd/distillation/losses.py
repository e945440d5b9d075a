"""The weighted sum that a student learns from, on raw logits: the teacher's terms and the task loss.

    total = alpha T^2 KL(teacher || student at temperature T) + beta MSE(logits)         kd.distillation.soft_targets
          + tckd TCKD + nckd NCKD
          + cwd CWD + dist_inter DIST over classes + dist_intra DIST over pixels         kd.distillation.structure
          + features MSE of normalised features, or their CWD                            kd.distillation.features
          + gamma CE + delta Dice + focal, tversky, jaccard, lovasz                      kd.distillation.task

A term is a mean over the valid pixels of the batch (a sum or a mean over classes), or for CWD, a KL over the valid
pixels of a picture: none depends on the image size or on the number of void pixels. The temperature of the schedule
affects the first term only; the others have constant ones of their own. Logits are cast to float32 first, because half
precision cannot represent the small differences at a high temperature.

Void pixels. The teacher has an opinion on them: with `on_void` its terms count all pixels, except TCKD and NCKD, which
need a label. The task loss never counts them.

Padding (`content`) shows nothing, so it counts nowhere: it is void in masks, and the teacher has no opinion on it, not
even with `on_void`, nor in a picture without a mask. How much padding a batch has changes no term.

Features. All positions of a feature map count: each has seen void and valid pixels alike.

Pictures without masks. The batch may end with samples that have none: their pixels count in the teacher's terms, except
TCKD and NCKD, and not in the task loss.

Edge cases. Without any valid pixel, every term is 0 with a gradient of 0, never NaN. A class without true pixels in the
batch adds 0 to the mean of Dice, Tversky or Jaccard over all C classes, without a gradient; false foreground is left to
cross-entropy.
Masks are assumed to hold only classes and `ignore_index`: checking would synchronise the device, and `Source.read`
already refuses any other value.

If several processes share a batch, each has some of its samples, and `total` (`kd.system.world.World.total`) sums over
processes, so that every process computes the terms of the whole batch. None means a single process. Lovasz is no sum:
`whole` (`World.whole`) hands it the batch of all processes.

Compiled, all terms are one graph, which reads each tensor of logits once, not once per operation. A loss with Lovasz
stays as it is: Lovasz branches on the masks and sorts as many pixels as are valid, so its graph would break.

Shapes: B batch, C classes, H and W pixels; C = 1 is binary, one foreground logit a pixel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import Any

import torch
from pydantic import ValidationError
from segmentation_models_pytorch.losses import DiceLoss, JaccardLoss, TverskyLoss
from torch import Tensor

from kd.distillation import soft_targets, structure
from kd.distillation.features import normalised_mse
from kd.distillation.pixels import Total
from kd.distillation.task import cross_entropy, focal, lovasz, pooled_dice, pooled_tversky, to_the_power
from kd.networks.precision import Backend, fused
from kd.settings import TASK_TERMS, TEACHING_TERMS, LossSettings

Pairs = Sequence[tuple[Tensor, Tensor]]  # the student's (projected) and the teacher's features of each stage

WEIGHT_OF = {**TEACHING_TERMS, **TASK_TERMS}


@dataclass(frozen=True)
class Terms:
    """The terms of one batch, unweighted scalars; None for terms of weight 0, which are not computed."""

    loss: Tensor
    kl: Tensor | None = None
    mse: Tensor | None = None
    cwd: Tensor | None = None
    dist_inter: Tensor | None = None
    dist_intra: Tensor | None = None
    tckd: Tensor | None = None
    nckd: Tensor | None = None
    features: Tensor | None = None
    ce: Tensor | None = None
    dice: Tensor | None = None
    focal: Tensor | None = None
    tversky: Tensor | None = None
    jaccard: Tensor | None = None
    lovasz: Tensor | None = None

    def scalars(self) -> dict[str, Tensor]:
        """The computed terms by name, detached, on the device."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.detach() for name, value in named.items() if value is not None}


class DistillationLoss(torch.nn.Module):
    """The weighted sum of the terms; a term of weight 0 is not computed.

    Args:
        weights: as the config group `loss` has them (`kd.settings.LossSettings`): weights, each at least 0, the terms'
            own temperatures, and switches; what is missing has the group's default, which is 0 for a weight.
        classes: 1 for binary, otherwise the number C of classes.
        ignore_index: the mask value of void pixels; None if no pixel is void.
        total: sums over the processes that share the batch; None for a single process.
        whole: a batch's rows of all processes from this one's, differentiable; only Lovasz needs it.
        backend: what torch.compile compiles the terms with; None: they are computed one operation at a time.

    Shape:
        student B x C x H x W, mask L x H x W, teacher B x C x H x W (or None if no term needs it), raw logits and
        labels; features as `Pairs` of B x K x h x w, if that term has a weight -> `Terms` of scalars. L = B, unless the
        last B - L samples have no mask: all their pixels count in the terms of the teacher that need no label, and none
        in the others. `content`, B x H x W bool, are the pixels that are no padding, which counts nowhere and must be
        void in the mask; None: all.

    Raises:
        ValueError: a weight is unknown or negative, all are 0, a term needs more classes, or class_weights are not
            numbers, one per label; in a call, shapes do not match.

    >>> loss = DistillationLoss({"alpha": 0.5, "gamma": 0.5}, classes=1)
    >>> student, teacher = torch.zeros(2, 1, 4, 4, requires_grad=True), torch.ones(2, 1, 4, 4)
    >>> terms = loss(student, mask_BHW=torch.ones(2, 4, 4), teacher_BCHW=teacher, temperature=4.0)
    >>> torch.allclose(terms.loss, 0.5 * terms.kl + 0.5 * terms.ce), terms.dice
    (True, None)
    >>> terms.loss.backward()
    """

    def __init__(
        self, weights: Mapping[str, Any], classes: int, ignore_index: int | None = None, total: Total = None,
        whole: Total = None, backend: Backend | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings = _settings(weights, classes)
        self.classes, self.ignore_index, self.total, self.whole = classes, ignore_index, total, whole
        if self.settings.lovasz and total is not None and whole is None:
            raise ValueError("lovasz sorts the pixels of the whole batch: several processes need `whole`")
        own, shared = self.settings.class_weights, {"ignore_index": ignore_index}
        self.class_weights = None if own is None else torch.tensor(own)
        # smp pools these over the batch; a class without true pixels adds 0 to the mean over classes.
        mode = "binary" if classes == 1 else "multiclass"
        self.soft_dice, self.soft_jaccard = DiceLoss(mode, **shared), JaccardLoss(mode, **shared)
        self.soft_tversky = TverskyLoss(
            mode, alpha=self.settings.tversky_alpha, beta=self.settings.tversky_beta, **shared
        )
        self.graph: Callable[..., Terms] | None = None
        if backend is not None and not self.settings.lovasz:
            self.graph = fused(self._terms, backend)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term uses the teacher."""
        return self.settings.needs_teacher

    def forward(self, student_BCHW: Tensor, mask_BHW: Tensor, teacher_BCHW: Tensor | None, temperature: float | None,
                features: Pairs = (), content_BHW: Tensor | None = None) -> Terms:  # fmt: skip
        _check_shapes(student_BCHW, mask_BHW, teacher_BCHW if self.needs_teacher else student_BCHW, self.classes)
        if self.graph is None:
            return self._terms(student_BCHW, mask_BHW, teacher_BCHW, temperature, features, content_BHW)
        # A tensor, since a number would become part of the graph, and each epoch's would need another one.
        at = None if temperature is None else torch.full((), temperature, device=student_BCHW.device)
        return self.graph(student_BCHW, mask_BHW, teacher_BCHW, at, features, content_BHW)

    def _terms(self, student_BCHW: Tensor, mask_BHW: Tensor, teacher_BCHW: Tensor | None, temperature: float | None,
               features: Pairs, content_BHW: Tensor | None) -> Terms:  # fmt: skip
        valid_LHW = None if self.ignore_index is None else mask_BHW != self.ignore_index
        terms = self._task(student_BCHW[: len(mask_BHW)], mask_BHW, valid_LHW)
        if self.needs_teacher and teacher_BCHW is not None and temperature is not None:
            counted = content_BHW if self.settings.on_void else _counted(valid_LHW, content_BHW, len(student_BCHW))
            terms = self._teaching((student_BCHW, teacher_BCHW), mask_BHW, temperature, (valid_LHW, counted)) | terms
            terms["features"] = lambda: self._features(features)
        computed = {name: term() for name, term in terms.items() if self._weight(name)}
        return Terms(loss=reduce(add, (self._weight(name) * term for name, term in computed.items())), **computed)

    def _weight(self, term: str) -> float:
        return float(getattr(self.settings, WEIGHT_OF[term]))

    def _teaching(
        self, pair: tuple[Tensor, Tensor], mask_BHW: Tensor, temperature: float,
        pixels: tuple[Tensor | None, Tensor | None],
    ) -> dict[str, Callable[[], Tensor]]:  # fmt: skip
        """The terms that compare the logits of student and teacher; `pixels` are the valid ones, L x H x W, and those
        that count in terms that need no label, B x H x W."""
        own, total, (valid, counted) = self.settings, self.total, pixels
        of_cwd, of_dist = own.cwd_temperature or temperature, own.dist_temperature or temperature
        of_dkd = own.dkd_temperature or temperature
        masked = pair[0][: len(mask_BHW)], pair[1][: len(mask_BHW)]
        return {
            "kl": lambda: self._kl(*pair, temperature, counted),
            "mse": lambda: soft_targets.logits_mse(*pair, counted, total),
            "cwd": lambda: structure.channel_wise_kl(*pair, of_cwd, counted, total),
            "dist_inter": lambda: structure.inter_class_relation(*pair, of_dist, counted, total),
            "dist_intra": lambda: structure.intra_class_relation(*pair, of_dist, counted, total),
            "tckd": lambda: soft_targets.target_kl(*masked, mask_BHW, of_dkd, valid, total),
            "nckd": lambda: soft_targets.other_classes_kl(*masked, mask_BHW, of_dkd, valid, total),
        }

    def _kl(self, student: Tensor, teacher: Tensor, temperature: float, counted: Tensor | None) -> Tensor:
        if self.settings.standardise:
            student, teacher = soft_targets.standardised(student), soft_targets.standardised(teacher)
        kl = soft_targets.binary_kl if self.classes == 1 else soft_targets.multiclass_kl
        return kl(student, teacher, temperature, counted, self.total)

    def _features(self, pairs: Pairs) -> Tensor:
        """A mean over stages."""
        own, total = self.settings, self.total
        if not pairs:
            raise ValueError("the features of student and teacher are missing")
        if own.feature_term == "cwd":
            found = [structure.channel_wise_kl(*pair, own.feature_temperature, None, total) for pair in pairs]
        else:
            found = [normalised_mse(*pair, total) for pair in pairs]
        return torch.stack(found).mean()

    def _task(self, student: Tensor, mask: Tensor, valid: Tensor | None) -> dict[str, Callable[[], Tensor]]:
        """The terms that compare the student with the labels."""
        own, total, batch = self.settings, self.total, (student, mask, valid)
        weights = None if self.class_weights is None else self.class_weights.to(student.device)

        def region(soft: torch.nn.Module, pooled: Callable[..., Tensor], *prices: float) -> Tensor:
            return soft(student.float(), mask.long()) if total is None else pooled(*batch, total, *prices)

        def tversky() -> Tensor:
            loss = region(self.soft_tversky, pooled_tversky, own.tversky_alpha, own.tversky_beta)
            return to_the_power(loss, own.tversky_gamma)

        def over_all_pixels() -> Tensor:
            whole = (student, mask) if self.whole is None else (self.whole(student.float()), self.whole(mask))
            return lovasz(*whole, self.ignore_index)

        return {
            "ce": lambda: cross_entropy(*batch, total, weights),
            "dice": lambda: region(self.soft_dice, pooled_dice),
            "focal": lambda: focal(*batch, total, weights, own.focal_gamma, own.focal_alpha),
            "tversky": tversky,
            "jaccard": lambda: region(self.soft_jaccard, pooled_tversky, 1.0, 1.0),
            "lovasz": over_all_pixels,
        }


def _settings(weights: Mapping[str, Any], classes: int) -> LossSettings:
    """The loss's settings, refused in one line."""
    try:
        settings = LossSettings(**weights)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"weights: {f'{where}: ' if where else ''}{message}, but got {dict(weights)}") from error
    if refusal := settings.refusal(classes):
        raise ValueError(refusal)
    if settings.class_weights == "auto":
        raise ValueError(
            "class_weights=auto are taken from the training masks (kd.data.masks.class_balance): give numbers"
        )
    return settings


def _counted(valid_LHW: Tensor | None, content_BHW: Tensor | None, batch: int) -> Tensor | None:
    """The valid pixels of the samples with a mask, and the content of the rest of the batch; None if all count."""
    if valid_LHW is None or len(valid_LHW) == batch:
        return valid_LHW if valid_LHW is not None else content_BHW
    rest = batch - len(valid_LHW)
    others = valid_LHW.new_ones(rest, *valid_LHW.shape[1:]) if content_BHW is None else content_BHW[-rest:]
    return torch.cat([valid_LHW, others])


def _check_shapes(student_BCHW: Tensor, mask_BHW: Tensor, teacher_BCHW: Tensor | None, classes: int) -> None:
    """Refuse shapes that would broadcast to a different loss; there may be fewer masks than samples, at least one."""
    expected = (len(student_BCHW), classes, *student_BCHW.shape[2:])
    batch, _, height, width = expected if len(expected) == 4 else ("B", classes, "H", "W")
    for what, tensor, shape in (
        ("the student's logits", student_BCHW, (batch, classes, height, width)),
        ("the teacher's logits", teacher_BCHW, (batch, classes, height, width)),
        ("the mask", mask_BHW, (min(max(len(mask_BHW), 1), len(student_BCHW)), height, width)),
    ):
        if tensor is None or tuple(tensor.shape) != shape:
            got = None if tensor is None else tuple(tensor.shape)
            raise ValueError(f"{what} must have the shape {shape}, but got {got}")
