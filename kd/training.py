"""The training loop: a generator that yields one `EpochResult` per epoch and does nothing else.

No logging, no files, no callbacks: whoever iterates decides what to do with an epoch, and may stop between two. What
an epoch needs to know comes from the timeline, a pure function of the epoch; the order of samples and their views come
from the loader, pure functions of (seed, epoch) and (seed, view, index); torch's own randomness (dropout, stochastic
depth) is re-seeded from (seed, step). So nothing is carried from step to step but weights and optimiser state.

All optimiser groups exist from the first step. A block that has not opened has gradients of None, which AdamW passes
by: no moments build up, no weight decay pulls, and the block starts with empty optimiser state when it opens.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import mul

import torch
from torch import Tensor

from kd.data.keys import key
from kd.data.loading import Batch, TrainLoader
from kd.errors import UserError
from kd.losses import DistillationLoss
from kd.network import Network
from kd.precision import Precision
from kd.teacher import Teacher
from kd.timeline import EpochPlan, Timeline


class DivergedError(UserError):
    """The training loss is no longer a number."""


@dataclass(frozen=True)
class Recipe:
    """How weights are updated: the optimiser's settings and the seed of torch's own randomness."""

    seed: int
    weight_decay: float
    betas: tuple[float, float]
    clip_norm: float | None
    accumulate: int = 1


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did.

    Attributes:
        plan: what it trained with.
        train: mean unweighted terms over the epoch's batches (loss, kl, mse, ce, dice: those that were computed).
        val: what `validate` returned for the weights at the epoch's end.
        seconds: wall time of the epoch's training steps.
        images_per_second: training images over `seconds`.
    """

    plan: EpochPlan
    train: dict[str, float]
    val: dict[str, float | None]
    seconds: float
    images_per_second: float

    def metrics(self) -> dict[str, float | None]:
        """One flat record, under the names that the run folder and MLflow use."""
        return {
            "epoch": self.plan.epoch,
            "temperature": self.plan.temperature,
            "unfrozen_blocks": self.plan.unfrozen_blocks,
            "lr/decoder": self.plan.lr_decoder,
            "lr/encoder": self.plan.lr_encoder,
            **{f"train/{name}": value for name, value in self.train.items()},
            **{f"val/{name}": value for name, value in self.val.items()},
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }


def optimizer_for(network: Network, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with one group for the decoder and one per encoder block, deepest first; rates are set by the plan.

    What the encoder never runs is in no group. Reference: Loshchilov and Hutter, arXiv 1711.05101.
    """
    blocks = range(len(network.partition.blocks))
    groups = [network.decoder_parameters(), *(network.block_parameters(depth) for depth in blocks)]
    return torch.optim.AdamW(
        [{"params": group} for group in groups],
        lr=0.0,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def apply_plan(network: Network, optimizer: torch.optim.Optimizer, plan: EpochPlan) -> None:
    """Open the blocks of an epoch and set its learning rates, as plain floats."""
    network.open(plan.unfrozen_blocks)
    for group, rate in zip(optimizer.param_groups, (plan.lr_decoder, *plan.lr_blocks), strict=True):
        group["lr"] = float(rate)


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of torch's randomness in one step, 63 bits that stand for (seed, epoch, step)."""
    return key("step", seed, epoch, step) % 2**63


def fit(
    student: Network,
    teacher: Teacher | None,
    loss: DistillationLoss,
    timeline: Timeline,
    train: TrainLoader,
    validate: Callable[[], dict[str, float | None]],
    recipe: Recipe,
    precision: Precision,
) -> Iterator[EpochResult]:
    """Train `student` along `timeline`, one epoch per item.

    `teacher` is None where no term of the loss looks at one; `validate` is called at the end of each epoch.

    Raises:
        DivergedError: an epoch's mean training loss is not finite.
    """
    optimizer, scaler = optimizer_for(student, recipe), precision.scaler()
    for plan in timeline:
        apply_plan(student, optimizer, plan)
        student.train()
        started, sums = time.perf_counter(), _Sums()
        batches = train.epoch(plan.epoch)
        for step in range(0, train.steps(), recipe.accumulate):
            torch.manual_seed(step_seed(recipe.seed, plan.epoch, step))
            group = list(islice(batches, recipe.accumulate))
            for batch in group:
                batch = batch.to(precision.device, non_blocking=True)
                _backward(student, teacher, loss, batch, plan, precision, scaler, len(group), sums)
            _update(student, optimizer, scaler, recipe.clip_norm)
        terms, seconds = sums.means(), time.perf_counter() - started
        if not math.isfinite(terms["loss"]):
            raise DivergedError(
                f"the training loss of epoch {plan.epoch} is {terms['loss']}; lower optimizer.lr, or train in "
                f"trainer.precision=fp32 (it was {precision.name})"
            )
        yield EpochResult(plan, terms, validate(), seconds, sums.images / seconds)


def _backward(student: Network, teacher: Teacher | None, loss: DistillationLoss, batch: Batch, plan: EpochPlan,
              precision: Precision, scaler: torch.amp.GradScaler, share: int, sums: "_Sums") -> None:  # fmt: skip
    """One batch's gradients, added to those that are there, with a weight of 1 / share."""
    answers = None if teacher is None else teacher(batch)
    with precision.autocast():
        logits = student(batch.images)
    terms = loss(logits, batch.masks, answers, plan.temperature)
    scaler.scale(terms.loss / share).backward()
    sums.add(terms.scalars(), len(batch))


def _update(
    student: Network, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip_norm: float | None
) -> None:
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(student.parameters(), clip_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


@dataclass
class _Sums:
    """Means over an epoch, weighted by batch size; values stay on the device until the epoch is over."""

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(self.sizes)

    def add(self, terms: dict[str, Tensor], images: int) -> None:
        self.sizes.append(images)
        for name, value in terms.items():
            self.values.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        return {
            name: math.fsum(map(mul, torch.stack(values).tolist(), self.sizes)) / self.images
            for name, values in self.values.items()
        }


def measure_batch_norm(
    network: Network, train: TrainLoader, precision: Precision, seed: int, batches: int = 32
) -> None:
    """Measure every batch-norm statistic on the first training batches, all blocks open; weights stay as they are.

    An encoder of random weights that is closed from the start would otherwise normalise with mean 0 and variance 1,
    which its activations do not have, and hand the decoder noise.
    """
    torch.manual_seed(step_seed(seed, -1, 0))
    network.open(len(network.partition.blocks))
    with precision.autocast():
        images = (batch.to(precision.device).images for batch in islice(train.epoch(0), batches))
        torch.optim.swa_utils.update_bn(images, network)
