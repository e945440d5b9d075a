"""One optimiser step: forward passes of student and teacher, the loss, its gradients, the update.

All optimiser groups exist from the first step. A frozen block's gradients are None, so the optimiser skips it: no
moments build up, no weight decay applies, and the block starts with empty optimiser state when it is unfrozen.

A step whose loss or gradient is not finite changes no weight: the fused optimiser reads a flag on the device, so the
host does not wait.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd.data.batches.batch import Batch
from kd.data.random_streams import key
from kd.distillation.features import Learner
from kd.distillation.losses import DistillationLoss
from kd.distillation.teacher import Teacher
from kd.networks.network import Network
from kd.networks.precision import Precision
from kd.plan.timeline import EpochPlan, Timeline
from kd.training.average import Average, Averaging, Metrics
from kd.training.replica import Replica
from kd.training.snapshot import Snapshot, restore, take
from kd.training.step_log import StepLog


@dataclass(frozen=True)
class Distillation:
    """A student, the loss and the plan that it trains with, and its teacher if a term of the loss needs one.

    Where a term compares features, the `learner` is the student with its projections.
    """

    student: Network
    loss: DistillationLoss
    timeline: Timeline
    teacher: Teacher | None = None
    learner: Learner | None = None

    @property
    def trained(self) -> Network | Learner:
        """What the optimiser trains: the student, with its projections if it has any."""
        return self.student if self.learner is None else self.learner


@dataclass(frozen=True)
class TrainingOptions:
    """The optimiser's settings and the seed of torch's own randomness.

    Attributes:
        betas: of AdamW.
        algorithm: adamw or sgd; momentum and nesterov are SGD's.
        averaging: how the weights are averaged over the steps; None: they are not.
        clip_norm: largest norm of a step's gradient; None for no clipping.
        accumulate: batches per step.
        skip_nonfinite: skip and count steps whose loss or gradient is not finite, instead of ending the training.
        validate_every: epochs from one validation to the next.
    """

    seed: int
    weight_decay: float
    betas: tuple[float, float]
    clip_norm: float | None
    accumulate: int = 1
    skip_nonfinite: bool = False
    validate_every: int = 1
    algorithm: str = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    averaging: Averaging | None = None

    def validates(self, epoch: int, epochs: int) -> bool:
        """Whether an epoch ends with a validation; the last one always does."""
        return (epoch + 1) % self.validate_every == 0 or epoch + 1 == epochs


def optimizer_for(network: Network | Learner, options: TrainingOptions) -> torch.optim.Optimizer:
    """AdamW or SGD with one group for the decoder and one per encoder block, deepest first; the plan sets their rates.

    Parameters that the encoder never uses are in no group. Reference: Loshchilov and Hutter, arXiv 1711.05101 (AdamW);
    Sutskever et al., "On the importance of initialization and momentum", ICML 2013 (SGD, as torch has it).
    """
    if options.algorithm == "sgd":
        sgd = torch.optim.SGD(
            network.blocks.groups(network),
            lr=0.0,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
            fused=True,
        )
        sgd.register_step_pre_hook(_start_momentum)
        return sgd
    return torch.optim.AdamW(
        network.blocks.groups(network),
        lr=0.0,
        betas=options.betas,
        weight_decay=options.weight_decay,
        fused=True,
    )


def _start_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Give each parameter that takes its first step a momentum of 0, which makes that step what it is without any.

    torch's fused SGD would allocate it without a value, and keep that if the first step is skipped (torch 2.15).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


def apply_plan(network: Network, optimizer: torch.optim.Optimizer, plan: EpochPlan) -> None:
    """Unfreeze an epoch's blocks and set its learning rates, as plain floats."""
    network.unfreeze(plan.unfrozen_blocks)
    for group, rate in zip(optimizer.param_groups, plan.rates, strict=True):
        group["lr"] = float(rate)


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of torch's randomness in one step: a 63-bit hash of (seed, epoch, step)."""
    return key("step", seed, epoch, step) % 2**63


class Stepper:
    """Takes the steps of a training; owns its optimiser and its loss scaler."""

    def __init__(
        self, distillation: Distillation, options: TrainingOptions, precision: Precision, replica: Replica
    ) -> None:
        self.distillation, self.options, self.precision = distillation, options, precision
        self.replica, self.trained = replica, distillation.trained
        self.optimizer, self.scaler = optimizer_for(self.trained, options), precision.scaler()
        self.average = Average(distillation.student, options.averaging) if options.averaging else None

    def step(self, number: int, batches: Sequence[Batch], temperature: float | None, log: StepLog) -> None:
        """Update the weights once, by the mean gradient of `batches`, and log what came of it.

        A skipped step leaves the network's buffers (batch-norm statistics) unchanged, too.
        """
        saved = [buffer.clone() for buffer in self.trained.buffers()] if self.options.skip_nonfinite else []
        terms = []
        for batch in batches:
            with self.replica.keeping_gradients(batch is not batches[-1]):
                terms.append(self._backward(batch, temperature, len(batches)))
        norm = self._update(terms)
        if not log.record(number, batches, terms, norm):
            for buffer, before in zip(self.trained.buffers(), saved, strict=True):
                buffer.copy_(before)

    def _backward(self, batch: Batch, temperature: float | None, count: int) -> dict[str, Tensor]:
        """Add 1 / `count` of a batch's gradients to those that are there; returns the terms of its loss."""
        teacher = self.distillation.teacher
        taught, *taught_features = (None,) if teacher is None else teacher(batch)
        with self.precision.autocast():
            logits, *features = self.replica(batch.all_images())
        pairs = list(zip(features, taught_features, strict=True))
        terms = self.distillation.loss(logits, batch.masks, taught, temperature, pairs, batch.all_content())
        self.scaler.scale(terms.loss / count).backward()
        return terms.scalars()

    def _update(self, terms: Sequence[dict[str, Tensor]]) -> Tensor:
        """Clip and step, without effect if loss or gradient is not finite; returns the gradient's norm."""
        self.scaler.unscale_(self.optimizer)
        trained = [parameter for parameter in self.trained.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
        if self.options.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(trained, self.options.clip_norm, norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            finite = torch.stack([norm, *(each["loss"] for each in terms)]).isfinite().all()
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # the flag that loss scaling sets, read by torch's fused steps
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def snapshot(self, epoch: int, step: int, log: StepLog | None = None) -> Callable[[], Snapshot]:
        """A function that copies the state, to resume at `step` of `epoch`; `log` is that epoch's so far."""
        facts = {"epoch": epoch, "step": step, "sums": log.state() if log else None}
        average = self.average.state() if self.average else {}
        return lambda: take(self.trained, self.optimizer, self.scaler, facts, average)

    def restore(self, snapshot: Snapshot) -> None:
        """Take over the state of a snapshot; raises ValueError if it belongs to another network."""
        restore(snapshot, self.trained, self.optimizer, self.scaler)
        if self.average:
            self.average.restore(snapshot.tensors)

    def measured(self, validate: Callable[[], Metrics]) -> tuple[Metrics, Callable[[], AbstractContextManager[None]]]:
        """Validation metrics, and what puts the weights that they are of into the student for the length of a block."""
        if self.average is None:
            return validate(), nullcontext
        metrics, takes_average = self.average.measured(validate)
        return metrics, self.average.in_place if takes_average else nullcontext
