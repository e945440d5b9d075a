"""What most items train: a pair of random networks, pictures of noise, and batches that lie in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.case import bench_of
from benchmarks.on_gpu.clock import now, wait
from benchmarks.on_gpu.supervise import On
from kd.data import Source
from kd.data.batches.batch import Batch
from kd.data.batches.unlabelled import BatchSize
from kd.distillation.teacher import LiveTeacher, Teacher
from kd.experiment.builders import build_loss, build_network, build_options, build_train_loader
from kd.experiment.context import RunContext
from kd.networks.network import Network
from kd.plan.schedules import Constant
from kd.plan.timeline import Timeline
from kd.plan.unfreeze import All
from kd.settings import TASK_TERMS
from kd.training.batch_norm import measure_batch_norm
from kd.training.loop import EpochResult, fit
from kd.training.step import Distillation

PAIR = ["backbone=b0_from_b3", "backbone.student.weights=null", "backbone.teacher.weights=null"]
SMALL_PAIR = ["backbone=tiny"]


@dataclass(frozen=True, kw_only=True)
class Noise(Source):
    """Coarse random pictures with random masks, for speed alone: any size, any number of classes, made quickly."""

    length: int

    def size(self, split: str) -> int:
        return self.length if split == "train" else 1

    def name(self, split: str, index: int) -> str:
        return f"{split} {index}"

    def read(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.image_size
        coarse = np.random.default_rng(index).integers(0, 256, (height // 16, width // 16, 4), dtype=np.uint8)
        fine = coarse.repeat(16, axis=0).repeat(16, axis=1)
        return np.ascontiguousarray(fine[..., :3]), np.ascontiguousarray(fine[..., 3] % len(self.class_names))

    def fingerprint(self) -> str:
        return f"noise {self.length} {self.classes} {self.image_size}"

    def check(self) -> None:
        """Nothing can be missing."""


def context_of(on: On, side: int, batch: int, images: int, classes: int = 1, *overrides: str) -> RunContext:
    """A configuration over `images` pictures of noise, without augmentation, on the GPU where there is one."""
    context = bench_of([
        f"root={on.shared / 'root'}", *(SMALL_PAIR if on.small else PAIR), "augment=none", "tracking=none",
        f"trainer.device={on.device}", "trainer.workers=0", f"trainer.batch_size={batch}", *overrides,
    ])  # fmt: skip
    noise = Noise(length=images, classes=classes, image_size=(side, side))
    return replace(context, settings=context.settings.model_copy(update={"data": noise}))


def pair(context: RunContext) -> tuple[Network, Network]:
    """A student and a teacher of random weights, with batch-norm statistics measured on the first batches."""
    networks = build_network(context, "student", 0), build_network(context, "teacher", 1)
    for network in networks:
        measure_batch_norm(network, build_train_loader(context, 0), context.precision, seed=0, batches=2)
    return networks


class InMemory:
    """The batches of a context's first epoch, over and over, `steps` to an epoch."""

    def __init__(self, context: RunContext, steps: int) -> None:
        self.batches, self._steps, self.world = list(build_train_loader(context, 0).epoch(0)), steps, context.world

    def steps(self) -> int:
        return self._steps

    def batch_size(self) -> BatchSize:
        return BatchSize(len(self.batches[0]))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, self._steps):
            yield self.batches[(epoch * self._steps + step) % len(self.batches)]


class Marked(InMemory):
    """The same; notes when each batch of the last epoch was asked for, by the device's queue.

    Where it `waits` for the device before each batch, `host_ms` are the milliseconds that the host took to give out
    each step.
    """

    waits = False

    def __init__(self, context: RunContext, steps: int) -> None:
        super().__init__(context, steps)
        self.device = context.precision.device
        self.moments: list[Any] = []
        self.host_ms: list[float] = []

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self.moments, self.host_ms, cpu = [], [], torch.device("cpu")
        begun = None
        for batch in super().epoch(epoch, start):
            if self.waits:
                self.host_ms += [] if begun is None else [1000 * (now(cpu) - begun)]
                wait(self.device)
            self.moments.append(now(self.device))
            begun = now(cpu)
            yield batch


def training(context: RunContext, student: Network, teacher: Teacher | None, batches: Any) -> Iterator[EpochResult]:
    """An endless training at temperature 4 with all blocks unfrozen; without a teacher, of the student alone."""
    settings = context.settings
    weights = settings.loss.model_dump(include=None if teacher else {*TASK_TERMS.values()})
    plan = Timeline(Constant(4.0), All(), settings.optimizer.rates, 10**6, len(student.partition.blocks))
    options = build_options(context, settings.seed)
    return fit(
        Distillation(student, build_loss(context, weights), plan, teacher), batches, dict, options, context.precision
    )


def live(network: Network, context: RunContext) -> LiveTeacher:
    """A teacher that answers as in a run of this context: compiled, if it says so."""
    return LiveTeacher(network, context.precision, backend=context.settings.trainer.backend)


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Whether products and convolutions in fp32 may round their inputs to 10 bits."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in switches]
    for each in switches:
        each.allow_tf32 = wanted
    try:
        yield
    finally:
        for each, was in zip(switches, before, strict=True):
            each.allow_tf32 = was


@contextmanager
def deterministic() -> Iterator[None]:
    """As trainer.deterministic=true has it."""
    from kd.networks.precision import repeat_bit_for_bit

    repeat_bit_for_bit(True)
    try:
        yield
    finally:
        repeat_bit_for_bit(False)


def relative(value: float, reference: float) -> float:
    return abs(value - reference) / max(abs(reference), 1e-30)


def apart(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """The distance of two networks' parameters over the length of the second's."""
    pairs = [(a.detach().double().cpu(), b.detach().double().cpu())
             for a, b in zip(one.parameters(), other.parameters(), strict=True)]  # fmt: skip
    square = sum((a - b).square().sum().item() for a, b in pairs)
    return (square / sum(b.square().sum().item() for _, b in pairs)) ** 0.5
