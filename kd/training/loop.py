"""The training loop: a generator that yields one `EpochResult` per epoch and does nothing else.

No logging, no files, no callbacks: the caller decides what to do with an epoch, and may stop between two epochs, or at
a `Pause` between two steps. What an epoch needs to know comes from the timeline, a pure function of the epoch; the
order of samples and their views come from the loader, pure functions of (seed, epoch) and (seed, view, index); torch's
own randomness (dropout, stochastic depth) is re-seeded from (seed, step). So only weights, their average if there is
one, and optimiser state are carried from step to step.

Several processes may share each batch (`kd.system.world`): losses, statistics, gradients and random draws are those of
the whole batch in each of them, so that all take the same steps.

Losses and gradients are checked (`kd.training.step_log`) after each step on a CPU, every few steps elsewhere, and
always before a snapshot is handed out.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch

from kd.data.batches.batch import Batch
from kd.data.batches.unlabelled import BatchSize
from kd.errors import UserError
from kd.networks.precision import Precision
from kd.plan.timeline import EpochPlan
from kd.system.world import World
from kd.training.replica import Replica
from kd.training.snapshot import Snapshot
from kd.training.step import Distillation, Stepper, TrainingOptions, apply_plan, step_seed
from kd.training.step_log import StepLog


class Epochs(Protocol):
    """Training batches by the epoch: a `TrainLoader`, or a wrapper around one."""

    @property
    def world(self) -> World:
        """The processes that share each batch."""

    def steps(self) -> int:
        """Batches in an epoch."""

    def batch_size(self) -> BatchSize:
        """Samples in each batch, over all processes."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, without the first `start`."""


@dataclass(frozen=True)
class Pause:
    """A moment between two steps of an epoch, to save a checkpoint or to stop."""

    snapshot: Callable[[], Snapshot]


@dataclass(frozen=True)
class EpochResult:
    """The outcome of one epoch.

    Attributes:
        plan: what the epoch trained with.
        train: mean unweighted terms over the epoch's batches (`loss`, and those that were computed), and the number of
            skipped steps (skipped_steps, overflows: if there can be any).
        val: what `validate` returned for the weights at the epoch's end; empty without a validation.
        seconds: wall time of the epoch's training steps.
        images_per_second: training images, with and without masks, over `seconds`.
        snapshot: copies the state that the next epoch begins with; call it before requesting the next item.
        measured: puts the weights that `val` is of into the student for the length of a block, which is to be over
            before the next item: their average over the steps, if that was chosen, otherwise those that are there.
        waited: how many of the `seconds` went by waiting for batches.
    """

    plan: EpochPlan
    train: dict[str, float]
    val: dict[str, float | None]
    seconds: float
    images_per_second: float
    snapshot: Callable[[], Snapshot]
    measured: Callable[[], AbstractContextManager[None]] = nullcontext
    waited: float = 0.0

    def metrics(self) -> dict[str, float | None]:
        """One flat record, under the names that the run folder and MLflow use.

        Without the temperature if nothing is distilled, and without lr/encoder while the encoder is frozen.
        """
        plan = self.plan
        return {
            "epoch": plan.epoch,
            **({} if plan.temperature is None else {"temperature": plan.temperature}),
            "unfrozen_blocks": plan.unfrozen_blocks,
            "lr/decoder": plan.lr_decoder,
            **({"lr/encoder": plan.lr_encoder} if plan.unfrozen_blocks else {}),
            **{f"train/{name}": value for name, value in self.train.items()},
            **{f"val/{name}": value for name, value in self.val.items()},
            "seconds": self.seconds,
            "seconds_waiting": self.waited,
            "images_per_second": self.images_per_second,
        }


def fit(distillation: Distillation, loader: Epochs, validate: Callable[[], dict[str, float | None]],
        options: TrainingOptions, precision: Precision, start: Snapshot | None = None,
        pause: Callable[[], bool] = lambda: False) -> Iterator[EpochResult | Pause]:  # fmt: skip
    """Train a student along its timeline; yields one result per epoch.

    `validate` is called at the end of the epochs that the options say. Training resumes from `start` if given. `pause`
    is called after every step within an epoch; where it returns True, a `Pause` is yielded. All processes of
    `loader.world` iterate alike, with a loss that sums over them and a `pause` that returns the same in each.

    Raises:
        DivergedError: the loss or the gradient of a step is not finite, or every step of an epoch was skipped.
        RunError: processes hold different weights at the end of an epoch.
        ValueError: `start` belongs to another network.
    """
    student, timeline, world = distillation.student, distillation.timeline, loader.world
    sizes = loader.batch_size() if world.size > 1 else ()
    stepper = Stepper(distillation, options, precision, Replica(distillation.trained, world, *sizes))
    first = start.epoch if start else 0
    if start is not None:
        stepper.restore(start)
    stepper.replica.compare(first)
    for plan in islice(timeline, first, None):
        apply_plan(student, stepper.optimizer, plan)
        student.train()
        stepper.replica.wrap()
        begun = start if start and start.epoch == plan.epoch else None
        log = StepLog(plan.epoch, precision, options.skip_nonfinite, begun.facts["sums"] if begun else None, sum(sizes))
        yield from _epoch(stepper, loader, plan, log, begun.step if begun else 0, pause)
        means, seconds = log.means(stepper.scaler.get_scale()), log.seconds()
        stepper.replica.compare(plan.epoch)
        asked = options.validates(plan.epoch, len(timeline))
        val, measured = stepper.measured(validate) if asked else ({}, nullcontext)
        state = stepper.snapshot(plan.epoch + 1, 0)
        yield EpochResult(plan, means, val, seconds, log.images / seconds, state, measured, log.waited)


def _epoch(
    stepper: Stepper, loader: Epochs, plan: EpochPlan, log: StepLog, first: int, pause: Callable[[], bool]
) -> Iterator[Pause]:
    """Take the steps of an epoch from batch `first` on; yields a `Pause` where `pause` says so."""
    options, batches = stepper.options, loader.epoch(plan.epoch, first)
    for step in range(first, loader.steps(), options.accumulate):
        torch.manual_seed(step_seed(options.seed, plan.epoch, step))
        with log.waiting():
            group = _next(batches, options.accumulate, loader.world)
        group = [batch.to(stepper.precision.device, non_blocking=True) for batch in group]
        stepper.step(step, group, plan.temperature, log)
        if stepper.average:
            stepper.average.update((plan.epoch * -(-loader.steps() // options.accumulate)) + step // options.accumulate)
        done = step + len(group)
        if done < loader.steps() and pause():
            log.check()
            yield Pause(stepper.snapshot(plan.epoch, done, log))


def _next(batches: Iterator[Batch], count: int, world: World) -> list[Batch]:
    """The next `count` batches; if one process cannot read its part, all raise before they wait for each other."""
    found, error = [], None
    try:
        found = list(islice(batches, count))
    except UserError as failed:
        error = failed
    world.agree(error)
    return found
