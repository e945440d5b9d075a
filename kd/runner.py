"""One network trained to its end: what happens around `fit`, the same for a teacher and for a student.

Epoch by epoch: the run folder first (`kd.course`), then the display, then the mirror. The best epoch is chosen on
validation alone; its weights are on disk before the next epoch begins.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from kd import models
from kd.answers import Answers
from kd.close_look import CloseLook
from kd.console import Display, Watched
from kd.course import Course, Onlooker, best_of
from kd.data import Source
from kd.data.cache import Samples, kept
from kd.data.loading import EvalLoader, TrainLoader
from kd.data.views import Augmentation
from kd.errors import ConfigError
from kd.evaluation import Evaluation, evaluate, latency_ms, macs
from kd.files import write_json
from kd.losses import DistillationLoss
from kd.network import Network, Segmenter
from kd.precision import Precision, choose_device, compiled, hold_memory, repeat_bit_for_bit
from kd.run_folder import RunFolder
from kd.settings import Settings
from kd.snapshot import Snapshot
from kd.steps import DivergedError
from kd.stopping import Stop
from kd.teacher import CachedTeacher, Teacher
from kd.timeline import Timeline
from kd.tracking import NullRun
from kd.training import EpochResult, Pause, Recipe, fit, measure_batch_norm
from kd.world import SOLO, World


@dataclass(frozen=True)
class Bench:
    """What teacher and student share: the data and its views, the device, the batch, the processes at work on it."""

    settings: Settings
    transforms: Sequence[Any]
    precision: Precision
    workers: int
    stop: Stop = field(default_factory=Stop)
    loaders: dict[str, EvalLoader] = field(default_factory=dict)  # started once, kept for every epoch
    world: World = SOLO

    @classmethod
    def of(
        cls, settings: Settings, transforms: Sequence[Any], stop: Stop | None = None, world: World = SOLO
    ) -> "Bench":
        """What a run's settings ask for; `stop` is who hears that the run should end.

        Raises:
            ConfigError: the device is not there, or a batch has no sample for some of the processes.
        """
        _check_shares(settings, world)
        device = choose_device(settings.trainer.device, world)
        repeat_bit_for_bit(settings.trainer.deterministic)
        if device.type == "cpu":
            hold_memory()
        workers = settings.trainer.workers
        if isinstance(workers, str):  # auto: on a CPU the cores are busy training
            cores = max(1, (os.cpu_count() or 1) // world.local_size)
            workers = min(8, cores) if device.type == "cuda" else 0
        precision = Precision(device, settings.trainer.precision, settings.trainer.channels_last)
        return cls(settings, transforms, precision, workers, stop or Stop(), world=world)

    def alone(self) -> "Bench":
        """The same for this process without the others."""
        return replace(self, world=SOLO, loaders={})

    @property
    def data(self) -> Source:
        return self.settings.data

    @cached_property
    def samples(self) -> Samples:
        """The data, decoded once where there is room."""
        return kept(self.data, self.settings.root / "runs" / "cache" / "data")

    def train_loader(self, seed: int, answers: Answers | None = None) -> TrainLoader:
        augmentation = Augmentation(self.transforms, seed, self.data.ignore_index)
        size = self.settings.trainer.batch_size
        return TrainLoader(
            self.samples, augmentation, size, seed, self.workers, self._pin, self.world, self.views, answers
        )

    @property
    def views(self) -> int | None:
        """How many views of a sample there are; without augmentation they are all the same."""
        return self.settings.augment.views if self.transforms else 1

    def loss(self, weights: Mapping[str, float]) -> DistillationLoss:
        """The loss of these weights over whole batches."""
        total = None if self.world.size == 1 else self.world.total
        return DistillationLoss(weights, self.data.classes, self.data.ignore_index, total)

    def evaluate(
        self,
        network: Segmenter,
        split: str,
        reference: Sequence[Tensor] | None = None,
        keep_labels: bool = False,
        look: CloseLook | None = None,
    ) -> Evaluation:
        if split not in self.loaders:
            self.loaders[split] = EvalLoader(
                self.samples, split, self.settings.trainer.batch_size, self.workers, self._pin, self.world
            )
        loader, void = self.loaders[split], self.data.ignore_index
        return evaluate(network, loader, self.precision, void, reference, keep_labels, self.world, look)

    @property
    def _pin(self) -> bool:
        return self.precision.device.type == "cuda"

    def recipe(self, seed: int) -> Recipe:
        optimizer, trainer = self.settings.optimizer, self.settings.trainer
        return Recipe(
            seed, optimizer.weight_decay, optimizer.betas, optimizer.clip_norm, trainer.accumulate,
            skip_nonfinite=trainer.nonfinite == "skip", validate_every=trainer.validate_every,
        )  # fmt: skip

    def look(self, baseline_HW: Tensor | None = None, reference: Sequence[Tensor] | None = None) -> CloseLook:
        """A closer look that can be taken at one split."""
        labels, void = len(self.data.class_names), self.data.ignore_index
        return CloseLook(labels, void, self.precision.device, baseline_HW, reference)

    def build(self, who: str, seed: int) -> Network:
        """The student or the teacher of the backbone, its random parts drawn from `seed`, on the device."""
        torch.manual_seed(seed)
        network = models.build(
            getattr(self.settings.backbone, who), self.data.classes, self.data.class_names, f"backbone.{who}"
        )
        network = self.precision.place(network)
        return compiled(network) if self.settings.trainer.compile else network


def _check_shares(settings: Settings, world: World) -> None:
    """Refuse a batch that cannot be shared."""
    batch, samples = settings.trainer.batch_size, settings.data.size("train")
    if min(batch, samples) < world.size:
        raise ConfigError(
            f"trainer.batch_size={batch} (of {samples} training images) is shared by {world.size} processes, and is "
            "too small to give each an image; raise it, or start fewer processes (--nproc-per-node)",
            page="gpus",
        )


@dataclass(frozen=True)
class Lesson:
    """One training: who learns, from whom, by which plan, with which loss.

    `reference` is the teacher's labels over the validation split, for the agreement with it; `label` is put before what
    is shown of the training, where several share a terminal.
    """

    who: str
    network: Network
    timeline: Timeline
    loss: DistillationLoss
    seed: int
    objective: str = "val/miou"
    teacher: Teacher | None = None
    reference: Sequence[Tensor] | None = None
    label: str = ""


#: Told the best objective so far, the epochs trained and the epochs planned; says whether that is enough.
Judge = Callable[[float | None, int, int], bool]


@overload
def train(lesson: Lesson, bench: Bench, folder: RunFolder, mirror: NullRun, judge: Judge = ...) -> dict[str, Any]: ...


@overload
def train(lesson: Lesson, bench: Bench, folder: None, mirror: NullRun) -> None: ...


def train(
    lesson: Lesson, bench: Bench, folder: RunFolder | None, mirror: NullRun, judge: Judge = lambda *_: False
) -> dict[str, Any] | None:
    """Train a network to its end, or to where the judge stops it, and return the record of its best epoch.

    Writes metrics.jsonl, <who>.safetensors and checkpoints; goes on from a checkpoint that is there. Of several
    processes the first does, and decides; the others call this without a folder, train along, and are given no record.

    Raises:
        DivergedError: a loss or a gradient is not finite; nonfinite.json has the details.
        Interrupted: somebody asked for it; the checkpoint has everything up to the last step.
        RunError: there are checkpoints, but none to go on from.
    """
    facts, minutes = {"image_size": list(bench.data.image_size)}, bench.settings.trainer.checkpoint_minutes
    world = bench.world
    course: Course | Onlooker = Onlooker()
    if folder is not None:
        course = Course(lesson.who, lesson.network, folder, lesson.objective, facts, minutes)
    start = world.broadcast(course.start)
    answers = lesson.teacher.answers if isinstance(lesson.teacher, CachedTeacher) else None
    loader, epochs, enough = bench.train_loader(lesson.seed, answers), len(lesson.timeline), False
    if start is None and _enters_closed(lesson):
        measure_batch_norm(lesson.network, loader, bench.precision, lesson.seed, world=world)
    for past in range(len(course.records)):  # which the judge may not have heard of
        enough = judge(
            (best_of(course.records[: past + 1], lesson.objective) or {}).get(lesson.objective), past + 1, epochs
        )

    def pause() -> bool:
        return world.any(bench.stop.asked or course.due())

    with (
        bench.stop.later(),
        Display(f"{lesson.label}{lesson.who}", epochs, loader.steps(), lesson.objective) as display,
    ):
        epochs_left = _epochs(lesson, bench, Watched(loader, display), folder, pause, start)
        for item in () if world.broadcast(enough) else epochs_left:
            if isinstance(course, Course) and isinstance(item, EpochResult):
                record = course.over(item)
                display.epoch(record, course.best is record and lesson.objective in record)
                mirror.refresh()
                enough = judge((course.best or record).get(lesson.objective), record["epoch"] + 1, epochs)
            elif isinstance(course, Course):
                course.save(item.snapshot())
            if world.broadcast(enough):
                break
            bench.stop.now(world.highest)
    bench.stop.now(world.highest)
    return course.best


def _enters_closed(lesson: Lesson) -> bool:
    """Whether encoder blocks of random weights are closed from the start."""
    return lesson.network.settings.weights is None and lesson.timeline[0].unfrozen_blocks < lesson.timeline.blocks


def _epochs(lesson: Lesson, bench: Bench, loader: Watched, folder: RunFolder | None, pause: Callable[[], bool],
            start: Snapshot | None) -> Iterator[EpochResult | Pause]:  # fmt: skip
    def validate() -> dict[str, float | None]:
        found = bench.evaluate(lesson.network, "val", lesson.reference)
        return found.metrics(lesson.network.class_names)

    try:
        yield from fit(
            lesson.network,
            lesson.teacher,
            lesson.loss,
            lesson.timeline,
            loader,
            validate,
            bench.recipe(lesson.seed),
            bench.precision,
            start=start,
            pause=pause,
            world=bench.world,
        )
    except DivergedError as error:
        indices = chain.from_iterable(bench.world.gather(error.indices))  # it was raised in every process
        names = [bench.data.name("train", index) for index in indices]
        where = {"epoch": error.epoch, "step": error.step, "samples": names}
        if folder is not None:
            write_json(folder / "nonfinite.json", {**where, **error.values})
        error.add_samples(names)
        raise


def figures(
    network: Segmenter, bench: Bench, file: Path, looks: Mapping[str, CloseLook] | None = None
) -> tuple[dict[str, Any], list[Tensor]]:
    """What a network is and how good it is: size, speed, and its metrics on validation and (where there is one) test.

    Also returns its labels over the validation split; `looks` are shown the predictions of their split. Several
    processes share the work; the first one takes the time.
    """
    looks = looks or {}
    world, evaluation = bench.world, bench.evaluate(network, "val", keep_labels=True, look=looks.get("val"))
    result = {
        "parameters": network.count_parameters(),
        "macs": macs(network, bench.data.image_size),
        "file_bytes": file.stat().st_size,
        "latency_ms": world.broadcast(
            latency_ms(network, bench.data.image_size, bench.precision) if world.is_main else None
        ),
        **{f"val/{name}": value for name, value in evaluation.metrics(network.class_names).items()},
    }
    if bench.data.size("test"):
        test = bench.evaluate(network, "test", look=looks.get("test")).metrics(network.class_names)
        result |= {f"test/{name}": value for name, value in test.items()}
    return result, evaluation.labels
