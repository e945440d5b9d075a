"""The training loop: a generator that yields one `EpochResult` per epoch and does nothing else.

No logging, no files, no callbacks: whoever iterates decides what to do with an epoch, and may stop between two, or at a
`Pause` between two steps, which it can ask for. What an epoch needs to know comes from the timeline, a pure function of
the epoch; the order of samples and their views come from the loader, pure functions of (seed, epoch) and (seed, view,
index); torch's own randomness (dropout, stochastic depth) is re-seeded from (seed, step). So nothing is carried from
step to step but weights and optimiser state.

All optimiser groups exist from the first step. A block that has not opened has gradients of None, which AdamW passes
by: no moments build up, no weight decay pulls, and the block starts with empty optimiser state when it opens.

Several processes may share each batch (`kd.world`): losses, statistics, gradients and draws are those of the whole
batch in each of them, so that they take the same steps and agree on everything that follows from them.

A step whose loss or gradient is not finite changes no weight: the fused optimiser is told on the device, without a
wait. What became of the steps is read (`kd.steps`) after each on a CPU, now and then elsewhere, and always before
anybody is given a snapshot.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from kd.data.loading import Batch, TrainLoader
from kd.data.random_streams import key
from kd.distillation.losses import DistillationLoss
from kd.distillation.teacher import Teacher
from kd.errors import UserError
from kd.networks.network import Network
from kd.networks.precision import Precision
from kd.plan.timeline import EpochPlan, Timeline
from kd.system.world import SOLO, World
from kd.training.replica import Replica
from kd.training.snapshot import Snapshot, restore, take
from kd.training.step_log import Steps
from kd.training.whole_batch import WholeBatch


class Epochs(Protocol):
    """Training batches by the epoch: a `TrainLoader`, or whoever stands before one."""

    def steps(self) -> int: ...

    def batch_size(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Recipe:
    """How weights are updated: the optimiser's settings and the seed of torch's own randomness.

    `skip_nonfinite`: a step whose loss or gradient is not finite is left out and counted, instead of ending the
    training. `validate_every`: so many epochs lie between two looks at the validation split.
    """

    seed: int
    weight_decay: float
    betas: tuple[float, float]
    clip_norm: float | None
    accumulate: int = 1
    skip_nonfinite: bool = False
    validate_every: int = 1

    def validates(self, epoch: int, epochs: int) -> bool:
        """Whether an epoch ends with a look at the validation split; the last always does."""
        return (epoch + 1) % self.validate_every == 0 or epoch + 1 == epochs


@dataclass(frozen=True)
class Pause:
    """Between two steps of an epoch, because somebody asked for it: a moment to save, and to stop or go on."""

    snapshot: Callable[[], Snapshot]


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did.

    Attributes:
        plan: what it trained with.
        train: mean unweighted terms over the epoch's batches (loss, kl, mse, ce, dice: those that were computed), and
            how many steps were left out (skipped_steps, overflows: where that can happen).
        val: what `validate` returned for the weights at the epoch's end; empty where it was not asked.
        seconds: wall time of the epoch's training steps.
        images_per_second: training images over `seconds`.
        snapshot: takes the state that the next epoch begins with; to be called before the next item is asked for.
    """

    plan: EpochPlan
    train: dict[str, float]
    val: dict[str, float | None]
    seconds: float
    images_per_second: float
    snapshot: Callable[[], Snapshot]

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
    return torch.optim.AdamW(
        network.blocks.groups(network),
        lr=0.0,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def apply_plan(network: Network, optimizer: torch.optim.Optimizer, plan: EpochPlan) -> None:
    """Open the blocks of an epoch and set its learning rates, as plain floats."""
    network.unfreeze(plan.unfrozen_blocks)
    for group, rate in zip(optimizer.param_groups, plan.rates, strict=True):
        group["lr"] = float(rate)


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of torch's randomness in one step, 63 bits that stand for (seed, epoch, step)."""
    return key("step", seed, epoch, step) % 2**63


def fit(
    student: Network,
    teacher: Teacher | None,
    loss: DistillationLoss,
    timeline: Timeline,
    train: Epochs,
    validate: Callable[[], dict[str, float | None]],
    recipe: Recipe,
    precision: Precision,
    start: Snapshot | None = None,
    pause: Callable[[], bool] = lambda: False,
    world: World = SOLO,
) -> Iterator[EpochResult | Pause]:
    """Train `student` along `timeline`, one result per epoch.

    `teacher` is None where no term of the loss looks at one; `validate` is called at the end of the epochs that the
    recipe says. A training that was cut off goes on from `start`. `pause` is asked after every step within an epoch;
    where it says so, a `Pause` is yielded. All processes of a `world` iterate alike, over a loader and a loss that know
    of it, with a `pause` that says the same to each.

    Raises:
        DivergedError: the loss or the gradient of a step is not finite, or no step of an epoch could be taken.
        RunError: processes hold different weights at the end of an epoch.
        ValueError: `start` is of another network.
    """
    optimizer, scaler = optimizer_for(student, recipe), precision.scaler()
    if start is not None:
        restore(start, student, optimizer, scaler)
    batch_size = train.batch_size() if world.size > 1 else None
    replica = Replica(student, world, batch_size or 0)
    replica.compare(start.epoch if start else 0)

    def snapshot(epoch: int, step: int, steps: Steps | None = None) -> Callable[[], Snapshot]:
        sums = steps.plain() if steps else None
        return lambda: take(student, optimizer, scaler, {"epoch": epoch, "step": step, "sums": sums})

    for plan in islice(timeline, start.epoch if start else 0, None):
        apply_plan(student, optimizer, plan)
        student.train()
        replica.wrap()
        begun = start if start and start.epoch == plan.epoch else None
        first = begun.step if begun else 0
        sums = begun.facts["sums"] if begun else None
        steps = Steps(plan.epoch, precision, recipe.skip_nonfinite, sums, batch_size)
        batches = train.epoch(plan.epoch, first)
        for step in range(first, train.steps(), recipe.accumulate):
            torch.manual_seed(step_seed(recipe.seed, plan.epoch, step))
            group = [
                batch.to(precision.device, non_blocking=True) for batch in _next(batches, recipe.accumulate, world)
            ]
            held = [buffer.clone() for buffer in student.buffers()] if recipe.skip_nonfinite else []
            terms = []
            for batch in group:
                with replica.keeping_gradients(batch is not group[-1]):
                    terms.append(_backward(replica, teacher, loss, batch, plan, precision, scaler, len(group)))
            norm = _update(student, optimizer, scaler, recipe.clip_norm, terms)
            if not steps.taken(step, group, terms, norm):
                for buffer, before in zip(student.buffers(), held, strict=True):
                    buffer.copy_(before)
            done = step + len(group)
            if done < train.steps() and pause():
                steps.check()
                yield Pause(snapshot(plan.epoch, done, steps))
        means, seconds = steps.means(scaler.get_scale()), steps.seconds()
        speed = steps.images / seconds
        replica.compare(plan.epoch)
        val = validate() if recipe.validates(plan.epoch, len(timeline)) else {}
        yield EpochResult(plan, means, val, seconds, speed, snapshot(plan.epoch + 1, 0))


def _next(batches: Iterator[Batch], count: int, world: World) -> list[Batch]:
    """The next batches; where one process cannot read its part, all end before they wait for it in a sum."""
    found, error = [], None
    try:
        found = list(islice(batches, count))
    except UserError as failed:
        error = failed
    world.agree(error)
    return found


def _backward(student: Replica, teacher: Teacher | None, loss: DistillationLoss, batch: Batch, plan: EpochPlan,
              precision: Precision, scaler: torch.amp.GradScaler, share: int) -> dict[str, Tensor]:  # fmt: skip
    """One batch's gradients, added to those that are there, with a weight of 1 / share; returns its terms."""
    answers = None if teacher is None else teacher(batch)
    with precision.autocast():
        logits = student(batch.images)
    terms = loss(logits, batch.masks, answers, plan.temperature)
    scaler.scale(terms.loss / share).backward()
    return terms.scalars()


def _update(student: Network, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip_norm: float | None,
            terms: Sequence[dict[str, Tensor]]) -> Tensor:  # fmt: skip
    """One step of the optimiser, without effect where loss or gradient is not finite; returns the gradient's norm."""
    scaler.unscale_(optimizer)
    opened = [parameter for parameter in student.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in opened if parameter.grad is not None])
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(opened, clip_norm, norm)
    if scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    else:
        finite = torch.stack([norm, *(each["loss"] for each in terms)]).isfinite().all()
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # torch's fused steps look for it, as its own loss scaling tells them
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def measure_batch_norm(
    network: Network, train: TrainLoader, precision: Precision, seed: int, batches: int = 32, world: World = SOLO
) -> None:
    """Measure every batch-norm statistic on the first training batches, all blocks open; weights stay as they are.

    An encoder of random weights that is closed from the start would otherwise normalise with mean 0 and variance 1,
    which its activations do not have, and hand the decoder noise.
    """
    torch.manual_seed(step_seed(seed, -1, 0))
    network.unfreeze(len(network.partition.blocks))
    with precision.autocast(), nullcontext() if world.size == 1 else WholeBatch(world, train.batch_size()):
        images = (batch.to(precision.device).images for batch in islice(train.epoch(0), batches))
        torch.optim.swa_utils.update_bn(images, network)
